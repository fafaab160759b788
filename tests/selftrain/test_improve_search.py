"""ReST meets ReAct as the paper has it: the search agent, unfiltered, with a ranker over the samples of each step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from restill.agents.question import Question
from restill.agents.run import Run
from restill.agents.search.agent import SearchAgent
from restill.models.engine.request import Completion, Request
from restill.models.errors import RestillError
from restill.models.lora import load_peft
from restill.models.testing import tiny_checkpoint
from restill.retrieval.types import Chunk, Hit, content_hash
from restill.selftrain.expert import search_then_follow
from restill.selftrain.feedback import CompletedRanker
from restill.selftrain.improve import improve
from restill.selftrain.mixture import Mixture
from restill.selftrain.pilot import Pilot
from restill.selftrain.rerank import load_rankings
from restill.selftrain.rest import ReST
from restill.selftrain.search_expert import SearchExpertModel
from restill.selftrain.step_rankers import GoldStepRanker
from restill.selftrain.trainer import TrainConfig

TRAIN = TrainConfig(rank=2, alpha=4.0, lr=0.01, epochs=1, rows=1, row_length=768, accumulate=8, frozen_layers=1)


def questions(count: int, kind: str) -> list[Question]:
    """Questions with one title to look up."""
    return [
        Question(
            id=f"{kind}{i}", question=f"Who made {kind} Ship {i}?", answers=[f"Ada {i}"], gold_titles=[f"Ship {i}"]
        )
        for i in range(count)
    ]


ASKED, HELD_OUT = questions(8, "the"), questions(6, "old")


def search(query: str) -> list[Hit]:
    """Find passages."""
    number = query.split()[-1].strip("?")
    pages = [(f"Ship {number}", f"Ship {number} was made by Ada {number}."), ("Old ships", "Old ships rot.")]
    return [
        Hit(
            chunk=Chunk(
                chunk_id=title, doc_id=title, title=title, text=text, start=0, end=len(text),
                content_hash=content_hash(title, text),
            ),
            score=1.0,
        )
        for title, text in pages
    ]  # fmt: skip


class Trainable:
    """Weights to train, and an expert that makes fewer mistakes the further it was trained."""

    name, max_context = "scripted", 100_000

    def __init__(self, adapter: Any = None) -> None:
        self.checkpoint, self.adapter = tiny_checkpoint(), adapter
        self.tokenizer, self.fingerprint = self.checkpoint.tokenizer, self.checkpoint.fingerprint
        noise = 0.9 if adapter is None else {"pilot": 0.5, "gen1": 0.0}[Path(adapter.path).parent.name]
        self._expert = SearchExpertModel(self.tokenizer, [*ASKED, *HELD_OUT], noise=noise)

    async def agenerate_tokens(self, request: Request) -> Completion:
        return await self._expert.agenerate_tokens(request)

    def with_adapter(self, path: Path) -> Trainable:
        return Trainable(load_peft(Path(path)).info)


def job(folder: Path, step_ranker: GoldStepRanker | None, **method: Any) -> Any:
    """One generation; every completed trajectory is kept if ``method`` says nothing else."""
    rest = ReST(
        samples=2,
        temperature=0.5,
        ranker=CompletedRanker(),
        step_ranker=step_ranker,
        train=TRAIN,
        pilot=Pilot(questions=6, noise=0.4, samples=2),
        **{"keep_per_question": 2, **method},
    )
    agent = SearchAgent(Trainable(), [search], samples=3, few_shot=0)
    return improve(agent, ASKED, out=folder, method=rest, eval=HELD_OUT, deadline=None)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A job with the gold ranker over steps, and its report."""
    folder = tmp_path_factory.mktemp("ranked") / "job"
    return folder, job(folder, GoldStepRanker(), mode="step")


def test_a_noisy_pilot_keeps_wrong_trajectories_and_the_arms_climb(ranked: tuple[Path, Any]) -> None:
    folder, report = ranked
    assert [arm.name for arm in report.arms] == ["base", "pilot", "generation 1"]
    assert report.arm("base").em < report.arm("generation 1").em == 1.0
    kept = [json.loads(line) for line in (folder / "pilot" / "kept.jsonl").read_text().splitlines()]
    answers = {q.key: q.answers[0] for q in ASKED}
    pilot = {tuple(t.key): t for t in Run.open(folder / "pilot" / "rollout")}
    wrong = [row for row in kept if pilot[tuple(row["key"])].answer != answers[row["key"][0]]]
    assert wrong, "a pilot with mistakes learns from them too"
    manifest = json.loads((folder / "gen1" / "adapter" / "manifest.json").read_text())
    assert manifest["protocol"] == "search-compact-1"


def test_a_step_ranker_changes_targets_and_no_rollout(ranked: tuple[Path, Any], tmp_path: Path) -> None:
    folder, report = ranked
    plain = job(tmp_path / "plain", None, mode="step")
    rollouts = [{t.key: t.to_json() for t in Run.open(f / "gen1" / "rollout")} for f in (folder, tmp_path / "plain")]
    without_times = [{key: _untimed(text) for key, text in run.items()} for run in rollouts]
    assert without_times[0] == without_times[1]
    stats = report.phases["gen1/rank"]
    assert stats["gold_agreement"] == 1.0 > stats["base_gold_agreement"] and 0 < stats["changed"] < 1
    assert "gen1/rank" not in plain.phases
    with_ranker, without = (Mixture.load(f / "gen1" / "mixture.jsonl") for f in (folder, tmp_path / "plain"))
    assert len(with_ranker) == len(without)
    replaced = [a.tokens != b.tokens for a, b in zip(with_ranker, without, strict=True)]
    assert replaced == [bool(e.provenance["replaced"]) for e in with_ranker] and any(replaced) and not all(replaced)


def test_a_trajectory_is_one_example_and_each_replaced_step_one_more(tmp_path: Path) -> None:
    report = job(tmp_path / "job", GoldStepRanker(), keep_per_question=1)
    mixture = Mixture.load(tmp_path / "job" / "gen1" / "mixture.jsonl")
    single = [e for e in mixture if "step" in e.provenance]
    assert 0 < len(single) < len(mixture) == report.phases["gen1/mixture"]["examples"]
    kept = {tuple(json.loads(line)["key"]) for line in (tmp_path / "job/gen1/kept.jsonl").read_text().splitlines()}
    assert len(kept) == len(ASKED) < len(Run.open(tmp_path / "job/gen1/rollout"))
    assert set(load_rankings(tmp_path / "job/gen1/rollout/rankings/steps.jsonl").orders) == kept, "no other is ranked"


def test_what_was_lost_of_a_job_is_named(tmp_path: Path) -> None:
    job(tmp_path / "job", None)
    generation = tmp_path / "job" / "gen1"
    (generation / "mixture.jsonl").unlink()
    kept = (generation / "kept.jsonl").read_text()
    (generation / "kept.jsonl").write_text(kept[:40])
    with pytest.raises(RestillError, match="does not say what was kept"):
        job(tmp_path / "job", None)
    (generation / "kept.jsonl").write_text(kept)
    for file in (generation / "rollout").glob("trajectories-*.jsonl"):
        file.write_text("")
    with pytest.raises(RestillError, match=r"lost .*; delete gen1/rollout\.done\.json"):
        job(tmp_path / "job", None)


def test_mistakes_are_the_search_expert_s_alone(tmp_path: Path) -> None:
    from restill.agents.react import ReActAgent

    agent = ReActAgent(Trainable(), [search])
    with pytest.raises(RestillError, match="noise=0.4"):
        improve(agent, ASKED, out=tmp_path / "job", method=ReST(pilot=Pilot(noise=0.4), train=TRAIN))


def _untimed(text: str) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "created")}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(json.loads(text))


def test_a_script_for_another_kind_of_agent_is_refused_before_anything_runs(tmp_path: Path) -> None:
    method = ReST(train=TRAIN, pilot=Pilot(script=search_then_follow))
    with pytest.raises(RestillError, match="script="):
        improve(SearchAgent(Trainable(), [search]), ASKED, out=tmp_path / "job", method=method, eval=HELD_OUT)
    assert not (tmp_path / "job").exists()
