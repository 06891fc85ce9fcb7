"""A page that shows samples as they stand in shards: pictures, frames of videos, conversations, all in one file."""

from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aurora.errors import AuroraError, BadSample, bad_sample
from aurora.files import replace_file
from aurora.images import data_url, decode_image
from aurora.interfaces import Sampling, VideoReader
from aurora.records import parse

from ..shards.format import KINDS, VIDEO, Record, parse_record
from ..shards.index import DatasetIndex, load_index
from ..shards.tar import ShardFiles

FRAMES = 8  # shown of a video, spread evenly
PICTURES = 8  # shown of a sample with more
LONGEST = 360  # pixels of a picture's longer side, where there are several
LARGE = 720  # of a picture that is alone


def write_preview(
    folders: Sequence[Path], path: Path, *, samples: int, kinds: Sequence[str], reader: VideoReader
) -> int:
    """Writes the page and returns how many samples it shows: `samples` of each folder, spread over it.

    A sample that cannot be read is shown with the reason. AuroraError for an unknown kind.
    """
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or samples < 1:
        raise AuroraError(f"samples {samples} must be 1 or more, and kinds of {', '.join(KINDS)}; given {kinds}")
    datasets = [(index := load_index(folder), _chosen(index, samples, kinds)) for folder in folders]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              undefined=StrictUndefined)
    page = environment.get_template("preview.html.j2").render(datasets=[
        {"name": index.folder.name, "samples": len(index), "shown": _shown(index, chosen, reader)}
        for index, chosen in datasets])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page.encode())
    return sum(len(chosen) for _, chosen in datasets)


def _chosen(index: DatasetIndex, samples: int, kinds: Sequence[str]) -> list[int]:
    wanted = [KINDS.index(kind) for kind in kinds or KINDS]
    all_of = np.flatnonzero(np.isin(np.asarray(index.samples["kind"]), wanted))
    places = np.unique(np.linspace(0, len(all_of) - 1, min(samples, len(all_of))).astype(np.int64))
    return [int(sample) for sample in all_of[places]] if len(all_of) else []


def _shown(index: DatasetIndex, chosen: Sequence[int], reader: VideoReader) -> Iterator[dict[str, Any]]:
    files = ShardFiles()
    for sample in chosen:
        shown: dict[str, Any] = {"shard": index.path(sample).name, "key": f"#{sample}", "id": None, "kind": "",
                                 "facts": "", "pictures": [], "turns": [], "problem": ""}
        try:
            shown["key"], raw = files.record(index, sample)
            record = parse_record(raw)
            shown.update(id=parse(raw).get("id"), kind=KINDS[record.kind], turns=_spoken(record),
                         facts=_facts(index, sample, record))
            shown["pictures"] = list(_pictures(files, index, sample, str(shown["key"]), record, reader))
        except BadSample as error:
            shown["problem"] = f"{error.reason}: {error.detail}"
        yield shown


def _spoken(record: Record) -> list[dict[str, Any]]:
    """What was said: a question as (label of the image in front of it, text) pairs, and its answer."""
    number, said = count(1), []
    for turn in record.turns:
        cuts = [0, *turn.places, len(turn.question)]
        said.append({"question": [(f"image {next(number)}" if place else "", turn.question[start:stop])
                                  for place, (start, stop) in enumerate(pairwise(cuts))], "answer": turn.answer})
    return said


def _facts(index: DatasetIndex, sample: int, record: Record) -> str:
    media = index.media_of(sample)
    if not len(media):
        return ""
    size = f"{media['width'][0]} × {media['height'][0]}"
    if record.kind == VIDEO:
        return f"{size}, {media['duration'][0]:.1f} s, {int(media['size'][0]) / 1e3:,.0f} kB"
    return size + (f" and {len(media) - 1} more" if len(media) > 1 else "")


def _pictures(
    files: ShardFiles, index: DatasetIndex, sample: int, key: str, record: Record, reader: VideoReader
) -> Iterator[dict[str, str]]:
    longest = LONGEST if len(record.media) > 1 or record.kind == VIDEO else LARGE
    for number, extension in enumerate(record.media[:PICTURES]):
        data = files.media(index, sample, number, f"{key}.{extension}")
        if record.kind != VIDEO:
            label = f"image {number + 1}" if len(record.media) > 1 else extension
            yield {"image": data_url(decode_image(data), lossy=True, longest=longest), "label": label}
            continue
        with bad_sample("video"):
            for seconds, frame in reader.read(data, Sampling(frames=FRAMES)):
                yield {"image": data_url(frame, lossy=True, longest=longest), "label": f"{seconds:.1f} s"}
