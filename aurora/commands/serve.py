"""`aurora serve`: films over HTTP, for OpenAI's clients and others."""

from dataclasses import dataclass, field
from typing import Annotated

import typer

from aurora.commands._options import Adapter, Device, ModelFolder, require_writable_folder
from aurora.errors import AuroraError


@dataclass(frozen=True)
class Limits:
    """Limits, which requests may only lower"""

    max_upload_mb: Annotated[int, typer.Option(metavar="MB", help="Of one uploaded file.")] = 2048
    max_frames: Annotated[int, typer.Option(metavar="N", help="Frames read of one film.")] = 16384
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of one answer.")] = 1024
    answering: Annotated[int, typer.Option(metavar="N", help="Answers made at a time.")] = 32
    max_waiting: Annotated[int, typer.Option(
        metavar="N", help="Questions that wait; further ones are refused with status 429.")] = 128
    deadline: Annotated[float, typer.Option(metavar="SECONDS", help="From a question to the end of its answer.")] = 120
    watching: Annotated[int, typer.Option(metavar="N", help="Films watched at a time.")] = 2
    memory_mb: Annotated[int, typer.Option(metavar="MB", help="Of states kept in memory.")] = 1024
    cache_mb: Annotated[int, typer.Option(
        metavar="MB", help="Of films on the disk that requests brought along.")] = 8192
    drain: Annotated[float, typer.Option(
        metavar="SECONDS", help="For answers that are being made when the server is told to end.")] = 30
    video_url: Annotated[list[str], typer.Option(
        metavar="DOMAIN", help="Fetch videos from this domain, by https. May be repeated. Default: from none.")
    ] = field(default_factory=list)


def serve(
    *,
    host: Annotated[str, typer.Option(metavar="HOST", help="Another one than 127.0.0.1 needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 takes one that is free.")] = 8000,
    store: Annotated[str, typer.Option(metavar="FOLDER", help=(
        "Where films and uploaded files are kept; `aurora index` fills it too."))],
    model: ModelFolder = None,
    token: Annotated[str | None, typer.Option(
        metavar="TOKEN", envvar="AURORA_TOKEN", show_envvar=True,
        help="What clients send as a bearer token, at least 16 characters.")] = None,
    override: Annotated[list[str], typer.Argument(
        metavar="OVERRIDE", default_factory=list, show_default=False,
        help="KEY=VALUE of the model's config, such as keep_ratio=0.5 or sampling.fps=2.")],
    limits: Limits, adapter: Adapter, device: Device,
) -> int:
    """Serve a model and its films over HTTP.

    Speaks OpenAI's chat completions, responses and files, and has an API of its own to watch a video once and ask it
    many times. Films are kept in the store and are there again after a restart.

    \b
    example:
      aurora serve --store films
      curl -F file=@clip.mp4 http://127.0.0.1:8000/v1/films
    """
    require_writable_folder(store)
    try:
        from aurora.serving.app import serve as run
    except ModuleNotFoundError as error:
        raise AuroraError(f"`aurora serve` needs {error.name}, which is not installed; "
                          "pip install 'auroralong[serve]'") from error
    from aurora.inference.models import SHIPPED, model_folder
    from aurora.inference.video_model import load
    from aurora.serving.settings import MB, Settings

    folder = model_folder(model)
    settings = Settings.of(
        store=store, host=host, port=port, token=token, shipped=folder.resolve() == SHIPPED.resolve(),
        upload_bytes=limits.max_upload_mb * MB, max_frames=limits.max_frames, max_new_tokens=limits.max_new_tokens,
        answering=limits.answering, max_waiting=limits.max_waiting, deadline_seconds=float(limits.deadline),
        watching=limits.watching, memory_bytes=limits.memory_mb * MB, cache_bytes=limits.cache_mb * MB,
        drain_seconds=float(limits.drain), video_urls=tuple(limits.video_url))
    loaded = load(folder, *override, device=device.device, threads=device.threads, adapter=adapter.adapter,
                  any_base=adapter.any_base)
    return run(settings, loaded)
