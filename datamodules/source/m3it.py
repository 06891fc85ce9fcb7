from collections.abc import Mapping
from typing import Any

from aurora.registry import SOURCE

from ._records import Parsed, RecordSource, asked, from_base64, text


@SOURCE.register
class M3itSource(RecordSource):
    """Lines of {"instruction", "inputs", "outputs", "image_base64_str"} (or "image_str"), of one picture or several.

    `annotations` are one or several .jsonl files below the dataset's folder. The question is the instruction, and
    behind it the inputs where there are any; frames of a video are several pictures.
    """

    by_place = True

    def parse(self, record: Mapping[str, Any], key: str) -> Parsed:
        inputs = record.get("inputs")
        question = text(record.get("instruction"), "instruction")
        if inputs:
            question += "\n" + text(inputs, "inputs")
        images = record.get("image_base64_str") or record.get("image_str") or []
        pictures = images if isinstance(images, list) else [images]
        return Parsed(asked(question, record.get("outputs")), [from_base64(one) for one in pictures])
