"""A job's folder: its manifest, written first and never contradicted, and phases that are done once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..agents.shards import checked_shard
from ..agents.version import code_version
from ..models.errors import RestillError
from .files import hash_json, read_json, write_json
from .workers import at_work, wait_for

MANIFEST = "job.json"
SCHEMA = 1


class Job:
    """The folder ``out`` of one self-training job.

    ``job.json`` holds every knob before anything runs. Each phase leaves ``<name>.done.json`` with a hash
    of its inputs and what it made; a phase whose inputs are unchanged and whose outputs are there is not
    run again.

    Of n workers that share the folder each does its part of the phases that have parts; all the rest is done by
    worker 0, and the others wait for it. Until a phase is done, ``<name>.begun.json`` holds the hash of the inputs that
    what lies there was made from, and ``<name>.part-i-of-n.json`` tells that a part is done.

    Args:
        settings: every knob, as plain values.
        shard: (i, n): be worker i of n.
        say: told what is done now, and what this worker waits for.

    Raises:
        RestillError: the folder belongs to a job with other settings; the message names the differences.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        *,
        shard: tuple[int, int] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.out, self.shard, self.say = out, checked_shard(shard), say
        if out.exists() and not out.is_dir():
            raise RestillError(f"{str(out)!r} is a file; give a folder for the job")
        settings = {"schema": SCHEMA, **settings}
        if self.leads:
            old = read_json(out / MANIFEST)
        else:
            old = wait_for(lambda: read_json(out / MANIFEST), say, self._worker(0))
        told = None if old is None else {"models": settings.get("models"), **old.get("settings", {})}
        if told is not None and (found := differing(told, settings)):  # jobs of earlier versions do not tell models
            raise RestillError(
                f"{out} was begun with other settings: {'; '.join(found[:6])}; use the same ones, or another out"
            )
        version = code_version()
        versions = (old or {}).get("code_versions", [])
        manifest = {
            "created": (old or {}).get("created", round(time.time(), 3)),
            "code_versions": versions if version in versions else [*versions, version],
            "settings": settings,
        }
        if self.leads and manifest != old:
            write_json(out / MANIFEST, manifest)
        self.phases: dict[str, dict[str, Any]] = {}

    @property
    def leads(self) -> bool:
        """Whether this worker does what has no parts."""
        return self.shard[0] == 0

    def lock(self) -> Any:
        """A context in which no other process may be this worker.

        Raises:
            RestillError: another process is, or works here as one of another number of workers.
        """
        return at_work(self.out, self.shard)

    def phase(
        self,
        name: str,
        inputs: Mapping[str, Any],
        work: Callable[[], Mapping[str, Any]],
        *,
        part: Callable[[], object] | None = None,
        outputs: Sequence[Path] = (),
        discard: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Do ``work`` unless it is done, and return what it reported (plain values) with its ``seconds``.

        Args:
            name: of the phase; may contain "/".
            inputs: plain values that decide the result, the results of earlier phases among them.
            part: this worker's share, done before; ``work`` begins when all workers have done theirs.
            outputs: files that must exist for the phase to count as done.
            discard: throws away outputs that were made from other inputs.
        """
        marker = self.out / f"{name}.done.json"
        wanted = hash_json(inputs)

        def finished() -> dict[str, Any] | None:
            done = read_json(marker)
            there = done is not None and done["inputs"] == wanted and all(path.exists() for path in outputs)
            return done if there else None

        if (done := finished()) is None:
            started = time.monotonic()
            begun = self.out / f"{name}.begun.json"
            if self.leads:
                self._begin(name, begun, marker, wanted, discard)
            elif part is not None:  # not before worker 0 has thrown away what other inputs made
                wait_for(
                    lambda: finished() or (True if (read_json(begun) or {}).get("inputs") == wanted else None),
                    self.say, f"{name} to be begun by {self._worker(0)}",
                )  # fmt: skip
            if part is not None:
                self._share(name, wanted, part)
            if self.leads:
                result = dict(work())
                write_json(
                    marker, {"inputs": wanted, "seconds": round(time.monotonic() - started, 1), "result": result}
                )
                done = read_json(marker)  # as a later call will see it
                begun.unlink(missing_ok=True)
            else:
                done = wait_for(finished, self.say, f"{name} by {self._worker(0)}")
        if part is not None:
            self._part(name, self.shard[0]).unlink(missing_ok=True)
        self.phases[name] = {**done["result"], "seconds": done["seconds"]}
        return self.phases[name]

    def _begin(self, name: str, begun: Path, marker: Path, wanted: str, discard: Callable[[], None] | None) -> None:
        """Throw away what was made from other inputs, whether that was finished or not, and say what is made now."""
        known = read_json(begun) or read_json(marker)
        if known is not None and known["inputs"] != wanted:
            for file in marker.parent.glob(f"{marker.name.removesuffix('.done.json')}.part-*.json"):
                file.unlink(missing_ok=True)
            if discard is not None:
                discard()
            marker.unlink(missing_ok=True)
        write_json(begun, {"inputs": wanted})

    def _share(self, name: str, wanted: str, part: Callable[[], object]) -> None:
        """Do this worker's part, unless it is done; worker 0 then waits for all the others'."""

        def lacks(worker: int) -> bool:
            return (read_json(self._part(name, worker)) or {}).get("inputs") != wanted

        mine, count = self.shard
        if count == 1 or lacks(mine):
            part()
        if count > 1:
            write_json(self._part(name, mine), {"inputs": wanted})
        for worker in range(1, count) if self.leads else ():
            wait_for(
                lambda i=worker: None if lacks(i) else True, self.say, f"the part of {name} of {self._worker(worker)}"
            )

    def _part(self, name: str, worker: int) -> Path:
        return self.out / f"{name}.part-{worker}-of-{self.shard[1]}.json"

    def _worker(self, i: int) -> str:
        count = self.shard[1]
        return f"worker {i} of {count} (if it does not run, start it: --shard {i}/{count})"


def differing(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two manifests differ, as ``path: old there, new now``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in differing(old.get(k), new.get(k), f"{name}.{k}" if name else str(k))]
    if old == new or (old is None and new is None):
        return []
    return [f"{name}: {_short(old)} there, {_short(new)} now"]


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
