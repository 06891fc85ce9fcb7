import base64
import io
import re

import pytest
from PIL import Image

from aurora.errors import AuroraError
from aurora.registry import READER
from datamodules.inspect.preview import write_preview
from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards


@pytest.fixture
def page(tmp_path):
    def page(*folders, samples=10, kinds=()):
        path = tmp_path / "out" / "page.html"
        shown = write_preview(folders, path, samples=samples, kinds=kinds, reader=READER.build({"name": "pyav"}))
        return shown, path.read_text()
    return page


def test_the_page_shows_every_kind_and_links_to_nothing(make, page, tmp_path):
    write_shards(make.mixed(4), tmp_path / "set")
    shown, text = page(tmp_path / "set")
    assert shown == 4
    assert text.count("data:image/jpeg;base64,") == 1 + 2 + 7  # the video has seven frames
    assert "It is 3." in text
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import', text)


def test_samples_are_spread_over_the_dataset_and_may_be_of_one_kind(make, page, tmp_path):
    write_shards(make.mixed(40), tmp_path / "set")
    shown, text = page(tmp_path / "set", samples=2, kinds=("text",))
    assert shown == 2
    assert "part/0000" in text and "part/0036" in text
    assert "data:image" not in text


def test_what_a_sample_says_is_no_markup(make, page, tmp_path):
    talk = [{"from": "human", "value": "<script>alert(1)</script>"}, {"from": "gpt", "value": "<b>"}]
    write_shards([ShardSample("k", {"conversations": talk})], tmp_path / "set")
    _, text = page(tmp_path / "set")
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_marker_is_shown_as_its_picture_and_not_as_text(make, page, tmp_path):
    def talk(question):
        return [{"from": "human", "value": question}, {"from": "gpt", "value": "That."}]

    write_shards([
        ShardSample("one", {"id": "own-id", "image": "jpg", "conversations": talk("<image>\nWhat?")},
                    {"jpg": make.picture()}),
        ShardSample("two", {"image": ["0.jpg", "1.jpg"],
                            "conversations": talk("One <image> then <image> What changed?")},
                    {"0.jpg": make.picture(), "1.jpg": make.picture()}),
        ShardSample("text", {"conversations": talk("What does <image> mean here?")})], tmp_path / "set")
    _, text = page(tmp_path / "set")
    shown = re.findall(r'class="asked">(.*?)</p>', text)
    assert [" ".join(re.sub(r"</?span[^>]*>", "|", line).split()) for line in shown] == [
        "What?", "One |image 1| then |image 2| What changed?", "What does &lt;image&gt; mean here?"]
    assert "<b>own-id</b>" in text and 'id="set/one"' in text
    assert all(re.findall(r'<img [^>]*alt="([^"]*)"', text))


def test_a_picture_that_is_alone_is_large(make, page, tmp_path):
    write_shards([ShardSample("k", {"image": "jpg", "conversations": make.talk()},
                              {"jpg": make.picture(height=500, width=1000)})], tmp_path / "set")
    _, text = page(tmp_path / "set")
    raw = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]+)", text)[1])
    assert Image.open(io.BytesIO(raw)).size == (720, 360)


def test_a_broken_sample_is_shown_with_the_reason(make, page, tmp_path):
    write_shards([ShardSample("k", {"image": "jpg", "conversations": make.talk()}, {"jpg": b"none"})], tmp_path / "set")
    shown, text = page(tmp_path / "set")
    assert shown == 1 and "image: it is not a jpeg, png or webp" in text


def test_an_unknown_kind_is_refused(make, page, tmp_path):
    write_shards(make.mixed(1), tmp_path / "set")
    with pytest.raises(AuroraError, match="text, image, images, video"):
        page(tmp_path / "set", kinds=("pictures",))
