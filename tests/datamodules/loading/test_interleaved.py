"""Images between which text stands are at their places in a row."""

import itertools

import pytest

from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards


@pytest.fixture
def rows(make, tmp_path):
    """The rows of two samples with the same images, one of them with text in between."""
    media = {f"{number}.png": make.picture(10 * number, form="PNG") for number in range(3)}
    samples = [ShardSample(key, {"image": list(media), "conversations": [
        {"from": "human", "value": asked}, {"from": "gpt", "value": key}]}, media)
        for key, asked in (("apart", "<image>is A,<image><image>are B. Which?"),
                           ("together", "<image>" * 3 + "Which?"))]
    write_shards(samples, tmp_path / "set")
    module = make.module(tmp_path, {"set": 1}, prompt="image_first", global_batch=1, row_tokens=120)
    return list(itertools.chain.from_iterable(module.train_dataloader()))


def shown(make, batch):
    """The text of a row with the brightness of each frame at its place."""
    at = {}
    for frames in batch.frames:
        for pixels, places in zip(frames.pixels, frames.positions, strict=True):
            at[int(places[0])] = f"[{round(float(pixels.float().mean()) / 8)}]"
            at.update(dict.fromkeys(places[1:].tolist(), ""))
    return "".join(at.get(place, make.Letters().decode([token]) if token else "")
                   for place, token in enumerate(batch.tokens.tolist()))


def test_frames_stand_where_their_markers_stood(make, rows):
    assert {shown(make, batch) for batch in rows} == {
        "User: [0]\nis A,\n[10][20]\nare B. Which?\n\nAssistant: apart\n\n",
        "User: [0][10][20]\nWhich?\n\nAssistant: together\n\n"}
