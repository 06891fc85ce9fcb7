from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aurora.figures import draw_groups, merged_patches, patch_grid
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Sampling

testclient = pytest.importorskip("starlette.testclient")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(library: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from aurora.serving.app import create_app
    from aurora.serving.settings import Settings

    app = create_app(Settings.of(store=str(tmp_path_factory.mktemp("store"))), library)
    with testclient.TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def watch(client: Any, **body: Any) -> dict[str, Any]:
    made = client.post("/v1/films", **body)
    assert made.status_code == 202, made.text
    client.get(f"/v1/films/{made.json()['id']}/events")  # ends when it is ready
    return client.get(f"/v1/films/{made.json()['id']}").json()


@pytest.fixture(scope="module")
def kept(client: Any, video: Path) -> dict[str, Any]:
    """A film whose video the service keeps."""
    with video.open("rb") as file:
        uploaded = client.post("/v1/files", files={"file": ("clip.mp4", file)}).json()
    film = watch(client, json={"file_id": uploaded["id"]})
    assert film["sha256"] == [uploaded["sha256"]]
    return film


def picture(response: Any) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


def test_a_frame_of_a_kept_video_is_drawn_as_the_encoder_merged_it(client: Any, kept: dict[str, Any], video: Path,
                                                                  library: VideoModel) -> None:
    model = library.model
    second, frame = next(iter(library.reader.read(str(video), Sampling(fps=1.0, start=1.0))))
    groups = merged_patches(model, frame, library.config.keep_ratio)
    pixels = library.layout.prepare(frame).permute(1, 2, 0).numpy()
    for group in groups:
        for fill in (True, False):
            drawn = client.get(f"/v1/films/{kept['id']}/patches",
                               params={"second": 1.0, "depth": group.blocks, "fill": fill, "side": 96})
            wanted = draw_groups(pixels, group.owner, patch_grid(model, pixels), 96, fill=fill)
            assert np.array_equal(picture(drawn), wanted)
            assert drawn.headers["x-aurora-tokens"] == str(group.tokens)
            assert drawn.headers["x-aurora-source"] == "video"
            assert float(drawn.headers["x-aurora-second"]) == pytest.approx(second)


def test_another_keep_ratio_draws_another_number_of_tokens(client: Any, kept: dict[str, Any]) -> None:
    at = f"/v1/films/{kept['id']}/patches"
    all_of_them = client.get(at, params={"keep_ratio": 1.0})
    assert all_of_them.headers["x-aurora-tokens"] == all_of_them.headers["x-aurora-patches"]
    assert int(client.get(at).headers["x-aurora-tokens"]) < int(all_of_them.headers["x-aurora-tokens"])


def test_a_film_whose_video_is_not_kept_is_drawn_from_its_own_small_picture(client: Any, make_video: Any,
                                                                            tmp_path: Path) -> None:
    other = make_video(tmp_path / "other.mp4", 24, seed=1)
    with other.open("rb") as file:
        film = watch(client, files={"file": ("clip.mp4", file)})
    drawn = client.get(f"/v1/films/{film['id']}/patches")
    assert picture(drawn).any() and drawn.headers["x-aurora-source"] == "thumbnail"
    with other.open("rb") as file:
        client.post("/v1/files", files={"file": ("clip.mp4", file)}).raise_for_status()
    assert client.get(f"/v1/films/{film['id']}/patches").headers["x-aurora-source"] == "video"


@pytest.mark.parametrize(("options", "status", "said"), [
    ({"depth": 99}, 400, "blocks"), ({"merge": "tom"}, 400, "no merge named 'tom'"),
    ({"keep_ratio": 2}, 400, "keep_ratio"), ({"side": 100_000}, 400, "side"), ({"second": -1}, 400, "second"),
])
def test_what_cannot_be_drawn_is_said(client: Any, kept: dict[str, Any], options: dict[str, Any], status: int, said: str
                                      ) -> None:
    answer = client.get(f"/v1/films/{kept['id']}/patches", params=options)
    assert answer.status_code == status and said in answer.json()["error"]["message"]


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example"}, {"Host": "evil.example:8000"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "[::1"},
    {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
])
def test_pages_of_other_sites_are_not_served_without_a_token(client: Any, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/v1/films"), ("POST", "/v1/films"), ("GET", "/metrics")):
        answer = client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert client.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [
    {"Host": "localhost:8000"}, {"Host": "LOCALHOST"}, {"Host": "[::1]:8000"}, {"Origin": "http://localhost:3000"},
    {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
])
def test_this_machine_is_served_without_a_token(client: Any, headers: dict[str, str]) -> None:
    assert client.get("/v1/films", headers=headers).status_code == 200


def test_the_settings_say_what_may_be_chosen(client: Any, kept: dict[str, Any], library: VideoModel) -> None:
    told = client.get("/v1/settings").json()
    assert told["watched_with"] == library.settings and told["depth"] == library.model.vision.depth
    assert told["watched_with"]["merge"]["name"] in told["choices"]["merge"]
    assert told["watched_with"]["sort"]["name"] in told["choices"]["sort"]
    assert told["memory"]["films"] >= 1 and told["limits"]["upload_bytes"] > 0
