"""Accuracy by family on held-out questions as a validation metric."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from aurora.assemble import build_model
from aurora.config import Config, ModelConfig, named_part
from aurora.errors import AuroraError
from aurora.evaluation.predictions import Prediction, Shard
from aurora.evaluation.questions import spread
from aurora.evaluation.run import Protocol, Score, answer
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Item
from aurora.model import AuroraModel
from aurora.options import PositiveInt, check_kind
from aurora.registry import BENCHMARK
from aurora.training.checkpoint.state import whole
from aurora.training.distributed.collectives import world_size
from aurora.training.module import AuroraModule, StepInterrupted
from aurora.weights.adapters import attach_adapters, merge_adapters
from aurora.weights.model_folder import fill_unsaved_buffers

_NAME = "val_accuracy"


class GroupMeans(Metric):
    """The mean of what is 0 or 1, or in between, by group; summed over the processes."""

    full_state_update = False
    total: Tensor  # [G]
    count: Tensor  # [G]

    def __init__(self, groups: int) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(groups, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, values: Tensor, groups: Tensor) -> None:
        """Values [N] of the groups with these indices [N]."""
        self.total.index_add_(0, groups, values)
        self.count.index_add_(0, groups, torch.ones_like(values))

    def compute(self) -> tuple[Tensor, Tensor]:
        """[G] means, and the mean of all [] . Collective."""
        return self.total / self.count, self.total.sum() / self.count.sum()


class FamilyAccuracy(L.Callback):
    """After each validation, the accuracy on a sample of a benchmark's choices: `val_accuracy` of all of them, and
    `val_accuracy_FAMILY`.

    It is what `aurora eval` gives for the model as it would be saved, by the benchmark's first scorer and with the
    weights of its families. The processes share the videos. Each holds a second copy of the whole model meanwhile.
    """

    needs_validation = True

    def __init__(self, *, data: str, benchmark: str | Mapping[str, Any] = "blocks", per_family: int = 8,
                 score: Score = "text", parallel: int = 32) -> None:
        """`data` is the benchmark's folder; of each family so many questions are asked, spread over all of them.
        `score` is how an option is chosen, as of `aurora eval`."""
        super().__init__()
        for name, value, kind in (("per_family", per_family, PositiveInt), ("parallel", parallel, PositiveInt),
                                  ("score", score, Score)):
            check_kind(name, value, kind)
        self.protocol = Protocol(score=score)
        given = {"name": benchmark} if isinstance(benchmark, str) else dict(benchmark)
        self.part = BENCHMARK.build({**named_part("benchmark", str(given.get("name"))), **given})
        self.folder, self.parallel = Path(data), parallel
        self.items = _sample(self.part.items(self.folder).items, per_family)
        if not self.items:
            raise AuroraError(f"benchmark {given['name']!r} asks no multiple choice in {data}, and nothing else is "
                              "scored while training")
        if missing := [item.video for item in self.items if not (self.folder / item.video).exists()]:
            raise AuroraError(f"{len({*missing})} videos are missing below {data}, such as {missing[0]}")
        self.families = sorted({item.family for item in self.items})

    def setup(self, trainer: L.Trainer, pl_module: AuroraModule, stage: str) -> None:
        """AuroraError when the module does not say what its model is made of."""
        self._config(pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: AuroraModule) -> None:
        """Here, where the average of the weights is still in place if there is one. Collective."""
        if trainer.sanity_checking:
            return
        config = self._config(pl_module)
        watcher = VideoModel(_saved(pl_module, config), config)
        values, groups = [], []
        for item, right in self._outcomes(watcher, pl_module):
            values.append(right)
            groups.append(self.families.index(item.family))
        means = GroupMeans(len(self.families)).to(pl_module.device)
        means.update(torch.tensor(values, dtype=torch.float32, device=pl_module.device),
                     torch.tensor(groups, dtype=torch.long, device=pl_module.device))
        each, mean = means.compute()
        if weights := self.part.weights(self.families):
            mean = each @ each.new_tensor([weights[family] for family in self.families])
        found = dict(zip((f"{_NAME}_{family}" for family in self.families), each.cpu().unbind(), strict=True))
        pl_module.log_dict({_NAME: mean.cpu(), **found}, on_step=False, on_epoch=True, batch_size=1)

    def _outcomes(self, watcher: VideoModel, module: AuroraModule) -> Iterator[tuple[Item, float]]:
        """The items of this process, and whether each was answered rightly; what cannot be read was not."""
        by_id = {item.id: item for item in self.items}
        shard = Shard(module.global_rank, world_size())
        for predictions in answer(watcher, self.items, self.folder, protocol=self.protocol, parallel=self.parallel,
                                  shard=shard):
            yield from ((by_id[one.id], self._right(by_id[one.id], one)) for one in predictions)
            module.rows_read += 1  # the watchdog's heartbeat
            if module.interrupted:
                raise StepInterrupted

    def _right(self, item: Item, made: Prediction) -> float:
        return self.part.outcomes([item], {item.id: None if made.failure is not None else made.answer})[item.id]

    def _config(self, module: AuroraModule) -> ModelConfig:
        tree = module.hparams.get("config")
        if tree is None:
            raise AuroraError("FamilyAccuracy needs a module of aurora.training_module(config, stage), which says what "
                              "its model is made of")
        return Config.parse(tree).model


def _sample(items: Sequence[Item], per_family: int) -> list[Item]:
    """So many choices of each family."""
    choices = sorted((item for item in items if item.options and not item.control), key=lambda item: item.family)
    return [item for _, group in groupby(choices, lambda item: item.family) for item in spread(list(group), per_family)]


def _saved(module: AuroraModule, config: ModelConfig) -> AuroraModel:
    """A copy of the model as it would be saved: whole, adapters merged. Collective when sharded.

    The one that is trained may be sharded, compiled or wrapped, and runners lay out the weights that they read anew.
    """
    weights = {name: whole(tensor) for name, tensor in module.net.state_dict().items()}
    with torch.device("meta"):
        model = build_model(config)
        attach_adapters("adapters", model, module.recipe.adapters)
    model.backbone.start_like({name: tensor.shape for name, tensor in weights.items()})
    model.load_state_dict(weights, assign=True)
    fill_unsaved_buffers(model, config)
    merge_adapters(model)
    return model.requires_grad_(False).to(module.device).eval()
