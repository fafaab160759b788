"""A job's folder: its manifest, written first and never contradicted, and phases that are done once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..agents.shards import code_version, locked
from ..models.errors import RestillError
from .files import hash_json, read_json, write_json

MANIFEST = "job.json"
SCHEMA = 1


class Job:
    """The folder ``out`` of one self-training job.

    ``job.json`` holds every knob before anything runs. Each phase leaves ``<name>.done.json`` with a hash
    of its inputs and what it made; a phase whose inputs are unchanged and whose outputs are there is not
    run again.

    Raises:
        RestillError: the folder belongs to a job with other settings; the message names the differences.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out = out
        if out.exists() and not out.is_dir():
            raise RestillError(f"{str(out)!r} is a file; give a folder for the job")
        settings = {"schema": SCHEMA, **settings}
        old = read_json(out / MANIFEST)
        if old is not None and (found := differing(old.get("settings", {}), settings)):
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
        if manifest != old:
            write_json(out / MANIFEST, manifest)
        self.phases: dict[str, dict[str, Any]] = {}

    def lock(self) -> Any:
        """A context in which no other process may work in this folder.

        Raises:
            RestillError: another process does.
        """
        return locked(self.out / "job.lock", wait=False)

    def phase(
        self,
        name: str,
        inputs: Mapping[str, Any],
        work: Callable[[], Mapping[str, Any]],
        *,
        outputs: Sequence[Path] = (),
        discard: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Do ``work`` unless it is done, and return what it reported (plain values) with its ``seconds``.

        Args:
            name: of the phase; may contain "/".
            inputs: plain values that decide the result, the results of earlier phases among them.
            outputs: files that must exist for the phase to count as done.
            discard: throws away outputs that were made from other inputs.
        """
        marker = self.out / f"{name}.done.json"
        wanted = hash_json(inputs)
        done = read_json(marker)
        if done is None or done["inputs"] != wanted or not all(path.exists() for path in outputs):
            if done is not None and done["inputs"] != wanted:
                marker.unlink()
                if discard is not None:
                    discard()
            started = time.monotonic()
            result = dict(work())
            done = {"inputs": wanted, "seconds": round(time.monotonic() - started, 1), "result": result}
            write_json(marker, done)
            done = read_json(marker)  # as a later call will see it
        self.phases[name] = {**done["result"], "seconds": done["seconds"]}
        return self.phases[name]


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
