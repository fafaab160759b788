"""Kill -9 in every phase of `restill improve`: does the job end as one that nobody touched?

A job on a random model of 50 thousand weights, deterministic, runs once in peace. The same job is then killed in one
phase after another, each time at a place of the phase's work that is drawn uniformly, and started again. Whatever was
finished must stay byte for byte, and nothing may be there twice: a trajectory, a ranking, a training step. In the end
all trajectories, rankings, mixtures, adapters and the report must equal those of the job in peace, but for the clock.

    python benchmarks/kill_job.py --out runs/kill-job
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from restill.cli import app
from restill.selftrain.job_folder import plan

JOB = "job"
"""The job's folder, under the folder that its command runs in; relative, so that all reports say the same."""
CLOCK = {"seconds", "created", "cached", "occupancy"}
"""What may differ: times, how much of a prompt was found in a cache, and how full the engine was."""
_LINES = ("*/*/trajectories-*.jsonl", "*/rollout/rankings/*.jsonl")
_WHOLE = ("*/*.done.json", "*/mixture.jsonl", "*/kept.jsonl", "*/eval.json", "*/adapter/*.safetensors")


def prepare(folder: Path, questions: int = 8, held_out: int = 6) -> Path:
    """Make a model, an index and questions in ``folder``."""
    from restill.models.testing import save_tiny, save_tiny_encoder

    folder.mkdir(parents=True, exist_ok=True)
    save_tiny(folder / "model")
    pages = [{"_id": f"s{i}", "title": f"Ship {i}", "text": f"Ship {i} was made by Ada {i}."} for i in range(12)]
    _write(folder / "pages.jsonl", pages)
    for kind, count in (("the", questions), ("old", held_out)):
        rows = [
            {"question": f"Who made {kind} Ship {i}?", "answer": f"Ada {i}", "gold_titles": [f"Ship {i}"]}
            for i in range(count)
        ]
        _write(folder / f"{kind}.jsonl", rows)
    encoder = save_tiny_encoder(folder / "encoder")
    index = ["index", folder / "pages.jsonl", "--out", folder / "index", "--encoder", encoder]
    app([str(word) for word in index], standalone_mode=False)
    return folder


def command(place: Path, *more: str) -> list[str]:
    """The job's command; it runs in a folder of its own."""
    job = ["improve", place / "the.jsonl", "--eval", place / "old.jsonl", "--out", JOB]
    job += ["--model", place / "model", "--index", place / "index", "--deterministic", "--concurrency", 4]
    job += ["--agent", "search", "--steps", 6, "--few-shot", 0, "--seconds", 1000, "--samples", 1]
    job += ["--pilot", 6, "--noise", 0.1, "--ranker", "completed", "--step-ranker", "random"]
    job += ["--epochs", 4, "--checkpoint-seconds", 0]
    return [sys.executable, "-m", "restill.cli", *map(str, job), *more]


def finish(words: list[str], folder: Path) -> Path:
    """Run the job in ``folder`` to its end; returns the job's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "said.txt").open("ab") as said:
        status = subprocess.run(words, cwd=folder, stdout=said, stderr=said).returncode
    if status:
        raise SystemExit(f"the job ended with status {status}:\n{(folder / 'said.txt').read_text()[-2000:]}")
    return folder / JOB


def phases(job: Path) -> list[str]:
    """Names of the phases of a job, in order."""
    return plan(json.loads((job / "job.json").read_text())["settings"])


def progress(job: Path, phase: str) -> int:
    """What there is of a phase: trajectories, rankings or training steps; 0 for one that is over in no time."""
    arm, part = phase.split("/")
    files = {
        "rollout": (f"{phase}/trajectories-*.jsonl",),
        "eval": (f"{phase}/trajectories-*.jsonl",),
        "rank": (f"{arm}/rollout/rankings/steps.jsonl", f"{arm}/rollout/rankings/steps-*.part"),
        "train": (f"{arm}/adapter.training/train_log.jsonl", f"{arm}/adapter/train_log.jsonl"),
        "keep": (),
        "mixture": (),
    }
    return sum(file.read_bytes().count(b"\n") for pattern in files[part] for file in job.glob(pattern))


@dataclass(frozen=True)
class Kill:
    """When to kill: some seconds ``later`` than ``wanted`` of a phase is there, or when the phase is done."""

    phase: str
    before: str | None
    wanted: int
    later: float


def kill_once(words: list[str], folder: Path, kill: Kill) -> bool:
    """Start the job and kill it; returns whether it was still running."""
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / JOB
    begun = job if kill.before is None else job / f"{kill.before}.done.json"
    with (folder / "said.txt").open("ab") as said:
        process = subprocess.Popen(words, cwd=folder, stdout=said, stderr=said)
        while process.poll() is None and not (job / f"{kill.phase}.done.json").exists():
            if begun.exists() and progress(job, kill.phase) >= kill.wanted:
                break
            time.sleep(0.002)
        try:
            process.wait(kill.later)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return True
    if process.returncode:
        raise SystemExit(f"the job failed:\n{(folder / 'said.txt').read_text()[-2000:]}")
    return False


def draw(peace: Path, kills: int, rng: random.Random) -> list[Kill]:
    """Kills in one phase after another, in all phases where ``kills`` is large enough."""
    names = phases(peace)
    chosen = sorted(rng.sample(range(len(names)), min(kills, len(names))))
    return [
        Kill(
            phase=names[i],
            before=names[i - 1] if i else None,
            wanted=int(rng.random() * progress(peace, names[i])),
            later=rng.uniform(0, 0.3),
        )
        for i in chosen
    ]


def finished(job: Path) -> dict[str, Any]:
    """What is done: the files that are whole, and the lines of those that grow."""
    whole = {str(f.relative_to(job)): f.read_bytes() for pattern in _WHOLE for f in job.glob(pattern)}
    grown = {str(f.relative_to(job)): f.read_bytes().split(b"\n")[:-1] for p in _LINES for f in job.glob(p)}
    return whole | grown


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what was finished before and is not the same after."""
    return [
        name
        for name, old in before.items()
        if (after.get(name, [])[: len(old)] if isinstance(old, list) else after.get(name)) != old
    ]


def repeated(job: Path) -> list[str]:
    """What is there twice: trajectories, rankings, training steps."""
    found = []
    for name, lines in finished(job).items():
        if isinstance(lines, list):
            rows = [row for row in map(json.loads, lines) if "format" not in row]
            keys = [tuple(r.get("key", ())) or (r["question_key"], r["sample"], r["agent"]) for r in rows]
            found += [f"{name}: {key}" for key, count in Counter(keys).items() if count > 1]
    for log in job.glob("*/adapter/train_log.jsonl"):
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        found += [f"{log}: {steps}"] if steps != list(range(1, len(steps) + 1)) else []
    return found


def differing(one: Path, other: Path) -> list[str]:
    """Names of what two finished jobs do not have in common, apart from the clock and the number of workers."""
    left, right = (_results(job) for job in (one, other))
    return [name for name in sorted(left | right) if left.get(name) != right.get(name)]


def _results(job: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"report.json": _timeless(json.loads((job / "report.json").read_text()))}
    for name, value in finished(job).items():
        folder = name.rsplit("/", 1)[0]
        if "trajectories-" in name:
            for row in map(json.loads, value):
                key = f"{folder} {row['question_key']} {row['sample']} {row['agent']}"
                found[key] = _timeless(row)
        else:
            found[name] = _timeless(json.loads(value)) if name.endswith(".json") else value
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in CLOCK}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def kill_and_compare(out: Path, words: list[str], peace: Path, kills: Iterable[Kill]) -> Iterator[str]:
    """Kill a job again and again, end it, and tell what differs from the one in ``peace``."""
    held: dict[str, Any] = {}
    late = 0
    for kill in kills:
        phase, alive = kill.phase, kill_once(words, out, kill)
        late += not alive
        now = finished(out / JOB)
        saves = [step.name for step in (out / JOB).glob("*/adapter.training/checkpoints/*")]
        saved = max((int(name) for name in saves if name.isdigit()), default=0)
        print(
            f"killed{'' if alive else ' (too late)'} in {phase}: {progress(out / JOB, phase)} of "
            f"{progress(peace, phase)} there" + (f", saved at step {saved}" if saved else "")
        )
        yield from (f"kill in {phase}: {name} was lost or changed" for name in changed(held, now))
        held = now
    if 2 * late > len(kills):
        yield f"{late} of {len(kills)} kills came too late to tell anything"
    job = finish(words, out)
    yield from (f"in the end: {name} was lost or changed" for name in changed(held, finished(job)))
    yield from (f"twice: {what}" for what in repeated(job))
    yield from (f"differs: {name}" for name in differing(peace, job))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(
    out: Annotated[Path, typer.Option(help="Folder to work in; emptied.")] = Path("runs/kill-job"),
    kills: Annotated[int, typer.Option(help="Kills, at most one in a phase.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Kill, resume, compare; exits with 1 where anything differs."""
    shutil.rmtree(out, ignore_errors=True)
    place = prepare(out.absolute())
    words = command(place)
    peace = finish(words, place / "peace")
    drawn = draw(peace, kills, random.Random(seed))
    wrong = list(kill_and_compare(place / "killed", words, peace, drawn))
    print("\n".join(wrong) or f"{len(drawn)} kills: nothing lost, changed or done twice; all results equal")
    if json_out:
        json_out.write_text(json.dumps({"kills": len(drawn), "wrong": len(wrong)}))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
