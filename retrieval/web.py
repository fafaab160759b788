"""Read pages from the web: politely, within limits, and from public addresses only."""

from __future__ import annotations

import ssl
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

import httpcore
import httpx
from protego import Protego

from .. import __version__
from ..models.errors import RestillError
from .decode import UnreadableFile
from .formats import COLLECTIONS, READERS, LoadOptions
from .load import read_bytes
from .network import CheckedBackend, networks
from .records import Records

TYPES = {
    "text/html": ".html", "application/xhtml+xml": ".html",
    "text/plain": ".txt",
    "text/markdown": ".md", "text/x-markdown": ".md",
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "text/csv": ".csv", "text/tab-separated-values": ".tsv",
    "application/jsonl": ".jsonl", "application/x-ndjson": ".jsonl", "application/jsonlines": ".jsonl",
    "application/x-jsonlines": ".jsonl",
}  # fmt: skip
"""Format by content type; types that say nothing of it (plain text, bytes) leave it to the URL's suffix."""
_VAGUE = {"", "text/plain", "application/octet-stream", "binary/octet-stream"}
_ROBOTS_BYTES = 500 << 10  # RFC 9309, section 2.5
_LONGEST_DELAY = 60.0
_GZIP_BEGINS = 0x1F


@dataclass(frozen=True, kw_only=True)
class WebOptions:
    """How pages are fetched.

    Attributes:
        max_bytes: largest page, unpacked.
        timeout: seconds to wait for one answer of the server.
        seconds: seconds a page may take in all, redirects included, waiting for its turn apart.
        redirects: how many are followed; each is checked like the first URL.
        delay: seconds between two requests to a host; a longer ``Crawl-delay`` is kept, up to a minute.
        robots: keep to robots.txt (RFC 9309).
        user_agent: who asks; its first word is what robots.txt is read for.
        allow: addresses and networks that may be fetched from although they are not public.
    """

    max_bytes: int = 32 << 20
    timeout: float = 20.0
    seconds: float = 60.0
    redirects: int = 5
    delay: float = 1.0
    robots: bool = True
    user_agent: str = f"restill/{__version__} (document loader)"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RestillError: a limit is not positive, or ``allow`` holds what is no address.
        """
        if min(self.max_bytes, self.timeout, self.seconds) <= 0 or min(self.redirects, self.delay) < 0:
            raise RestillError(f"{self}: limits must be positive, redirects and delay at least 0")
        if not self.user_agent.strip() or not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise RestillError(f"user_agent={self.user_agent!r}: must be printable ASCII")
        networks(self.allow)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: httpx.Headers
    data: bytes
    url: httpx.URL


class Fetcher:
    """Fetches one page after the other and remembers robots.txt and when each host was asked last."""

    def __init__(self, options: WebOptions | None = None, files: LoadOptions | None = None) -> None:
        self.options, self._files = options or WebOptions(), files or LoadOptions()
        self._allowed = networks(self.options.allow)
        self._tls = ssl.create_default_context()
        self._robots: dict[str, Protego | str] = {}
        self._asked: dict[str, float] = {}

    def read(self, url: str) -> Records:
        """The documents at ``url``: one, or those of a JSONL or CSV file; the content type decides.

        The document's id is the URL as given; its ``metadata["url"]`` is where redirects led.

        Raises:
            UnreadableFile: it is refused, does not answer, is too big or too slow, or gives no text.
        """
        parsed = _parsed(url, url)
        try:
            answer = self._fetch(parsed, page=True)
        except UnreadableFile as error:
            raise UnreadableFile(f"{url}: {error}") from error
        if answer.status != 200:
            raise UnreadableFile(f"{url}: the server answered {answer.status}")
        kind, charset = _content_type(answer.headers)
        suffix = PurePosixPath(unquote(answer.url.path)).suffix.lower()
        if kind not in _VAGUE or suffix not in READERS | COLLECTIONS:
            suffix = TYPES.get(kind, "")
        if not suffix:
            raise UnreadableFile(f"{url}: its content type {kind or '(none)'!r} is none that is read")
        data = _transcoded(answer.data, charset) if charset else answer.data
        records = read_bytes(url, url, data, suffix, self._files)
        place = {"url": str(answer.url)}
        records.documents = [
            (line, document.model_copy(update={"metadata": {**place, **document.metadata}}))
            for line, document in records.documents
        ]
        return records

    def _fetch(self, url: httpx.URL, *, page: bool) -> _Answer:
        """Follow redirects to an answer, checking every URL on the way."""
        spent = 0.0
        for _ in range(self.options.redirects + 1):
            delay = self._permitted_delay(url) if page and self.options.robots else self.options.delay
            self._wait(url.host, delay)
            began = time.monotonic()
            answer = self._get(url, began + self.options.seconds - spent, page)
            spent += time.monotonic() - began
            location = answer.headers.get("location")
            if answer.status not in (301, 302, 303, 307, 308) or location is None:
                return answer
            url = _parsed(location, f"redirect to {location}", url)
        raise UnreadableFile(f"more than {self.options.redirects} redirects")

    def _get(self, url: httpx.URL, deadline: float, page: bool) -> _Answer:
        """One request; no proxy, no cookies, no credentials, a connection of its own."""
        options = self.options
        wait = dict.fromkeys(("connect", "read", "write", "pool"), options.timeout)
        headers = [("User-Agent", options.user_agent), ("Accept-Encoding", "gzip"), ("Accept", "*/*")]
        backend = CheckedBackend(self._allowed, deadline)
        try:
            with (
                httpcore.ConnectionPool(ssl_context=self._tls, network_backend=backend) as pool,
                pool.stream("GET", str(url), headers=headers, extensions={"timeout": wait}) as response,
            ):
                found = httpx.Headers([*response.headers])
                limit = options.max_bytes if page else _ROBOTS_BYTES
                if response.status != 200:
                    return _Answer(response.status, found, b"", url)
                data = bytearray()
                for piece in _unpacked(response.iter_stream(), found.get("content-encoding", ""), limit):
                    data += piece
                    if len(data) > limit:
                        if page:
                            raise UnreadableFile(f"more than max_bytes={limit}; give WebOptions(max_bytes=...)")
                        del data[limit:]
                        break
        except (httpcore.TimeoutException, TimeoutError) as error:
            raise UnreadableFile(f"{url.host} was too slow ({error or type(error).__name__})") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
            raise UnreadableFile(f"{url.host} cannot be read from ({error or type(error).__name__})") from error
        return _Answer(200, found, bytes(data), url)

    def _permitted_delay(self, url: httpx.URL) -> float:
        """Seconds between requests to this host, if robots.txt lets us in.

        Raises:
            UnreadableFile: it does not, or it cannot be read (RFC 9309, section 2.3.1).
        """
        origin = str(url.copy_with(raw_path=b"/robots.txt", fragment=None))
        if origin not in self._robots:
            self._robots[origin] = self._rules(httpx.URL(origin))
        rules = self._robots[origin]
        if isinstance(rules, str):
            raise UnreadableFile(f"{origin} cannot be read, which forbids all: {rules}")
        agent = self.options.user_agent.split("/")[0].split()[0]
        if not rules.can_fetch(str(url), agent):
            raise UnreadableFile(f"{origin} forbids {agent!r} to read {url}")
        return max(self.options.delay, min(rules.crawl_delay(agent) or 0.0, _LONGEST_DELAY))

    def _rules(self, url: httpx.URL) -> Protego | str:
        try:
            answer = self._fetch(url, page=False)
        except UnreadableFile as error:
            return str(error)
        if answer.status == 429 or answer.status >= 500:
            return f"the server answered {answer.status}"
        return Protego.parse(answer.data.decode("utf-8", "replace") if answer.status == 200 else "")

    def _wait(self, host: str, delay: float) -> None:
        if host in self._asked:
            time.sleep(max(0.0, self._asked[host] + delay - time.monotonic()))
        self._asked[host] = time.monotonic()


def _parsed(text: str, place: str, base: httpx.URL | None = None) -> httpx.URL:
    """The URL without fragment.

    Raises:
        UnreadableFile: it is none, of another scheme, without host, or with a password.
    """
    try:
        url = (base.join(text) if base else httpx.URL(text)).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise UnreadableFile(f"{place}: is no URL ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise UnreadableFile(f"{place}: only http and https are read, not {url.scheme or 'no scheme'!r}")
    if url.userinfo:
        raise UnreadableFile(f"{place}: holds a user name or password, which would be kept with the documents")
    return url


def _content_type(headers: httpx.Headers) -> tuple[str, str | None]:
    """Type and declared encoding, if Python knows it."""
    kind, *parameters = headers.get("content-type", "").split(";")
    kind = kind.strip().lower()
    for parameter in parameters if kind.startswith("text/") else ():
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            try:
                return kind, LoadOptions(fallback_encoding=value.strip("\"' ")).fallback_encoding
            except RestillError:
                break
    return kind, None


def _transcoded(data: bytes, charset: str) -> bytes:
    """Text in the encoding that the server declares, as UTF-8; what is UTF-8 already stays."""
    try:
        data.decode("utf-8")
        return data
    except UnicodeDecodeError:
        return data.decode(charset, "replace").encode("utf-8", "replace")


def _unpacked(pieces: Iterator[bytes], encoding: str, limit: int) -> Iterator[bytes]:
    """The body, unpacked by at most ``limit`` bytes at a time: a small piece can hold a thousand times its size.

    All members of a gzip stream are unpacked (RFC 1952, section 2.2); what follows the last is not read.

    Raises:
        UnreadableFile: it is packed otherwise than with gzip or deflate, or damaged.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnreadableFile(f"its content encoding {encoding!r} was not asked for")
    wbits = 47 if "gzip" in encoding else 15
    unpacker = zlib.decompressobj(wbits)
    try:
        for piece in pieces:
            while piece:
                if unpacker.eof:
                    if wbits == 15 or piece[0] != _GZIP_BEGINS:
                        return
                    unpacker = zlib.decompressobj(wbits)
                yield unpacker.decompress(piece, limit + 1)
                # Not left to gather in the unpacker, where no limit would see it.
                piece = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    except zlib.error as error:
        raise UnreadableFile(f"its content cannot be unpacked ({error})") from error
    if not unpacker.eof:
        raise UnreadableFile("its content was cut off")
