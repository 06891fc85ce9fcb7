from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora.errors import BadSample
from aurora.interfaces import Entry
from aurora.records import items
from aurora.registry import SOURCE

from ._records import Parsed, RecordSource, asked, chosen, joined

PROMPTS = ("Describe the image in one sentence.", "What does the image show? Answer in one sentence.",
           "Give a short caption of the image.")


@SOURCE.register
class CocoCaptionsSource(RecordSource):
    """Files of {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.

    `images` is the folder of the pictures. One caption of each image is used, chosen by the sample's key, or with
    `every` each caption as a sample of its own; it is asked for with one of `prompts`.
    """

    def __init__(
        self, *, folder: Path, annotations: str | Sequence[str], images: str = ".", every: bool = False,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        super().__init__(folder=folder, annotations=annotations)
        self._images, self._every, self._prompts = images, every, prompts

    def entries(self) -> Iterator[Entry]:
        for path in self.annotations():
            rows = ((one.get("image_id"), one.get("caption")) for one in items(path, "annotations"))
            images = ((one.get("id"), one.get("file_name")) for one in items(path, "images"))
            for image, name, found in joined(images, rows):
                for captions in ([caption] for caption in found) if self._every else [found]:
                    yield {"id": image, "file_name": name, "captions": captions}

    def parse(self, record: Mapping[str, Any], key: str) -> Parsed:
        captions = [caption for caption in record["captions"] if isinstance(caption, str) and caption.strip()]
        if not captions:
            raise BadSample("text", "the image has no caption")
        turns = asked(chosen(self._prompts, key), chosen(captions, key + "/caption"))
        return Parsed(turns, (record["file_name"],), self._images)
