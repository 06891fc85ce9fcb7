"""What a stage's recipe and the trainer's options say, checked once, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from aurora.assemble import WEIGHTED_SLOTS
from aurora.errors import AuroraError, suggest
from aurora.mixture import Mixture, read_mixture
from aurora.options import check_kind, read_fields
from aurora.registry import PROMPT
from aurora.training.guard import read_spike
from aurora.weights.adapters import Adapters, read_adapters

Strategy = Literal["auto", "ddp", "fsdp", "fsdp_hybrid", "fsdp1"]
Accelerator = Literal["cpu", "gpu", "cuda", "mps", "auto"]
Precision = Literal["32-true", "bf16-mixed", "bf16-gathered", "bf16-true", "16-mixed"]
Recompute = Literal["none", "block", "selective"]
Compile = Literal["none", "block"]
SHARDED = "strategy fsdp, fsdp_hybrid or fsdp1"
Display = Literal["auto", "bar", "lines", "none"]

LONGEST_SECONDS = 10_000_000  # that something is waited for: a third of a year
MOST_THREADS = 4096  # with many more OpenMP ends the process without a word
MOST_SEED = 2**31 - 1  # what is made of it, the step and the rank has 63 bits


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a stage is validated on while it trains; its mixture is always the same rows."""

    mixture: Mixture
    every: int = 500  # steps from one validation to the next; the last step is followed by one as well
    max_steps: int | None = None  # read no more of each dataset than so many steps of `global_batch`


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one stage is trained."""

    after: str | None
    trained: tuple[str, ...]
    mixture: Mixture
    prompt: Mapping[str, Any] | None
    keep_ratio: float
    peak_lr: float
    global_batch: int
    epochs: int
    max_steps: int | None = None
    warmup_ratio: float = 0.03
    warmup_start_factor: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float | Mapping[str, float] = 0.0  # of matrices, of all slots or by slot
    clip: float | None = 1.0
    average: float | None = None  # decay of the moving average of the weights that becomes the model; None: the last
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    adapters: Adapters = field(default_factory=dict)  # by slot; read by read_adapters
    validation: HeldOut | None = None  # None: nothing is held out

    @property
    def datasets(self) -> tuple[str, ...]:
        """The folders that are read, those to validate on last."""
        held_out = () if self.validation is None else self.validation.mixture.datasets
        return *self.mixture.datasets, *held_out

    def scale(self, slot: str) -> float:
        """What the rate of a slot is multiplied with."""
        return self.lr_scale.get(slot, 1.0)

    def decay(self, slot: str) -> float:
        """The weight decay of a slot's matrices."""
        return self.weight_decay.get(slot, 0.0) if isinstance(self.weight_decay, Mapping) else self.weight_decay


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """Where and how a stage runs; nothing but `precision`, `spike` and `backprop_tokens` changes what is learned."""

    accelerator: Accelerator = "cpu"
    devices: int | str | list[int] = 1
    strategy: Strategy = "auto"
    precision: Precision = "32-true"
    threads: int | None = None
    activation_checkpointing: Recompute = "none"
    compile: Compile = "none"
    defer_gradient_sync: bool = False
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    shard_size: int | None = None  # fsdp_hybrid: processes that hold a copy together; None: those of a node
    sequence_parallel: int = 1  # processes that read one row together
    backprop_tokens: int | None = None  # of a row that are learned from at once; None: all
    checkpoint_every: int = 200
    max_bad_steps: int = 10
    spike: Mapping[str, Any] | None = None  # read by read_spike
    watchdog_seconds: float | None = 900.0  # without a finished row, after which a run that hangs is ended
    rendezvous_seconds: float = 300.0  # that processes wait for each other at the start
    check_memory: bool = True  # refuse a stage that has no room on a GPU by our estimate
    measure_every: int = 50  # steps between two looks at weight norms and gradient noise; 0: never
    peak_tflops: float | None = None  # of one device, for the share of it that is used; None: of known GPUs
    progress: Display = "auto"
    progress_seconds: float = 10.0
    callbacks: Mapping[str, Any] = field(default_factory=dict)


def read_recipes(config: Mapping[str, Any]) -> dict[str, Recipe]:
    """Every stage's recipe, in the order in which they follow each other. AuroraError names the stage and the key."""
    check_kind("stages", config["stages"], Mapping[str, Any])
    recipes = {name: read_recipe(name, entry) for name, entry in config["stages"].items()}
    for name, recipe in recipes.items():
        if recipe.after is not None and recipe.after not in recipes:
            raise AuroraError(f"stages.{name}.after: no stage named {recipe.after!r}."
                              f"{suggest(recipe.after, list(recipes))}")
    ordered: dict[str, Recipe] = {}
    while len(ordered) < len(recipes):
        ready = [name for name, recipe in recipes.items()
                 if name not in ordered and (recipe.after is None or recipe.after in ordered)]
        if not ready:
            raise AuroraError(f"stages {', '.join(recipes.keys() - ordered.keys())} wait for each other: "
                              "their `after` form a circle")
        ordered.update({name: recipes[name] for name in ready})
    return ordered


def selected_stages(config: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> list[str]:
    """The stages that `stage` asks for."""
    stage = config["stage"]
    if stage == "all":
        return list(recipes)
    if stage not in recipes:
        raise AuroraError(f"no stage named {stage!r}.{suggest(str(stage), [*recipes, 'all'])}")
    return [stage]


def read_recipe(name: str, entry: Mapping[str, Any]) -> Recipe:
    """One stage's recipe. AuroraError for anything that makes no sense."""
    where = f"stages.{name}"
    recipe = read_fields(Recipe, where, entry)
    recipe = replace(recipe, mixture=read_mixture(f"{where}.mixture", entry["mixture"]),
                     validation=_read_held_out(f"{where}.validation", entry.get("validation")),
                     adapters=read_adapters(f"{where}.adapters", entry.get("adapters", {}), recipe.trained))
    if not recipe.trained and not recipe.adapters:
        raise AuroraError(f"{where}.trained is empty; a stage trains some of {', '.join(WEIGHTED_SLOTS)}, or adapters")
    decayed = recipe.weight_decay if isinstance(recipe.weight_decay, Mapping) else ()
    for slot in (*recipe.trained, *recipe.lr_scale, *decayed):
        if slot not in WEIGHTED_SLOTS:
            raise AuroraError(f"{where}: {slot!r} is no slot with weights.{suggest(slot, list(WEIGHTED_SLOTS))}")
    _check_frozen(where, recipe)
    _check_numbers(where, recipe)
    if recipe.prompt is not None:
        PROMPT.build(recipe.prompt)
    return recipe


def _read_held_out(where: str, entry: Mapping[str, Any] | None) -> HeldOut | None:
    """What is held out; None without a mixture."""
    if entry is None:
        return None
    check_kind(where, entry, Mapping[str, Any])
    given = entry.get("mixture")
    mixture = Mixture(datasets={}) if given is None else read_mixture(f"{where}.mixture", given)
    held_out = read_fields(HeldOut, where, {**entry, "mixture": mixture})
    _require(held_out.every >= 1, f"{where}.every", held_out.every, "a whole number ≥ 1")
    _require(held_out.max_steps is None or held_out.max_steps >= 1, f"{where}.max_steps", held_out.max_steps,
             "null or a whole number ≥ 1")
    for name, group in mixture.groups.items():
        # each dataset is read by itself, for a loss of its own
        _require(group.samples is None, f"{where}.mixture.groups.{name}.samples", group.samples,
                 "left out: datasets are validated on one by one, and each may have `samples` of its own")
    return None if given is None else held_out


def _check_frozen(where: str, recipe: Recipe) -> None:
    """AuroraError for a rate or a decay of a slot that does not learn, which would be passed over."""
    decays = recipe.weight_decay if isinstance(recipe.weight_decay, Mapping) else {}
    changed = {"lr_scale": {slot for slot, scale in recipe.lr_scale.items() if scale != 1},
               "weight_decay": {slot for slot, decay in decays.items() if decay}}
    for option, slots in changed.items():
        for slot in sorted(slots - {*recipe.trained, *recipe.adapters}):
            raise AuroraError(f"{where}.{option}.{slot} is given, but the stage trains "
                              f"{', '.join((*recipe.trained, *recipe.adapters))}; add {slot} to {where}.trained, or "
                              f"leave its {option} out")


def read_options(entry: Mapping[str, Any]) -> TrainerOptions:
    """The trainer's options. AuroraError for anything that makes no sense."""
    if entry.get("precision") == "16-true":
        raise AuroraError("trainer.precision=16-true would keep weights and optimizer in float16, where updates "
                          "below a 2,048th of a weight and the squares of gradients below 2e-4 are lost; "
                          "precision=16-mixed computes in float16 with float32 weights")
    options = read_fields(TrainerOptions, "trainer", entry)
    for key in ("checkpoint_every", "max_bad_steps"):
        _require(getattr(options, key) >= 1, f"trainer.{key}", getattr(options, key), "a whole number ≥ 1")
    read_spike(options.spike)
    _require(options.watchdog_seconds is None or 0 < options.watchdog_seconds <= LONGEST_SECONDS,
             "trainer.watchdog_seconds", options.watchdog_seconds, f"null, or above 0 and at most {LONGEST_SECONDS:,}")
    _require(0 < options.rendezvous_seconds <= LONGEST_SECONDS, "trainer.rendezvous_seconds",
             options.rendezvous_seconds, f"above 0 and at most {LONGEST_SECONDS:,}")
    _require(options.measure_every >= 0, "trainer.measure_every", options.measure_every, "0 or more")
    _require(options.peak_tflops is None or options.peak_tflops > 0, "trainer.peak_tflops", options.peak_tflops,
             "null or above 0")
    _check_sharding(options)
    _require(options.threads is None or 1 <= options.threads <= MOST_THREADS, "trainer.threads", options.threads,
             f"null or a whole number from 1 to {MOST_THREADS:,}")
    return options


def _check_sharding(options: TrainerOptions) -> None:
    for key in ("shard_size", "sequence_parallel", "backprop_tokens"):
        value = getattr(options, key)
        _require(value is None or value >= 1, f"trainer.{key}", value, "a whole number ≥ 1")
    flat, fsdp2 = options.strategy == "fsdp1", options.strategy in ("fsdp", "fsdp_hybrid")
    sharded = flat or fsdp2
    needs: list[tuple[str, bool, bool, str]] = [  # what is asked for, whether it is, whether it can be, what it needs
        ("precision=bf16-gathered", options.precision == "bf16-gathered", sharded, SHARDED),
        ("precision=bf16-true", options.precision == "bf16-true", not flat,
         "another strategy than fsdp1, which makes one tensor of what is of several dtypes then"),
        ("defer_gradient_sync", options.defer_gradient_sync, sharded, SHARDED),
        ("reshard_after_forward=false", not options.reshard_after_forward, sharded, SHARDED),
        ("cpu_offload", options.cpu_offload, fsdp2 and options.accelerator != "cpu",
         "strategy fsdp or fsdp_hybrid and a GPU: on a CPU the shards lie in main memory as it is"),
        ("shard_size", options.shard_size is not None, options.strategy == "fsdp_hybrid", "strategy fsdp_hybrid"),
        ("sequence_parallel", options.sequence_parallel > 1, sharded or options.strategy == "ddp",
         f"{SHARDED}, or strategy ddp"),
        ("backprop_tokens", options.backprop_tokens is not None, options.sequence_parallel == 1,
         "sequence_parallel 1: a row is read in pieces one after the other, or side by side"),
        ("compile=block", options.compile == "block", options.activation_checkpointing != "selective",
         "activation_checkpointing none or block: which results are kept is decided by watching every operator, and "
         "the compiler fuses them"),
        ("compile=block", options.compile == "block", not flat,
         "another strategy than fsdp1, which puts other tensors in the place of parameters"),
    ]
    for what, asked, can, need in needs:
        if asked and not can:
            raise AuroraError(f"trainer.{what} needs {need}")


def check_rows(config: Mapping[str, Any], options: TrainerOptions) -> None:
    """AuroraError when rows that go on in other rows are to be cut into pieces as well."""
    asked = {"backprop_tokens": options.backprop_tokens is not None, "sequence_parallel": options.sequence_parallel > 1}
    key = next((key for key, cuts in asked.items() if cuts), None)
    if key is not None and config["data"].get("too_long") == "split":
        raise AuroraError(f"trainer.{key} cuts rows into pieces, which data.too_long=split does already with what "
                          "is longer than data.row_tokens; take one of the two")


def check_average(name: str, recipe: Recipe, options: TrainerOptions) -> None:
    """AuroraError when a stage wants the average of weights that lie in flat shards."""
    if recipe.average is not None and options.strategy == "fsdp1":
        raise AuroraError(f"stages.{name}.average is {recipe.average}, and trainer.strategy=fsdp1 has no parameters of "
                          "their own shape to average; trainer.strategy=fsdp has")


def check_seed(seed: int) -> None:
    """AuroraError for a seed that the generators do not take."""
    _require(0 <= seed <= MOST_SEED, "seed", seed, f"a whole number from 0 to {MOST_SEED:,}")


def check_datasets(config: Mapping[str, Any], stages: Mapping[str, Recipe]) -> None:
    """AuroraError that names every dataset folder that a stage would read and that is not there."""
    root = config["data"].get("root")
    if root is None or "://" in str(root) or config["data"].get("missing", "refuse") != "refuse":
        return
    missing = sorted({dataset for recipe in stages.values() for dataset in recipe.datasets
                      if not (Path(root) / dataset).is_dir()})
    if missing:
        raise AuroraError(f"{len(missing)} dataset folders are missing below data.root {root}: {', '.join(missing)}; "
                          "`aurora shards build NAME INPUT OUTPUT` makes one, stages.STAGE.mixture and "
                          "stages.STAGE.validation.mixture say which are read, and data.missing=drop trains without "
                          "them")


def _check_numbers(where: str, recipe: Recipe) -> None:
    ranges: dict[str, tuple[bool, str]] = {
        "keep_ratio": (0 < recipe.keep_ratio <= 1, "above 0 and at most 1"),
        "peak_lr": (recipe.peak_lr > 0, "above 0"),
        "global_batch": (recipe.global_batch >= 1, "a whole number ≥ 1"),
        "epochs": (recipe.epochs >= 1, "a whole number ≥ 1"),
        "max_steps": (recipe.max_steps is None or recipe.max_steps >= 1, "null or a whole number ≥ 1"),
        "warmup_ratio": (0 <= recipe.warmup_ratio < 1, "in [0, 1)"),
        "warmup_start_factor": (0 <= recipe.warmup_start_factor <= 1, "in [0, 1]"),
        "betas": (len(recipe.betas) == 2 and all(0 <= beta < 1 for beta in recipe.betas), "two numbers in [0, 1)"),
        "weight_decay": (all(recipe.decay(slot) >= 0 for slot in WEIGHTED_SLOTS), "0 or more"),
        "clip": (recipe.clip is None or recipe.clip > 0, "null or above 0"),
        "average": (recipe.average is None or 0 < recipe.average < 1, "null or in (0, 1)"),
        "lr_scale": (all(scale > 0 for scale in recipe.lr_scale.values()), "all above 0"),
    }
    for key, (right, wanted) in ranges.items():
        _require(right, f"{where}.{key}", getattr(recipe, key), wanted)


def _require(right: bool, key: str, value: Any, wanted: str) -> None:
    if not right:
        raise AuroraError(f"{key} is {value!r}; it must be {wanted}")
