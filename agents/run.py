"""Run directories: append-only JSONL, one finished trajectory a line, and a manifest. The source of truth.

::

    runs/train/run.json                        manifest, replaced atomically
    runs/train/trajectories-0-of-1.jsonl       one line a trajectory, flushed to the disk one by one
    runs/train/trajectories-0-of-1.lock        held by the one process that writes this shard

A line without its end is torn: readers pass it over, the next writer cuts it off. Of several lines with one
key the last counts; a line with status "answered", "budget" or "invalid" is final and never gets a successor.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..models.engine.stats import Stats
from ..models.errors import RestillError
from .shards import ShardWriter, locked, write_atomically
from .trajectory import Key, Trajectory
from .version import code_version

MANIFEST = "run.json"
_SHARD = re.compile(r"trajectories-(\d+)-of-(\d+)\.jsonl")
FINAL = frozenset({"answered", "budget", "invalid"})
"""Statuses that are never run again."""


@dataclass(frozen=True)
class _Entry:
    file: Path
    offset: int
    length: int
    status: str
    tries: int


class Run:
    """A run directory, for reading and appending.

    Args:
        path: an existing run directory; see :meth:`create` and :meth:`open`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.damaged = 0
        self._entries: dict[Key, _Entry] = {}
        self._writer: ShardWriter | None = None
        self._load()

    # -- making and opening

    @classmethod
    def create(cls, path: str | os.PathLike[str], **manifest: Any) -> Run:
        """Open a run directory, made if need be, and merge ``manifest`` into ``run.json``.

        Raises:
            RestillError: the path is a file, or the run was made with another ``seed``.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise RestillError(f"{str(path)!r} is a file; give a folder for the run")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RestillError(f"cannot make the run folder {str(path)!r}: {error.strerror}") from None
        _merge_manifest(folder, manifest)
        return cls(folder)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open an existing run directory.

        Raises:
            RestillError: there is none.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file() and not any(folder.glob("trajectories-*.jsonl")):
            raise RestillError(f"no run at {str(path)!r}; make one with rollout(..., out={str(path)!r})")
        return cls(folder)

    @property
    def manifest(self) -> dict[str, Any]:
        """``run.json``: agents by hash, seed, samples, number of questions, the engine's counts, code version."""
        return _read_manifest(self.path)

    def stats(self, agent: str) -> Stats | None:
        """What the engine did while it worked for an agent (its hash), all calls together; None without one."""
        counts = self.manifest.get("engine", {}).get(agent)
        return None if counts is None else Stats(**counts)

    # -- writing

    def start(self, shard: tuple[int, int] = (0, 1)) -> None:
        """Become the writer of a shard: take its lock, cut off a torn last line.

        Raises:
            RestillError: another process is writing it.
        """
        if self._writer is None:
            self._writer = ShardWriter(self.path / f"trajectories-{shard[0]}-of-{shard[1]}.jsonl")
            self._load()

    def append(self, trajectory: Trajectory) -> None:
        """Write one trajectory; when this returns it is on the disk.

        Raises:
            RestillError: a final trajectory with this key is there already, or the disk is full (what was
                written before stays readable).
        """
        self.start()
        key = trajectory.key
        old = self._entries.get(key)
        if old is not None and old.status in FINAL:
            raise RestillError(f"the run already holds {trajectory.id} with status {old.status!r}; it is never changed")
        writer = self._writer
        if writer is None:
            raise RestillError("the run is closed; open it again")
        line = trajectory.to_json().encode()
        offset = writer.write(line, len(self._entries))
        tries = (old.tries if old else 0) + (trajectory.status != "cancelled")
        self._entries[key] = _Entry(writer.path, offset, len(line), trajectory.status, tries)

    def count(self, agent: str, stats: Stats) -> None:
        """Add to the manifest what the engine did for ``agent``, to what it did in earlier calls and other shards.

        Raises:
            RestillError: the disk is full.
        """
        _merge_manifest(self.path, {"engine": {agent: asdict(stats)}})

    def close(self) -> None:
        """Let go of the shard."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- reading

    def keys(self, *statuses: str) -> set[Key]:
        """Keys of every trajectory, or of those with one of these statuses; none is read."""
        return {key for key, entry in self._entries.items() if not statuses or entry.status in statuses}

    def needs(self, key: Key, *, retry: bool = False) -> bool:
        """Whether a key is still to be run: missing, cancelled, or failed for the first time (with ``retry``, ever)."""
        entry = self._entries.get(key)
        if entry is None or entry.status == "cancelled":
            return True
        return entry.status == "error" and (retry or entry.tries < 2)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Trajectory]:
        """All trajectories, in the order in which they were written."""
        return (self._read(entry) for entry in self._ordered())

    def __getitem__(self, index: int) -> Trajectory:
        return self._read(self._ordered()[index])

    def get(self, key: Key) -> Trajectory | None:
        """The trajectory with this key."""
        entry = self._entries.get(key)
        return None if entry is None else self._read(entry)

    def find(self, name: str) -> list[Trajectory]:
        """Trajectories whose id, question key or question id is ``name``; if none is, those where one begins so."""
        exact, begun = list[Trajectory](), list[Trajectory]()
        for t in self:
            names = (t.id, t.question_key, t.question_id)
            if name in names:
                exact.append(t)
            elif any(known.startswith(name) for known in names):
                begun.append(t)
        return exact or begun

    def filter(self, *, status: str | None = None, agent: str | None = None) -> Iterator[Trajectory]:
        """Trajectories of one status, one agent, or both."""
        for key, entry in list(self._entries.items()):
            if (status is None or entry.status == status) and (agent is None or key.agent == agent):
                yield self._read(entry)

    def summary(self) -> list[dict[str, Any]]:
        """One row for each agent: counts by status, tokens, seconds, tool calls and their failures."""
        rows: dict[str, dict[str, Any]] = {}
        agents = self.manifest.get("agents", {})
        for t in self:
            empty = {"trajectories": 0, "statuses": {}, "forced": 0, "calls": 0, "failed_calls": 0}
            empty |= {"prompt_tokens": 0, "generated_tokens": 0, "cached_tokens": 0, "seconds": 0.0}
            row = rows.setdefault(t.agent, {"agent": t.agent, "config": agents.get(t.agent), **empty})
            row["trajectories"] += 1
            row["statuses"][t.status] = row["statuses"].get(t.status, 0) + 1
            row["forced"] += t.forced
            row["calls"] += len(t.calls())
            row["failed_calls"] += sum(s.observation is not None and s.observation.status != "ok" for s in t.calls())
            row["prompt_tokens"] += t.usage.prompt
            row["generated_tokens"] += t.usage.generated
            row["cached_tokens"] += t.usage.cached
            row["seconds"] = round(row["seconds"] + t.seconds, 3)
        return list(rows.values())

    # -- inside

    def _ordered(self) -> list[_Entry]:
        return sorted(self._entries.values(), key=lambda e: (e.file, e.offset))

    def _load(self) -> None:
        self._entries, self.damaged = {}, 0
        for file in sorted(self.path.glob("trajectories-*.jsonl")):
            if not _SHARD.fullmatch(file.name):
                continue
            with file.open("rb") as lines:
                offset = 0
                for line in lines:
                    if line.endswith(b"\n"):
                        self._index(file, offset, line)
                    offset += len(line)

    def _index(self, file: Path, offset: int, line: bytes) -> None:
        try:
            row = json.loads(line)
            key = Key(row["question_key"], row.get("sample", 0), row["agent"])
            status = row["status"]
        except (ValueError, KeyError, TypeError, RecursionError):
            self.damaged += 1
            return
        old = self._entries.get(key)
        if old is not None and old.status in FINAL:
            return  # the first final line stands
        tries = (old.tries if old else 0) + (status != "cancelled")
        self._entries[key] = _Entry(file, offset, len(line) - 1, status, tries)

    def _read(self, entry: _Entry) -> Trajectory:
        with entry.file.open("rb") as file:
            file.seek(entry.offset)
            line = file.read(entry.length)
        try:
            return Trajectory.from_json(line)
        except ValueError as error:
            where = f"{entry.file.name} at byte {entry.offset}"
            reason = str(error).splitlines()[0]
            raise RestillError(f"{where} is not a trajectory of this version ({reason}); move the file away") from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise RestillError(
            f"{folder / MANIFEST} is not JSON; delete it, the trajectories do not depend on it"
        ) from None
    return value if isinstance(value, dict) else {}


def _merge_manifest(folder: Path, new: Mapping[str, Any]) -> None:
    with locked(folder / "run.lock", wait=True):
        old = _read_manifest(folder)
        if "seed" in old and "seed" in new and old["seed"] != new["seed"]:
            raise RestillError(
                f"the run {str(folder)!r} was made with seed {old['seed']}; use seed={old['seed']} or another folder"
            )
        merged = {"schema": 1, "created": round(time.time(), 3), **old, **new}
        merged["agents"] = {**old.get("agents", {}), **new.get("agents", {})}
        counted = dict(old.get("engine", {}))
        for agent, counts in new.get("engine", {}).items():
            counted[agent] = asdict(Stats(**counted.get(agent, {})) + Stats(**counts))
        if counted:
            merged["engine"] = counted
        for name in ("samples", "questions"):
            if name in old and name in new:
                merged[name] = max(old[name], new[name])
        versions = old.get("code_versions", [])
        merged["code_versions"] = versions + [code_version()] if code_version() not in versions else versions
        if merged != old:
            write_atomically(folder / MANIFEST, json.dumps(merged, indent=2, ensure_ascii=False) + "\n")
