"""`/v1/responses`, as OpenAI's clients speak it. Responses are not stored."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator, Field, StrictInt

from aurora.serving.answer import Answer
from aurora.serving.errors import api_error
from aurora.serving.messages import read_messages, read_sampling
from aurora.serving.openai import Fields, Served, event, warnings
from aurora.serving.service import Service, while_connected

router = APIRouter(prefix="/v1")

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "previous_response_id": (), "conversation": (),
    "background": (False,), "text": ({"format": {"type": "text"}}, {}), "truncation": ("disabled",),
    "top_logprobs": (0,), "prompt": (), "max_tool_calls": (),
}
"""Fields that are refused unless they ask for what happens anyway."""
Input = Annotated[
    list[dict[str, Any]], Field(min_length=1, max_length=2048),
    BeforeValidator(lambda given: [{"role": "user", "content": given}] if isinstance(given, str) else given,
                    json_schema_input_type=str | list[dict[str, Any]])]


class ResponseRequest(Fields):
    """The body of `/v1/responses`."""

    input: Input
    instructions: str | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    # refused unless neutral
    tools: Any = None
    tool_choice: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    text: Any = None
    truncation: Any = None
    top_logprobs: Any = None
    prompt: Any = None
    max_tool_calls: Any = None
    # ignored
    include: Any = None
    reasoning: Any = None
    stream_options: Any = None


@router.post("/responses", response_model=None)
async def respond(body: ResponseRequest, request: Request, service: Served) -> dict[str, Any] | StreamingResponse:
    """The answer to the input, about the film that the model names or the media in it."""
    body.refuse(NEUTRAL)
    made = Response(body)
    answer = await while_connected(request, begin(body, service))
    if body.stream:
        return StreamingResponse(made.events(answer, service), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache"})
    return await while_connected(request, made.whole(answer, service))


async def begin(body: ResponseRequest, service: Service) -> Answer:
    """The answer that is being made to a request."""
    said = await asyncio.to_thread(read_messages, body.input, service.settings, where="input",
                                   system=body.instructions, skipped=("reasoning",))
    sampling = read_sampling(body.media_io_kwargs, service.model.config.sampling, service.settings)
    options = service.generation(max_tokens=body.max_output_tokens, temperature=body.temperature, top_p=body.top_p,
                                 top_k=body.top_k, seed=body.seed, stop=None)
    film = await service.film_of(body.model, said.media, sampling)
    return await service.ask(film, said.turns, options)


class Response:
    """One response, in one piece or as a stream of events."""

    def __init__(self, body: ResponseRequest) -> None:
        self._numbers = count()
        self._item = f"msg_{secrets.token_hex(12)}"
        self._head = {
            "id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()),
            "model": body.model, "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "temperature": 0.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p, "tools": [], "tool_choice": "none",
            "parallel_tool_calls": False, "previous_response_id": None, "store": False, "metadata": {},
            "text": {"format": {"type": "text"}}, "truncation": "disabled",
        }

    async def whole(self, answer: Answer, service: Service) -> dict[str, Any]:
        """The response without streaming."""
        text = "".join([piece async for piece in service.pieces(answer)])
        return self._response(self._status(answer), text, answer)

    async def events(self, answer: Answer, service: Service) -> AsyncIterator[str]:
        """Every event of a streamed response, in OpenAI's order."""
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", []))
        yield self._event("response.content_part.added", **place, part=_part(""))
        text = ""
        try:
            async for piece in service.pieces(answer):
                text += piece
                yield self._event("response.output_text.delta", **place, delta=piece, logprobs=[])
        except Exception as error:
            told = api_error(error)
            failed = self._response("failed") | {"error": {"code": "server_error", "message": told.detail}}
            yield self._event("response.failed", response=failed)
            return
        status = self._status(answer)
        yield self._event("response.output_text.done", **place, text=text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=_part(text))
        yield self._event("response.output_item.done", output_index=0, item=self._message(status, [_part(text)]))
        yield self._event(f"response.{status}", response=self._response(status, text, answer))

    def _status(self, answer: Answer) -> str:
        return "incomplete" if answer.finish_reason == "length" else "completed"

    def _response(self, status: str, text: str | None = None, answer: Answer | None = None) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        output = [] if text is None else [self._message(status, [_part(text)])]
        return {**self._head, "status": status, "error": None, "incomplete_details": cut, "output": output,
                "usage": None if answer is None else _usage(answer), **({} if answer is None else warnings(answer))}

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _event(self, kind: str, **told: Any) -> str:
        return event({"type": kind, "sequence_number": next(self._numbers), **told}, kind)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answer: Answer) -> dict[str, Any]:
    return {"input_tokens": answer.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": answer.tokens, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.prompt_tokens + answer.tokens}
