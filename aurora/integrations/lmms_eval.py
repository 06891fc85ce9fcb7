"""The model of lmms-eval: `lmms-eval --model auroralong --model_args pretrained=FOLDER`. docs/lmms-eval.md."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from PIL import Image

from aurora.errors import AuroraError
from aurora.evaluation.scoring import score_options
from aurora.inference.film import Film
from aurora.inference.generation import Generation, complete
from aurora.inference.models import SHIPPED
from aurora.inference.reading import Memory, fork, join
from aurora.inference.video_model import VideoModel

Visual = str | Image.Image | Mapping[str, Any]
"""What tasks hand over: a path, an image, or {"video_path", "timestep"} for a question about a moment."""
DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class Asked:
    """One request."""

    number: int  # among the requests
    context: str
    sources: tuple[str, ...]  # files
    at: float | None  # second that it is asked about; None: the whole
    options: Generation


@dataclass(frozen=True)
class Read:
    """Requests about what was seen up to one moment, read up to their answers."""

    asked: Sequence[Asked]
    memory: Memory  # [S]
    watch_seconds: float  # since the film before
    read_seconds: float  # of the questions


class Aurora(lmms):  # type: ignore[misc]
    """Reads a video once for all questions about it, and answers up to `batch_size` questions side by side, also of
    several videos.

    `overrides` are Hydra's, with a semicolon between two: "merge=pool;sort=raster". A timestep counts frames at
    `timestep_fps` a second, by default those of the video's own rate.
    """

    is_simple = True

    def __init__(self, pretrained: str = str(SHIPPED), device: str = "cpu", batch_size: int | str = 1,
                 max_batch_size: int | None = None, keep_ratio: float | None = None, fps: float | None = None,
                 frames: int | None = None, max_frames: int | None = None, prompt: str | None = None,
                 adapter: str | None = None, overrides: str = "", timestep_fps: float | None = None) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise AuroraError("auroralong runs in one process of lmms-eval; raise batch_size instead, or use "
                              "`aurora eval --shard` for several processes")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise AuroraError(f"batch_size {batch_size!r} must be a number from 1; the state has the same size for "
                              "every video, so there is nothing to find out automatically")
        self.batch_size, self.timestep_fps = int(batch_size), timestep_fps
        given = [f"{key}={value}" for key, value in (("keep_ratio", keep_ratio), ("prompt", prompt))
                 if value is not None]
        self.watcher = VideoModel.from_pretrained(pretrained, device=device, adapter=adapter,
                                                  overrides=[*filter(None, overrides.split(";")), *given])
        self.sampling: dict[str, Any] = {"fps": fps, "frames": frames, "max_frames": max_frames}
        self.watcher.sampling(**self.sampling)
        self.pretrained = pretrained

    # What lmms-eval calls.

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The answer to every request, in their order."""
        with Files() as files:
            asked = [self._asked(number, context, options, self._visuals(request), files)
                     for number, request in enumerate(requests)
                     for context, options in [request.args[:2]]]
            said = self._answers(asked)
        for request, answer in zip(requests, said, strict=True):
            self.cache_hook.add_partial("generate_until", request.args[:2], answer.text)
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """log P(continuation | context and what is seen), and whether greedy decoding would write the continuation."""
        found: dict[int, tuple[float, bool]] = {}
        wanted = [self._continuation(request) for request in requests]
        with Files() as files:
            asked = [self._asked(number, request.args[0], {}, self._visuals(request), files)
                     for number, request in enumerate(requests)]
            for read in self._read(asked):
                for place, one in enumerate(read.asked):
                    found[one.number] = self._likelihood(fork(read.memory, [place]), wanted[one.number])
        return [found[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """For every request the answers of its rounds: the task says from them what is asked next."""
        return [self._rounds(request) for request in requests]

    # One request.

    def _rounds(self, request: Any) -> list[str]:
        context, options, _, next_round, number, task, split = request.args
        visuals, about, document = self._visuals(request, 2), None, self.task_dict[task][split][number]
        said: list[str] = []
        with Files() as files:
            while True:
                if said:
                    visuals, context, ended, said, about = next_round(
                        document, previous_output=said, round_idx=len(said), previous_round_info=about)
                    said = list(said)
                    if ended:
                        return said
                answer, = self._answers([self._asked(0, context, options, visuals or [], files)])
                said.append(answer.text)

    def _visuals(self, request: Any, place: int = 2) -> list[Visual]:
        """What a request shows. Requests for the likelihood without any context show nothing."""
        if len(request.args) <= place:
            return []
        number, task, split = request.args[-3:]
        shown = request.args[place](self.task_dict[task][split][number])
        return [] if shown is None else list(shown) if isinstance(shown, (list, tuple)) else [shown]

    def _continuation(self, request: Any) -> str:
        wanted = request.args[1]
        if callable(wanted):
            number, task, split = request.args[-3:]
            wanted = wanted(self.task_dict[task][split][number])
        return str(wanted)

    def _asked(self, number: int, context: str, options: Mapping[str, Any], visuals: Iterable[Visual], files: "Files"
               ) -> Asked:
        sources, at = list[str](), None
        for visual in visuals:
            if isinstance(visual, Mapping):
                path, at = str(visual["video_path"]), self._second(visual)
            else:
                path = files.path(visual) if isinstance(visual, Image.Image) else str(visual)
            sources.append(path)
        return Asked(number, context, tuple(sources), at, generation(options))

    def _second(self, visual: Mapping[str, Any]) -> float:
        rate = self.timestep_fps or _frame_rate(str(visual["video_path"]))
        return float(visual["timestep"]) / rate

    # Watching and answering.

    def _answers(self, asked: Sequence[Asked]) -> list[GenerationResult]:
        """In the order of the requests; what is generated together has equal options."""
        said: dict[int, str] = {}
        waiting: list[Read] = []
        for read in self._read(asked):
            if waiting and (sum(len(one.asked) for one in waiting) + len(read.asked) > self.batch_size
                            or read.asked[0].options != waiting[0].asked[0].options):
                said |= self._complete(waiting)
                waiting = []
            waiting.append(read)
        if waiting:
            said |= self._complete(waiting)
        return [GenerationResult(text=said[number], token_counts=TokenCounts(output_tokens=self._count(said[number])))
                for number in range(len(asked))]

    def _read(self, asked: Sequence[Asked]) -> Iterator[Read]:
        """Every video is watched once, up to the moments that are asked about; up to `batch_size` questions of equal
        options are read together."""
        for sources, group in groupby(sorted(asked, key=_order), key=lambda one: one.sources):
            requests = list(group)
            moments = sorted({one.at for one in requests if one.at is not None})
            watched = time.perf_counter()
            for at, film in self._films(sources, moments, whole=any(one.at is None for one in requests)):
                here = [one for one in requests if one.at == at]
                for _, equal in groupby(here, key=lambda one: repr(one.options)):
                    same = list(equal)
                    for first in range(0, len(same), self.batch_size):
                        part, began = same[first : first + self.batch_size], time.perf_counter()
                        memory = film.read_all([one.context for one in part])
                        memory.last_hidden()[0, 0].item()  # waits for a GPU
                        yield Read(part, memory, began - watched, time.perf_counter() - began)
                        watched = time.perf_counter()

    def _films(self, sources: Sequence[str], moments: Sequence[float], *, whole: bool
               ) -> Iterator[tuple[float | None, Film]]:
        model, own = self.watcher, self.watcher.config.prompt
        sampling = model.sampling(**self.sampling)
        if len(sources) == 1 and model.reusable and sampling.fps is not None and sampling.max_frames is None:
            growing = model.watching(*sources, moments=moments, prompt=own, **self.sampling) if moments else iter(())
            yield from zip(moments, growing, strict=True)
        else:
            for at in moments:  # frames that depend on the length, and questions in front of the video
                yield at, model.watch(*sources, stop=max(at, 0.0) + 1e-3, prompt=own, **self.sampling)
        if whole:
            yield None, model.watch(*sources, prompt=own, **self.sampling)

    def _complete(self, reads: Sequence[Read]) -> dict[int, str]:
        """By the number of the request; what it took goes to lmms-eval's record of throughput."""
        model, asked = self.watcher, [one for read in reads for one in read.asked]
        began = time.perf_counter()
        memory = join([read.memory for read in reads])
        model.model.backbone.logits(memory.last_hidden()).argmax(-1).tolist()
        first = time.perf_counter() - began
        said = complete(model.model, model.runner, memory, asked[0].options)
        ended = time.perf_counter() - began
        reading, watching = (sum(times) for times in zip(*((one.read_seconds, one.watch_seconds) for one in reads),
                                                         strict=True))
        tokens = sum(map(self._count, said))
        log_metrics(total_elapsed_time=watching + reading + ended, total_gen_tokens=tokens,
                    avg_speed=tokens / ended, additional_metrics={
                        "ttft": watching + reading + first, "ttft_watched": reading + first,
                        "tpot": (ended - first) / max(1, max(map(self._count, said))), "total_requests": len(asked)})
        return {one.number: text for one, text in zip(asked, said, strict=True)}

    def _count(self, text: str) -> int:
        return len(self.watcher.model.tokenizer.encode(text))

    def _likelihood(self, memory: Memory, continuation: str) -> tuple[float, bool]:
        model = self.watcher.model
        score, = score_options(model, self.watcher.runner, memory, [continuation])
        said, = complete(model, self.watcher.runner, memory, Generation(max_new_tokens=score.tokens))
        return score.log_prob, said.strip() == continuation.strip()


class Files:
    """Images as files, which a prompt that begins with the question reads again for every question."""

    def __enter__(self) -> "Files":
        self._folder, self._known = TemporaryDirectory(prefix="aurora-lmms-"), dict[bytes, str]()
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def path(self, image: Image.Image) -> str:
        """Where an image lies; equal ones are one file."""
        image = image.convert("RGB")
        key = repr(image.size).encode() + image.tobytes()
        if key not in self._known:
            path = Path(self._folder.name) / f"{len(self._known)}.png"
            image.save(path, compress_level=1)
            self._known[key] = str(path)
        return self._known[key]


def generation(given: Mapping[str, Any]) -> Generation:
    """The options of a task. AuroraError for beam search, which a state that is a value would allow, but Aurora does
    not offer."""
    if given.get("num_beams") not in (None, 1):
        raise AuroraError(f"num_beams {given['num_beams']} is not offered; give --gen_kwargs num_beams=1")
    until = given.get("until") or ()
    drawn = bool(given.get("do_sample", (given.get("temperature") or 0) > 0))
    return Generation(
        max_new_tokens=int(given.get("max_new_tokens") or DEFAULT_NEW_TOKENS),
        temperature=float(given.get("temperature") or 1.0) if drawn else 0.0,
        top_p=float(given.get("top_p") or 1.0) if drawn else 1.0, top_k=given.get("top_k") if drawn else None,
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text))


def _order(asked: Asked) -> tuple[Any, ...]:
    """Requests about one video stand together, and those with equal options among them."""
    return asked.sources, repr(asked.options), asked.number


def _frame_rate(path: str) -> float:
    """Frames a second of a video. AuroraError where the file does not say."""
    try:
        with av.open(path) as container:
            rate = container.streams.video[0].average_rate
    except (OSError, av.error.FFmpegError, IndexError) as error:
        raise AuroraError(f"{path} cannot be opened as a video: {error}") from error
    if not rate:
        raise AuroraError(f"{path} does not say its frame rate, which a timestep in frames needs; give timestep_fps")
    return float(rate)
