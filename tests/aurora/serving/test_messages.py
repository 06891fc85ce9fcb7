from __future__ import annotations

import base64
import math

import pytest
from openai.types.chat import ChatCompletionMessage
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

from aurora.errors import AuroraError
from aurora.interfaces import Sampling, Turn
from aurora.serving.errors import ApiError
from aurora.serving.messages import Medium, limited_sampling, read_messages, read_sampling
from aurora.serving.settings import Settings

SETTINGS = Settings(store="films", max_frames=100, max_fps=10.0, parts=3)
RAW = b"a video"
BASE64 = base64.b64encode(RAW).decode()
DATA = f"data:video/mp4;base64,{BASE64}"
ASK = {"type": "text", "text": "What is it?"}


def user(*parts: dict[str, object]) -> list[dict[str, object]]:
    return [{"role": "user", "content": [*parts]}]


@pytest.mark.parametrize(("part", "media"), [
    ({"type": "video_url", "video_url": {"url": DATA}}, [Medium(RAW)]),
    ({"type": "video_url", "video_url": DATA}, [Medium(RAW)]),
    ({"type": "video_url", "video_url": {"url": "https://a.org/b.mp4"}}, [Medium(url="https://a.org/b.mp4")]),
    ({"type": "input_video", "input_video": {"data": BASE64}}, [Medium(RAW)]),
    ({"type": "input_video", "video_url": DATA}, [Medium(RAW)]),
    ({"type": "input_image", "image_url": DATA}, [Medium(RAW)]),
    ({"type": "image_url", "image_url": {"url": DATA, "detail": "low"}}, [Medium(RAW)]),
    ({"type": "file", "file": {"file_id": "file-1"}}, [Medium(file_id="file-1")]),
    ({"type": "file", "file": {"file_data": DATA, "filename": "../a.mp4"}}, [Medium(RAW)]),
    ({"type": "input_file", "file_id": "file-1"}, [Medium(file_id="file-1")]),
    ({"type": "file", "file": {"file_data": BASE64, "filename": "a.mp4"}}, [Medium(RAW)]),
    ({"type": "input_file", "file_data": "\r\n".join(BASE64)}, [Medium(RAW)]),
    ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + "\n".join(BASE64)}}, [Medium(RAW)]),
    ({"type": "video", "video": [DATA, DATA]}, [Medium(RAW), Medium(RAW)]),
])
def test_every_form_of_a_video_is_read(part: dict[str, object], media: list[Medium]) -> None:
    said = read_messages(user(part, ASK), SETTINGS)
    assert said.media == tuple(media)
    assert said.turns == (Turn("What is it?"),)


@pytest.mark.parametrize("url", ["http://a.org/b.mp4", "file:///etc/passwd", "/etc/passwd", "data:video/mp4,raw",
                                 "data:video/mp4;base64,%%%"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ApiError) as raised:
        read_messages(user({"type": "video_url", "video_url": {"url": url}}, ASK), SETTINGS)
    assert raised.value.status_code == 400


def test_messages_are_turns_and_the_system_speaks_first() -> None:
    said = read_messages([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
        {"role": "user", "content": [{"type": "text", "text": "Two?"}]}, {"role": "assistant", "content": "Yes."},
        {"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Three?"}], SETTINGS)
    assert said.turns == (Turn("Be brief.\nBe kind.\nOne?\nTwo?", "Yes."), Turn("Three?"))


@pytest.mark.parametrize(("messages", "named"), [
    ([{"role": "assistant", "content": "Hi"}], "follows a message of the user"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "must be one of the user"),
    ([{"role": "user", "content": "  "}], "empty"),
    ([{"role": "tool", "content": "a"}], "'tool' is not supported"),
    ([{"role": "user", "content": 3}], "neither a string nor a list"),
    (user({"type": "input_audio", "input_audio": {}}), "'input_audio' is not supported"),
    (user({"type": "video_url", "video_url": {}}), "holds no url"),
    ([{"role": "system", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}], "role user only"),
    (user({"type": "video", "video": []}, ASK), "holds no url"),
    (user({"type": "video_url", "video_url": {"url": []}}, ASK), "holds no url"),
    (user({"type": "video_url", "video_url": {"url": DATA}, "file_id": "file-1"}, ASK), "file_id and url, of"),
    ([{"type": "function_call", "name": "a"}], "type 'function_call' is not supported"),
])
def test_other_messages_are_refused(messages: list[dict[str, object]], named: str) -> None:
    with pytest.raises(ApiError, match=named) as raised:
        read_messages(messages, SETTINGS)
    assert raised.value.status_code == 400


@pytest.mark.parametrize(("messages", "field"), [
    (user({"type": "video_url", "video_url": {"url": DATA, "fps": 5}}, ASK), "[0].content[0].video_url.fps"),
    (user({"type": "video", "video": DATA, "nframes": 2}, ASK), "[0].content[0].nframes"),
    (user({**ASK, "texxt": "a"}), "[0].content[0].texxt"),
    ([{"role": "user", "content": "a", "contentt": "b"}], "[0].contentt"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}],
     "[1].tool_calls"),
])
def test_unknown_fields_are_refused_by_their_place(messages: list[dict[str, object]], field: str) -> None:
    with pytest.raises(ApiError, match="media_io_kwargs" if "video" in str(messages) else "not supported") as raised:
        read_messages(messages, SETTINGS)
    assert (raised.value.status_code, raised.value.param) == (400, f"messages{field}")


def test_what_clients_send_back_of_answers_is_taken() -> None:
    answer = ChatCompletionMessage(role="assistant", content="Yes.", tool_calls=[]).model_dump()
    text = ResponseOutputText(type="output_text", text="No.", annotations=[], logprobs=[])
    output = ResponseOutputMessage(id="msg_1", type="message", role="assistant", status="completed", content=[text])
    said = read_messages([
        {"role": "user", "name": "me", "content": [{**ASK, "cache_control": {"type": "ephemeral"}}]}, answer,
        {"role": "user", "content": "Two?"}, output.model_dump(), {"role": "user", "content": "Three?"}], SETTINGS)
    assert said.turns == (Turn("What is it?", "Yes."), Turn("Two?", "No."), Turn("Three?"))


def test_too_many_media_are_too_large() -> None:
    part = {"type": "image_url", "image_url": {"url": DATA}}
    with pytest.raises(ApiError) as raised:
        read_messages(user(part, part, part, part, ASK), SETTINGS)
    assert raised.value.status_code == 413


OWN = Sampling(fps=1.0)


@pytest.mark.parametrize(("given", "sampling"), [
    (None, Sampling(fps=1.0, max_frames=100)),
    ({"video": {"fps": 4}}, Sampling(fps=4, max_frames=100)),
    ({"video": {"fps": 50}}, Sampling(fps=10.0, max_frames=100)),
    ({"video": {"num_frames": 8}}, Sampling(frames=8)),
    ({"video": {"num_frames": 5000}}, Sampling(frames=100)),
])
def test_a_request_may_only_lower_what_the_server_allows(given: dict[str, object] | None, sampling: Sampling) -> None:
    assert read_sampling(given, OWN, SETTINGS) == sampling


@pytest.mark.parametrize("given", [{"video": {"fps": 1, "num_frames": 2}}, {"video": {"fps": 0}}, {"audio": {}},
                                   {"video": {"num_frames": -1}}, {"video": {"fps": True}}, {"video": 5},
                                   {"video": {"num_frames": 0.5}}, {"video": {"num_frames": math.inf}}])
def test_other_media_options_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ApiError) as raised:
        read_sampling(given, OWN, SETTINGS)
    assert raised.value.status_code == 400


def test_max_frames_may_be_lowered_too() -> None:
    assert limited_sampling(OWN, SETTINGS, max_frames=7) == Sampling(fps=1.0, max_frames=7)


@pytest.mark.parametrize(("options", "named"), [
    ({"host": "0.0.0.0"}, "set a token"), ({"token": "short"}, "can be guessed"), ({"port": 70000}, "outside"),
    ({"memory_bytes": 5}, "holds no state"), ({"answering": 0}, "answering"), ({"watching": 1.5}, "watching"),
])
def test_settings_that_cannot_be_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(AuroraError, match=named):
        Settings.of(store="films", **options)
