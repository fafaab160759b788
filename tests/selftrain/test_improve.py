"""The whole job: arms, phases done once, refusals, and a real engine at the end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from restill.agents.budget import Budget
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.run import Run
from restill.agents.testing import ScriptedModel, answer, call
from restill.models.errors import RestillError
from restill.models.lora import load_peft
from restill.models.testing import tiny_checkpoint
from restill.retrieval.types import Document
from restill.selftrain import phases as module
from restill.selftrain.checks import refuse_overlap
from restill.selftrain.feedback import CompletedRanker, LikelihoodRanker, RandomRanker
from restill.selftrain.improve import improve
from restill.selftrain.job_folder import JobFolder, plan
from restill.selftrain.judge import Judge, VetoRanker, write_verdict
from restill.selftrain.mixture import Mixture
from restill.selftrain.pilot import GoldDocuments, Pilot, gold_hint
from restill.selftrain.ranker_prompt import PromptStepRanker
from restill.selftrain.report import Report, comparisons
from restill.selftrain.rest import ReST
from restill.selftrain.step_rankers import InvertedStepRanker
from restill.selftrain.trainer import TrainConfig

TRAIN = TrainConfig(rank=2, alpha=4.0, lr=0.01, epochs=1, rows=1, row_length=768, accumulate=4, frozen_layers=1)
METHOD = ReST(samples=2, train=TRAIN, pilot=Pilot(questions=2))


def questions(count: int, kind: str = "train") -> list[Question]:
    """Two-hop questions with titles to look up."""
    return [
        Question(
            id=f"{kind}{i}",
            question=f"Who made the {kind} ship {i}?",
            answers=[f"Ada {i}"],
            gold_titles=[f"Ship {i}"],
        )
        for i in range(count)
    ]


def search(query: str) -> str:
    """Find passages."""
    return f"{query} was made by Ada {query.split()[-1]}"


class Trainable(ScriptedModel):
    """Scripted, but with weights to train: wrong without an adapter, then right more and more often."""

    def __init__(self, adapter: Any = None, log: list[str] | None = None) -> None:
        self.checkpoint = tiny_checkpoint()
        self.log = [] if log is None else log
        skill = (
            0 if adapter is None else {"pilot": 2, "gen1": 4, "gen2": 5, "control": 1}[Path(adapter.path).parent.name]
        )

        def reply(prompt: str, request: Any) -> str:
            asked = prompt[prompt.rindex("Question: ") :]
            number = asked.split("ship ")[1].split("?")[0]
            if "Observation:" not in asked:
                return call("search", query=f"Ship {number}", thought=f"I look, {request.seed % 97}.")
            return answer(f"Ada {number}" if int(number) < skill else "Rome", 1)

        super().__init__(
            reply,
            tokenizer=self.checkpoint.tokenizer,
            fingerprint=self.checkpoint.fingerprint,
            adapter=adapter,
        )

    def with_adapter(self, path: Path) -> Trainable:
        self.log.append(f"open {Path(path).parent.name}")
        return Trainable(load_peft(Path(path)).info, self.log)

    def rest(self) -> None:
        self.log.append("rest")


def agent(model: Any = None) -> ReActAgent:
    """An agent on a trainable model."""
    return ReActAgent(model or Trainable(), [search], budget=Budget(steps=3))


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The folder of a job with all arms, and its report."""
    job = tmp_path_factory.mktemp("climbed") / "job"
    method = replace(METHOD, generations=2)
    return job, improve(agent(), questions(6), out=job, method=method, eval=questions(5, "eval"), control=True)


def test_the_base_may_be_left_out(climbed: tuple[Path, Report], tmp_path: Path) -> None:
    job = tmp_path / "job"
    shutil.copytree(climbed[0], job, ignore=shutil.ignore_patterns("base"))
    method = replace(METHOD, generations=2)
    report = improve(
        agent(), questions(6), out=job, method=method, eval=questions(5, "eval"), control=True, baseline=False
    )
    assert [(arm.name, arm.em) for arm in report.arms] == [(arm.name, arm.em) for arm in climbed[1].arms[1:]]
    assert {delta.over for delta in report.deltas} == {"pilot", "generation 1", "control"}
    assert not (job / "base").exists() and not JobFolder.open(job).missing
    assert comparisons(["generation 1", "control"]) == [("generation 1", "control")]


def test_arms_climb_and_everything_lies_where_it_should(climbed: tuple[Path, Report]) -> None:
    job, report = climbed
    assert [(arm.name, arm.em) for arm in report.arms] == [
        ("base", 0.0), ("pilot", 0.4), ("generation 1", 0.8), ("control", 0.2), ("generation 2", 1.0)
    ]  # fmt: skip
    assert report.delta("generation 1", "pilot").em == pytest.approx(0.4)
    assert report.delta("generation 1", "control").em == pytest.approx(0.6)
    low, high = report.delta("generation 2", "base").interval
    assert low == high == 1.0
    for name in ("pilot", "gen1", "gen2", "control"):
        for part in (
            "mixture.jsonl",
            "kept.jsonl",
            "adapter/adapter_model.safetensors",
            "eval/run.json",
            "eval.json",
        ):
            assert (job / name / part).is_file(), (name, part)
    assert report.adapter == str(job / "gen2" / "adapter")
    assert Report.load(job) == report
    assert plan(json.loads((job / "job.json").read_text())["settings"]) == list(report.phases)
    manifest = json.loads((job / "gen1" / "adapter" / "manifest.json").read_text())
    assert manifest["few_shot"] == 0 and manifest["base"] == "scripted" and manifest["scores"]["em"] == 0.8
    assert report.arm("control").trajectories == report.arm("generation 1").trajectories
    text = "\n".join(str(cell) for column in report.table().columns for cell in column.cells)
    assert "generation 1" in text and "80.0 %" in text


def test_no_question_that_was_evaluated_was_trained_on(climbed: tuple[Path, Report]) -> None:
    job, report = climbed
    learned = dict[str, set[str]]()
    for folder, before in (("pilot", None), ("gen1", "pilot"), ("control", "pilot"), ("gen2", "gen1")):
        mixed = {e.provenance["question_key"] for e in Mixture.load(job / folder / "mixture.jsonl")}
        learned[folder] = set(
            json.loads((job / folder / "adapter" / "manifest.json").read_text())["train_question_hashes"]
        )
        assert mixed and learned[folder] == mixed | (learned[before] if before else set())
    asked = {t.question_key for folder in ("base", *learned) for t in Run.open(job / folder / "eval")}
    assert asked == {q.key for q in questions(5, "eval")} and learned["gen2"] <= {q.key for q in questions(6)}
    assert not asked & set.union(*learned.values())


def test_a_held_out_question_that_the_adapter_knows_is_refused(climbed: tuple[Path, Report], tmp_path: Path) -> None:
    trained = Trainable().with_adapter(climbed[0] / "gen1" / "adapter")
    with pytest.raises(
        RestillError, match="of the 6 eval questions are among those that the adapter .* was trained on"
    ):
        improve(agent(trained), questions(3, "new"), out=tmp_path / "job", method=METHOD, eval=questions(6))
    assert not (tmp_path / "job").exists()


def test_so_is_one_that_the_weights_or_a_ranker_know(climbed: tuple[Path, Report], tmp_path: Path) -> None:
    folder = climbed[0] / "gen1" / "adapter"
    whole = Trainable()
    whole.checkpoint = replace(whole.checkpoint, folder=folder)
    with pytest.raises(RestillError, match="6 eval questions are among those that the model .* was trained on"):
        improve(agent(whole), questions(3, "new"), out=tmp_path / "job", method=METHOD, eval=questions(6))
    ranker = InvertedStepRanker(PromptStepRanker(model=Trainable().with_adapter(folder)))
    with pytest.raises(RestillError, match="that the adapter .* of step_ranker.ranker.model was trained on"):
        improve(agent(), questions(3, "new"), out=tmp_path / "job", method=replace(METHOD, step_ranker=ranker),
                eval=questions(6))  # fmt: skip
    method = replace(METHOD, generations=0)
    improve(agent(whole), questions(3, "new"), out=tmp_path / "job", method=method)
    manifest = json.loads((tmp_path / "job" / "pilot" / "adapter" / "manifest.json").read_text())
    known = json.loads((folder / "manifest.json").read_text())["train_question_hashes"]
    assert set(known) < set(manifest["train_question_hashes"])


def test_another_model_behind_a_ranker_is_refused_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    def begin(fingerprint: str) -> None:
        judge = ScriptedModel([answer("x")], fingerprint=fingerprint)
        method = replace(METHOD, step_ranker=InvertedStepRanker(PromptStepRanker(model=judge)))
        improve(agent(), questions(6), out=tmp_path / "job", method=method)

    monkeypatch.setattr(module, "rollout", _stop)
    with pytest.raises(KeyboardInterrupt):
        begin("one")
    with pytest.raises(RestillError, match="models.step_ranker.ranker.model.fingerprint: 'one' there, 'two' now"):
        begin("two")
    path = tmp_path / "job" / "job.json"
    made = json.loads(path.read_text())
    del made["settings"]["models"]  # as jobs of earlier versions are
    path.write_text(json.dumps(made))
    with pytest.raises(KeyboardInterrupt):
        begin("two")


def _stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_the_manifest_with_every_knob_is_there_before_anything_runs(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "rollout", _stop)
    with pytest.raises(KeyboardInterrupt):
        improve(agent(), questions(6), out=tmp_path / "job", method=METHOD)
    settings = json.loads((tmp_path / "job" / "job.json").read_text())["settings"]
    assert settings["method"]["pilot"]["questions"] == 2
    assert settings["method"]["train"]["lr"] == 0.01
    assert settings["method"]["ranker"]["kind"] == "GoldRanker"
    assert settings["train_questions"]["count"] == 6 and "hash" in settings["agent"]


def test_a_second_call_runs_nothing_again(tmp_path: Path, monkeypatch: Any) -> None:
    arguments = dict(out=tmp_path / "job", method=METHOD, eval=questions(5, "eval"))
    first = improve(agent(), questions(6), **arguments)
    for name in ("rollout", "score_run"):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("ran again"))
    monkeypatch.setattr(module.Trainer, "fit", lambda *_, **__: pytest.fail("trained again"))
    model = Trainable()
    assert improve(agent(model), questions(6), **arguments) == first
    assert not model.requests


@pytest.mark.parametrize("phase", ["rollout", "Trainer", "score_run"])
def test_a_job_stopped_in_any_phase_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: Any, phase: str) -> None:
    def run(out: str) -> Report:
        return improve(agent(), questions(6), out=tmp_path / out, method=METHOD, eval=questions(5, "eval"))

    whole = run("whole")
    real, calls = getattr(module, phase), []

    def once(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, phase, once)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    resumed = run("stopped")
    assert [arm.em for arm in resumed.arms] == [arm.em for arm in whole.arms]
    weights = "gen1/adapter/adapter_model.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "stopped" / weights).read_bytes()


def test_a_phase_whose_marker_is_deleted_runs_again_with_the_same_result(tmp_path: Path) -> None:
    arguments = dict(out=tmp_path / "job", method=METHOD, eval=questions(5, "eval"))
    first = improve(agent(), questions(6), **arguments)
    (tmp_path / "job" / "gen1" / "mixture.done.json").unlink()
    again = improve(agent(), questions(6), **arguments)
    assert again.phases["gen1/mixture"]["sha256"] == first.phases["gen1/mixture"]["sha256"]


def test_engines_rest_before_training(tmp_path: Path) -> None:
    model = Trainable()
    improve(agent(model), questions(6), out=tmp_path / "job", method=METHOD)
    assert model.log == ["rest", "open pilot", "rest", "open gen1", "rest"]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    improve(agent(), questions(6), out=tmp_path / "job", method=METHOD)
    for changes, message in (
        ({"method": replace(METHOD, samples=3)}, "method.samples: 2 there, 3 now"),
        ({"seed": 5}, "seed: 0 there, 5 now"),
        ({"eval": questions(3, "eval")}, "eval_questions.count: 0 there, 3 now"),
    ):
        with pytest.raises(RestillError, match=message):
            improve(agent(), questions(6), **{"out": tmp_path / "job", "method": METHOD, **changes})


def test_sums_that_differ_in_a_sign_are_not_one_question() -> None:
    refuse_overlap([Question(id="a", question="(3 + 4) * 5 =")], [Question(id="b", question="3 - 4 * 5 =")])
    for one, other in (
        ("What is  3?", "what is 3"),
        ("Who founded the 'Non-Profit', and when?", "who founded nonprofit and when"),
    ):
        with pytest.raises(RestillError, match="are training questions too"):
            refuse_overlap([Question(id="a", question=one)], [Question(id="b", question=other)])


def test_a_held_out_question_that_is_trained_on_is_refused(tmp_path: Path) -> None:
    leaked = Question(id="other", question="who made the train ship 3 ?", answers=["x"])
    with pytest.raises(RestillError, match="1 of the 2 eval questions are training questions"):
        improve(agent(), questions(6), out=tmp_path / "job", method=METHOD, eval=[*questions(1, "eval"), leaked])
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda qs: ([], METHOD), "no questions"),
        (lambda qs: ([q.without_labels() for q in qs], METHOD), "have no answers"),
        (
            lambda qs: ([q.without_labels() for q in qs], replace(METHOD, ranker=RandomRanker())),
            "can guide none",
        ),
        (lambda qs: (qs, replace(METHOD, pilot=Pilot(train=replace(TRAIN, rank=4)))), "rank=4"),
    ],
)
def test_what_would_fail_later_is_refused_now(tmp_path: Path, change: Any, message: str) -> None:
    asked, method = change(questions(4))
    with pytest.raises(RestillError, match=message):
        improve(agent(), asked, out=tmp_path / "job", method=method)


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match="no local weights"):
        improve(agent(ScriptedModel([answer("x")])), questions(2), out=tmp_path / "job")


def test_the_control_learns_from_as_many_trajectories(tmp_path: Path) -> None:
    method = replace(METHOD, mode="step", replay=True)
    report = improve(agent(), questions(6), out=tmp_path / "job", method=method, eval=questions(2, "eval"),
                     control=True, baseline=False)  # fmt: skip
    kept = {name: report.phases[f"{name}/mixture"]["kept"] for name in ("pilot", "gen1", "control")}
    assert kept["control"] == kept["gen1"] == 2
    assert report.phases["gen1/mixture"]["examples"] > 2
    assert {arm.name: arm.trajectories for arm in report.arms}["generation 1"] == kept["gen1"] + kept["pilot"]


def test_a_judge_may_veto_what_likelihood_ranks(tmp_path: Path) -> None:
    judge = Judge(model=ScriptedModel([write_verdict("They agree.", True)] * 99), repetitions=1)
    method = replace(METHOD, ranker=VetoRanker(LikelihoodRanker(), judge))
    improve(agent(), questions(3), out=tmp_path / "job", method=method)
    assert (tmp_path / "job" / "gen1" / "adapter" / "manifest.json").is_file()


def test_a_generation_that_keeps_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match="pilot"):
        improve(agent(), questions(3), out=tmp_path / "job", method=replace(METHOD, pilot=None))


def test_a_hint_guides_the_pilot_and_is_not_stored(tmp_path: Path) -> None:
    pilot = Pilot(questions=2, guide=gold_hint, temperature=0.5)
    model = Trainable()
    chosen = pilot.choose(questions(6), 0)
    made = pilot.guided(agent(model), chosen).invoke(chosen[0]).trajectory
    hint = gold_hint(chosen[0])
    assert hint.startswith('Plan: search "Ship ') and made.guide
    assert hint in model.tokenizer.decode(model.requests[0].prompt)
    assert "Plan:" not in model.tokenizer.decode(made.token_ids())


def test_a_guide_may_show_the_gold_documents() -> None:
    documents = [Document(id="d", title="Ship 1", text="Ship 1 was made\nby Ada 1.")]
    guide, [_, asked, other] = GoldDocuments(documents), questions(3)
    assert guide(asked) == f"Ship 1: {documents[0].text} {gold_hint(asked)}"
    assert guide(asked.model_copy(update={"gold": ["d"]})) == guide(asked)
    with pytest.raises(RestillError, match="no document 'Ship 2' to show"):
        guide(other)
    confusing = GoldDocuments([Document(id="Ship 1", title="7", text="Seven is a number."), *documents])
    assert confusing(asked) == guide(asked)
    pilot, model = Pilot(questions=3, guide=guide), Trainable()
    assert pilot.choose(questions(3), 0) == [asked]
    made = pilot.guided(agent(model), [asked]).invoke(asked).trajectory
    assert "was made by Ada 1. Plan:" in model.tokenizer.decode(model.requests[0].prompt)
    assert made.guide and "Plan:" not in model.tokenizer.decode(made.token_ids())


def test_questions_without_labels_are_learnt_from(tmp_path: Path) -> None:
    asked = [*questions(2), *(q.without_labels() for q in questions(6)[2:])]
    method = replace(METHOD, ranker=CompletedRanker())
    report = improve(agent(), asked, out=tmp_path / "job", method=method, eval=questions(5, "eval"))
    assert [arm.name for arm in report.arms] == ["base", "pilot", "generation 1"]
    learnt = {e.provenance["question_key"] for e in Mixture.load(tmp_path / "job" / "gen1" / "mixture.jsonl")}
    assert learnt == {q.key for q in asked}


def test_a_real_engine_goes_through_the_loop_without_labels(tmp_path: Path) -> None:
    from restill.models.chat import JaxChatModel

    model = JaxChatModel.from_checkpoint(tiny_checkpoint(), slots=4, max_context=768)
    worker = ReActAgent(model, [search], budget=Budget(steps=2), few_shot=0, step_tokens=48, observation_tokens=32)
    method = ReST(
        samples=2,
        temperature=1.0,
        ranker=LikelihoodRanker(evidence=0.5),
        pilot=Pilot(questions=2),
        train=TRAIN,
    )
    try:
        report = improve(
            worker,
            questions(3),
            out=tmp_path / "job",
            method=method,
            eval=questions(2, "eval"),
            concurrency=4,
        )
    except RestillError as error:  # random weights may finish no run of their own; the pilot must have worked
        assert "gen1: none of the" in str(error)
        return
    assert [arm.name for arm in report.arms] == ["base", "pilot", "generation 1"]
