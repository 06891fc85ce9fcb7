"""What a server allows. A request may ask for less, never for more."""

from dataclasses import dataclass
from pathlib import Path

from aurora.errors import AuroraError
from aurora.options import NonNegativeInt, PositiveFloat, PositiveInt, read_fields

LOCAL = ("127.0.0.1", "localhost", "::1")
MB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Options of `aurora serve`."""

    store: str
    """Folder of what is kept: films, uploaded files, and films that requests brought along."""
    host: str = "127.0.0.1"
    port: NonNegativeInt = 8000
    token: str | None = None
    """What clients send as `Authorization: Bearer`; without one only this machine is served."""
    model_name: str = "aurora"
    """What the model is called in `/v1/models`."""
    shipped: bool = False
    """Whether it is the tiny model that comes with Aurora, which knows only Blocks world: clients are told so."""

    upload_bytes: PositiveInt = 2048 * MB
    """Of one uploaded file."""
    body_bytes: PositiveInt = 64 * MB
    """Of a request that is not an upload: videos inside of it are a third larger than they are."""
    files_bytes: PositiveInt = 64 * 1024 * MB
    """Of all files kept for /v1/files together."""
    json_values: PositiveInt = 100_000
    """Of lists and objects in one JSON body, counted before it is parsed, which nothing else can interrupt."""
    parts: PositiveInt = 256
    """Videos and images of one request."""
    text_characters: PositiveInt = 256 * 1024
    """Of a question and the conversation before it."""

    max_frames: PositiveInt = 16384
    """Read of one film."""
    max_fps: PositiveFloat = 30.0
    decode_seconds: PositiveFloat = 3600.0
    """Of the processor that decoding one film may take."""
    watch_seconds: PositiveFloat = 600.0
    """To watch a film that a request brings along; longer ones are uploaded to /v1/films."""
    decode_bytes: PositiveInt = 2048 * MB
    """Of memory that decoding one film may take."""
    watching: PositiveInt = 2
    """Films watched at a time."""
    max_watching: PositiveInt = 64
    """Films that wait to be watched."""

    max_new_tokens: PositiveInt = 1024
    """Of one answer."""
    answering: PositiveInt = 32
    """Answers made at a time."""
    max_waiting: PositiveInt = 128
    """Questions that wait for their first pass."""
    deadline_seconds: PositiveFloat = 120.0
    """From a question to the end of its answer; watching a film is not counted."""

    memory_bytes: PositiveInt = 1024 * MB
    """Of states kept in memory; others are read from the store when they are asked about."""
    cache_bytes: PositiveInt = 8 * 1024 * MB
    """Of films kept on the disk that came inside of requests; the least recently used ones go."""
    drain_seconds: PositiveFloat = 30.0
    """For answers that are being made when the server is told to end."""

    video_urls: tuple[str, ...] = ()
    """Domains that videos are fetched from; none: `video_url` must hold the video itself."""
    fetch_seconds: PositiveFloat = 60.0

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "cache_bytes"):
            if getattr(self, name) < MB:
                raise AuroraError(f"{name} {getattr(self, name)} holds no state; give at least {MB}")
        if self.token is not None and len(self.token) < 16:
            raise AuroraError(f"the token has {len(self.token)} characters, which can be guessed; give 16 or more, "
                              "such as those of `openssl rand -hex 32`")
        if self.token is None and self.host not in LOCAL:
            raise AuroraError(f"host {self.host} is reached by others: set a token with --token or AURORA_TOKEN, or "
                              "serve this machine alone with --host 127.0.0.1")
        if not 0 <= self.port < 65536:
            raise AuroraError(f"port {self.port} is outside 0 to 65535; 0 takes one that is free")

    @classmethod
    def of(cls, **given: object) -> "Settings":
        """Settings whose values were checked. AuroraError names the one that does not fit."""
        return read_fields(cls, "serve", given)

    @property
    def folder(self) -> Path:
        """The store."""
        return Path(self.store)
