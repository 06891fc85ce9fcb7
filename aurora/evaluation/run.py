"""Asks a model everything that a benchmark asks of a folder of videos, and writes what came out."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aurora.config import ModelConfig, differences
from aurora.errors import AuroraError
from aurora.evaluation.predictions import (
    ITEMS_FILE,
    PREDICTIONS_FILE,
    Prediction,
    PredictionFile,
    Shard,
    digest,
    of_other_items,
    read_items,
    read_shards,
    write_items,
    write_predictions,
)
from aurora.evaluation.questions import spread
from aurora.evaluation.record import facts
from aurora.evaluation.scoring import likeliest
from aurora.files import read_json, replacing, write_json
from aurora.inference.film import Film
from aurora.inference.generation import Generation, complete
from aurora.inference.reading import Memory, fork
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import UnreadableVisual, as_file
from aurora.interfaces import Item
from aurora.model import AuroraModel
from aurora.registry import BENCHMARK

RESULT_FILE = "result.json"
PICTURES_FPS = 3
"""Pictures a second of a video that is a folder of them, as TVQA's are."""
DEFAULT_BENCHMARK: Mapping[str, Any] = {"name": "blocks"}
Score = Literal["text", "likelihood", "likelihood_per_token"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Protocol:
    """How items are answered: it is written into every result, and a run with another one does not resume it."""

    score: Score = "text"  # of choices: what the model writes, or which option is likeliest as its answer
    max_new_tokens: int | None = None  # of every answer, instead of the number that the benchmark gives


class Part(NamedTuple):
    """What is shown for some items: a video between two seconds."""

    video: str
    start: float
    stop: float | None


def evaluate(
    model: AuroraModel,
    config: ModelConfig,
    folder: str | Path,
    *,
    output: str | Path,
    benchmark: Mapping[str, Any] = DEFAULT_BENCHMARK,
    protocol: Protocol | None = None,
    model_hash: str | None = None,
    limit: int | None = None,
    parallel: int = 32,
    shard: Shard | None = None,
    restart: bool = False,
    on_progress: Progress = lambda answered, all: None,
) -> dict[str, Any] | None:
    """The result, which is also written to `output` beside the predictions; a stopped run goes on where it was.

    `limit` asks that many questions only, spread over all of them; the answers to others that are there are kept.
    `parallel` questions about a video are read together. With a `shard` this process asks about its part of the
    videos; the result is None until the others have done theirs.
    """
    protocol, shard, output = protocol or Protocol(), shard or Shard(), Path(output)
    everything = BENCHMARK.build(benchmark).items(Path(folder))
    chosen = _limited(everything.items, limit)
    watcher = VideoModel(model, config)
    settings = _settings(watcher, benchmark, everything.items, protocol, model_hash)
    device = next(model.parameters()).device
    if shard.world > 1 and not restart:
        _refuse_other_limit(output, limit)
    # first, since it refuses the folder of another run, whose items must stay
    file = PredictionFile(output / shard.file, settings, restart=restart)
    write_items(output, chosen, {"missing_videos": everything.missing, "limit": limit, "parallel": parallel,
                                 "questions": settings["questions"], **facts(device)})
    waiting, every = [], 0
    for part, groups in _parts(chosen, parallel, shard):
        every += sum(map(len, groups))
        waiting.append((part, [group for group in groups if not all(item.id in file.done for item in group)]))
    answered = every - sum(len(group) for _, groups in waiting for group in groups)
    for part, groups in waiting:
        for predictions in _predict(watcher, Path(folder), part, groups, protocol):
            file.add(predictions)
            answered += len(predictions)
            on_progress(answered, every)
    if shard.world > 1:
        return _merged_if_complete(output, shard.world)
    return _finish(output, settings, file.done)


def answer(model: VideoModel, items: Sequence[Item], folder: Path, *, protocol: Protocol | None = None,
           parallel: int = 32, shard: Shard | None = None) -> Iterator[list[Prediction]]:
    """The predictions to the items of a shard's videos, in the groups in which they are read; nothing is written."""
    for part, groups in _parts(items, parallel, shard or Shard()):
        yield from _predict(model, folder, part, groups, protocol or Protocol())


def merge(output: str | Path, world: int | None = None) -> dict[str, Any]:
    """The result of a run of several processes. AuroraError that says which items have no prediction yet."""
    output = Path(output)
    _, items = read_items(output)
    shards = read_shards(output, world)
    waiting = [item.id for item in items if item.id not in shards.predictions]
    if waiting:
        gone = f"; nothing was written by {', '.join(map(str, shards.missing))} of {shards.world}" \
            if shards.missing else ""
        raise AuroraError(f"{output}: {len(waiting)} of {len(items)} items have no prediction yet, such as "
                          f"{waiting[0]!r}{gone}; run these processes to their end")
    return _finish(output, shards.settings, shards.predictions)


def _merged_if_complete(output: Path, world: int) -> dict[str, Any] | None:
    """The result once every process has asked its part: the last one to end makes it."""
    _, items = read_items(output)
    predictions = read_shards(output, world).predictions
    return merge(output, world) if all(item.id in predictions for item in items) else None


def _refuse_other_limit(output: Path, limit: int | None) -> None:
    """AuroraError where other processes have begun to ask another number of questions, and the result of theirs is not
    written yet: the last of them would say which are scored."""
    if not (output / ITEMS_FILE).is_file():
        return
    about, _ = read_items(output)
    result = output / RESULT_FILE
    done = result.is_file() and not of_other_items(about, read_json(result))
    if not done and (changed := differences({"limit": about.get("limit")}, {"limit": limit})):
        raise AuroraError(f"{output / ITEMS_FILE} was made with other settings ({'; '.join(changed)}); give every "
                          "process the same --limit, choose another output folder, or start again with --restart")


def _finish(output: Path, settings: dict[str, Any], made: Mapping[str, Prediction]) -> dict[str, Any]:
    """Writes predictions in the order of the items, and the result: both are the same however they came about."""
    about, items = read_items(output)
    if of_other_items(about, settings):
        raise AuroraError(f"{output}: the predictions are to other questions than items.jsonl holds; start again with "
                          "--restart")
    predictions = [made[item.id] for item in items]
    failed = [(item, one.failure) for item, one in zip(items, predictions, strict=True) if one.failure is not None]
    if len(failed) == len(items):
        raise AuroraError(f"no video could be read, so there is no result; the first reason: {failed[0][1]}")
    asked = {item.id for item in items}
    others = [one for id, one in made.items() if id not in asked]  # of a run with another limit
    write_predictions(output / PREDICTIONS_FILE, settings, [*predictions, *others])
    result = {**_scores(settings["benchmark"], items, predictions),
              "failed": sum(not item.control for item, _ in failed),
              "failures": [{"id": item.id, "video": item.video, "control": item.control, "reason": reason}
                           for item, reason in failed],
              **_late(items, predictions),
              **about, **settings, "predictions": digest(predictions)}
    with replacing(output / RESULT_FILE, folder=False) as file:
        write_json(file, result)
    return result


def _late(items: Sequence[Item], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The items that were asked about a moment behind the end of their video, where there are such."""
    late = [{"id": item.id, "video": item.video, "at": item.at, "seconds": one.behind_end}
            for item, one in zip(items, predictions, strict=True) if one.behind_end is not None]
    return {"behind_end": late} if late else {}


def _scores(benchmark: Mapping[str, Any], items: Sequence[Item], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """What the first scorer says, and what the others say under their names."""
    part = BENCHMARK.build(benchmark)
    answers = {one.id: one.answer if one.failure is None else None for one in predictions}
    first, *others = part.scorers
    return {"scorer": first, "judge_needed": part.judge, **part.score(items, answers, first),
            **{name: part.score(items, answers, name) for name in others}}


def _limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """So many of the items, and the controls that belong to them."""
    if limit is None:
        return list(items)
    if limit < 1:
        raise AuroraError(f"limit {limit} leaves no question; give 1 or more")
    kept = {item.id for item in spread([item for item in items if not item.control], limit)}
    return [item for item in items if item.id in kept or item.extra.get("control_of") in kept]


def _parts(items: Sequence[Item], most: int, shard: Shard) -> Iterator[tuple[Part, list[list[Item]]]]:
    """What is asked of the parts of videos of one process: in groups of up to `most`, in the order of their moments.

    The groups are the same whatever is already answered and however many processes there are, since sums in another
    order may end in another answer.
    """
    videos: dict[str, dict[Part, dict[float | None, list[Item]]]] = {}
    for item in items:
        part = Part(item.video, item.start, item.stop)
        videos.setdefault(item.video, {}).setdefault(part, {}).setdefault(item.at, []).append(item)
    for number, parts in enumerate(videos.values()):
        for part, moments in parts.items() if number % shard.world == shard.rank else ():
            ordered = sorted(moments, key=lambda at: math.inf if at is None else at)
            yield part, [moments[at][first : first + most] for at in ordered
                         for first in range(0, len(moments[at]), most)]


def _predict(model: VideoModel, folder: Path, part: Part, groups: Sequence[Sequence[Item]], protocol: Protocol
             ) -> Iterator[list[Prediction]]:
    """The predictions of each group, as they are made; a video that cannot be read is the failure of all that is left.
    """
    films = _films(model, folder / part.video, part, [group[0].at for group in groups])
    failure = None
    for group in groups:
        try:
            memory = None if failure else next(films).read_all([item.prompt for item in group])
        except UnreadableVisual as error:
            memory, failure = None, str(error)
        if memory is None:
            yield [Prediction(item.id, "", failure) for item in group]
        else:
            late = _behind_end(model, folder / part.video, group[0].at)
            yield [replace(made, behind_end=late) for made in _answers(model, memory, group, protocol)]


def _behind_end(model: VideoModel, path: Path, at: float | None) -> float | None:
    """Seconds from the end of a video to a moment behind it; None for one within a second, which rounding explains."""
    end = None if at is None or not path.is_file() else model.reader.duration(str(path))
    return round(at - end, 3) if at is not None and end is not None and at - end > 1 else None


def _films(model: VideoModel, path: Path, part: Part, moments: Sequence[float | None]) -> Iterator[Film]:
    """For each moment, which ascend, the film of what may be seen then: one that grows, where that can be."""
    with as_file(path, fps=PICTURES_FPS) as file:
        yield from _films_of_file(model, file, part, moments)


def _films_of_file(model: VideoModel, path: Path, part: Part, moments: Sequence[float | None]) -> Iterator[Film]:
    prompt = model.config.prompt
    online = [at for at in dict.fromkeys(moments) if at is not None]
    growing: Iterator[Film] = iter(())
    if online and one_pass(model, part.start):
        growing = model.watching(path, moments=online, prompt=prompt)
    film: Film = model.blank()
    seen: float | None = math.nan
    for at in moments:
        if at != seen:
            grown = None if at is None else next(growing, None)
            # a frame that is shown at the moment belongs to it
            stop = part.stop if at is None else max(at, part.start) + 1e-3
            film = grown or model.watch(path, start=_start(model, path, part, at), stop=stop, prompt=prompt)
            seen = at
        yield film


def _start(model: VideoModel, path: Path, part: Part, at: float | None) -> float:
    """Where what is shown begins: of a moment behind the end of the video, as long before its end."""
    end = None
    if at is not None and part.start > 0:
        with suppress(AuroraError, OSError):  # a video that cannot be read is named when it is watched
            end = model.reader.duration(str(path))
    return part.start if at is None or end is None else max(0.0, part.start - max(0.0, at - end))


def one_pass(model: VideoModel, start: float = 0.0) -> bool:
    """Whether a video is read once for all moments that are asked about: with the question behind the video, and frames
    that depend neither on how long it is nor on the moment."""
    sampling = model.config.sampling
    return model.reusable and sampling.fps is not None and sampling.max_frames is None and start == 0


def _answers(model: VideoModel, memory: Memory, group: Sequence[Item], protocol: Protocol) -> list[Prediction]:
    """From the memory [S] after each of S questions."""
    made: dict[int, Prediction] = {}
    written: dict[int, list[int]] = defaultdict(list)  # by the number of tokens
    for place, item in enumerate(group):
        if item.options and protocol.score != "text":
            best, values = likeliest(model.model, model.runner, fork(memory, [place]), item.options,
                                     per_token=protocol.score == "likelihood_per_token")
            made[place] = Prediction(item.id, item.options[best], log_probs=values)
        else:
            written[protocol.max_new_tokens or item.max_new_tokens].append(place)
    for tokens, places in written.items():
        said = complete(model.model, model.runner, fork(memory, places), Generation(max_new_tokens=tokens))
        made |= {place: Prediction(group[place].id, answer.strip())
                 for place, answer in zip(places, said, strict=True)}
    return [made[place] for place in range(len(group))]


def _settings(model: VideoModel, benchmark: Mapping[str, Any], items: Sequence[Item], protocol: Protocol,
              model_hash: str | None) -> dict[str, Any]:
    used = ("keep_ratio", "sampling", "prompt", "merge", "sort", "skip", "reader", "dtype", "quantize")
    starts = [item.start for item in items if item.at is not None]
    online = {"one_pass": one_pass(model, max(starts))} if starts else {}
    return {"model": model_hash, "benchmark": dict(benchmark), "questions": digest(items),
            **{key: model.config.tree[key] for key in used}, "protocol": asdict(protocol), **online}
