"""A film: what a model has seen of a video, as a value of constant size that is asked, forked, saved and extended.

Shape letters: S sequences, D backbone width, N frames, M tokens kept per frame.
"""

import hashlib
import html
import json
import math
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, overload

from aurora.errors import AuroraError
from aurora.inference.base_video_model import BaseVideoModel
from aurora.inference.film_file import Saved, write_film
from aurora.inference.generation import Generation, complete, stream
from aurora.inference.ingest import Unit, chunk_of, ingest, prepared, units
from aurora.inference.reading import Memory, Pieces, blank, encode, fork, read_frames, read_texts, tokenize
from aurora.inference.snapshot import Medium, Snapshot, Thumbnail, digest_with, with_thumbnail
from aurora.inference.visuals import (
    Frames,
    Report,
    Source,
    Timed,
    UnreadableVisual,
    check_sources,
    is_image,
    is_unchanged,
    shown,
)
from aurora.interfaces import Sampling, Turn
from aurora.markers import plain_question
from aurora.options import require_number
from aurora.terminal import clock
from aurora.types import state_bytes


class Answer(str):
    """The text of an answer, and how much of the film it was answered from."""

    seconds: float
    frames: int

    @classmethod
    def of(cls, text: str, seen: Snapshot) -> "Answer":
        """The text, answered from what was seen up to there."""
        answer = cls(text)
        answer.seconds, answer.frames = seen.seconds, seen.frames
        return answer


class Stream(Iterator[str]):
    """An answer in pieces, as they are made, and how much of the film it is answered from."""

    def __init__(self, pieces: Iterator[str], seen: Snapshot) -> None:
        self._pieces, self.seen = pieces, seen
        self.seconds, self.frames = seen.seconds, seen.frames

    def __next__(self) -> str:
        return next(self._pieces)


@dataclass
class Film:
    """What a model has seen, and what was said about it. `VideoModel.watch` makes one.

    Its size does not depend on how long the video is, unless the backbone is a transformer. Asking never changes what
    was seen, and may happen in another thread while the film is being watched. A prompt that begins with the question
    (`sandwich`) reads the video again for every question; with the others it is read once.
    """

    model: BaseVideoModel
    now: Snapshot
    media: tuple[Medium, ...] = ()
    turns: tuple[Turn, ...] = ()  # the conversation so far
    thumbnails: tuple[Thumbnail, ...] = ()
    checkpoint_seconds: float | None = None
    history: tuple[Snapshot, ...] = ()  # one every `checkpoint_seconds`, for questions about a moment
    on_progress: Report | None = None
    _whole: tuple[Snapshot, Memory] | None = field(default=None, repr=False)  # with its pending frames read

    @property
    def frames(self) -> int:
        """Frames seen so far."""
        return self.now.frames

    @property
    def seconds(self) -> float:
        """How far the film was watched."""
        return self.now.seconds

    @property
    def name(self) -> str:
        """The names of what was watched."""
        return " + ".join(medium.name for medium in self.media) or "nothing"

    @property
    def id(self) -> str:
        """SHA-256 over all that the state depends on: frames, settings, weights, tokenizer, version."""
        facts = {"seen": self.now.digest, "settings": self.model.settings, "identity": self.model.identity}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What the file of the film says of it, and what the state depends on."""
        return {"id": self.id, "name": self.name, "identity": self.model.identity, "settings": self.model.settings,
                "chosen": sorted(self.model.chosen), "checkpoint_seconds": self.checkpoint_seconds,
                "state_bytes": self.state_bytes}

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of what was seen."""
        return state_bytes(self.now.memory.state)

    # What was seen.

    def memory(self, at: float | None = None) -> Memory:
        """[1]: after the frames seen so far, or those shown up to the second `at`."""
        seen = self._seen(at)
        return self._read_pending(seen) if seen.frames else seen.memory

    def question_ids(self, turns: Sequence[Turn]) -> list[int]:
        """The token ids that follow what was seen. AuroraError where the prompt begins with the question."""
        if self.media:
            self._require_reusable("be asked from its state")
        pieces = self._tokenized(turns)
        return list(pieces.trailing if self.media else pieces.leading)

    def read_all(self, questions: Sequence[str], at: float | None = None) -> Memory:
        """The memory [S] after each of S questions; a video that must be read again is read once for all of them."""
        return self._read([(self.turn(question),) for question in questions], self._seen(at))

    def _seen(self, at: float | None) -> Snapshot:
        """What was seen up to a second, as exactly as it can be had: from what was kept, or by reading the file again
        from there. AuroraError where neither can be."""
        now = self.now
        if at is None:
            return now
        require_number("at", at)
        if at >= now.last:
            return now
        if not at >= 0:
            raise AuroraError(f"at {at} is not a second of the film, which begins at 0")
        self._require_reusable("be asked about a moment")
        kept = [seen for seen in self.history if seen.last <= at]
        before = kept[-1] if kept else Snapshot(blank(self.model.runner, 1))
        shown_by_then = [medium for medium in self.media if medium.start <= at]
        if not any(map(self._changed, shown_by_then)):
            again = replace(self, now=before, history=(), thumbnails=(), on_progress=None, _whole=None)
            for _ in again.advance(islice(self._frames(at), before.frames, None), [at]):
                break
            return again._until(at)
        if not kept:
            raise AuroraError(f"what was seen up to second {at:g} was not kept: watch with checkpoint_seconds, or ask "
                              "where the file that was watched still is, unchanged")
        return before

    @staticmethod
    def _changed(medium: Medium) -> bool:
        """Whether what was watched cannot be read again: it was no file here, or is another one now."""
        return medium.path is None or not is_unchanged(medium.path, medium.stamp, medium.sha256)

    def _frames(self, at: float = math.inf) -> Iterator[Timed]:
        """The frames of the media that begin by second `at`, read again as far as each was watched."""
        media = self.media
        for medium, end in zip(media, [*(medium.start for medium in media[1:]), math.inf], strict=False):
            if medium.start > at:
                return
            if medium.path is None or self._changed(medium):
                raise UnreadableVisual(f"{medium.path or medium.name} was changed or removed since it was watched; "
                                       "watch it again")
            sampling = Sampling(**medium.sampling)
            for seconds, frame in shown(medium.path, sampling, self.model.reader, self.on_progress):
                if medium.start + seconds > end:  # watching ended before the file, and went on with the next one
                    break
                yield medium.start + seconds, frame

    def _read_pending(self, seen: Snapshot) -> Memory:
        """The memory with the frames that do not fill a chunk read as well."""
        if not seen.pending:
            return seen.memory
        whole = self._whole
        if whole is None or whole[0] is not seen:
            tokens = encode(self.model.model, chunk_of(seen.pending))
            whole = self._whole = seen, self.model.prefill(seen.memory, tokens)
        return whole[1]

    # Watching.

    def extend(self, *sources: Source, **sampling: Any) -> "Film":
        """Watches more, behind what was seen; the same options as `VideoModel.watch`. After an error the film is as it
        was before."""
        before = self.now, self.history, self.media, self.thumbnails
        try:
            for _ in self.extending(*sources, **sampling):
                pass
        except BaseException:
            self.now, self.history, self.media, self.thumbnails = before
            raise
        return self

    def extending(self, *sources: Source, moments: Sequence[float] | None = None, **sampling: Any) -> Iterator["Film"]:
        """The same step by step: gives this film after every chunk, or once for each of the `moments`, in seconds of
        the film and ascending: having seen just what is shown up to then. It ends with the last moment. After an error
        the film has what was seen until then. AuroraError for a moment that lies before what was seen."""
        check_sources(sources, sampling)
        settings, left = self.model.sampling(**sampling), None
        if moments is not None:
            self._require_reusable("stop at moments")
            left = self._ahead(moments)
        if self.turns and not self.model.reusable:
            raise AuroraError("a conversation cannot go on with more to see where the prompt begins with the question")
        for number, source in enumerate(sources, 1):
            if left == []:
                return
            frames = Frames(source, settings, self.model.reader, self.on_progress)
            before = self.now, self.media
            medium = Medium(frames.name, frames.sampling, self.now.seconds, frames.path, stamp=frames.stamp)
            self.media = (*self.media, medium)
            try:
                if self.model.reusable:
                    left = yield from self._watch(frames, left, last=number == len(sources))
                else:
                    yield from self._measure(frames, settings)
            except Exception:
                if self.now.frames == before[0].frames:
                    self.now, self.media = before
                raise

    def _ahead(self, moments: Sequence[float]) -> list[float]:
        """The moments as numbers, ascending. AuroraError for one that cannot be stopped at any more."""
        for moment in moments:
            require_number("a moment", moment)
            if not math.isfinite(moment) or (self.frames and moment < self.seconds):
                raise AuroraError(f"moment {moment} is not a second of what is still to be watched, which begins at "
                                  f"second {self.seconds:g}")
        return sorted(map(float, moments))

    def _until(self, second: float) -> Snapshot:
        """What is seen now, up to a second by which nothing more is shown."""
        return replace(self.now, seconds=max(self.now.seconds, second))

    def _measure(self, frames: Frames, sampling: Sampling) -> Iterator["Film"]:
        """Counts what each question will read of a file. UnreadableVisual for one that cannot be read."""
        if frames.path is None:
            raise AuroraError(f"the prompt {self._prompt_name} reads a video again for every question, which frames "
                              "that come one by one do not allow: choose prompt=generic")
        path, reader, now = str(frames.path), self.model.reader, self.now
        try:
            times = [0.0] if is_image(path) else reader.times(path, sampling)
        except AuroraError as error:
            raise UnreadableVisual(str(error)) from error
        last = times[-1] if times else 0.0
        self.now = replace(now, frames=now.frames + len(times), last=now.seconds + last,
                           seconds=now.seconds + max(last, frames.end(last)))
        yield self

    def _watch(self, frames: Frames, moments: list[float] | None, *, last: bool
               ) -> Generator["Film", None, list[float] | None]:
        """This film after every chunk, or at each of the moments that a source lasts to: the last one lasts to all.
        Returns those that are left."""
        start = self.now.seconds
        with frames as shots:  # what is known of a file is asked while it is there: it may have been downloaded
            timed = ((start + seconds, frame) for seconds, frame in shots)
            # a state is kept at its second, not at the end of the chunk
            each = frames.live or self.checkpoint_seconds is not None
            for _ in self.advance(timed, moments, each=each):
                moments = moments and moments[1:]
                yield self
            end = math.inf
            if moments is None or (moments and not last):
                end = start + frames.end(self.now.last - start if self.now.last >= start else None)
            while moments and moments[0] < end:
                self.now = self._until(moments.pop(0))
                yield self
            if moments != []:
                self.now = self._until(end)
                self.media = (*self.media[:-1], self.media[-1]._replace(sha256=frames.sha256()))
            if moments is None:
                yield self
            return moments

    def advance(self, frames: Iterable[Timed], moments: Sequence[float] | None = None, *,
                each: bool = False) -> Iterator[None]:
        """Reads frames (seconds of the film, [H, W, 3] uint8) behind what was seen; gives every unit, or each of the
        ascending moments that a frame is shown after."""
        model, now = self.model, self.now
        if now.memory.hidden is None:
            now = replace(now, memory=read_texts(model.runner, now.memory, [self._tokenized([Turn("?")]).leading]))
        self.now = now
        shots = prepared(frames, model.layout, model.skip, now.reference)
        cut = units(shots, now.pending, moments or (), each=each)
        left = 0 if moments is None else len(moments)
        for unit in ingest(model.model, cut, self._take, chunks=not (each or moments)):
            if moments is None:
                yield
            elif unit.moment is not None:
                yield
                left -= 1
                if left == 0:
                    return

    def _take(self, unit: Unit) -> None:
        now, new = self.now, unit.new
        memory = now.memory if unit.tokens is None else self.model.prefill(now.memory, unit.tokens)
        digest, read = now.digest, [shot for shot in new if not shot.skipped]
        for shot in new:
            digest = digest_with(digest, shot)
        last = new[-1].seconds if new else now.last
        seen = Snapshot(
            memory, unit.pending, read[-1].pixels if read else now.reference, now.frames + len(new),
            now.skipped + len(new) - len(read), last, max(now.seconds, last, unit.moment or 0), digest)
        for number, shot in enumerate(new, now.frames):
            self.thumbnails = with_thumbnail(self.thumbnails, number, shot)
        every = self.checkpoint_seconds
        if every is not None and new and (not self.history or last // every > self.history[-1].last // every):
            self.history = (*self.history, seen)
        self.now = seen

    # Asking.

    @overload
    def ask(self, question: str, *, stream: Literal[False] = False, at: float | None = None, remember: bool = False,
            options: Generation | None = None) -> Answer: ...

    @overload
    def ask(self, question: str, *, stream: Literal[True], at: float | None = None, remember: bool = False,
            options: Generation | None = None) -> Stream: ...

    def ask(self, question: str, *, stream: bool = False, at: float | None = None, remember: bool = False,
            options: Generation | None = None) -> Answer | Stream:
        """The answer; with `stream` an iterator over its pieces as they are made. With `at` it is answered as of that
        second, with `remember` the exchange becomes part of the conversation."""
        made = self._stream(question, at, remember, options)
        return made if stream else Answer.of("".join(made), made.seen)

    def ask_each(self, questions: Sequence[str], options: Generation | None = None, *, at: float | None = None
                 ) -> Iterator[Stream]:
        """The answers to many questions one after the other, each in pieces; each question by itself."""
        seen, options = self._seen(at), generation(options)
        if not questions:
            return
        memory = self._read(self._conversations(questions), seen)
        for number in range(len(questions)):
            yield Stream(stream(self.model.model, self.model.runner, fork(memory, [number]), options), seen)

    def ask_all(self, questions: Sequence[str], options: Generation | None = None) -> list[Answer]:
        """The answers to many questions, generated side by side."""
        seen, options = self._seen(None), generation(options)
        if not questions:
            return []
        memory = self._read(self._conversations(questions), seen)
        return [Answer.of(text, seen) for text in complete(self.model.model, self.model.runner, memory, options)]

    def _stream(self, question: str, at: float | None, remember: bool, options: Generation | None) -> Stream:
        options, turn, seen = generation(options), self.turn(question), self._seen(at)
        memory = self._read([(*self.turns, turn)], seen)
        return Stream(self._pieces(turn, memory, options, remember), seen)

    def _pieces(self, turn: Turn, memory: Memory, options: Generation, remember: bool) -> Iterator[str]:
        said = []
        for piece in stream(self.model.model, self.model.runner, memory, options):
            said.append(piece)
            yield piece
        if remember:
            self.turns = (*self.turns, turn._replace(answer="".join(said)))

    def turn(self, question: str) -> Turn:
        """A question as a turn of the conversation. AuroraError for one that is empty or not text."""
        if not isinstance(question, str):
            raise AuroraError(f"the question must be str, not {type(question).__name__}")
        if not question.strip():
            raise AuroraError("the question is empty")
        return Turn(plain_question(question, len(self.media)))

    def _conversations(self, questions: Sequence[str]) -> list[tuple[Turn, ...]]:
        """What was said so far and then each of the questions."""
        if isinstance(questions, str):
            raise AuroraError(f"give a list of questions, not a single one: [{questions!r}]")
        return [(*self.turns, self.turn(question)) for question in questions]

    def _read(self, conversations: Sequence[Sequence[Turn]], seen: Snapshot) -> Memory:
        """The memory [S] after each of S conversations about what was seen."""
        runner = self.model.runner
        pieces = [self._tokenized(turns) for turns in conversations]
        if self.media and self.model.reusable:
            memory = self._read_pending(seen)
            return read_texts(runner, fork(memory, [0] * len(pieces)), [piece.trailing for piece in pieces])
        leadings = list(dict.fromkeys(piece.leading for piece in pieces))
        before = read_texts(runner, blank(runner, len(leadings)), leadings)
        memory = read_frames(self.model.model, runner, before, self._frames(), self.model.layout)
        places = [leadings.index(piece.leading) for piece in pieces]
        return read_texts(runner, fork(memory, places), [piece.trailing for piece in pieces])

    def _tokenized(self, turns: Sequence[Turn]) -> Pieces:
        visual = bool(self.media)
        return tokenize(self.model.model.tokenizer, self.model.model.prompt.layout(turns, visual=visual))

    def _require_reusable(self, what: str) -> None:
        if not self.model.reusable:
            raise AuroraError(f"a film watched with the prompt {self._prompt_name} cannot {what}: that prompt puts the "
                              "question before the video; choose prompt=generic")

    @property
    def _prompt_name(self) -> str:
        return str(self.model.settings["prompt"]["name"])

    # Keeping.

    def fork(self) -> "Film":
        """A second film that goes on from here; what one is asked or shown the other does not know."""
        return replace(self)

    __copy__ = fork

    def __deepcopy__(self, memo: dict[int, Any]) -> "Film":
        return self.fork()  # what a film holds is never written into

    def __reduce__(self) -> str:
        raise AuroraError("a film is not pickled: write it to a file with `film.save` and read that with `model.open`")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the film to one file, whole or not at all, in place of another film. AuroraError where there is
        nothing to save, and for a file that is not a film."""
        self._require_reusable("be saved")
        write_film(Saved(self.facts(), self.now, self.history, self.media, self.turns, self.thumbnails), path)

    def _repr_html_(self) -> str:
        """How a notebook shows the film."""
        pictures = "".join(
            f'<figure style="margin:2px;display:inline-block"><img src="{small.url}" style="height:72px" '
            f'alt="second {small.seconds:.0f}"><figcaption>{clock(small.seconds)}</figcaption></figure>'
            for small in self.thumbnails)
        return f"<div><b>{html.escape(self.name)}</b>: {html.escape(self.summary())}<br>{pictures}</div>"

    def summary(self) -> str:
        """Frames, seconds and the size of the state in words."""
        skipped = f", {self.now.skipped} of them unchanged" if self.now.skipped else ""
        return f"{self.frames:,} frames{skipped}, {clock(self.seconds)}, state of {self.state_bytes / 1e6:.1f} MB"

    def __repr__(self) -> str:
        return f"<Film {self.name}: {self.summary()}>"


def generation(options: Generation | None) -> Generation:
    """The options, or the default ones."""
    if options is not None and not isinstance(options, Generation):
        raise AuroraError(f"options must be Generation, not {type(options).__name__}")
    return options or Generation()
