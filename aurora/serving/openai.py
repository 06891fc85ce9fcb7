"""`/v1/models` and `/v1/chat/completions`, as OpenAI's clients speak them."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt

from aurora.serving.answer import Answer
from aurora.serving.errors import ApiError, api_error, error_body
from aurora.serving.messages import read_messages, read_sampling
from aurora.serving.service import Service, service_of, while_connected

router = APIRouter(prefix="/v1")
Served = Annotated[Service, Depends(service_of)]
# not `str | list[str]`, of whose errors the place names a branch and not the field alone
Stop = Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given,
                                            json_schema_input_type=str | list[str])]

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "frequency_penalty": (0,),
    "presence_penalty": (0,), "logit_bias": ({},), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "audio": (), "prediction": (), "web_search_options": (),
}
"""Fields that are refused unless they ask for what happens anyway; None always does."""


class Fields(BaseModel):
    """What requests of every form share. Unknown fields are refused; those below `ignored` change no answer."""

    model_config = ConfigDict(extra="forbid")

    model: str
    stream: StrictBool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=1)] | None = None
    seed: StrictInt | None = None
    media_io_kwargs: dict[str, Any] | None = None
    # ignored
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None

    def refuse(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """ApiError 400 for a field that asks for something that this server does not do."""
        for name, values in neutral.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise ApiError(400, f"{name} is not supported by this server"
                               + (f"; only {json.dumps(values[0])} is" if values else ""), param=name,
                               code="unsupported_field")


class StreamOptions(BaseModel):
    """Of a streamed completion."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False  # ignored


class ChatRequest(Fields):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=2048)]
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    stop: Stop | None = None
    # refused unless neutral
    n: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    tools: Any = None
    functions: Any = None
    tool_choice: Any = None
    function_call: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    # ignored
    reasoning_effort: Any = None
    verbosity: Any = None


@router.get("/models")
async def list_models(service: Served) -> dict[str, Any]:
    """The model, and every film as a model that text-only clients can ask."""
    return {"object": "list", "data": service.models()}


@router.get("/models/{model:path}")
async def get_model(model: str, service: Served) -> dict[str, Any]:
    """One of them."""
    found = next((one for one in service.models() if one["id"] == model), None)
    if found is None:
        raise ApiError(404, f"there is no model {model[:100]!r}", code="model_not_found")
    return found


@router.post("/chat/completions", response_model=None)
async def chat(body: ChatRequest, request: Request, service: Served) -> dict[str, Any] | StreamingResponse:
    """The answer to the last message, about the film that the model names or the media in the messages."""
    body.refuse(NEUTRAL)
    made = Completion(body)
    if body.stream:
        answer = await while_connected(request, begin(body, service))
        return StreamingResponse(made.events(answer, service), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache"})
    return await while_connected(request, made.whole(service))


async def begin(body: ChatRequest, service: Service) -> Answer:
    """The answer that is being made to a request."""
    said = await asyncio.to_thread(read_messages, body.messages, service.settings)
    sampling = read_sampling(body.media_io_kwargs, service.model.config.sampling, service.settings)
    options = service.generation(
        max_tokens=body.max_completion_tokens or body.max_tokens, temperature=body.temperature, top_p=body.top_p,
        top_k=body.top_k, seed=body.seed, stop=body.stop)
    film = await service.film_of(body.model, said.media, sampling)
    return await service.ask(film, said.turns, options)


class Completion:
    """One completion, in one piece or as a stream of chunks."""

    def __init__(self, body: ChatRequest) -> None:
        self._body = body
        self._usage_wanted = body.stream_options is not None and body.stream_options.include_usage
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}

    async def whole(self, service: Service) -> dict[str, Any]:
        """The response without streaming."""
        answer = await begin(self._body, service)
        text = "".join([piece async for piece in service.pieces(answer)])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage(answer),
                **warnings(answer)}

    async def events(self, answer: Answer, service: Service) -> AsyncIterator[str]:
        """The chunks of a stream as server-sent events."""
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            async for piece in service.pieces(answer):
                yield self._chunk({"content": piece})
        except Exception as error:
            yield event(error_body(api_error(error)))
            return
        yield self._chunk({}, answer.finish_reason, warnings(answer))
        if self._usage_wanted:
            yield event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(answer)})
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None,
               more: Mapping[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        told = {**self._head, "object": "chat.completion.chunk", "choices": [choice], **(more or {})}
        return event({**told, "usage": None} if self._usage_wanted else told)


def usage(answer: Answer) -> dict[str, int]:
    """Tokens of the question and of the answer; those of a film were read once, before."""
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens,
            "total_tokens": answer.prompt_tokens + answer.tokens}


def warnings(answer: Answer) -> dict[str, list[str]]:
    """`warnings` about what was read of the video, where there are any."""
    return {"warnings": answer.warnings} if answer.warnings else {}


def event(told: Mapping[str, Any], name: str | None = None) -> str:
    """A server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(told, ensure_ascii=False)}\n\n"
