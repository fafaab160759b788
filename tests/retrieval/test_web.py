"""Fetching pages from a server of our own: politeness, limits, and addresses that are refused."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from restill.models.errors import RestillError
from restill.retrieval.load import load
from restill.retrieval.network import checked_addresses, is_public, networks
from restill.retrieval.retriever import Retriever
from restill.retrieval.web import WebOptions, _unpacked

PARAGRAPH = "The Kestrel was built by Orlan and sons in a yard by the sea, and sank in the year 1911. " * 4
HTML = (
    f"<html><head><title>Ships</title></head><body><article><h1>Kestrel</h1><p>{PARAGRAPH}</p></article></body></html>"
)


class Site:
    """A web server in a thread; ``pages`` maps a path to (status, headers, body) or to what writes the answer."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes] | Callable[[Any], None]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, dict(self.headers)))
                page = site.pages.get(self.path, (404, {}, b""))
                if callable(page):
                    page(self)
                    return
                status, headers, body = page
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, path: str, body: str | bytes, kind: str = "text/html", status: int = 200, **headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = body.encode() if isinstance(body, str) else body
        self.pages[path] = (status, {"Content-Type": kind, **named}, body)
        return self.url + path

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def local(**options: Any) -> WebOptions:
    """Options that let a test reach its own server, without waiting between requests."""
    return WebOptions(**{"allow": ("127.0.0.1",), "delay": 0.0, "timeout": 5.0, **options})


def test_the_content_type_decides_the_format(site: Site) -> None:
    urls = [
        site.put("/page.txt", HTML),
        site.put("/plain", "# no heading", "text/plain; charset=utf-8"),
        site.put("/raw/note.md", "# Note\n\ntext", "text/plain"),
        site.put("/table?x=1", "name,year\nHeron,1912\n", "Text/CSV"),
        site.put("/lines", '{"_id": "one", "text": "first"}\n{"_id": "two", "text": "second"}', "application/x-ndjson"),
        site.put("/old", "Grüße".encode("cp1252"), "text/plain; charset=windows-1252"),
    ]
    report = load(*urls, urls[0], web=local())
    found = {document.id: document for document in report.documents}
    assert list(found) == [*urls[:3], f"{urls[3]}:2", "one", "two", urls[5]]
    assert found[urls[0]].title == "Kestrel" and found[urls[0]].text.startswith("# Kestrel\n\nThe Kestrel was built")
    assert [found[url].format for url in urls[:3]] == ["markdown", "text", "markdown"]
    assert found["one"].source == found["two"].source == urls[4] and found["one"].metadata == {"url": urls[4]}
    assert found[urls[5]].text == "Grüße" and report.warnings == [] and report.files == 6


def test_a_list_of_urls_is_fetched_when_it_is_named(site: Site, tmp_path: Path) -> None:
    good, bad = site.put("/a", HTML), f"{site.url}/missing"
    listed = tmp_path / "pages.urls"
    listed.write_text(f"# pages\n{good}\n\n{bad}\nftp://example.org/x\nnonsense\n{good}\n")
    report = load(listed, web=local())
    assert [document.id for document in report.documents] == [good]
    assert report.unreadable.keys() == {bad, "ftp://example.org/x", "nonsense"}
    assert "answered 404" in report.unreadable[bad] and "only http and https" in report.unreadable["nonsense"]


def test_requests_say_who_asks_and_hold_no_secrets(site: Site) -> None:
    load(site.put("/a", HTML, Set_Cookie="id=1"), site.put("/b", HTML), web=local())
    assert [path for path in site.paths] == ["/robots.txt", "/a", "/b"]
    for _, headers in site.asked:
        assert headers["User-Agent"].startswith("restill/") and not {"Cookie", "Authorization"} & set(headers)
        assert headers["Host"] == site.url.removeprefix("http://")
    with pytest.raises(RestillError, match="password"):
        load(site.url.replace("//", "//user:secret@") + "/a", web=local())


def test_robots_txt_is_kept_to(site: Site) -> None:
    site.put("/robots.txt", "User-agent: *\nDisallow: /private\n\nUser-agent: restill\nDisallow: /ours\n", "text/plain")
    ours, other = site.put("/ours/a", HTML), site.put("/private/a", HTML)
    moved = site.put("/moved", "", status=302, Location="/ours/a")
    report = load(ours, other, moved, web=local())
    assert [document.id for document in report.documents] == [other]
    assert "forbids 'restill'" in report.unreadable[ours] and "forbids" in report.unreadable[moved]
    assert "/ours/a" not in site.paths and site.paths.count("/robots.txt") == 1
    assert len(load(ours, web=local(robots=False)).documents) == 1
    assert load(other, ours, web=local(user_agent="reader/1")).unreadable.keys() == {other}


@pytest.mark.parametrize(("status", "allowed"), [(404, True), (403, True), (500, False), (429, False)])
def test_a_robots_txt_that_cannot_be_read(site: Site, status: int, allowed: bool) -> None:
    url = site.put("/a", HTML)
    site.put("/robots.txt", "", status=status)
    if allowed:
        assert load(url, web=local()).files == 1
    else:
        with pytest.raises(RestillError, match=rf"forbids all: the server answered {status}"):
            load(url, web=local())


def test_a_host_is_asked_at_most_once_in_a_while(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    site.put("/robots.txt", "User-agent: *\nCrawl-delay: 30\n", "text/plain")
    urls = [site.put(f"/{n}", HTML) for n in range(3)]
    load(*urls, web=local(delay=1.0))
    assert len(slept) == 3 and all(25 < seconds <= 30 for seconds in slept)
    slept.clear()
    load(*urls, web=local(delay=7.0, robots=False))
    assert len(slept) == 2 and all(5 < seconds <= 7 for seconds in slept)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
     "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
     "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:c0a8:101::1", "2001:0:7f00:1::1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::1]", "0"])
def test_no_spelling_of_this_machine_is_fetched(site: Site, host: str) -> None:
    site.put("/a", HTML)
    with pytest.raises(RestillError, match=r"not public|cannot be resolved"):
        load(f"http://{host}:{site.server.server_port}/a")
    assert site.asked == []


def test_a_name_that_resolves_to_a_private_address_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(host: str, port: int, **_: Any) -> list:
        return [(0, 0, 0, "", (address, port)) for address in ("93.184.216.34", "10.0.0.5")]

    monkeypatch.setattr(socket, "getaddrinfo", mixed)
    with pytest.raises(RestillError, match=r"'evil\.example' has the address 10\.0\.0\.5, which is not public"):
        load("http://evil.example/")
    assert checked_addresses("evil.example", 80, networks(["10.0.0.0/8"])) == ["93.184.216.34", "10.0.0.5"]


def test_the_checked_address_is_the_one_connected_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers differently the second time (DNS rebinding) gets no second question."""
    url = site.put("/a", HTML).replace("127.0.0.1", "rebinding.example")
    real, asked = socket.getaddrinfo, []

    def rebinding(host: Any, port: Any, *args: Any, **kwargs: Any) -> list:
        if host == "rebinding.example":
            asked.append(host)
            host = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert load(url, web=local(robots=False)).files == 1
    assert asked == ["rebinding.example"] and site.asked[0][1]["Host"].startswith("rebinding.example")
    with pytest.raises(RestillError, match=r"127\.0\.0\.2, which is not public"):
        load(url, web=local(robots=False))


def test_every_hop_of_a_redirect_is_checked(site: Site) -> None:
    port = site.server.server_port
    end = site.put("/end", HTML)
    site.put("/hop", "", status=301, Location="end#part")
    report = load(site.put("/start", "", status=302, Location="/hop"), web=local())
    assert report.documents[0].id == f"{site.url}/start" and report.documents[0].metadata["url"] == end
    for target, reason in [
        (f"http://127.0.0.2:{port}/end", "not public"),
        ("http://169.254.169.254/latest/meta-data", "not public"),
        ("file:///etc/passwd", "only http and https"),
        ("http://user:pw@127.0.0.1/", "password"),
        ("http://example.org:port/", "is no URL"),
        ("/loop", "more than 5 redirects"),
    ]:
        site.put("/loop", "", status=307, Location=target)
        with pytest.raises(RestillError, match=reason):
            load(f"{site.url}/loop", web=local())


@pytest.mark.parametrize("packed", [False, True])
def test_a_page_over_the_limit_is_refused_packed_or_not(site: Site, packed: bool) -> None:
    body = b"word " * 400_000
    url = site.put("/big", body, "text/plain")
    if packed:
        url = site.put("/big", gzip.compress(body), "text/plain", Content_Encoding="gzip")
    with pytest.raises(RestillError, match=r"more than max_bytes=1999999"):
        load(url, web=local(max_bytes=1_999_999))
    assert len(load(url, web=local(max_bytes=2_000_000)).documents[0].text) == 2_000_000


def test_all_members_of_a_gzip_stream_are_read_within_the_limit(site: Site) -> None:
    url = site.put(
        "/a", gzip.compress(b"one ") + gzip.compress(b"two") + bytes(9), "text/plain", Content_Encoding="gzip"
    )
    assert load(url, web=local()).documents[0].text == "one two"
    site.put("/a", gzip.compress(b"word ") * 400, "text/plain", Content_Encoding="gzip")
    assert len(load(url, web=local(max_bytes=2000)).documents[0].text) == 2000
    with pytest.raises(RestillError, match="more than max_bytes=1999"):
        load(url, web=local(max_bytes=1999))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_follows_a_packed_page_ends_the_reading(encoding: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield gzip.compress(b"text") if encoding == "gzip" else zlib.compress(b"text")
        yield b"x" * 1000
        pytest.fail("read on")

    assert b"".join(_unpacked(pieces(), encoding, 100)) == b"text"


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [("br", b"x", "was not asked for"), ("gzip", b"no gzip", "cannot be unpacked"),
     ("gzip", gzip.compress(b"text " * 1000, mtime=0)[:-9], "cut off")],
    ids=["never asked for", "no gzip", "cut off"],
)  # fmt: skip
def test_content_that_cannot_be_unpacked(site: Site, encoding: str, body: bytes, reason: str) -> None:
    with pytest.raises(RestillError, match=reason):
        load(site.put("/a", body, "text/plain", Content_Encoding=encoding), web=local())


def test_a_retriever_fetches_as_it_is_told(site: Site, make_encoder: Any) -> None:
    url = site.put("/kestrel", HTML)
    with pytest.raises(RestillError, match=r"127\.0\.0\.1.*WebOptions\(allow"):
        Retriever.from_path(url, encoder=make_encoder())
    retriever = Retriever.from_path(url, encoder=make_encoder(), web=local())
    assert {chunk.doc_id for chunk in retriever.chunks} == {url}
    with pytest.raises(RestillError, match="max_bytes=9"):
        Retriever.from_path(url, encoder=make_encoder(), web=local(max_bytes=9))


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_trickle_ends_when_the_time_is_over(site: Site, part: str) -> None:
    """Each byte comes well within the timeout, the whole never would."""
    done = threading.Event()

    def trickle(handler: Any) -> None:
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\n" + (b"" if part == "headers" else b"Content-Type: text/plain\r\n\r\n")
        )
        try:
            while not done.wait(0.02):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        except OSError:
            pass

    site.pages["/slow"] = trickle
    began = time.monotonic()
    try:
        with pytest.raises(RestillError, match="too slow"):
            load(f"{site.url}/slow", web=local(seconds=0.3, timeout=60, robots=False))
    finally:
        done.set()
    assert time.monotonic() - began < 30


def test_a_type_that_is_not_read_and_a_server_that_is_not_there(site: Site) -> None:
    image = site.put("/a.png", b"\x89PNG", "image/png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}/"
    cut = site.put("/cut", "short", "text/plain", Content_Length="500")
    with pytest.raises(RestillError, match="no documents found") as error:
        load(image, gone, cut, site.put("/zero", "", "text/plain"), web=local())
    for words in ("content type 'image/png'", "forbids all: 127.0.0.1 cannot be read from", "/cut", "0 bytes"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"allow": ("localhost",)}, "localhost"), ({"max_bytes": 0}, "max_bytes=0"),
     ({"user_agent": "a\nb"}, "user_agent"), ({"delay": -1.0}, "delay=-1"), ({"seconds": 0.0}, "seconds=0")],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RestillError, match=words):
        WebOptions(**options)
