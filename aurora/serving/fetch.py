"""Downloads a video that a client names, without letting the client reach what only this machine can.

Every address is checked after its name was resolved, and the connection goes to just that address: a name that means
something else a moment later changes nothing. Redirects are requests like the first one. Proxies of the environment
are not used, because they would resolve names again.
"""

import asyncio
import ipaddress
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import httpx

from aurora.errors import AuroraError
from aurora.files import require_room
from aurora.media import media_type

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
_REDIRECTS = (301, 302, 303, 307, 308)
_CONNECT_SECONDS = 10.0
_PORTS = {"https": 443, "http": 80}
# Global by their numbers, but they lead to an address that another part of them names, or to many machines.
_INDIRECT = [ipaddress.ip_network(text) for text in (
    "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "::ffff:0:0/96", "fec0::/10",
    "192.88.99.0/24")]


class FetchError(AuroraError):
    """A video that was not downloaded. `status` is the HTTP status that answers the client, and the message holds
    nothing that the client may not know, such as the address behind a name."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class FetchLimits:
    """What may be downloaded. Hosts are names that clients may give; `.example.org` stands for all below that name, `*`
    for all that are public. `networks` are addresses that may be reached although they are not public."""

    hosts: Sequence[str] = ()
    http: bool = False  # besides https
    ports: Sequence[int] = ()  # besides 443, and 80 for http
    max_bytes: int = 1 << 30
    max_seconds: float = 120.0
    max_redirects: int = 3
    networks: Sequence[str] = ()
    certificates: ssl.SSLContext | None = field(default=None, compare=False)  # default: those that certifi trusts


class _Target(NamedTuple):
    url: httpx.URL
    host: str
    port: int
    addresses: Sequence[str]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as this machine knows them. OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def fetch_video(url: str, limits: FetchLimits, into: Path, *, resolver: Resolver = resolve) -> Path:
    """The video behind an address, as a new file in the folder `into` that is named after its content; nothing stays
    there otherwise. FetchError. Not to be called from a running event loop, which it would block."""
    return asyncio.run(fetch_video_async(url, limits, into, resolver=resolver))


async def fetch_video_async(url: str, limits: FetchLimits, into: Path, *, resolver: Resolver = resolve) -> Path:
    """What `fetch_video` does, for a running event loop; it may be cancelled at any moment."""
    partial = into / f"{uuid.uuid4().hex}.part"
    try:
        await asyncio.wait_for(_download(url, limits, partial, resolver), limits.max_seconds)
        return _named(partial)
    except asyncio.TimeoutError:
        raise FetchError(504, f"the video was not there within {limits.max_seconds:g} s") from None
    except FetchError:
        raise
    except (AuroraError, OSError) as error:
        raise FetchError(507, "the server has no room to keep the video") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise FetchError(502, f"the video could not be downloaded: {_reason(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


async def _download(url: str, limits: FetchLimits, into: Path, resolver: Resolver) -> None:
    target = _parse(url)
    timeout = httpx.Timeout(limits.max_seconds, connect=min(limits.max_seconds, _CONNECT_SECONDS))
    async with httpx.AsyncClient(trust_env=False, verify=limits.certificates or True, timeout=timeout) as client:
        for _ in range(limits.max_redirects + 1):
            async with aclosing(await _request(client, await _checked(target, limits, resolver))) as response:
                if response.status_code not in _REDIRECTS:
                    with into.open("wb") as file:
                        return await _save(response, limits.max_bytes, file, into)
                if "location" not in response.headers:
                    raise FetchError(502, "the server redirects without saying where to")
                target = _parse(response.headers["location"], target)
    raise FetchError(502, f"the server redirects more than {limits.max_redirects} times")


def _parse(text: str, base: httpx.URL | None = None) -> httpx.URL:
    """An absolute address. FetchError when it is none."""
    try:
        url = httpx.URL(text) if base is None else base.join(text)
        host = url.host  # which decodes it
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise FetchError(400, "the address of the video is not a URL") from error
    if not host or not url.scheme:
        raise FetchError(400, "the address of the video has no scheme or no host")
    if url.userinfo:
        raise FetchError(400, "the address of the video holds a user or password")
    return url


async def _checked(url: httpx.URL, limits: FetchLimits, resolver: Resolver) -> _Target:
    """Where the request may go. FetchError."""
    schemes = ("https", "http") if limits.http else ("https",)
    if url.scheme not in schemes:
        raise FetchError(403, f"a video is downloaded by {' or '.join(schemes)} only, not by {url.scheme!r}")
    host = url.host.lower().rstrip(".")
    port = url.port or _PORTS[url.scheme]
    if port != _PORTS[url.scheme] and port not in limits.ports:
        raise FetchError(403, f"a video is not downloaded from port {port}")
    if not any(host == name or name == "*" or (name[:1] == "." and host.endswith(name)) for name in limits.hosts):
        raise FetchError(403, f"videos are not downloaded from {host!r}")
    try:
        found = await _in_thread(resolver, host, port)
    except (OSError, UnicodeError):
        raise FetchError(502, f"the name {host!r} is not known") from None
    # One that is not public among several is a trap, not a mistake.
    if not found or not all(_allowed(address, limits) for address in found):
        raise FetchError(403, f"videos are not downloaded from {host!r}: its address is not public")
    return _Target(url, host, port, list(dict.fromkeys(found)))


async def _in_thread(resolver: Resolver, host: str, port: int) -> Sequence[str]:
    """The resolver's answer. Its thread is nobody's: the end of the event loop would wait for one of its pool."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[str]] = loop.create_future()

    def settle(found: Sequence[str] | BaseException) -> None:
        if not answer.done():
            answer.set_exception(found) if isinstance(found, BaseException) else answer.set_result(found)

    def ask() -> None:
        found: Sequence[str] | BaseException
        try:
            found = resolver(host, port)
        except Exception as error:  # raised where the answer is awaited
            found = error
        try:
            loop.call_soon_threadsafe(settle, found)
        except RuntimeError:
            return  # the loop has ended meanwhile

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    return await answer


def _allowed(text: str, limits: FetchLimits) -> bool:
    try:
        address: Address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if any(address in ipaddress.ip_network(network) for network in limits.networks):
        return True
    return is_public(address)


def is_public(address: Address) -> bool:
    """Whether an address belongs to one machine somewhere in the internet, and says itself to which."""
    return address.is_global and not (
        address.is_multicast or address.is_private or address.is_reserved or address.is_loopback
        or address.is_link_local or address.is_unspecified or getattr(address, "scope_id", None)
        or any(address in network for network in _INDIRECT if network.version == address.version))


async def _request(client: httpx.AsyncClient, target: _Target) -> httpx.Response:
    """The answer, of which only the head has come. The connection goes to the checked addresses, one after the other,
    and never to the name."""
    client.cookies.clear()  # they are kept by address, behind which there may be another host
    default = target.port == _PORTS[target.url.scheme]
    name = f"[{target.host}]" if ":" in target.host else target.host
    # Compressed bytes would have to be unpacked, however many they become.
    headers = {"Host": name if default else f"{name}:{target.port}", "Accept-Encoding": "identity"}
    for number, address in enumerate(target.addresses, 1):
        request = client.build_request("GET", target.url.copy_with(host=address, fragment=None), headers=headers,
                                       extensions={"sni_hostname": target.host})
        try:
            return await client.send(request, stream=True, follow_redirects=False)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if number == len(target.addresses):
                raise
    raise AssertionError("a name without an address was refused before")


async def _save(response: httpx.Response, most: int, file: BinaryIO, path: Path) -> None:
    """Writes the body as it came. FetchError."""
    if response.status_code != 200:
        raise FetchError(502, f"the server of the video answers with status {response.status_code}")
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise FetchError(415, f"the server sends the video encoded as {encoding!r}")
    length = response.headers.get("content-length", "")
    if length.isdigit():
        if int(length) > most:
            raise FetchError(413, f"the video has {length} bytes; at most {most} are downloaded")
        require_room(path, int(length))  # known before anything is written
    written = 0
    async for piece in response.aiter_raw():
        written += len(piece)
        if written > most:
            raise FetchError(413, f"the video has more than {most} bytes")
        file.write(piece)


def _named(partial: Path) -> Path:
    """The file under the name of what it holds. FetchError unless that is a video."""
    try:
        found = media_type(partial)
    except AuroraError as error:
        raise FetchError(415, "what was downloaded is not a video") from error
    if not found.moving:
        raise FetchError(415, f"what was downloaded is a still picture ({found.extension})")
    return partial.rename(partial.with_suffix(f".{found.extension}"))


def _reason(error: Exception) -> str:
    """What a client may know of an error: its kind, not the address that stands in its text."""
    kinds = {httpx.ConnectError: "its server cannot be reached", httpx.RemoteProtocolError: "its server broke off"}
    return next((text for kind, text in kinds.items() if isinstance(error, kind)), type(error).__name__)
