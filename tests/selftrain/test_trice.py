"""TRICE as a job: it learns, its bad days are handled, and what stops it in between changes nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restill.agents.budget import Budget
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.run import Run
from restill.agents.trajectory import Trajectory
from restill.models.errors import RestillError
from restill.models.lora import WEIGHTS, load_peft
from restill.selftrain import em, lab, latent_job
from restill.selftrain.checkpoint import Checkpoints
from restill.selftrain.html_report import write_html
from restill.selftrain.improve import improve
from restill.selftrain.job_folder import JobFolder
from restill.selftrain.report import Report
from restill.selftrain.rewards import right
from restill.selftrain.steps import TrainSteps
from restill.selftrain.trainer import TrainConfig
from restill.selftrain.trice_memory import Memory

from .drawing_task import TRAIN, agent, always, even, graded, logged, method, never, questions


def train(out: Path, **changes: Any) -> Report:
    return improve(agent(), questions(), out=out, method=method(**changes))


@pytest.mark.slow
def test_the_share_of_right_proposals_rises(tmp_path: Path) -> None:
    full: Any = TrainConfig(method="full", embeddings=True, lr=0.02, rows=2, row_length=128, warmup=0.0)
    report = train(tmp_path, steps=30, minibatch=8, resampled=8, train=full)
    rows = logged(tmp_path)
    assert np.mean([r["right"] for r in rows[-8:]]) > np.mean([r["right"] for r in rows[:8]]) + 0.2
    assert rows[-1]["turnover"] > 0 and rows[-1]["solved"] == 1
    made = report.phases["TRICE/train"]
    assert made["steps"] == 30 and made["sampled_tokens"] > 0 and made["trained_tokens"] > 0
    assert sum(made["shares"].values()) == pytest.approx(1, abs=1e-3)
    manifest = json.loads((tmp_path / "TRICE" / "adapter" / "manifest.json").read_text())
    assert manifest["protocol"] == "reason-1" and len(manifest["train_question_hashes"]) == 8
    assert JobFolder.open(tmp_path).drawn["TRICE"] == rows and not JobFolder.open(tmp_path).missing


@pytest.mark.parametrize("estimator", ["basic", "control", "per-question"])
def test_graded_rewards_are_taken(tmp_path: Path, estimator: str) -> None:
    train(tmp_path, reward=graded, estimator=estimator, steps=3)
    assert all(0 <= row["accepted"] <= 1 and np.isfinite(row["grad_variance"]) for row in logged(tmp_path))


def test_a_guide_that_never_succeeds_and_minibatches_without_a_right_memory_train_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "restill.trice"):
        train(tmp_path, reward=never)
    assert "no right answer to 8 of 8 questions" in caplog.text and "no memory of the minibatch is right" in caplog.text
    rows = logged(tmp_path)
    assert len(rows) == 4 and all(row["solved"] == 0 and "surrogate" not in row for row in rows)
    leaves = load_peft(tmp_path / "TRICE" / "adapter").leaves
    assert not any(leaf.any() for name, leaf in leaves.items() if name.endswith(".b"))


def test_a_guide_tries_again_what_it_has_not_got_right(tmp_path: Path) -> None:
    train(tmp_path, guide_samples=3, steps=1)
    asked, run = {q.key: q for q in questions()}, Run.open(tmp_path / "TRICE" / "guide")
    for key, question in asked.items():
        tries = sorted((t for t in run if t.question_key == key), key=lambda t: t.sample)
        assert [t.sample for t in tries] == list(range(len(tries)))
        assert not any(even(question, t) for t in tries[:-1]) and (even(question, tries[-1]) or len(tries) == 3)
    assert 8 < len(run) < 24


def test_latents_that_no_row_can_hold_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = agent()
    prompts = [len(own.model.tokenizer.chat(own.messages(q))) for q in questions()]
    fitting = replace(TRAIN, row_length=min(prompts) + own.step_tokens)
    with caplog.at_level(logging.WARNING, "restill.trice"):
        train(tmp_path / "some", train=fitting)
    assert f"more tokens than row_length={fitting.row_length}; they are left out" in caplog.text
    assert any(row["unscored"] for row in logged(tmp_path / "some"))


def test_minibatches_in_which_everything_is_accepted_have_a_gradient_of_zero(tmp_path: Path) -> None:
    report = train(tmp_path, reward=always)
    assert all(row["grad_norm"] == 0 and row["terms"] == 0 for row in logged(tmp_path))
    assert report.phases["TRICE/train"]["zero_steps"] == 4
    other = train(tmp_path / "basic", reward=always, estimator="basic")
    assert other.phases["TRICE/train"]["zero_steps"] == 0


def test_a_question_that_the_guide_did_not_solve_joins_when_a_proposal_is_right(tmp_path: Path) -> None:
    train(tmp_path, guide=None, steps=6)
    solved = [row["solved"] for row in logged(tmp_path)]
    assert solved[0] <= 0.5 < 1 and solved == sorted(solved) and solved[-1] > solved[0]


def _picky(question: Question, trajectory: Trajectory) -> float:
    if question.id == "3":
        raise ZeroDivisionError("no idea")
    return float("nan") if question.id == "5" else even(question, trajectory)


def test_a_checker_that_raises_is_logged_and_leaves_its_question_out(tmp_path: Path) -> None:
    report = train(tmp_path, reward=_picky, minibatch=8, guide_samples=1)
    found = [json.loads(line) for line in (tmp_path / "TRICE" / "checker_errors.jsonl").read_text().splitlines()]
    assert {row["question"] for row in found} == {"3", "5"}
    assert found[0]["error"].startswith(("ZeroDivisionError: no idea", "ValueError: a reward of nan"))
    assert report.phases["TRICE/train"]["checker_errors"] == len(found) == 2 * (1 + 4)
    assert all(row["unscored"] == 2 for row in logged(tmp_path))
    state = json.loads((tmp_path / "TRICE" / "state.json").read_text())
    assert not {q.key for q in questions() if q.id in ("3", "5")} & set(state)


def test_what_a_checker_raised_is_counted_once_though_the_job_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"reward": _picky, "minibatch": 8, "guide_samples": 1}
    real, calls = lab.Lab.score, []

    def stop(*arguments: Any) -> Any:
        calls.append(1)
        found = real(*arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(lab.Lab, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, train=replace(TRAIN, checkpoint_steps=1), **options)
    report = train(tmp_path, train=replace(TRAIN, checkpoint_steps=1), **options)
    found = [json.loads(line) for line in (tmp_path / "TRICE" / "checker_errors.jsonl").read_text().splitlines()]
    assert report.phases["TRICE/train"]["checker_errors"] == 10
    assert sorted(row["step"] for row in found) == sorted(2 * [-1, 0, 1, 2, 3])


STOPS = [
    (lab, "draw", 2),
    (lab.Lab, "score", 3),
    (em.Maximisation, "_gradient", 3),
    (TrainSteps, "update", 2),
    (Checkpoints, "save", 1),
    (latent_job, "weights_hash", 1),  # the adapter is there, the phase's marker is not
]


@pytest.mark.parametrize(("owner", "name", "call"), STOPS, ids=[name for _, name, _ in STOPS])
def test_a_job_stopped_anywhere_ends_with_the_same_bits(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> None:
    real, calls = getattr(owner, name), []

    def stop(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, train=replace(TRAIN, checkpoint_steps=1))
    report = train(tmp_path, train=replace(TRAIN, checkpoint_steps=1))
    told = Report.load(whole).phases["TRICE/train"], report.phases["TRICE/train"]
    assert all(told[0][key] == told[1][key] for key in told[0] if key not in ("seconds", "shares"))
    for file in (f"adapter/{WEIGHTS}", "adapter/train_log.jsonl", "state.json"):
        assert (tmp_path / "TRICE" / file).read_bytes() == (whole / "TRICE" / file).read_bytes(), file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    train(out, train=replace(TRAIN, checkpoint_steps=1))
    return out


def test_the_report_shows_acceptance_variance_and_the_learning_curve(tmp_path: Path) -> None:
    held_out = [Question(id=f"h{i}", question=f"how {i}", answers=["x"]) for i in range(2)]
    report = improve(agent(), questions(), out=tmp_path, method=method(eval_every=2), eval=held_out)
    assert [arm.name for arm in report.arms] == ["base", "TRICE"]
    assert [row["step"] for row in logged(tmp_path, "curve")] == [0, 2, 4]
    page = write_html(tmp_path).read_text()
    assert 'id="drawn"' in page and "gradient variance" in page and "held-out accuracy" in page


def test_memories_outlive_a_checkpoint_with_their_tokens_and_ages(whole: Path) -> None:
    state = json.loads((whole / "TRICE" / "state.json").read_text())
    memory = Memory.from_rows(state)
    assert memory.to_rows() == state
    rows = logged(whole)
    assert sum(asked for asked, _ in memory.visits.values()) == 4 * len(rows), "each step asks its minibatch"
    assert sum(hits for _, hits in memory.visits.values()) == round(sum(4 * row["accepted"] for row in rows))
    assert all(z.reward > 0 and z.born >= -1 and z.tokens > 0 for z in memory.latents.values())
    assert max(z.born for z in memory.latents.values()) >= 0


def test_rows_too_short_for_a_latent_are_named(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match=r"\(at most \d+\); raise row_length"):
        train(tmp_path, train=replace(TRAIN, row_length=32), reward=always)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "reinforce"}, "estimator='reinforce'"),
        ({"guide": "oracle"}, "guide='oracle'"),
        ({"steps": 0}, "steps=0"),
        ({"guide_samples": 0}, "guide_samples=0"),
        ({"start": "scratch"}, "start='scratch'"),
    ],
)
def test_bad_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(RestillError, match=message):
        method(**changes)


def test_a_control_arm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match="control=True"):
        improve(agent(), questions(), out=tmp_path, method=method(), control=True)


def search(query: str) -> str:
    """Find passages."""
    return f"{query} was made by Ada"


@pytest.mark.slow
def test_trajectories_with_tools_go_the_same_way_from_an_experts_memories(tmp_path: Path) -> None:
    acting = ReActAgent(
        agent().model, [search], budget=Budget(steps=2), step_tokens=32, few_shot=0, observation_tokens=24
    )
    asked = [
        Question(id=str(i), question=f"Who made ship {i}?", answers=["Ada"], gold_titles=[f"Ship {i}"])
        for i in range(4)
    ]
    train_config = replace(TRAIN, row_length=1024)
    improve(
        acting,
        asked,
        out=tmp_path,
        method=method(guide="expert", guide_samples=1, reward=right, max_context=1024, train=train_config, steps=2),
    )
    memory = Memory.from_rows(json.loads((tmp_path / "TRICE" / "state.json").read_text()))
    assert len(memory.latents) == 4 and {z.answer for z in memory.latents.values()} == {"Ada"}
    tokenizer = acting.model.tokenizer
    [sequence] = next(iter(memory.latents.values())).sequences
    learnt = tokenizer.decode([t for t, w in zip(sequence.tokens, sequence.weights, strict=True) if w])
    assert "Action: search" in learnt and "was made by" not in learnt
    assert "was made by" in tokenizer.decode(sequence.tokens)
    assert all(row["right"] == 0 and row["solved"] == 1 and row["grad_norm"] > 0 for row in logged(tmp_path))
