"""What rounding a language model to int8 costs.

    python tools/int8_loss.py answers runs/demo/language_video/model runs/demo/data/heldout
    python tools/int8_loss.py logits RWKV-x060-World-1B6.pth

`answers`: the mean cross-entropy of the right answers to the questions of an evaluation, in nats per token.
`logits`: what an RWKV-6 1.6B says after each of some random ids, against bfloat16: the relative error of the logits in
the Euclidean norm, the Kullback-Leibler divergence in nats, and how often the likeliest id stays the same.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from aurora.evaluation.questions import Question, read_questions
from aurora.inference.reading import Memory, fork
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Backbone, Runner, Text, Turn
from aurora.model import AuroraModel
from aurora.weights.model_folder import load_model
from tools.bench.readers import load_backbone
from tools.bench.weights import FULL

WAYS = {"float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"},
        "float32 + int8": {"dtype": "float32", "quantize": "int8"},
        "bfloat16 + int8": {"dtype": "bfloat16", "quantize": "int8"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = parser.add_subparsers(dest="work", required=True)
    asked = works.add_parser("answers")
    asked.add_argument("model", type=Path)
    asked.add_argument("data", type=Path)
    read = works.add_parser("logits")
    read.add_argument("weights", type=Path)
    read.add_argument("--ids", type=int, default=256)
    options = parser.parse_args()
    lines = answers(options.model, options.data) if options.work == "answers" else logits(options.weights, options.ids)
    for line in lines:
        print(line, flush=True)


@torch.inference_mode()
def answers(folder: Path, data: Path) -> Iterator[str]:
    """A line per way to compute."""
    videos: dict[str, list[Question]] = defaultdict(list)
    for question in read_questions(data):
        videos[question.video].append(question)
    for name, way in WAYS.items():
        ways = [f"{key}={value}" for key, value in way.items()]
        model, config = load_model(folder, overrides=["quantize=null", *ways])
        watcher, losses = VideoModel(model, config), []
        for video, questions in videos.items():
            film = watcher.watch(data / video, prompt=config.prompt)
            memory = film.read_all([question.prompt for question in questions])
            losses += [_losses(model, watcher.runner, fork(memory, [place]), question)
                       for place, question in enumerate(questions)]
        each = torch.cat(losses)
        yield f"{name}: {each.mean():.4f} nats per token, {len(each)} tokens of {len(losses)} answers"


def _losses(model: AuroraModel, runner: Runner, memory: Memory, question: Question) -> Tensor:
    """The cross-entropy of each token of the right answer and its end."""
    answer = model.prompt.layout([Turn(question.prompt, question.answer)], visual=True)[-1]
    assert isinstance(answer, Text)
    ids = torch.tensor(model.tokenizer.encode(answer.text))
    following, _ = runner.read(model.backbone.embed(ids[:-1]), torch.tensor([0, len(ids) - 1]), memory.state)
    hidden = torch.cat([memory.last_hidden(), following])
    return cross_entropy(model.backbone.logits(hidden).float(), ids, reduction="none")


def logits(weights: Path, ids: int) -> Iterator[str]:
    """A line per way to round, against bfloat16."""
    right = _log_likelihoods(load_backbone(weights, FULL, "bfloat16", "cpu"), ids)
    for dtype in ("float32", "int8"):
        found = _log_likelihoods(load_backbone(weights, FULL, dtype, "cpu"), ids)
        error = (found[0] - right[0]).norm() / right[0].norm()
        divergence = kl_div(found[1], right[1], reduction="batchmean", log_target=True)
        same = (found[0].argmax(1) == right[0].argmax(1)).float().mean()
        yield f"{dtype}: {error:.2%} of the logits, {divergence:.2e} nats, {same:.1%} of the likeliest ids are the same"


@torch.inference_mode()
def _log_likelihoods(backbone: Backbone, ids: int) -> tuple[Tensor, Tensor]:
    """The logits after each id, and their logarithms as probabilities."""
    given = torch.randint(backbone.vocab_size, (ids,), generator=torch.Generator().manual_seed(0))
    hidden, _ = backbone.runner().read(backbone.embed(given), torch.tensor([0, ids]))
    said = backbone.logits(hidden).float()
    return said, said.log_softmax(1)


if __name__ == "__main__":
    main()
