"""Kill -9 at random moments: is anything lost, changed or done twice?

N rollouts, each killed once and resumed: every finished trajectory must stay byte for byte where it was, no key may
finish twice, and what is redone must carry the seed it would have had. N trainings, each killed once and resumed: the
adapter must equal, bit for bit, that of a run nobody touched. Moments are uniform over an untouched run's duration.

    python benchmarks/kill.py --out runs/kill
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from restill.models.home import enable_compile_cache
from restill.selftrain.demo import ENCODER, MODEL, WORLD


def work(phase: str, out: Path, questions: int) -> None:
    """The child process: one rollout or one training, resumed if begun."""
    from restill import Budget, JaxChatModel, ReActAgent, Retriever, World, rollout
    from restill.models.checkpoint.load import load_decoder
    from restill.selftrain.expert import ExpertModel
    from restill.selftrain.mixture import Mixture
    from restill.selftrain.trainer import TrainConfig, Trainer

    enable_compile_cache()
    world = World.generate(seed=5, **{**WORLD, "train": questions, "heldout": 10})
    if phase == "rollout":
        retriever = Retriever.from_documents(world.documents, encoder=ENCODER, k=2)
        agent = ReActAgent(
            JaxChatModel.from_pretrained(MODEL), [retriever.as_tool()], budget=Budget(steps=2, seconds=None)
        )
        rollout(agent.replace(temperature=0.7, few_shot=1), world.train, out=out / "run", deadline=None)
        return
    path = out / "mixture.jsonl"
    checkpoint = load_decoder(MODEL)
    if not path.exists():
        retriever = Retriever.from_documents(world.documents, encoder=ENCODER, k=2)
        expert = ReActAgent(ExpertModel(checkpoint.tokenizer, world.train), [retriever.as_tool()], few_shot=0)
        Mixture.from_trajectories(rollout(expert, world.train, out=out / "pilot")).save(path)
        return
    train = TrainConfig(rows=1, row_length=896, frozen_layers=20, accumulate=1, checkpoint_steps=4)
    Trainer(checkpoint.config, checkpoint.params, train).fit(Mixture.load(path), out=out / "adapter")


def child(phase: str, out: Path, questions: int) -> subprocess.Popen[bytes]:
    """Start the child."""
    command = [sys.executable, __file__, "--child", phase, "--out", str(out), "--questions", str(questions)]
    return subprocess.Popen(command)


def kill_once(phase: str, out: Path, questions: int, seconds: float) -> None:
    """Start the child, kill it after ``seconds``."""
    process = child(phase, out, questions)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


def timed(phase: str, out: Path, questions: int) -> float:
    """Run the child to its end; returns the seconds it took."""
    started = time.monotonic()
    if child(phase, out, questions).wait() != 0:
        raise SystemExit(f"{phase} failed in {out}")
    return time.monotonic() - started


def check_rollout(out: Path, kills: int, questions: int, rng: random.Random) -> list[str]:
    """What went wrong with rollouts killed once each."""
    wrong = []
    span = timed("rollout", out / "rollout", questions)
    log = Path("run") / "trajectories-0-of-1.jsonl"
    whole = [json.loads(line) for line in (out / "rollout" / log).read_bytes().splitlines()]
    for number in range(kills):
        folder, seconds = out / f"rollout-{number}", rng.uniform(0, span)
        kill_once("rollout", folder, questions, seconds)
        kept = (folder / log).read_bytes().split(b"\n")[:-1] if (folder / log).exists() else []
        print(f"rollout killed at {seconds:.1f} of {span:.1f} s: {len(kept)} trajectories on disk", flush=True)
        timed("rollout", folder, questions)
        lines = (folder / log).read_bytes().splitlines()
        rows = [json.loads(line) for line in lines]
        finished = Counter(r["question_key"] for r in rows if r["status"] in ("answered", "budget"))
        if lines[: len(kept)] != kept:
            wrong.append(f"rollout {number}: a finished trajectory was lost or changed")
        if set(finished.values()) != {1} or len(finished) != questions:
            wrong.append(f"rollout {number}: of {questions} questions {len(finished)} finished, some more than once")
        if {(r["question_key"], r["seed"]) for r in rows} != {(r["question_key"], r["seed"]) for r in whole}:
            wrong.append(f"rollout {number}: a redone trajectory has another seed")
    return wrong


def check_training(out: Path, kills: int, questions: int, rng: random.Random) -> list[str]:
    """What went wrong with trainings killed once each."""
    wrong, whole = [], out / "train"
    timed("train", whole, questions)  # makes the mixture
    span = timed("train", whole, questions)
    weights = (whole / "adapter" / "adapter_model.safetensors").read_bytes()
    for number in range(kills):
        folder, seconds = out / f"train-{number}", rng.uniform(0, span)
        folder.mkdir(parents=True)
        shutil.copy(whole / "mixture.jsonl", folder)
        kill_once("train", folder, questions, seconds)
        log = folder / "adapter.training" / "train_log.jsonl"
        steps = len(log.read_bytes().splitlines()) if log.exists() else 0
        print(f"training killed at {seconds:.1f} of {span:.1f} s: {steps} steps logged", flush=True)
        timed("train", folder, questions)
        if (folder / "adapter" / "adapter_model.safetensors").read_bytes() != weights:
            wrong.append(f"training {number}: ended with another adapter")
    return wrong


def main(
    out: Annotated[Path, typer.Option(help="Folder to work in; emptied.")] = Path("runs/kill"),
    kills: Annotated[int, typer.Option(help="Kills in each phase.")] = 10,
    questions: Annotated[int, typer.Option(help="Questions of the job.")] = 24,
    quick: Annotated[bool, typer.Option("--quick", help="Two kills, 8 questions.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
    child_phase: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
) -> None:
    """Kill, resume, compare; exits with 1 where anything differs."""
    if child_phase:
        return work(child_phase, out, questions)
    if quick:
        kills, questions = 2, 8
    shutil.rmtree(out, ignore_errors=True)
    rng = random.Random(0)
    wrong = [*check_rollout(out, kills, questions, rng), *check_training(out, kills, questions, rng)]
    print(
        "\n".join(wrong) or f"{kills} + {kills} kills: nothing lost, changed or done twice; adapters equal bit for bit"
    )
    if json_out:
        json_out.write_text(json.dumps({"kills": 2 * kills, "wrong": len(wrong)}))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
