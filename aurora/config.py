"""Reads configs: `configs/` and the user's overrides, composed by Hydra once, into frozen typed objects."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aurora.errors import AuroraError, suggest
from aurora.interfaces import Sampling
from aurora.options import FieldError, check_kind, read_fields
from aurora.recipe import Recipe, TrainerOptions, in_order
from aurora.registry import INJECTED, MODEL_SLOTS, PROMPT, SLOTS, WEIGHTED_SLOTS

_FRAME = Path(__file__).parent
CONFIG_FOLDER = next(path for path in (_FRAME / "configs", _FRAME.parent / "configs") if path.is_dir())
ASSET_FOLDER = _FRAME / "assets"

CONFIG_FILE = "config.yaml"  # of a model folder, and of a stage

MOST_SEED = 2**31 - 1  # what is made of it, the step and the rank has 63 bits

Part = Mapping[str, Any]  # {name: ..., **options}

OmegaConf.register_new_resolver("asset", lambda path: str(ASSET_FOLDER / path), replace=True)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a model is made of and how it is used: the config.yaml of a model folder."""

    vision: Part
    merge: Part
    sort: Part
    connector: Part
    backbone: Part
    tokenizer: Part
    prompt: Part
    skip: Part = field(default_factory=lambda: {"name": "none"})
    reader: Part = field(default_factory=lambda: {"name": "pyav"})
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: str | None = None
    keep_ratio: Annotated[float, Gt(0), Le(1)] = 0.1
    sampling: Sampling = field(default_factory=lambda: Sampling(fps=1.0))

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> "ModelConfig":
        """Of a plain mapping the keys that describe a model. AuroraError for what is missing or wrong."""
        missing = [slot for slot in MODEL_SLOTS if slot not in tree]
        if missing:
            raise AuroraError(f"the config has no {', '.join(missing)}; a model needs {', '.join(MODEL_SLOTS)}")
        return read_fields(cls, "", {key: tree[key] for key in MODEL_KEYS if key in tree})

    @property
    def tree(self) -> dict[str, Any]:
        """The plain mapping that `parse` reads, for a yaml."""
        plain = {key: dict(value) if isinstance(value := getattr(self, key), Mapping) else value for key in MODEL_KEYS}
        return {**plain, "sampling": {key: value for key, value in asdict(self.sampling).items()
                                      if key in ("fps", "frames", "max_frames")}}

    def __post_init__(self) -> None:
        for slot in (*MODEL_SLOTS, "skip", "reader"):
            if not isinstance(self.part(slot).get("name"), str):
                raise FieldError(slot, f"is {dict(self.part(slot))}, which has no name. "
                                 f"Known: {', '.join(SLOTS[slot].known())}")

    def part(self, slot: str) -> Part:
        """The entry of a slot."""
        entry: Part = getattr(self, slot)
        return entry

    def override(self, overrides: Sequence[str]) -> "ModelConfig":
        """The config with Hydra's overrides applied in order: `merge=pool` takes another part with the options of its
        yaml, `merge.schedule=floor` or `keep_ratio=0.5` change one value. AuroraError for an unknown key."""
        tree = OmegaConf.create(self.tree)
        for override in map(parse_override, overrides):
            root = override.key_or_group.partition(".")[0]
            if root not in MODEL_KEYS:
                raise AuroraError(f"a saved model has no {root!r} to override.{suggest(root, MODEL_KEYS)}")
            if override.key_or_group in SLOTS and isinstance(override.value(), str):
                tree[root] = named_part(root, str(override.value()))
            else:
                _apply(tree, override, new=root in SLOTS)
        return ModelConfig.parse(_plain(tree))


MODEL_KEYS = tuple(item.name for item in fields(ModelConfig))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a command is configured with."""

    model: ModelConfig
    tree: dict[str, Any]  # the whole composed mapping, for config.yaml and fingerprints
    data: Part
    stages: Mapping[str, Recipe]  # each after the one whose model it starts from
    base_weights: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)  # by slot and part
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    logger: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    run: str
    stage: str = "all"
    init_from: str | None = None
    restart: bool = False
    seed: Annotated[int, Ge(0), Le(MOST_SEED)] = 0

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> "Config":
        """The config that a plain composed mapping describes. AuroraError for anything that is wrong in it."""
        for key in tree:
            if key not in CONFIG_KEYS:
                raise AuroraError(f"the config has no {key!r}.{suggest(key, CONFIG_KEYS)}")
        own = {key: value for key, value in tree.items() if key not in MODEL_KEYS}
        return read_fields(cls, "", {**own, "model": ModelConfig.parse(tree), "tree": dict(tree)})

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", in_order(self.stages))
        for recipe in self.stages.values():
            if recipe.prompt is not None:
                PROMPT.check(recipe.prompt)
        if self.stage not in (*self.stages, "all"):
            raise AuroraError(f"no stage named {self.stage!r}.{suggest(self.stage, [*self.stages, 'all'])}")
        if not self.run:
            raise FieldError("run", "is empty; it names the folder that training writes into, such as run=runs/mine")
        for key, cuts in (("backprop_tokens", self.trainer.backprop_tokens is not None),
                          ("sequence_parallel", self.trainer.sequence_parallel > 1)):
            if cuts and self.data.get("too_long") == "split":
                raise FieldError(f"trainer.{key}", "cuts rows into segments, which data.too_long=split does already "
                                 "with what is longer than data.row_tokens; take one of the two")

    @property
    def selected(self) -> dict[str, Recipe]:
        """The stages that `stage` asks for, in order."""
        return {name: recipe for name, recipe in self.stages.items() if self.stage in (name, "all")}

    def base_path(self, slot: str) -> str | None:
        """Where the weights of a slot's part come from before any training; None: they are random."""
        return self.base_weights.get(slot, {}).get(self.model.part(slot)["name"])

    def base_paths(self) -> dict[str, str | None]:
        """The same for every slot with weights."""
        return {slot: self.base_path(slot) for slot in WEIGHTED_SLOTS}

    def require_base_weights(self) -> dict[str, str]:
        """By slot, where there are weights to start from. AuroraError for a path that does not exist."""
        paths = {slot: path for slot, path in self.base_paths().items() if path is not None}
        for slot, path in paths.items():
            if not Path(path).exists():
                raise AuroraError(f"base_weights.{slot}.{self.model.part(slot)['name']}: {path} does not exist")
        return paths

    def missing(self, datasets: Iterable[str]) -> list[str]:
        """Those that are no folders below data.root; none where that cannot be seen."""
        root = self.data.get("root")
        if root is None or "://" in str(root):
            return []
        return sorted({name for name in datasets if not (Path(root) / name).is_dir()})

    def require_datasets(self, stages: Sequence[str]) -> None:
        """AuroraError that names every dataset folder that these stages would read and that is not there."""
        missing = self.missing(dataset for name in stages for dataset in self.stages[name].datasets)
        if missing and self.data.get("missing", "refuse") == "refuse":
            raise AuroraError(
                f"{len(missing)} dataset folders are missing below data.root {self.data['root']}: "
                f"{', '.join(missing)}; `aurora shards build NAME INPUT OUTPUT` makes one, stages.STAGE.mixture and "
                "stages.STAGE.validation.mixture say which are read, and data.missing=drop trains without them")


CONFIG_KEYS = (*MODEL_KEYS, *(item.name for item in fields(Config) if item.name not in ("model", "tree")))


def load_config(*overrides: str) -> Config:
    """The composed config: `overrides` are Hydra's, such as `experiment=blocks` or `stages.vision.peak_lr=1e-4`.

    With `init_from` the model is that of the folder, but for what other overrides say of it.

    What a yaml leaves to the user (`???`) and nobody gave is absent; a command that needs it says so.
    """
    parsed = [parse_override(override) for override in overrides]
    choices = [override for override in parsed if _is_group(override)]
    for override in choices:
        _check_choice(override)
    GlobalHydra.instance().clear()
    with _errors_named("config"), initialize_config_dir(config_dir=str(CONFIG_FOLDER), version_base="1.3"):
        tree = compose("aurora", overrides=[str(override.input_line) for override in choices])
    OmegaConf.set_struct(tree, False)
    given = [override.value() for override in parsed if override.key_or_group == "init_from"]
    source = given[-1] if given else tree.get("init_from")
    if isinstance(source, str):
        saved = read_config(source).tree
        # what the user did not choose is the saved model's; what it is computed in is the run's own
        for key in set(MODEL_KEYS) - {"dtype", "quantize", *(override.key_or_group for override in choices)}:
            tree[key] = saved[key]
    several = [override for override in parsed if override.key_or_group in SLOTS and override not in choices]
    for override in several:
        _apply(tree, override, new=True)
    _drop_options_of_other_parts(tree, choices)
    for override in parsed:
        if override not in (*choices, *several):
            _apply(tree, override)
    plain = _plain(tree)
    stages = plain.get("stages")
    for stage in stages.values() if isinstance(stages, dict) else ():
        for mixed in (stage, stage.get("validation") if isinstance(stage, dict) else None):
            if isinstance(mixed, dict) and isinstance(mixed.get("mixture"), str):
                mixed["mixture"] = load_mixture(mixed["mixture"])
    return Config.parse(plain)


def read_config(folder: str | Path) -> ModelConfig:
    """The config of a saved model. AuroraError when the folder holds none, with the way to one."""
    folder = Path(folder)
    path, models = folder / CONFIG_FILE, [*folder.glob(f"*/model/{CONFIG_FILE}"), *folder.glob(f"model/{CONFIG_FILE}")]
    if models or not path.is_file():  # the folder of a stage has such a file too
        way = f"it has no {CONFIG_FILE}. `aurora train` writes one per stage, as RUN/STAGE/model"
        if (folder / "COMMITTED").is_file():
            way = f"it is a training checkpoint: `aurora export {folder} TARGET` makes a model of it"
        if models:
            way = f"{models[-1].parent} is one"
        raise AuroraError(f"{folder} is not a model folder: {way}")
    try:
        text = path.read_text(encoding="utf-8")
        if "${" in text:  # OmegaConf's interpolations would read the environment into a model of others
            raise AuroraError("it holds an interpolation, ${...}; expected plain values")
        tree = yaml.safe_load(text)
        check_kind("it", tree, Mapping[str, Any])
        config = ModelConfig.parse(tree)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AuroraError(f"{path} is not readable as yaml: {' '.join(str(error).split())}") from error
    except AuroraError as error:
        raise AuroraError(f"{path} does not describe a model: {error}") from error
    if "path" not in config.tokenizer:
        return config
    return replace(config, tokenizer={**config.tokenizer, "path": str(folder / config.tokenizer["path"])})


def load_mixture(name: str) -> dict[str, Any]:
    """The mixture of a name in `configs/mixture`, or of a path to a yaml."""
    known = known_yamls("mixture")
    if name not in known and not name.endswith((".yaml", ".yml")):
        raise AuroraError(f"no mixture named {name!r}.{suggest(name, known)}; or give a path to a yaml")
    path = CONFIG_FOLDER / "mixture" / f"{name}.yaml" if name in known else Path(name)
    with _errors_named(f"mixture {path}"):
        content = _read_yaml(path)
    check_kind(f"mixture {path}", content, Mapping[str, Any])
    return dict(content)


def known_yamls(group: str) -> list[str]:
    """The names of a config group's yamls."""
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


def named_part(slot: str, name: str) -> dict[str, Any]:
    """The entry of a part by name: with the options of its yaml, if it has one, but those left to the user."""
    SLOTS[slot].require(name)
    return {key: value for key, value in _yaml_of(slot, name).items() if value != "???"}


def part_by_option(slot: str, name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The entry of a part that an option of a command names, with `SLOT.KEY=VALUE` applied, and the other overrides."""
    entry, others = named_part(slot, name), []
    for text in overrides:
        override = parse_override(text)
        root, _, key = override.key_or_group.partition(".")
        if root == slot and key:
            entry[key] = override.value()
        elif root == slot:
            raise AuroraError(f"{text!r}: the {slot} is named with --{slot} {override.value()}")
        else:
            others.append(text)
    return entry, others


def parse_override(text: str) -> Override:
    """A `key=value` of Hydra's. AuroraError for anything else."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, given, value = text.partition("=")
        quoted = f"; a value with characters such as = ( or ü needs quotes within the shell's: \"{key}='{value}'\""
        raise AuroraError(f"config: {text!r} is not an override such as keep_ratio=0.5 or merge=pool"
                          f"{quoted if given else ''}") from error


def _is_group(override: Override) -> bool:
    """Whether an override chooses yamls of a group by name; a mapping changes options of what is chosen."""
    choice = "." not in override.key_or_group and (CONFIG_FOLDER / override.key_or_group).is_dir()
    return choice and not isinstance(override.value(), dict)


def _check_choice(override: Override) -> None:
    """AuroraError for a choice that a group does not have; a plug-in needs no yaml to be chosen."""
    group, name = override.key_or_group, override.value()
    if not isinstance(name, str):
        if not override.is_delete() and not (isinstance(name, list) and all(isinstance(one, str) for one in name)):
            raise AuroraError(f"config: {override.input_line!r}: {group} must be a string or a list of strings; it "
                              f"names one of {', '.join(known_yamls(group))}")
        return
    if name in known_yamls(group):
        return
    slot = SLOTS.get(group)
    if slot is None or name not in slot.known():
        raise AuroraError(f"no {group} named {name!r}.{suggest(name, slot.known() if slot else known_yamls(group))}")
    ConfigStore.instance().store(group=group, name=name, node=_yaml_of(group, name))


def _yaml_of(slot: str, name: str) -> dict[str, Any]:
    """What the yaml of a part says, or would say of a plug-in that has none."""
    path = CONFIG_FOLDER / slot / f"{name}.yaml"
    if not path.is_file():
        options = {key: "???" if option.default is inspect.Parameter.empty else option.default
                   for key, option in SLOTS[slot].options(name).items() if key not in INJECTED.get(slot, ())}
        return {"name": name, **options}
    return dict(_read_yaml(path))


def _read_yaml(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


def _drop_options_of_other_parts(tree: DictConfig, choices: Sequence[Override]) -> None:
    """Takes out what an experiment says of its own part where the user chose another that has no such option: its
    head_size is nothing to a backbone without heads. Options that the user gives one by one are not in the tree yet."""
    for choice in choices:
        slot, name = choice.key_or_group, choice.value()
        if slot in SLOTS and isinstance(name, str):
            for key in set(tree[slot]) - set(_yaml_of(slot, name)):
                del tree[slot][key]


def _apply(tree: DictConfig, override: Override, *, new: bool = False) -> None:
    """Sets, adds (`+`, or anything where `new`) or deletes (`~`) one value. A mapping is merged into the one that is
    there, unless it is a mixture. AuroraError for a key that is not there."""
    key = override.key_or_group
    if override.is_sweep_override():
        raise AuroraError(f"config: {override.input_line!r} gives several values; a list is written as [a, b]")
    names = key.split(".")
    paths = [".".join(names[:number]) for number in range(1, len(names) + 1)]
    # `+` makes the mappings on its way too, as in Hydra
    for path in paths[:-1][:1] if override.is_add() else paths[:-1] if new else paths:
        _require_key(tree, path)
    with _errors_named("config"):
        if override.is_delete():
            owner = OmegaConf.select(tree, paths[-2]) if paths[:-1] else tree
            del owner[names[-1]]
        else:
            OmegaConf.update(tree, key, override.value(), merge=names[-1] != "mixture", force_add=True)


def _require_key(tree: DictConfig, key: str) -> None:
    above, _, last = key.rpartition(".")
    owner = OmegaConf.select(tree, above) if above else tree
    if not isinstance(owner, DictConfig):
        raise AuroraError(f"the config has no {key!r}: {above} is {owner!r}, which has nothing below it")
    if last not in owner.keys():  # noqa: SIM118 - `in` passes over what is left to the user
        raise AuroraError(f"the config has no {key!r}.{suggest(last, map(str, owner))}")


def _plain(tree: DictConfig) -> dict[str, Any]:
    """Plain containers, with interpolations resolved and without what is left to the user."""
    with _errors_named("config"):
        given: dict[str, Any] = _given(OmegaConf.to_container(tree, resolve=True))
    return given


@contextmanager
def _errors_named(where: str) -> Iterator[None]:
    """AuroraError that begins with `where`, in one line, in place of Hydra's and the file system's."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
        raise AuroraError(f"{where}: {' '.join(str(error).split())}") from error


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _given(below) for key, below in value.items() if below != "???"}
    return [_given(below) for below in value] if isinstance(value, list) else value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences such as 'stages.vision.peak_lr was 4e-05, is 1e-04'."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [f"{key} was {old.get(key, 'absent')!r}, is {new.get(key, 'absent')!r}"
            for key in sorted(old.keys() | new.keys()) if old.get(key, "absent") != new.get(key, "absent")]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
