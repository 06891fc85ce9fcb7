"""`aurora ui`: a page in the browser to watch videos and ask about them."""

from dataclasses import dataclass
from typing import Annotated

import typer

from aurora.commands._options import Device, ModelFolder, require_writable_folder
from aurora.errors import AuroraError

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class OwnService:
    """The service that is started, unless --service names one"""

    store: Annotated[str | None, typer.Option(
        metavar="FOLDER", help="Where films and uploaded videos are kept. Default: films.")] = None
    model: ModelFolder = None


def ui(
    *,
    host: Annotated[str, typer.Option(metavar="HOST", help="Another one than 127.0.0.1 needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 takes one that is free.")] = 7860,
    service: Annotated[str | None, typer.Option(
        metavar="URL", help="A running `aurora serve`. Default: one is started, for this page alone.")] = None,
    token: Annotated[str | None, typer.Option(
        metavar="TOKEN", envvar="AURORA_TOKEN", show_envvar=True,
        help="What --service wants, and the password of the page where --host lets others in.")] = None,
    own: OwnService, device: Device,
) -> int:
    """Open a page to watch videos and ask questions about them.

    The page shows how far a video was watched, its frames, which of their patches were merged, and answers as they are
    made. It keeps nothing: films are in the store of the service that it speaks to.

    \b
    example:
      aurora ui
      aurora ui --service http://127.0.0.1:8000 --token "$AURORA_TOKEN"
    """
    if host not in LOCAL and (token is None or len(token) < 16):
        raise AuroraError(f"host {host} is reached by others: set a token of 16 or more characters with --token or "
                          "AURORA_TOKEN, or show the page to this machine alone with --host 127.0.0.1")
    if service is not None and (own != OwnService() or device != Device()):
        raise AuroraError("--store, --model, --device and --threads are those of a service that is started; "
                          f"{service} has its own")
    if service is not None and not service.startswith(("http://", "https://")):
        raise AuroraError(f"--service {service!r} is not an address such as http://127.0.0.1:8000")
    try:
        from aurora.serving.listening import listen
        from aurora.ui.app import serve
        from aurora.ui.client import Client
        from aurora.ui.started import StartedService
    except ModuleNotFoundError as error:
        raise AuroraError(f"`aurora ui` needs {error.name}, which is not installed; "
                          "pip install 'auroralong[ui]'") from error
    local = host in LOCAL
    arguments = _arguments(own, device) if service is None else []
    with listen(host, port) as listening:  # before anything is started for it
        if service is not None:
            return serve(Client(service, token), listening, token=token, local=local)
        with StartedService(arguments) as started:
            return serve(Client(started.url, started.token), listening, token=token, local=local)


def _arguments(own: OwnService, device: Device) -> list[str]:
    """Of `aurora serve`."""
    from aurora.inference.models import model_folder

    store = "films" if own.store is None else own.store
    require_writable_folder(store)
    threads = [] if device.threads is None else ["--threads", str(device.threads)]
    return ["--store", store, "--model", str(model_folder(own.model)), "--device", device.device, *threads]
