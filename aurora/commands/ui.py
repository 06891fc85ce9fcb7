"""`aurora ui`: a page in the browser to watch videos and ask them."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

import typer

from aurora.commands._options import ModelFolder, require_writable_folder
from aurora.errors import AuroraError

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class OwnServer:
    """The service, unless --server names one"""

    store: Annotated[str, typer.Option(metavar="FOLDER", help="Where films and uploaded files are kept.")] = "films"
    model: ModelFolder = None
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Where the model runs, such as cuda.")] = "cpu"
    threads: Annotated[int | None, typer.Option(metavar="N", help="Threads on the CPU. Default: one per core.")] = None


def ui(
    *,
    host: Annotated[str, typer.Option(metavar="HOST", help="Another one than 127.0.0.1 needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 takes one that is free.")] = 7860,
    server: Annotated[str | None, typer.Option(
        metavar="URL", help="A running `aurora serve`. Default: one is started, for this page alone.")] = None,
    token: Annotated[str | None, typer.Option(
        metavar="TOKEN", envvar="AURORA_TOKEN", show_envvar=True,
        help="What --server wants, and what the page asks for as a password where --host lets others in.")] = None,
    own: OwnServer,
) -> int:
    """Open a page to watch videos and ask them questions.

    The page shows how far a video was watched, its frames, which of their patches were merged, and answers as they are
    made. It keeps nothing: films are in the store of the service that it speaks to.

    \b
    example:
      aurora ui
      aurora ui --server http://127.0.0.1:8000 --token "$AURORA_TOKEN"
    """
    if host not in LOCAL and (token is None or len(token) < 16):
        raise AuroraError(f"host {host} is reached by others: set a token of 16 or more characters with --token or "
                          "AURORA_TOKEN, or show the page to this machine alone with --host 127.0.0.1")
    try:
        from aurora.ui.app import serve
        from aurora.ui.client import Client, OwnService, settings_of
    except ModuleNotFoundError as error:
        raise AuroraError(f"`aurora ui` needs {error.name}, which is not installed; "
                          "pip install 'auroralong[ui]'") from error
    if server is not None:
        settings = asyncio.run(settings_of(server, token))
        return serve(Client(server, token), host=host, port=port, token=token, note="",
                     upload_bytes=settings["limits"]["upload_bytes"])
    require_writable_folder(own.store)
    given, note = _arguments(own)
    service = OwnService(given)
    try:
        settings = asyncio.run(settings_of(service.url, service.token))
        return serve(Client(service.url, service.token), host=host, port=port, token=token, note=note,
                     upload_bytes=settings["limits"]["upload_bytes"])
    finally:
        service.close()


def _arguments(own: OwnServer) -> tuple[list[str], str]:
    """What the service is started with, and what the page says of its model."""
    from aurora.inference.models import SHIPPED, model_folder

    folder = model_folder(own.model)
    threads = [] if own.threads is None else ["--threads", str(own.threads)]
    note = "The tiny model that comes with Aurora answers. It knows only Blocks world." if folder == SHIPPED else ""
    return ["--store", own.store, "--model", str(folder), "--device", own.device, *threads], note
