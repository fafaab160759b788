"""Reads the folder of an ``improve`` job, whether the job has ended, was stopped or still runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..agents.evaluate import EvalReport, EvalRow
from ..agents.run import Run
from ..agents.trajectory import Key, Trajectory
from ..models.errors import RestillError
from .files import read_json
from .job import MANIFEST
from .loss_log import LossLog
from .rerank import load_rankings

DONE = ".done.json"
_GENERATION = re.compile(r"gen([1-9][0-9]*)")


@dataclass(frozen=True)
class ScoredArm:
    """One agent's answers to the held-out questions.

    Attributes:
        folder: base, pilot, gen1, ..., control; ``name`` is the same as people read it.
        run: the run directory that was scored.
    """

    folder: str
    name: str
    scored: EvalReport
    run: Run

    def trajectories(self, row: EvalRow) -> list[Trajectory]:
        """Those of one question that were scored, by sample index."""
        keys = [Key(row.key, sample, self.scored.agent) for sample in range(self.scored.samples)]
        return [t for key in keys if (t := self.run.get(key)) is not None]


@dataclass(frozen=True)
class JobFolder:
    """What a job has done so far.

    Attributes:
        manifest: ``job.json``.
        phases: what each finished phase made, and its ``seconds``, in the order of the job.
        missing: names of the phases still to come, and what is there of each already, in words.
        arms: those that are scored, in the order of the job.
        losses: training steps by arm folder, those of an unfinished training too.
        drawn: the same of TRICE and its baselines, whose steps draw; ``curves``: their accuracy on the way.
        rankings: ``rerank``'s statistics by run and ranker, such as "gen1/rollout, adapter".
        runs: ``run.json`` of every run, by its folder in the job.
    """

    path: Path
    manifest: dict[str, Any]
    phases: dict[str, dict[str, Any]]
    missing: dict[str, str]
    arms: list[ScoredArm] = field(default_factory=list)
    losses: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    drawn: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rankings: dict[str, dict[str, float]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> JobFolder:
        """Read a job's folder; nothing in it is changed.

        Raises:
            RestillError: it is no folder of an ``improve`` job, or one of its files cannot be read.
        """
        manifest = _read(path / MANIFEST)
        settings = (manifest or {}).get("settings", {})
        if not {"method", "eval_questions", "control"} <= set(settings):
            raise RestillError(f"no job of `restill improve` at {str(path)!r}; give the folder that was its --out")
        planned = plan(settings)
        markers = {_phase(path, m): m for m in sorted(path.glob(f"*/*{DONE}"))}
        order = [*planned, *(name for name in markers if name not in planned)]
        phases = {name: _made(markers[name]) for name in order if name in markers}
        folders = list(dict.fromkeys(name.split("/")[0] for name in order))
        return cls(
            path=path,
            manifest=manifest,
            phases=phases,
            missing={
                name: _so_far(path, name) for name in planned if name not in phases and not _skipped(name, phases)
            },
            arms=[arm for folder in folders if (arm := _arm(path, folder)) is not None],
            losses={
                folder: rows
                for folder in folders
                if (rows := [r for r in _log(path / folder, "train_log") if "loss" in r])
            },
            drawn={
                folder: rows
                for folder in folders
                if (rows := [r for r in _log(path / folder, "train_log") if "sampled" in r])
            },
            curves={folder: rows for folder in folders if (rows := _log(path / folder, "curve"))},
            rankings={
                f"{file.parent.parent.relative_to(path).as_posix()}, {file.stem}": load_rankings(file).stats
                for folder in folders
                for file in sorted((path / folder).glob("*/rankings/*.jsonl"))
            },
            runs={
                f"{folder}/{part}": _read(path / folder / part / "run.json") or {}
                for folder in folders
                for part in ("rollout", "eval")
                if (path / folder / part / "run.json").is_file()
            },
        )


def plan(settings: dict[str, Any]) -> list[str]:
    """The phases that a job of these settings goes through, in order."""
    method, scored = settings["method"], settings["eval_questions"]["count"] > 0
    folders = ["base", *(["pilot"] if method["pilot"] else [])]
    if "arm" in method:  # TRICE and its baselines
        folders.append(method["arm"])
    for generation in range(1, method.get("generations", 0) + 1):
        folders += [f"gen{generation}", *(["control"] if settings["control"] and generation == 1 else [])]
    ranked = ("rank",) if method.get("step_ranker") else ()
    parts = {
        "base": ("eval",),
        "pilot": ("rollout", "keep", "mixture", "train", "eval"),
        "control": ("keep", "mixture", "train", "eval"),
        method.get("arm", ""): ("train", "eval"),
    }
    grown = ("rollout", "keep", *ranked, "mixture", "train", "eval")
    every = [f"{folder}/{part}" for folder in folders for part in parts.get(folder, grown)]
    return [name for name in every if scored or not name.endswith("/eval")]


def _skipped(name: str, phases: Mapping[str, Any]) -> bool:
    """Whether a job has gone past a phase without it: the baseline may be left out, earlier versions kept and mixed in
    one."""
    folder, _, part = name.partition("/")
    return (name == "base/eval" and bool(phases)) or (part == "keep" and f"{folder}/mixture" in phases)


def arm_name(folder: str) -> str:
    """An arm as the report names it: gen2 is "generation 2"."""
    found = _GENERATION.fullmatch(folder)
    return f"generation {found[1]}" if found else folder


def _arm(path: Path, folder: str) -> ScoredArm | None:
    file = path / folder / "eval.json"
    if not file.is_file() or not (path / folder / f"eval{DONE}").is_file():
        return None
    try:
        scored = EvalReport.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise RestillError(f"{file} is no evaluation: {str(error).splitlines()[0]}; delete eval{DONE}") from None
    return ScoredArm(folder, arm_name(folder), scored, Run.open(path / folder / "eval"))


def _log(folder: Path, name: str) -> list[dict[str, Any]]:
    done = LossLog(folder / "adapter" / f"{name}.jsonl").rows()
    return done or LossLog(folder / "adapter.training" / f"{name}.jsonl").rows()


def _so_far(path: Path, name: str) -> str:
    """What there is of an unfinished phase."""
    folder, part = name.split("/")
    place = path / folder / part
    if part in ("rollout", "eval") and any(place.glob("trajectories-*.jsonl")):
        return f"{len(Run.open(place))} trajectories so far"
    if part == "train" and (steps := len(_log(path / folder, "train_log"))):
        return f"{steps} steps so far"
    return "not begun"


def _phase(path: Path, marker: Path) -> str:
    return marker.relative_to(path).as_posix().removesuffix(DONE)


def _made(marker: Path) -> dict[str, Any]:
    done = _read(marker)
    return {**done["result"], "seconds": done["seconds"]}


def _read(file: Path) -> Any:
    try:
        return read_json(file)
    except ValueError:
        raise RestillError(f"{file} is not JSON; delete it, and the job makes it again") from None


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested plain values as ("a.b.c", leaf) pairs; a list is a leaf unless it holds mappings."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for place, inner in enumerate(value):
            yield from flat(inner, f"{name}.{place}")
    else:
        yield name, value
