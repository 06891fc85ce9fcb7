"""The service as one ASGI app, and the server that runs it."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from aurora.errors import AuroraError
from aurora.files import claimed
from aurora.inference.video_model import VideoModel
from aurora.serving import decode, file_routes, film_routes, openai, patch_routes, responses
from aurora.serving.errors import add_error_handlers
from aurora.serving.films import SERVICE
from aurora.serving.listening import LISTENING, address, listen
from aurora.serving.middleware import Gate
from aurora.serving.service import ClientLeft, Service, service_of
from aurora.serving.settings import Settings
from aurora.version import VERSION

THREADS = 64
"""For what blocks: reading and writing files, the last frames of a film before a question."""


def create_app(settings: Settings, model: VideoModel) -> FastAPI:
    """The app that serves a model and the films of a store."""
    service = Service(model, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        threads = ThreadPoolExecutor(THREADS, thread_name_prefix="serve")
        asyncio.get_running_loop().set_default_executor(threads)
        await asyncio.to_thread(decode.start, model.config.reader)
        await asyncio.to_thread(lambda: model.identity)
        service.films.resume()
        saving = asyncio.create_task(service.films.every_second())
        service.ready = True
        yield
        service.ready = False
        saving.cancel()
        await asyncio.to_thread(service.close)

    app = FastAPI(title="Aurora", version=VERSION, lifespan=lifespan)
    app.state.service = service
    add_error_handlers(app)
    app.add_exception_handler(ClientLeft, _nobody)
    app.add_middleware(Gate, settings=settings, metrics=service.metrics)
    for routes in (openai, responses, file_routes, patch_routes, film_routes):  # a film's name may be a path
        app.include_router(routes.router)
    app.get("/health")(health)
    app.get("/ready")(ready)
    app.get("/metrics")(metrics)
    return app


async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


async def ready(request: Request) -> JSONResponse:
    """Whether requests are answered: not before the model is there, nor once the server was told to end."""
    service = service_of(request)
    is_ready = service.ready and service.engine.alive and not service.closing.is_set()
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


class Server(uvicorn.Server):
    """Ends on the first signal once the answers that are being made are finished, or their time is over."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=int(settings.drain_seconds), timeout_keep_alive=30))
        self._service: Service = app.state.service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where it listens."""
        await super().startup(sockets=sockets)
        for one in sockets or ():
            sys.stderr.write(f"{LISTENING}{address(one)}\n")
            sys.stderr.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Streams that follow a film are told, which would not end by themselves; a second ^C waits for nothing."""
        self._service.closing.set()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def serve(settings: Settings, model: VideoModel) -> int:
    """Serves until SIGTERM or ^C; gives the exit status. AuroraError for an address that cannot be listened on, and for
    a store that another server serves."""
    set_up_logs()
    listening = listen(settings.host, settings.port)
    with claimed(settings.folder / SERVICE / "lock", "the store") as ours:
        if not ours:
            raise AuroraError(f"another server serves the store {settings.store}; give this one a --store of its own")
        server = Server(create_app(settings, model), settings)
        server.run(sockets=[listening])
    return 0 if server.started else 1


def set_up_logs() -> None:
    """One JSON object a line on standard error, ours and those of libraries."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info]
    structlog.configure(processors=[*shared, structlog.processors.JSONRenderer()],
                        logger_factory=structlog.PrintLoggerFactory(sys.stderr), cache_logger_on_first_use=True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()]))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
