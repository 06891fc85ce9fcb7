"""Films on Ray Serve: any number of replicas, of which one that has a film in memory is asked first.

    serve run aurora.serving.ray_serve:application store=/shared/films model=/shared/model replicas=4 gpus=1

`POST /v1/ask` takes `{"film": NAME, "question": TEXT}`, see `Question`. What is asked about at the same time, in one
replica, shares forward passes. A film that a request names is read from the store by whichever replica gets it, so
replicas come and go without losing anything.
"""

import asyncio
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from aurora.errors import AuroraError
from aurora.inference.film import Film
from aurora.inference.models import SHIPPED
from aurora.inference.store import FilmStore
from aurora.inference.workers import WorkerModel
from aurora.serving.replica import FILMS, Question, Replica

BATCH = 32
"""Questions that are answered in one forward pass at most."""
WAIT_SECONDS = 0.01
app = FastAPI(title="Aurora")


class Arguments(BaseModel):
    """What `serve run` may say."""

    model_config = ConfigDict(extra="forbid")

    store: str
    model: str = str(SHIPPED)
    overrides: Annotated[list[str], BeforeValidator(lambda given: given.split() if isinstance(given, str) else given)
                         ] = Field(default_factory=list)  # of the model's config; on a command line with spaces between
    replicas: Annotated[int, Field(ge=1)] = 2
    gpus: Annotated[float, Field(ge=0)] = 0.0
    cpus: Annotated[float, Field(gt=0)] = 1.0


@serve.deployment(max_ongoing_requests=2 * BATCH)
class Films:
    """A replica: multiplexed by film."""

    def __init__(self, store: str, model: WorkerModel) -> None:
        self._replica = Replica(store, model)

    @serve.multiplexed(max_num_models_per_replica=FILMS)
    async def film(self, name: str) -> Film:
        """Reads a film; Ray Serve notes that it is here."""
        return await asyncio.to_thread(self._replica.film, name)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def _answer(self, asked: list[tuple[Film, Question]]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._replica.answer, asked)

    async def ask(self, question: Question) -> dict[str, Any]:
        """The answer, or `error`."""
        try:
            await self.film(serve.get_multiplexed_model_id())
            film = await asyncio.to_thread(self._replica.film, question.film)  # another file may stand there since
        except AuroraError as error:
            return {"error": str(error)}
        answered: dict[str, Any] = await self._answer((film, question))
        return answered | {"replica": serve.get_replica_context().replica_id.unique_id}


@serve.deployment
@serve.ingress(app)
class Gateway:
    """Takes requests and gives each to a replica that has its film, if there is one."""

    def __init__(self, store: str, films: DeploymentHandle[Any]) -> None:
        self._store, self._films = FilmStore(store), films

    @app.get("/v1/films")
    async def names(self) -> dict[str, Any]:
        """The films that can be asked about."""
        return {"object": "list", "data": [{"name": name} for name in await asyncio.to_thread(self._store.names)]}

    @app.post("/v1/ask")
    async def ask(self, question: Question) -> dict[str, Any]:
        """404 for a film that the store does not have, 422 for one that cannot be asked."""
        try:
            await asyncio.to_thread(self._store.require, question.film)
        except AuroraError:
            raise HTTPException(404, f"there is no film {question.film[:100]!r}") from None
        told: dict[str, Any] = await self._films.options(multiplexed_model_id=question.film).ask.remote(question)
        if "error" in told:
            raise HTTPException(422, told["error"])
        return told


def application(arguments: Arguments) -> serve.Application:
    """The application, for `serve run` and `serve.run`."""
    store, folder = (str(Path(given).resolve()) for given in (arguments.store, arguments.model))
    model = WorkerModel(folder, tuple(arguments.overrides), devices=("cuda" if arguments.gpus else "cpu",),
                        threads=max(1, int(arguments.cpus)))
    films, gateway = cast(serve.Deployment, Films), cast(serve.Deployment, Gateway)  # what the decorators make of them
    needs = {"num_gpus": arguments.gpus, "num_cpus": arguments.cpus}
    replicas = films.options(num_replicas=arguments.replicas, ray_actor_options=needs)
    return gateway.bind(store, replicas.bind(store, model))
