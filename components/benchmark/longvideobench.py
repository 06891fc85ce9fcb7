"""LongVideoBench: multiple-choice questions that refer to moments of videos of up to an hour."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._choice import LETTERS, ChoiceBenchmark
from ._files import Row, Videos, annotations, collect, rows
from ._lmms import first_letter

_NONE = "N/A"  # fills the options up to five in the Parquet


@BENCHMARK.register
class Longvideobench(ChoiceBenchmark):
    """LongVideoBench (validation, without subtitles): `lvb_val.json` or the Parquet, and `videos/`.

    Families are the durations. Where lmms-eval finds no letter it draws one; here it is drawn from the item's id.
    """

    compat_unit = 100.0

    def __init__(self, *, annotations: str | None = None, videos: str | None = None) -> None:
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        files = annotations(folder, self.annotations, "lvb_val.json", "validation-*.parquet",
                            "data/validation-*.parquet", "*val*.json*", "*val*.parquet")
        videos = Videos(folder, self.videos, "videos", "video", ".")
        return collect(folder, (_item(row, videos) for file in files for row in rows(file)))

    def compat(self, item: Item, answer: str) -> bool:
        letters = LETTERS[:len(item.options)]
        return (first_letter(answer, "ABCDE") or drawn_letter(item.id, letters)) == LETTERS[item.right or 0]

    def compat_score(self, items: Sequence[Item], answers: Sequence[str], right: Sequence[bool]) -> float:
        """Every question counts in two groups, its duration's and its category's; the share has five digits."""
        groups: dict[Any, list[bool]] = {}
        for item, one in zip(items, right, strict=True):
            groups.setdefault(item.extra["duration_group"], []).append(one)
            groups.setdefault(item.extra["question_category"], []).append(one)
        counted = sum(sum(group) / len(group) * len(group) for group in groups.values())
        return round(counted / sum(map(len, groups.values())), 5) if groups else 0


def drawn_letter(id: str, letters: str) -> str:
    """The letter that stands for an answer without one."""
    return random.Random(id).choice(letters)


def _item(row: Row, videos: Videos) -> Item:
    if "candidates" in row.fields:
        options = row.options("candidates")
    else:
        given = [n for n in range(5) if row.fields.get(f"option{n}", _NONE) != _NONE]
        if given != list(range(len(given))):  # the letters behind it would be those of other options
            raise row.error(f"there is no 'option{min(set(range(5)) - set(given))}', but an 'option{given[-1]}'")
        options = tuple(row.text(f"option{n}") for n in given)
    right = row.option_number("correct_choice", options)
    question = "\n".join([row.text("question"), *(f"{LETTERS[n]}. {option}" for n, option in enumerate(options))])
    group = row.fields.get("duration_group")
    if isinstance(group, bool) or not isinstance(group, (int, float, str)):
        raise row.error(f"'duration_group' must be a number of seconds, not {group!r}")
    return Item(row.text("id"), videos.find(row, row.text("video_path")),
                f"{question}\nAnswer with the option's letter from the given choices directly.\n", options[right],
                options, right, f"up to {group} s", max_new_tokens=32,
                extra={"duration_group": group, "question_category": row.text("question_category")})
