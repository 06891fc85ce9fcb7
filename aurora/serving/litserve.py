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


class FilmAPI(LitAPI):
    """Questions about the films of a store."""

    def __init__(self, store: str | Path, model: str | Path, overrides: tuple[str, ...] = ()) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS, api_path="/v1/ask")
        self._store, self._model, self._overrides = str(store), str(model), overrides

    def setup(self, device: Any) -> None:
        """Loads the model of a worker."""
        self._replica = Replica(self._store, WorkerModel(self._model, self._overrides, devices=(str(device),)))

    def decode_request(self, request: dict[str, Any]) -> Question:
        """400 for what is not a question."""
        try:
            return Question.model_validate(request)
        except ValidationError as error:
            first = error.errors()[0]
            raise HTTPException(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None

    def batch(self, inputs: list[Question]) -> list[Question]:
        """The questions, as they are."""
        return list(inputs)

    def predict(self, x: list[Question]) -> list[dict[str, Any]]:
        """For every question an answer, or `error` and its `status`."""
        given: dict[int, dict[str, Any]] = {}
        asked = []
        for number, question in enumerate(x):
            try:
                asked.append((number, (self._replica.film(question.film), question)))
            except AuroraError as error:
                missing = question.film not in self._replica.store.names()
                given[number] = {"error": f"there is no film {question.film[:100]!r}" if missing else str(error),
                                 "status": 404 if missing else 422}
        answers = self._replica.answer([one for _, one in asked])
        given |= {number: answer for (number, _), answer in zip(asked, answers, strict=True)}
        return [given[number] for number in range(len(x))]

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers, as they are."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """404 for a film that the store does not have, 422 for one that cannot be asked."""
        if "error" in output:
            raise HTTPException(output.get("status", 422), output["error"])
        return output


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
