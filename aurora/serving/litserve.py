"""Films on LitServe: any number of workers per device, each of which reads a film's file when it is asked about it.

    python -m aurora.serving.litserve --store films --model runs/mine/language_video/model --workers 2

`POST /v1/ask` takes `{"film": NAME, "question": TEXT}`, see `Question`. Questions that come together share forward
passes. LitServe gives a request to any worker, and ends what is running when it is stopped; `aurora serve` has
sessions, uploads and continuous batching.
"""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from fastapi import HTTPException
from litserve import LitAPI, LitServer
from pydantic import ValidationError

from aurora.errors import AuroraError
from aurora.inference.models import model_folder
from aurora.inference.workers import WorkerModel
from aurora.serving.replica import Question, Replica

BATCH = 32
"""Questions that are answered in one forward pass at most."""
WAIT_SECONDS = 0.01


class Refused(NamedTuple):
    """Why a request has no answer. A value: LitServe would give an error that is raised to the whole batch."""

    status: int
    detail: str


class FilmAPI(LitAPI):
    """Questions about the films of a store."""

    def __init__(self, store: str | Path, model: str | Path, overrides: tuple[str, ...] = ()) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS, api_path="/v1/ask")
        self._store, self._model, self._overrides = str(store), str(model), overrides

    def setup(self, device: Any) -> None:
        """Loads the model of a worker."""
        self._replica = Replica(self._store, WorkerModel(self._model, self._overrides, devices=(str(device),)))

    def decode_request(self, request: Any) -> Question | Refused:
        """The question, or 400 for what is not one."""
        try:
            return Question.model_validate(request)
        except ValidationError as error:
            first = error.errors()[0]
            return Refused(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}")

    def batch(self, inputs: Sequence[Question | Refused]) -> list[Question | Refused]:
        """The questions, as they are."""
        return list(inputs)

    def predict(self, x: Sequence[Question | Refused]) -> list[dict[str, Any] | Refused]:
        """For every question its answer: 404 for a film that the store does not have, 422 for one that cannot be
        asked."""
        opened = [one if isinstance(one, Refused) else self._opened(one) for one in x]
        answers = iter(self._replica.answer([one for one in opened if not isinstance(one, Refused)]))
        given = [one if isinstance(one, Refused) else next(answers) for one in opened]
        return [Refused(422, one["error"]) if isinstance(one, dict) and "error" in one else one for one in given]

    def unbatch(self, output: list[dict[str, Any] | Refused]) -> list[dict[str, Any] | Refused]:
        """The answers, as they are."""
        return output

    def encode_response(self, output: dict[str, Any] | Refused) -> dict[str, Any] | JSONResponse:
        """The body, with the status of what was refused."""
        return JSONResponse({"detail": output.detail}, output.status) if isinstance(output, Refused) else output

    def _opened(self, question: Question) -> tuple[Film, Question] | Refused:
        try:
            self._replica.store.require(question.film)
        except AuroraError:
            return Refused(404, f"there is no film {question.film[:100]!r}")
        try:
            return self._replica.film(question.film), question
        except AuroraError as error:
            return Refused(422, str(error))


def main(
    store: Annotated[Path, typer.Option(metavar="FOLDER", help="The films, as `aurora index` makes them.")],
    model: Annotated[str | None, typer.Option(metavar="FOLDER", help="A model folder.")] = None,
    host: str = "127.0.0.1", port: int = 8000,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes per device.")] = 1,
    accelerator: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    devices: Annotated[int, typer.Option(metavar="N", min=1, help="GPUs.")] = 1,
) -> None:
    """Serve the films of a store with LitServe."""
    api = FilmAPI(store, model_folder(model).resolve())
    server = LitServer(api, accelerator=accelerator, devices=devices, workers_per_device=workers, timeout=120)
    logging.getLogger("litserve").setLevel(logging.WARNING)
    server.run(host=host, port=port, generate_client_file=False, num_api_servers=1)


if __name__ == "__main__":
    typer.run(main)
