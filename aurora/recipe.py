"""What a stage's recipe and the trainer's options say: frozen objects, checked once, before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from aurora.errors import AuroraError, suggest
from aurora.mixture import Mixture
from aurora.options import FieldError, PositiveFloat, PositiveInt
from aurora.registry import WeightedSlot

Strategy = Literal["auto", "ddp", "fsdp", "fsdp_hybrid"]
Precision = Literal["32-true", "bf16-mixed", "bf16-gathered", "bf16-true", "16-mixed"]
Display = Literal["auto", "bar", "lines", "none"]

Seconds = Annotated[float, Gt(0), Le(10_000_000)]  # a third of a year
Beta = Annotated[float, Ge(0), Lt(1)]
Decay = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank changes of linear layers (arXiv 2106.09685): W + alpha / rank · B A."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Beta = 0.0
    # ends of module names, or one regex of whole names; None: the linear layers of the blocks
    targets: Annotated[Sequence[str], MinLen(1)] | Annotated[str, MinLen(1)] | None = None
    lr_scale: PositiveFloat = 1.0  # of peak_lr, in place of the slot's


@dataclass(frozen=True, kw_only=True)
class TunedState:
    """A state that every sequence starts from, learned in place of zeros."""

    # names of `init_state`; None: the largest, which is the memory of the recurrence
    states: Annotated[Sequence[str], MinLen(1)] | None = None
    lr_scale: PositiveFloat = 1.0  # of peak_lr, in place of the slot's


@dataclass(frozen=True)
class SlotAdapters:
    """The adapters of one slot."""

    lora: Lora | None = None
    state: TunedState | None = None

    @staticmethod
    def expand(given: Any) -> Any:
        """A slot without adapters may be null."""
        return {} if given is None else given


Adapters = Mapping[WeightedSlot, SlotAdapters]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a stage is validated on while it trains; its mixture is always the same rows."""

    mixture: Mixture = field(default_factory=lambda: Mixture(datasets={}))
    every: PositiveInt = 500  # steps from one validation to the next; the last step is followed by one as well
    max_steps: PositiveInt | None = None  # read no more of each dataset than so many steps of `global_batch`

    def __post_init__(self) -> None:
        for name, group in self.mixture.groups.items():
            if group.samples is not None:
                raise FieldError(f"mixture.groups.{name}.samples", f"is {group.samples}; it must be left out: datasets "
                                 "are validated on one by one, and each may have `samples` of its own")

    @staticmethod
    def expand(given: Any) -> Any:
        """Without a mixture nothing is held out."""
        return {key: value for key, value in given.items() if key != "mixture" or value is not None} \
            if isinstance(given, Mapping) else given


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one stage is trained."""

    after: str | None  # the stage whose model this one starts from
    trained: tuple[WeightedSlot, ...]
    mixture: Mixture
    prompt: Mapping[str, Any] | None  # None: that of the model
    keep_ratio: Annotated[float, Gt(0), Le(1)]
    peak_lr: PositiveFloat
    global_batch: PositiveInt
    epochs: PositiveInt
    max_steps: PositiveInt | None = None
    warmup_ratio: Annotated[float, Ge(0), Lt(1)] = 0.03
    warmup_start_factor: Annotated[float, Ge(0), Le(1)] = 1e-5
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: Decay | Mapping[WeightedSlot, Decay] = 0.0  # of matrices named `weight`, of all slots or by slot
    clip: PositiveFloat | None = 1.0
    average: Annotated[float, Gt(0), Lt(1)] | None = None  # decay of the average that becomes the model; None: the last
    lr_scale: Mapping[WeightedSlot, PositiveFloat] = field(default_factory=dict)
    optimizer: Mapping[str, Any] | None = None  # {_target_: torch.optim.X, ...}; None: AdamW with `betas`
    schedule: Mapping[str, Any] | None = None  # {_target_: torch.optim.lr_scheduler.X, ...}; None: warmup and cosine
    adapters: Adapters = field(default_factory=dict)
    validation: HeldOut | None = None  # None: nothing is held out

    def __post_init__(self) -> None:
        held_out = self.validation if self.validation is not None and self.validation.mixture.datasets else None
        adapters = {slot: one for slot, one in self.adapters.items() if one != SlotAdapters()}
        object.__setattr__(self, "validation", held_out)
        object.__setattr__(self, "adapters", adapters)
        if not self.trained and not adapters:
            raise FieldError("trained", "is empty; a stage trains some of vision, connector, backbone, or adapters")
        self._check_adapters()
        self._check_frozen()
        for key in ("optimizer", "schedule"):
            entry = getattr(self, key)
            if entry is not None and not isinstance(entry.get("_target_"), str):
                raise FieldError(key, "has no _target_, which names a class such as torch.optim.SGD")

    def _check_adapters(self) -> None:
        for slot, adapters in self.adapters.items():
            if adapters.lora is not None and slot in self.trained:
                raise FieldError(f"adapters.{slot}.lora:", f"the stage trains {slot} whole; take {slot} out of "
                                 "`trained`, or its LoRA out of `adapters`")
            if adapters.state is not None and slot != "backbone":
                raise FieldError(f"adapters.{slot}.state:", f"only a backbone has a state to tune, not {slot}")

    def _check_frozen(self) -> None:
        """FieldError for a rate or a decay of a slot that does not learn, which would be passed over."""
        decays = self.weight_decay if isinstance(self.weight_decay, Mapping) else {}
        changed = {"lr_scale": {slot for slot, scale in self.lr_scale.items() if scale != 1},
                   "weight_decay": {slot for slot, decay in decays.items() if decay}}
        learning = (*self.trained, *self.adapters)
        for option, slots in changed.items():
            for slot in sorted(slots - {*learning}):
                raise FieldError(f"{option}.{slot}", f"is given, but the stage trains {', '.join(learning)}; add "
                                 f"{slot} to `trained`, or leave its {option} out")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The folders that are read, those to validate on last."""
        held_out = () if self.validation is None else self.validation.mixture.datasets
        return *self.mixture.datasets, *held_out

    def scale(self, slot: WeightedSlot) -> float:
        """What the rate of a slot is multiplied with."""
        return self.lr_scale.get(slot, 1.0)

    def decay(self, slot: WeightedSlot) -> float:
        """The weight decay of a slot's matrices named `weight`."""
        return self.weight_decay.get(slot, 0.0) if isinstance(self.weight_decay, Mapping) else self.weight_decay


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A step is a spike when its loss exceeds `factor` times the median of the last `window` steps that were taken.

    `skip` leaves it out; `rollback` also takes the weights of the newest checkpoint, so that the rows since then
    have taught nothing (arXiv 2204.02311, section 5.1).
    """

    factor: Annotated[float, Gt(1)]
    window: Annotated[int, Ge(2)] = 50
    action: Literal["skip", "rollback"] = "skip"


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """Where and how a stage runs; only `precision`, `spike` and `backprop_tokens` change what is learned."""

    accelerator: Literal["cpu", "gpu", "cuda", "mps", "auto"] = "cpu"
    devices: int | str | list[int] = 1
    strategy: Strategy = "auto"
    precision: Precision = "32-true"
    threads: Annotated[int, Ge(1), Le(4096)] | None = None  # with many more OpenMP ends the process without a word
    activation_checkpointing: Literal["none", "block", "selective"] = "none"
    compile: Literal["none", "block"] = "none"
    defer_gradient_sync: bool = False
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    shard_size: PositiveInt | None = None  # fsdp_hybrid: processes that hold a copy together; None: those of a node
    sequence_parallel: PositiveInt = 1  # processes that read one row together
    backprop_tokens: PositiveInt | None = None  # of a row that are learned from at once; None: all
    checkpoint_every: PositiveInt = 200
    max_bad_steps: PositiveInt = 10
    spike: Spike | None = None
    watchdog_seconds: Seconds | None = 900.0  # without a finished row, after which a run that hangs is ended
    rendezvous_seconds: Seconds = 300.0  # that processes wait for each other at the start
    check_memory: bool = True  # refuse a stage that has no room on a GPU by our estimate
    measure_every: Annotated[int, Ge(0)] = 50  # steps between two measurements of norms and noise; 0: never
    peak_tflops: PositiveFloat | None = None  # of one device, for the share of it that is used
    progress: Display = "auto"
    progress_seconds: float = 10.0
    callbacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @staticmethod
    def expand(given: Any) -> Any:
        """Says of a precision that torch has and that is refused why it is."""
        if isinstance(given, Mapping) and given.get("precision") == "16-true":
            raise FieldError("precision=16-true", "would keep weights and optimizer in float16, where updates below a "
                             "2,048th of a weight and the squares of gradients below 2e-4 are lost; "
                             "precision=16-mixed computes in float16 with float32 weights")
        return given

    def __post_init__(self) -> None:
        sharded = self.strategy in ("fsdp", "fsdp_hybrid")
        fsdp = "strategy fsdp or fsdp_hybrid"
        needs: list[tuple[str, bool, bool, str]] = [  # the option, whether it is asked for, whether it can be, its need
            ("precision=bf16-gathered", self.precision == "bf16-gathered", sharded, fsdp),
            ("defer_gradient_sync", self.defer_gradient_sync, sharded, fsdp),
            ("reshard_after_forward=false", not self.reshard_after_forward, sharded, fsdp),
            ("cpu_offload", self.cpu_offload, sharded and self.accelerator != "cpu",
             f"{fsdp} and a GPU: on a CPU the shards lie in main memory anyway"),
            ("shard_size", self.shard_size is not None, self.strategy == "fsdp_hybrid", "strategy fsdp_hybrid"),
            ("sequence_parallel", self.sequence_parallel > 1, sharded or self.strategy == "ddp",
             "strategy fsdp, fsdp_hybrid or ddp"),
            ("backprop_tokens", self.backprop_tokens is not None, self.sequence_parallel == 1,
             "sequence_parallel 1: the segments of a row are read one after the other, or by several processes"),
            ("compile=block", self.compile == "block", self.activation_checkpointing != "selective",
             "activation_checkpointing none or block: which results are saved is decided by watching every operator, "
             "and the compiler fuses them"),
        ]
        for what, asked, can, need in needs:
            if asked and not can:
                raise FieldError(what, f"needs {need}")


def in_order(recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Stages in the order in which they follow each other. AuroraError where they do not."""
    for name, recipe in recipes.items():
        if recipe.after is not None and recipe.after not in recipes:
            raise AuroraError(f"stages.{name}.after: no stage named {recipe.after!r}.{suggest(recipe.after, recipes)}")
    before = {name: [recipe.after] if recipe.after else [] for name, recipe in recipes.items()}
    try:
        return {name: recipes[name] for name in TopologicalSorter(before).static_order()}
    except CycleError as error:
        raise AuroraError(f"stages {', '.join(error.args[1][1:])} wait for each other: their `after` form a circle"
                          ) from error
