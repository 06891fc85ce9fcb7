"""A film as one file: safetensors with the state, and in its header what the state depends on.

The header's `film` is a JSON object: `identity` of the model, `settings` of watching, `media`, frames, seconds, turns,
and a SHA-256 over everything, so that a file that was damaged is never answered from.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aurora.errors import AuroraError
from aurora.files import replacing, room_for
from aurora.inference.ingest import Shot
from aurora.inference.reading import Memory
from aurora.inference.snapshot import Medium, Snapshot, Thumbnail
from aurora.interfaces import Sampling, Turn
from aurora.options import NonNegativeInt, PositiveFloat, check_kind

FORMAT = 1
SUFFIX = ".aurora"
_HEADER_ERRORS = (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError)


@dataclass(frozen=True)
class _Seen:
    """How the header describes a Snapshot."""

    frames: NonNegativeInt
    skipped: NonNegativeInt
    last: float
    seconds: Annotated[float, Ge(0)]
    digest: str
    pending: Sequence[tuple[float, NonNegativeInt]]


@dataclass(frozen=True)
class _Medium:
    """How the header describes a Medium."""

    name: str
    sampling: Sampling
    start: Annotated[float, Ge(0)]
    path: None
    sha256: str | None


@dataclass(frozen=True)
class _Turn:
    """How the header describes a Turn."""

    question: str
    answer: str | None
    places: Sequence[NonNegativeInt]


_KINDS: Mapping[str, Any] = {
    "id": str, "name": str, "identity": Mapping[str, Any], "settings": Mapping[str, Any], "chosen": Sequence[str],
    "checkpoint_seconds": PositiveFloat | None, "state_bytes": NonNegativeInt, "sha256": str, "now": _Seen,
    "history": Sequence[_Seen], "media": Sequence[_Medium], "turns": Sequence[_Turn], "thumbnails": Sequence[float],
}


class FilmMismatch(AuroraError):
    """A film of another model, or that was watched in another way than asked for."""


class Saved(NamedTuple):
    """What a file of a film holds."""

    facts: Mapping[str, Any]
    now: Snapshot
    history: tuple[Snapshot, ...]
    media: tuple[Medium, ...]
    turns: tuple[Turn, ...]
    thumbnails: tuple[Thumbnail, ...]


def write_film(film: Saved, path: str | os.PathLike[str]) -> None:
    """Writes a film, whole or not at all. AuroraError when the disk is full, and as of `film_target`."""
    target = film_target(path, [medium.path for medium in film.media if medium.path is not None])
    tensors = _tensors("now", film.now)
    for number, seen in enumerate(film.history):
        tensors |= _tensors(f"history.{number}", seen)
    for number, small in enumerate(film.thumbnails):
        tensors[f"thumbnail.{number}"] = torch.frombuffer(bytearray(small.jpeg), dtype=torch.uint8)
    facts: dict[str, Any] = {**film.facts} | {
        "format": FORMAT,
        "now": _facts(film.now),
        "history": [_facts(seen) for seen in film.history],
        "media": [_medium(medium) for medium in film.media],
        "turns": [turn._asdict() for turn in film.turns],
        "thumbnails": [small.seconds for small in film.thumbnails],
    }
    facts["sha256"] = _checksum(facts, tensors)
    try:
        header = json.dumps(facts, allow_nan=False)
    except ValueError as error:
        raise AuroraError(f"{target} would be a film that cannot be opened, so it is not written: {error}") from error
    with room_for(target), replacing(target, folder=False) as place:
        try:
            save_file(tensors, place, metadata={"film": header})
        except SafetensorError as error:  # which hides what the system said, and names a file of its own
            said = re.search(r"os error (\d+)", str(error))
            number = int(said[1]) if said else errno.EIO
            raise OSError(number, os.strerror(number) if said else str(error), str(target)) from error


def film_target(path: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]] = ()) -> Path:
    """Where a film is to be written. AuroraError for a folder, and for what a film must not replace: one of the
    `sources` of what is saved, or a file that neither is a film nor called like one."""
    if "\0" in os.fspath(path):
        raise AuroraError(f"{os.fspath(path)!r} holds a NUL character, which no name of a file does")
    target = Path(path)
    if target.is_dir():
        raise AuroraError(f"{target} is a folder; give the name of a file, such as {target / ('film' + SUFFIX)}")
    if not target.exists() or (target.is_file() and is_film(target)):
        return target
    if any(os.path.exists(source) and target.samefile(source) for source in sources):
        raise AuroraError(f"{target} is the video itself, which the film would replace; give the name of another file")
    if not target.is_file() or (target.suffix != SUFFIX and target.stat().st_size):
        raise AuroraError(f"{target} is there already and is not a film; give the name of another file, such as "
                          f"{target.with_suffix(SUFFIX)}")
    return target


def read_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the header of a film's file says. AuroraError when it is something else."""
    try:
        with safe_open(path, framework="pt") as file:
            return _checked(_header(file, path), path)
    except _HEADER_ERRORS as error:
        if isinstance(error, AuroraError):
            raise
        raise _not_a_film(path, error) from error


def read_film(path: str | os.PathLike[str]) -> Saved:
    """All that a file holds. AuroraError when it is damaged or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            written = _header(file, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if written["sha256"] != _checksum(written, tensors):
            raise AuroraError(f"{path} is damaged: its contents are not those that were saved")
        facts = _checked(written, path)
        return Saved(
            facts, _snapshot("now", facts["now"], tensors),
            tuple(_snapshot(f"history.{number}", each, tensors) for number, each in enumerate(facts["history"])),
            tuple(Medium(**medium) for medium in facts["media"]),
            tuple(Turn(turn["question"], turn["answer"], tuple(turn["places"])) for turn in facts["turns"]),
            tuple(Thumbnail(seconds, _uint8(tensors[f"thumbnail.{number}"], 1).numpy().tobytes())
                  for number, seconds in enumerate(facts["thumbnails"])))
    except _HEADER_ERRORS as error:
        if isinstance(error, AuroraError):
            raise
        raise _not_a_film(path, error) from error


def is_film(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is a film."""
    try:
        with safe_open(path, framework="pt") as file:
            return "film" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _header(file: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((file.metadata() or {})["film"])
    if facts["format"] != FORMAT:
        raise FilmMismatch(f"{path} is a film of format {facts['format']}; this Aurora reads format {FORMAT}")
    return facts


def _checked(written: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a header says, with everything of the kind that it should be; halves of characters, which names of files
    may hold, become question marks. AuroraError."""
    text = json.dumps(written, ensure_ascii=False, allow_nan=False)
    facts: dict[str, Any] = json.loads(text.encode(errors="replace"))
    for key, kind in _KINDS.items():
        try:
            check_kind(key, facts[key], kind)
        except AuroraError as error:
            raise AuroraError(f"{path} is not a saved film, or is damaged: {error}") from error
    return facts


def _uint8(tensor: Tensor, dimensions: int) -> Tensor:
    if tensor.dtype != torch.uint8 or tensor.ndim != dimensions:
        raise ValueError(f"a picture is {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor


def _not_a_film(path: str | os.PathLike[str], error: Exception) -> AuroraError:
    if isinstance(error, FileNotFoundError) or not Path(path).exists():
        return AuroraError(f"{path} does not exist")
    return AuroraError(f"{path} is not a saved film, or is damaged: {error}")


def _medium(medium: Medium) -> dict[str, Any]:
    """What holds on every machine."""
    facts = medium._replace(path=None)._asdict()
    del facts["stamp"]
    return facts


def _facts(seen: Snapshot) -> dict[str, Any]:
    return {"frames": seen.frames, "skipped": seen.skipped, "last": seen.last, "seconds": seen.seconds,
            "digest": seen.digest, "pending": [[shot.seconds, shot.keep] for shot in seen.pending]}


def _tensors(prefix: str, seen: Snapshot) -> dict[str, Tensor]:
    named = {f"state.{name}": tensor for name, tensor in seen.memory.state.items()}
    if seen.memory.hidden is not None:
        named["hidden"] = seen.memory.hidden
    if seen.reference is not None:
        named["reference"] = seen.reference
    named |= {f"pending.{number}": shot.pixels for number, shot in enumerate(seen.pending)}
    # a clone: two names of one memory cannot be written
    return {f"{prefix}.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}


def _snapshot(prefix: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Snapshot:
    own = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
    state = {name.removeprefix("state."): tensor for name, tensor in own.items() if name.startswith("state.")}
    pending = tuple(Shot(seconds, _uint8(own[f"pending.{number}"], 3), keep, skipped=False)
                    for number, (seconds, keep) in enumerate(facts["pending"]))
    reference = _uint8(own["reference"], 3) if "reference" in own else None
    return Snapshot(Memory(own.get("hidden"), state), pending, reference, facts["frames"], facts["skipped"],
                    facts["last"], facts["seconds"], facts["digest"])


def _checksum(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    said = {key: value for key, value in facts.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Which of the keys differ, in words; long digests are not shown."""
    return [_difference(key, found.get(key), wanted.get(key)) for key in keys if found.get(key) != wanted.get(key)]


def _difference(key: str, found: Any, wanted: Any) -> str:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):  # a part: its name, or the options that differ
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        found, wanted = (part.get("name") if "name" in names else
                         ", ".join(f"{name} {part.get(name)}" for name in names) for part in (found, wanted))
    return f"{key} ({found} in the film, {wanted} here)" if len(f"{found}{wanted}") < 80 else key
