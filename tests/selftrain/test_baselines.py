"""The baselines: each draws and trains on what its paper says, in TRICE's frame."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from restill.agents.question import Question
from restill.agents.trajectory import Trajectory
from restill.models.errors import RestillError
from restill.models.lora import WEIGHTS
from restill.selftrain.baselines import FilteredSFT, RejectionSampling, STaR
from restill.selftrain.improve import improve
from restill.selftrain.job_folder import plan
from restill.selftrain.lab import Lab, Scored
from restill.selftrain.latent import Latent
from restill.selftrain.latent_method import LatentMethod
from restill.selftrain.loss_log import LossLog
from restill.selftrain.mixture import Example
from restill.selftrain.report import Report
from restill.selftrain.steps import TrainSteps
from restill.selftrain.written import DirectAnswer, ReferenceSFT

from .drawing_task import SMALL, TRAIN, agent, always, even, never, questions


def options(**changes: Any) -> dict[str, Any]:
    """Few, small steps."""
    return {k: v for k, v in SMALL.items() if k != "guide_samples"} | {"reward": even, "steps": 3, **changes}


def train(out: Path, method: LatentMethod, asked: list[Question] | None = None) -> tuple[Report, list[dict[str, Any]]]:
    report = improve(agent(), asked or questions(), out=out, method=method)
    return report, LossLog(out / method.arm / "adapter" / "train_log.jsonl").rows()


def learnt(state: list[dict[str, Any]]) -> list[Latent]:
    return [Latent.from_row(row) for row in state]


def test_rejection_sampling_trains_on_right_draws_of_this_step(tmp_path: Path) -> None:
    report, rows = train(tmp_path, RejectionSampling(samples=4, **options()))
    assert all(0 < row["terms"] <= 4 for row in rows)
    assert all(row["right"] <= row["answered"] <= 1 for row in rows)
    assert list(report.phases) == plan({"method": report.method, "eval_questions": {"count": 0}, "control": False})
    _, none = train(tmp_path / "none", RejectionSampling(samples=2, **options(reward=never)))
    assert all(row["terms"] == 0 and "surrogate" not in row for row in none)


def test_filtered_sft_draws_once_and_keeps_what_is_right(tmp_path: Path) -> None:
    report, rows = train(tmp_path, FilteredSFT(samples=3, **options()))
    assert len({row["sampled"] for row in rows}) == 1
    begun = _manifest(tmp_path / "filtered SFT")["begun"]
    assert 0 < begun["latents"] <= 24 and 0 < begun["answered"] <= 1
    assert report.phases["filtered SFT/train"]["trained_tokens"] > 0
    with pytest.raises(RestillError, match="there is nothing to learn"):
        train(tmp_path / "none", FilteredSFT(samples=1, **options(reward=never)))


def test_filtered_sft_keeps_what_begins_alike_and_goes_on_otherwise(tmp_path: Path) -> None:
    def latent(*ends: int) -> Latent:
        return Latent(sequences=tuple(Example(tokens=(1, end), weights=(0.0, 1.0)) for end in (2, *ends)), reward=1.0)

    [asked], found = questions(1), [latent(3), latent(4), latent(3)]
    lab: Any = SimpleNamespace(questions={asked.key: asked}, sampled=0, seconds={}, folder=tmp_path)
    lab.propose = lambda *_: [Scored(asked, None, z) for z in found]  # type: ignore[arg-type]
    kept, _ = FilteredSFT(samples=1, **options())._gather(lab)
    assert kept == found[:2]


def test_a_draw_of_filtered_sft_is_made_once_whatever_kills_the_job(tmp_path: Path, monkeypatch: Any) -> None:
    method, drawn, real = FilteredSFT(samples=3, **options()), [], Lab.propose

    def stop(self: Lab, asked: Any, step: int) -> Any:
        drawn.append(step)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return real(self, asked, step)

    monkeypatch.setattr(Lab, "propose", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", method)
    train(tmp_path / "a", method)
    assert drawn == [-1, -2, -2, -3]
    train(tmp_path / "b", method)
    arms = [tmp_path / job / "filtered SFT" for job in "ab"]
    assert _state(arms[0]) == _state(arms[1])
    assert len({(arm / "adapter" / WEIGHTS).read_bytes() for arm in arms}) == 1


def test_a_limit_of_drawn_tokens_ends_drawing_and_one_of_trained_tokens_ends_training(tmp_path: Path) -> None:
    report, _ = train(tmp_path / "a", FilteredSFT(samples=50, sampled_tokens=600, **options()))
    assert 600 <= report.phases["filtered SFT/train"]["sampled_tokens"] < 600 + 8 * 32
    report, rows = train(tmp_path / "b", FilteredSFT(samples=1, trained_tokens=200, **options(steps=50)))
    assert 200 <= report.phases["filtered SFT/train"]["trained_tokens"] < 200 + 4 * 32 and len(rows) < 50
    report, rows = train(tmp_path / "c", RejectionSampling(samples=2, sampled_tokens=300, **options(steps=50)))
    assert 300 <= rows[-1]["sampled"] < 300 + 8 * 32


def test_written_rationales_are_learnt_after_the_bare_question(tmp_path: Path) -> None:
    asked = [q.model_copy(update={"metadata": {"rationale": f"So. The answer is {q.id}."}}) for q in questions(3)]
    for method, text in (
        (ReferenceSFT(**options()), "So. The answer is 1."),
        (DirectAnswer(**options()), "The answer is 1."),
    ):
        report, rows = train(tmp_path / method.arm, method, asked)
        tokenizer = agent().model.tokenizer
        latents = learnt(_state(tmp_path / method.arm / method.arm))
        own = [t for t, w in zip(latents[1].sequences[0].tokens, latents[1].sequences[0].weights, strict=True) if w]
        assert tokenizer.decode(own, skip_special=True) == text and own[-1] == tokenizer.eos_ids[0]
        assert report.phases[f"{method.arm}/train"]["sampled_tokens"] == 0 and len(rows) == 3
    with pytest.raises(RestillError, match="like all 8, has no `rationale`"):
        train(tmp_path / "none", ReferenceSFT(**options()))


def _fails_without_hint(question: Question, trajectory: Trajectory) -> float:
    return float(trajectory.guide and question.id != "7" or question.id == "0")


def test_star_rationalises_what_fails_and_begins_each_round_anew(tmp_path: Path) -> None:
    method = STaR(rounds=2, **options(reward=_fails_without_hint, steps=6))
    assert method.starts() == [0, 3, 6]
    _, rows = train(tmp_path, method)
    assert [row["right"] for row in rows] == [1 / 8] * 6 and [row["rationalised"] for row in rows] == [6 / 8] * 6
    latents = learnt(_state(tmp_path / "STaR")["latents"])
    assert len(latents) == 7 and len({z.sequences[0].provenance["question_key"] for z in latents}) == 7
    tokenizer = agent().model.tokenizer
    assert not any("Hint" in tokenizer.decode(z.sequences[0].tokens) for z in latents)
    assert rows[3]["sampled"] > rows[2]["sampled"] == rows[0]["sampled"]


def test_a_star_job_without_anything_right_trains_nothing(tmp_path: Path) -> None:
    _, rows = train(tmp_path, STaR(rounds=1, **options(reward=never)))
    assert all("surrogate" not in row for row in rows)


@pytest.mark.slow
def test_a_resumed_round_of_star_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = options(train=replace(TRAIN, checkpoint_steps=1), reward=always, steps=5)
    real, calls = TrainSteps.update, []

    def stop(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainSteps, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "a", STaR(rounds=2, **checked))
    for out in ("a", "b"):
        train(tmp_path / out, STaR(rounds=2, **checked))
    files = [tmp_path / out / "STaR" / "adapter" / WEIGHTS for out in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_more_rounds_than_steps_are_refused() -> None:
    with pytest.raises(RestillError, match="rounds=4"):
        STaR(rounds=4, **options())


def _manifest(arm: Path) -> dict[str, Any]:

    return json.loads((arm / "adapter" / "manifest.json").read_text())


def _state(arm: Path) -> Any:

    return json.loads((arm / "state.json").read_text())
