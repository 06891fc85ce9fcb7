"""Trained parameters, optimizer, schedule, which steps are taken, and the average of the weights."""

import inspect
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from aurora.errors import AuroraError
from aurora.instantiate import construct, resolve
from aurora.model import AuroraModel
from aurora.recipe import Recipe, Spike
from aurora.registry import WEIGHTED_SLOTS
from aurora.training.checkpoint.state import trained_parameters
from aurora.training.distributed.collectives import local
from aurora.training.muon import Muon
from aurora.weights.adapters import let_adapters_learn, lr_scale

# ---- parameters ------------------------------------------------------------------------------------------------


def set_trainable(model: AuroraModel, recipe: Recipe) -> None:
    """Gradients for exactly the slots and the adapters of the recipe; frozen slots stay in evaluation mode."""
    model.train()
    for slot in WEIGHTED_SLOTS:
        part = getattr(model, slot)
        part.requires_grad_(slot in recipe.trained)
        part.train(slot in recipe.trained)
    let_adapters_learn(model, recipe.adapters)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups by learning rate and weight decay, each with the `scale` of its rate.

    Decayed are matrices named `weight`, those of linear layers, convolutions and embeddings, as by RWKV's authors: not
    their bonus, decays and low-rank mixes, nor norms, biases, positions and initial states.
    """
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = defaultdict(list)
    for slot in WEIGHTED_SLOTS:
        for name, parameter in getattr(model, slot).named_parameters():
            if parameter.requires_grad:
                scale = lr_scale(recipe.adapters, slot, name, recipe.scale(slot))
                decayed = is_matrix(parameter) and name.rpartition(".")[2] == "weight"
                decay = recipe.decay(slot) if decayed else 0.0
                groups[slot, scale, decay].append(parameter)
    return [{"params": parameters, "lr": recipe.peak_lr * scale, "weight_decay": decay, "scale": scale}
            for (_, scale, decay), parameters in groups.items()]


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it has two dimensions or more: RWKV keeps some vectors as [1, 1, D]."""
    return sum(side > 1 for side in parameter.shape) > 1


def tables(model: AuroraModel) -> set[nn.Parameter]:
    """Embeddings and heads."""
    embeddings = {parameter for module in model.modules() if isinstance(module, nn.Embedding)
                  for parameter in module.parameters()}
    heads = {parameter for parameter in model.backbone.parameters() if model.backbone.vocab_size in parameter.shape}
    return embeddings | heads


# ---- optimizer -------------------------------------------------------------------------------------------------


def build_optimizer(stage: str, model: AuroraModel, recipe: Recipe, *, fused: bool) -> Optimizer:
    """AdamW, or the class of torch.optim that the recipe names. AuroraError for options that it does not take."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer is None:
        return AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, fused=fused)
    where, options = f"stages.{stage}.optimizer", dict(recipe.optimizer)
    kind = resolve(options.pop("_target_", None), f"{where}: ", Optimizer)
    for key, home in (("lr", "peak_lr"), ("weight_decay", "weight_decay")):
        if key in options:
            raise AuroraError(f"{where}.{key}: stages.{stage}.{home} is the place for it, which knows every slot's")
    if issubclass(kind, (LBFGS, SparseAdam)):
        need = "a closure" if issubclass(kind, LBFGS) else "sparse gradients"
        raise AuroraError(f"{where}: {kind.__name__} needs {need}, which this training does not have; "
                          "take torch.optim.AdamW, Muon, Adafactor or SGD")
    if "betas" in inspect.signature(kind).parameters:
        options.setdefault("betas", recipe.betas)
    where = f"{where}: {kind.__name__}"
    if issubclass(kind, torch.optim.Muon):
        return construct(where, _MuonAdamW, groups, tables(model), recipe, fused=fused, **options)
    optimizer: Optimizer = construct(where, kind, groups, lr=recipe.peak_lr, **options)
    return optimizer


class _MuonAdamW(Optimizer):
    """Muon for the matrices of hidden layers, AdamW for tables and everything else, as one optimizer."""

    def __init__(self, groups: list[dict[str, Any]], tables: set[nn.Parameter], recipe: Recipe, *, fused: bool,
                 adjust_lr_fn: str = "match_rms_adamw", **options: Any) -> None:
        """By default updates are scaled to the size of AdamW's, so that one `peak_lr` suits both."""
        hidden = _only(groups, lambda p: p.dim() == 2 and p not in tables)
        others = _only(groups, lambda p: p.dim() != 2 or p in tables)
        if not hidden:
            raise ValueError("no matrix of a hidden layer is trained")
        self.parts: list[Optimizer] = [Muon(hidden, lr=recipe.peak_lr, adjust_lr_fn=adjust_lr_fn, **options)]
        if others:
            self.parts.append(AdamW(others, lr=recipe.peak_lr, betas=recipe.betas, fused=fused))
        # the very dictionaries of the parts, so that a schedule changes both
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @property
    def state(self) -> Any:
        """Of both, by parameter."""
        return {parameter: values for part in self.parts for parameter, values in part.state.items()}

    @state.setter
    def state(self, value: Any) -> None:
        """The base class makes an empty one; the parts have their own."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Hands every part the groups and states that are its own."""
        groups = list(state_dict["param_groups"])
        for part in self.parts:
            mine, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            numbers = [number for group in mine for number in group["params"]]
            state = {number: state_dict["state"][number] for number in numbers if number in state_dict["state"]}
            part.load_state_dict({"state": state, "param_groups": mine})
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _only(groups: list[dict[str, Any]], fits: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    """The groups that have such parameters, without any others."""
    chosen = [{**group, "params": [parameter for parameter in group["params"] if fits(parameter)]} for group in groups]
    return [group for group in chosen if group["params"]]


# ---- schedule --------------------------------------------------------------------------------------------------


def warmup_steps(total: int, ratio: float) -> int:
    """Steps of a warm-up that takes `ratio` of the total; at least one when there is a warm-up at all."""
    return max(1, round(ratio * total)) if ratio > 0 else 0


def warmup_cosine(step: int, *, total: int, warmup_ratio: float, start_factor: float) -> float:
    """The factor of the peak rate in step `step` of `total`, counted from 0.

    Linear from `start_factor` to 1 over the warm-up, then half a cosine that reaches 0 at `total`.
    """
    warmup = warmup_steps(total, warmup_ratio)
    if step < warmup:
        return start_factor + (1.0 - start_factor) * step / warmup
    if step >= total:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def build_schedule(stage: str, optimizer: Optimizer, recipe: Recipe, total: int) -> LRScheduler:
    """Warm-up and cosine, or the class of torch.optim.lr_scheduler that the recipe names, stepped once per optimizer
    step. What is missing of `T_max`, `total_steps` and `max_lr` is the stage's."""
    if recipe.schedule is None:
        return LambdaLR(optimizer, lambda step: warmup_cosine(
            step, total=total, warmup_ratio=recipe.warmup_ratio, start_factor=recipe.warmup_start_factor))
    schedule: LRScheduler = _schedule(f"stages.{stage}.schedule", recipe.schedule, optimizer, total)
    return schedule


def _schedule(where: str, entry: Any, optimizer: Optimizer, total: int) -> Any:
    """Nested schedules (SequentialLR, ChainedScheduler) are built for the same optimizer."""
    if isinstance(entry, list | tuple):
        return [_schedule(where, item, optimizer, total) for item in entry]
    if not isinstance(entry, Mapping) or "_target_" not in entry:
        return entry
    options = {key: _schedule(where, value, optimizer, total) for key, value in entry.items() if key != "_target_"}
    kind = resolve(entry["_target_"], f"{where}: ", LRScheduler)
    known = inspect.signature(kind).parameters
    facts = {"T_max": total, "total_steps": total, "max_lr": [group["lr"] for group in optimizer.param_groups]}
    options = {key: fact for key, fact in facts.items() if key in known} | options
    return construct(f"{where}: {kind.__name__}", kind, optimizer=optimizer, **options)


# ---- which steps are taken -------------------------------------------------------------------------------------


class StepGuard:
    """Decides which steps are taken. All ranks hand in the same sums, so that they agree without communication."""

    def __init__(self, spike: Spike | None) -> None:
        self.spike = spike
        self.rolls_back = False  # whether the last step was a spike that asks for the weights of a checkpoint
        self._good: deque[float] = deque(maxlen=0 if spike is None else spike.window)

    def skip_reason(self, loss: float, targets: float, norm: float) -> str | None:
        """Why a step with this summed loss and this gradient norm must not be taken; None when it may."""
        self.rolls_back = False
        if targets <= 0 or not math.isfinite(loss) or not math.isfinite(norm):
            return f"had no finite gradient (loss {loss}, gradient norm {norm}, {targets:.0f} targets)"
        mean, spike = loss / targets, self.spike
        if spike is not None and len(self._good) == spike.window and mean > spike.factor * median(self._good):
            self.rolls_back = spike.action == "rollback"
            return f"were spikes (loss {mean:.4f})"
        self._good.append(mean)
        return None

    def state_dict(self) -> list[float]:
        """The losses that `load_state_dict` goes on with."""
        return list(self._good)

    def load_state_dict(self, losses: Sequence[float]) -> None:
        self._good.clear()
        self._good.extend(losses)


# ---- average ---------------------------------------------------------------------------------------------------


class Average:
    """The exponential moving average in float32 of every trained parameter, sharded as they are.

    Step t is weighted by 1 - min(decay, (1 + t) / (10 + t)), so that the beginning is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = trained_parameters(model)
        self.values = {name: p.detach().to(torch.float32, copy=True) for name, p in self._parameters.items()}

    def update(self, step: int) -> None:
        """Takes the weights after `step` optimizer steps in."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            averages = [local(value) for value in self.values.values()]
            current = [local(parameter.detach()).float() for parameter in self._parameters.values()]
            torch._foreach_lerp_(averages, current, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the averages where the weights are until the block ends."""
        places = [local(parameter.detach()) for parameter in self._parameters.values()]
        weights = [place.clone() for place in places]
        torch._foreach_copy_(places, [local(value) for value in self.values.values()])
        try:
            yield
        finally:
            torch._foreach_copy_(places, weights)

    def weights(self) -> dict[str, Tensor]:
        """The averages by parameter name, in the dtypes of the parameters."""
        return {name: value.to(self._parameters[name].dtype) for name, value in self.values.items()}
