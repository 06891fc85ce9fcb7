"""Films on LitServe: any number of workers per device, each of which reads a film's file when it is asked about it.

    python -m aurora.serving.litserve --store films --model runs/mine/language_video/model --workers 2

`POST /v1/ask` takes `{"film": NAME, "question": TEXT}`, see `Question`. Questions that come together share forward
passes. LitServe gives a request to any worker, and ends what is running when it is stopped; `aurora serve` has
sessions, uploads and continuous batching.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from fastapi.responses import JSONResponse
from litserve import LitAPI, LitServer

from aurora.errors import AuroraError
from aurora.inference.film import Film
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

    def __init__(self, store: str | Path, model: WorkerModel) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS, api_path="/v1/ask")
        self._store, self._model = str(store), model

    def setup(self, device: Any) -> None:
        """Loads the model of a worker."""
        self._replica = Replica(self._store, replace(self._model, devices=(str(device),)))

    def decode_request(self, request: Question) -> Question:
        """The question; what is not one has been refused with 422."""
        return request

    def batch(self, inputs: Sequence[Question]) -> list[Question]:
        """The questions, as they are."""
        return list(inputs)

    def predict(self, x: Sequence[Question]) -> list[dict[str, Any] | Refused]:
        """For every question its answer: 404 for a film that the store does not have, 422 for one that cannot be
        asked."""
        opened = [self._opened(one) for one in x]
        answers = iter(self._replica.answer([one for one in opened if not isinstance(one, Refused)]))
        given = [one if isinstance(one, Refused) else next(answers) for one in opened]
        return [Refused(422, one["error"]) if isinstance(one, dict) and "error" in one else one for one in given]

    def unbatch(self, output: list[dict[str, Any] | Refused]) -> list[dict[str, Any] | Refused]:
        """The answers, as they are."""
        return output

    def encode_response(self, output: dict[str, Any] | Refused) -> JSONResponse:
        """The body, with the status of what was refused."""
        if isinstance(output, Refused):
            return JSONResponse({"detail": output.detail}, output.status)
        return JSONResponse(output)

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
    overrides: Annotated[list[str] | None, typer.Argument(
        metavar="OVERRIDE", show_default=False, help="KEY=VALUE of the model's config, such as dtype=bfloat16.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="FOLDER", help="A model folder.")] = None,
    host: Annotated[str, typer.Option(metavar="HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N")] = 8000,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes per device.")] = 1,
    accelerator: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    devices: Annotated[int, typer.Option(metavar="N", min=1, help="GPUs.")] = 1,
) -> None:
    """Serve the films of a store with LitServe."""
    threads = max(1, torch.get_num_threads() // (workers * devices))
    worker = WorkerModel(str(model_folder(model).resolve()), tuple(overrides or ()), threads=threads)
    server = LitServer(FilmAPI(store.resolve(), worker), accelerator=accelerator, devices=devices,
                       workers_per_device=workers, timeout=120, restart_workers=True)
    logging.getLogger("litserve").setLevel(logging.WARNING)
    server.run(host=host, port=port, generate_client_file=False, num_api_servers=1)


if __name__ == "__main__":
    typer.run(main)
