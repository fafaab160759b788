"""What the engine draws is what the loss takes it for; and a job killed by the system ends with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restill.agents.agent import Agent
from restill.agents.budget import Budget
from restill.agents.react import ReActAgent
from restill.agents.trajectory import Trajectory
from restill.models.lora import WEIGHTS, merge
from restill.models.testing import tiny_checkpoint
from restill.selftrain.improve import improve
from restill.selftrain.latent import Latent
from restill.selftrain.mixture import Example
from restill.selftrain.pack import micro_batch, pack
from restill.selftrain.policy import Draw, Policy, draw
from restill.selftrain.steps import TrainSteps
from restill.selftrain.trainer import TrainConfig, Trainer

from .drawing_task import agent, lookup, questions, saving, searching

GROUPS, SIZE = 32, 5
SCORED = TrainConfig(rank=2, alpha=4.0, rows=4, row_length=640)


@cache
def training() -> tuple[TrainSteps, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The trainer's compiled steps, low-rank leaves, and the base's parameters."""
    base, rng = tiny_checkpoint(), np.random.default_rng(0)
    fresh, _, params = Trainer(base.config, base.params, SCORED).initial()
    leaves = {name: rng.normal(scale=0.1, size=leaf.shape).astype(np.float32) for name, leaf in fresh.items()}
    return TrainSteps(base.config, SCORED, params, {}, total=1), leaves, params


def scores(asked: Agent, *, temperature: float = 1.0, unmasked: bool = False) -> np.ndarray:
    """The sum over ``SIZE`` draws of grad log p_theta, ``GROUPS`` times, by the trainer's own steps."""
    base, (steps, leaves, params) = tiny_checkpoint(), training()
    policy = Policy(base, slots=16, max_context=SCORED.row_length)
    policy.push(merge(params, leaves, alpha=SCORED.alpha))
    question = questions(1)[0]
    drawn = draw(
        policy.drives(asked, temperature=temperature),
        [Draw(question=question, seed=seed, sample=seed) for seed in range(GROUPS * SIZE)],
    )
    policy.close()
    placed, found = steps.place(leaves), []
    for at in range(0, len(drawn), SIZE):
        examples = [e for t in drawn[at : at + SIZE] for e in _latent(t, unmasked)]
        rows = pack(examples, SCORED.row_length)
        for first in range(0, len(rows), SCORED.rows):
            part = np.arange(first, min(first + SCORED.rows, len(rows)), dtype=np.int32)
            batch = micro_batch(rows, part, SCORED.rows)
            steps.accumulate(placed, steps.lower(batch), batch)
        gradient = steps.take(placed).gradient
        found.append(np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in gradient.values()]))
    return np.array(found)


def _latent(trajectory: Trajectory, unmasked: bool) -> list[Example]:
    sequences = Latent.of(trajectory).sequences
    drawn = [len(sample.tokens) for step in trajectory.steps for sample in step.samples if not step.forced]
    assert sum(e.targets for e in sequences) == sum(drawn)
    if not unmasked:
        return list(sequences)
    [sequence], start = sequences, len(trajectory.prompt0)
    return [Example(tokens=sequence.tokens, weights=(*[0.0] * start, *[1.0] * (len(sequence.tokens) - start)))]


def deviation(groups: np.ndarray) -> float:
    """|mean|^2, estimated without bias from all pairs, in standard deviations of what random signs make of it."""
    inner, rng = groups @ groups.T, np.random.default_rng(1)
    np.fill_diagonal(inner, 0)
    signs = rng.choice([-1.0, 1.0], size=(2000, len(groups)))
    return float(inner.sum() / np.einsum("ki,ij,kj->k", signs, inner, signs).std())


def acting() -> ReActAgent:
    """An agent whose turns are observed: a random model's cannot be read, and it is told so."""
    return ReActAgent(
        agent().model, [lookup], budget=Budget(steps=2), step_tokens=32, few_shot=0, observation_tokens=24
    )


AGENTS = [pytest.param(agent, marks=pytest.mark.slow), acting, searching]


@pytest.mark.parametrize("asked", AGENTS)
def test_the_mean_gradient_over_the_engines_draws_is_zero(asked: Any) -> None:
    assert abs(deviation(scores(asked()))) < 4


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        pytest.param(agent, {"temperature": 0.5}, marks=pytest.mark.slow),
        pytest.param(acting, {"temperature": 0.5}, marks=pytest.mark.slow),
        pytest.param(searching, {"temperature": 0.5}, marks=pytest.mark.slow),
        (acting, {"unmasked": True}),
    ],
)
def test_another_temperature_or_learnt_observations_would_show(asked: Any, wrong: dict) -> None:
    assert deviation(scores(asked(), **wrong)) > 6


_SCRIPT = """
import os, signal, sys
from pathlib import Path
out, asked, place, call, *path = sys.argv[1:]
sys.path[:0] = path
from restill.selftrain import checkpoint, em, lab
from restill.selftrain.improve import improve
from tests.selftrain import drawing_task
places = {
    "sampling": (lab, "draw"), "scoring": (lab.Lab, "_reward"), "update": (em.TrainSteps, "update"),
    "state": (em, "write_json"), "checkpoint": (checkpoint, "_tree"), "none": (os, "getcwd"),
}
owner, name = places[place]
real, calls = getattr(owner, name), []
def die(*arguments, **options):
    calls.append(1)
    if place != "none" and len(calls) == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
setattr(owner, name, staticmethod(die) if place == "none" else die)
agent = getattr(drawing_task, asked)()
improve(agent, drawing_task.questions(), out=out, method=drawing_task.saving())
"""


@pytest.mark.slow
@pytest.mark.parametrize("asked", [agent, searching], ids=lambda asked: asked.__name__)
def test_a_job_killed_in_each_of_its_phases_ends_with_the_same_bytes(asked: Any, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "RESTILL_HOME": str(tmp_path / "home")}
    kills = [("sampling", 3), ("scoring", 11), ("update", 3), ("state", 2), ("checkpoint", 2), ("none", 0)]
    codes = []
    for place, call in kills:
        words = [str(tmp_path / "killed"), asked.__name__, place, str(call), str(root)]
        command = [sys.executable, "-c", _SCRIPT, *words, *sys.path]
        codes.append(subprocess.run(command, env=environment, capture_output=True, cwd=root).returncode)
    assert codes == [-9, -9, -9, -9, -9, 0]
    improve(asked(), questions(), out=tmp_path / "whole", method=saving())
    for file in (f"adapter/{WEIGHTS}", "adapter/train_log.jsonl", "adapter/manifest.json", "state.json"):
        there, here = (tmp_path / job / "TRICE" / file for job in ("killed", "whole"))
        assert there.read_bytes() == here.read_bytes(), file
