"""What a sweep consists of: its axes, and the folder, settings and commands of every job."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override

from aurora.config import CONFIG_KEYS, MODEL_KEYS, known_yamls, parse_override
from aurora.errors import AuroraError, suggest
from aurora.files import read_json, replacing, write_json
from aurora.registry import SLOTS

PLAN_FILE = "plan.json"
JOBS_FOLDER, TRAINED_FOLDER = "jobs", "trained"
RESULT_FILE = "result.json"
EVAL_PREFIX = "eval."
OWN_KEYS = ("model", "benchmark", "data", "set")
"""Axes that are not keys of the config: options of `aurora eval`, and lists of overrides that change together."""


@dataclass(frozen=True)
class Plan:
    """A sweep as it was asked for. All of it can be written as JSON."""

    axes: Mapping[str, str]  # by key, Hydra's text of the values: "0.1,0.2", "range(3)", "choice(a,b)"
    fixed: Sequence[str] = ()  # overrides of all jobs
    model: str | None = None
    benchmark: str = "blocks"
    data: str = ""
    train: bool = False
    stage: str = "language_video"  # whose model is evaluated after training
    device: str = "cpu"
    threads: int | None = None
    limit: int | None = None
    options: Sequence[str] = ()  # further words of `aurora eval`

    def write(self, folder: Path) -> Path:
        """Writes the plan. AuroraError when the folder holds a sweep that asks for something else."""
        path = folder / PLAN_FILE
        plain = json.loads(json.dumps(asdict(self)))
        if path.is_file():
            before = read_json(path)
            # more values of the same axes go on with what is there
            changed = [key for key in plain if key != "axes" and before.get(key) != plain[key]]
            if changed or set(before.get("axes", {})) != set(self.axes):
                what = ", ".join(changed) or "axes"
                raise AuroraError(f"{folder} holds a sweep with other {what}; choose another --output")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path, folder=False) as partial:
            write_json(partial, plain)
        return path

    def values(self) -> dict[str, list[str]]:
        """By axis, its values in the order in which they were given."""
        parsed = {key: parse_override(f"{key}={text}") for key, text in self.axes.items()}
        return {key: list(override.sweep_string_iterator()) if override.is_sweep_override() else [self.axes[key]]
                for key, override in parsed.items()}

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """The plan of a sweep's folder. AuroraError where there is none."""
        if not (folder / PLAN_FILE).is_file():
            raise AuroraError(f"{folder} holds no {PLAN_FILE}; give the --output of `aurora sweep`")
        return cls(**read_json(folder / PLAN_FILE))


class Evaluated(NamedTuple):
    """What a job gives to `aurora eval`."""

    benchmark: str
    data: str
    model: str | None  # None: the one that the command finds
    overrides: list[str]


@dataclass(frozen=True)
class Job:
    """One point of the grid: a value for every axis."""

    plan: Plan
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its folder: the same for the same point, in whatever sweep of the folder it is."""
        return _digest(self.values)

    def folder(self, output: Path) -> Path:
        """Where predictions and the result are."""
        return output / JOBS_FOLDER / self.name

    def trained(self, output: Path) -> Path | None:
        """The run of its training, which all jobs share that train with the same overrides; None without training."""
        return output / TRAINED_FOLDER / _digest(self._training()) if self.plan.train else None

    def train_words(self, output: Path) -> list[str]:
        """The arguments of `aurora train`."""
        return [*self._training(), f"run={self.trained(output)}"]

    def evaluated(self, output: Path) -> Evaluated:
        """What `aurora eval` is given; the model may be one that is still to be trained."""
        plan, trained = self.plan, self.trained(output)
        given = {"benchmark": plan.benchmark, "data": plan.data, "model": plan.model} | {
            key: _plain(value) for key, value in self.values.items() if key in ("benchmark", "data", "model")}
        model = given["model"] if trained is None else str(trained / plan.stage / "model")
        return Evaluated(str(given["benchmark"]), str(given["data"]), model, self._evaluating())

    def eval_words(self, output: Path) -> list[str]:
        """The arguments of `aurora eval`."""
        plan, what = self.plan, self.evaluated(output)
        words = ["--benchmark", what.benchmark, "--data", what.data, "--output", str(self.folder(output)),
                 "--device", plan.device]
        for option, value in (("--model", what.model), ("--threads", plan.threads), ("--limit", plan.limit)):
            words += [] if value is None else [option, str(value)]
        return [*words, *plan.options, *what.overrides]

    def _training(self) -> list[str]:
        return [word for word in self._overrides() if not word.startswith(EVAL_PREFIX)]

    def _evaluating(self) -> list[str]:
        """All overrides; beside training only those that are meant for evaluation."""
        words = self._overrides()
        if self.plan.train:
            words = [word for word in words if word.startswith(EVAL_PREFIX)]
        return [word.removeprefix(EVAL_PREFIX) for word in words]

    def _overrides(self) -> list[str]:
        words = list(self.plan.fixed)
        for key, value in self.values.items():
            if key == "set":
                words += _members(value)
            elif key not in OWN_KEYS:
                words.append(f"{key}={value}")
        return words


def make_plan(words: Sequence[str], **options: Any) -> tuple[Plan, list[str]]:
    """The plan that overrides in Hydra's multirun syntax describe, and those that are for Hydra itself.

    AuroraError for a key that is not there, an axis that is given twice, or no axis at all.
    """
    axes: dict[str, str] = {}
    fixed: list[str] = []
    hydra = [word for word in words if word.lstrip("+~").startswith(("hydra.", "hydra/"))]
    for word in words:
        if word in hydra:
            continue
        override = parse_override(word)
        key = override.key_or_group
        _check_key(key)
        if override.is_sweep_override() or key in OWN_KEYS:
            if key in axes:
                raise AuroraError(f"{key} is given twice; give all of its values at once: {key}=a,b")
            axes[key] = _text_of_value(override)
        else:
            fixed.append(word)
    if not axes:
        raise AuroraError("nothing is swept: give several values of a key, such as keep_ratio=0.1,0.2,0.5 or "
                          "sort=size,raster,random")
    plan = Plan(axes=axes, fixed=fixed, **options)
    if "data" not in axes and not plan.data:
        raise AuroraError("--data FOLDER is needed: what is evaluated on")
    if plan.train and ("model" in axes or plan.model is not None):
        raise AuroraError("--train and --model exclude each other: each job evaluates the model that it trained")
    if not plan.train:
        for key in [key for key in axes if key not in OWN_KEYS]:
            if key.removeprefix(EVAL_PREFIX).partition(".")[0] not in (*MODEL_KEYS, "benchmark"):
                raise AuroraError(f"{key} is an option of training; give --train, or sweep over keys of the model: "
                                  f"{', '.join(MODEL_KEYS)}")
    return plan, hydra


def repeats(axes: Iterable[str], named: Sequence[str] = ()) -> list[str]:
    """The axes over which means are taken: seeds, and those that are named."""
    return [key for key in axes if key in named or key.rpartition(".")[2] == "seed"]


def _check_key(key: str) -> None:
    root = key.removeprefix(EVAL_PREFIX).partition(".")[0].partition("@")[0]
    known = sorted({*CONFIG_KEYS, *SLOTS, *OWN_KEYS, "experiment"})
    if root not in known and not known_yamls(root):
        raise AuroraError(f"the config has no {root!r}.{suggest(root, known)}")


def _text_of_value(override: Override) -> str:
    """What stands behind the =, as it was given."""
    return str(override.input_line).partition("=")[2]


def _members(text: str) -> list[str]:
    """The overrides of one value of `set`: [sort=size, sort.order=descending]. AuroraError for anything else."""
    inside = text.strip()
    if not (inside.startswith("[") and inside.endswith("]")):
        raise AuroraError(f"set={text!r} is not a list of overrides such as \"['sort=size','sort.order=descending']\"")
    value = parse_override(f"set={text}").value()
    members = [str(member) for member in value]
    for member in members:
        parse_override(member)
    return members


def _plain(text: str) -> str:
    """A value without Hydra's quotes."""
    return str(parse_override(f"value={text}").value())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
