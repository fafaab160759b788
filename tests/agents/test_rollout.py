"""Rollouts: concurrent, resumable at any moment, by one process or many."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document as LangChainDocument

from restill.agents.budget import Budget
from restill.agents.evaluate import evaluate
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.rollout import arollout, default_concurrency, rollout
from restill.agents.run import Run
from restill.agents.search.agent import SearchAgent
from restill.agents.testing import ScriptedModel, answer, call
from restill.models.errors import RestillError

QUESTIONS = [Question(id=str(n), question=f"What is {n}?", answers=[str(n)]) for n in range(12)]


def echo_model(**options: Any) -> ScriptedModel:
    """Searches once, then answers with the request's seed, so that every trajectory shows its own."""

    def reply(prompt: str, request: Any) -> str:
        asked = prompt.rsplit("Question: ", 1)[1]
        return answer(str(request.seed)) if "Observation: " in asked else call("search", query="a")

    return ScriptedModel(reply, **options)


def answers(run: Run) -> dict[tuple[str, int], str | None]:
    return {(t.question_id, t.sample): t.answer for t in run}


def test_every_question_is_run_as_often_as_asked_and_only_once(tmp_path: Path, search) -> None:
    model = echo_model()
    agent = ReActAgent(model, [search], few_shot=0)
    run = rollout(agent, QUESTIONS + QUESTIONS[:3], out=tmp_path, samples=2, concurrency=5)
    assert len(run) == 24 and len(set(answers(run).values())) == 24
    asked = len(model.requests)
    before = (tmp_path / "trajectories-0-of-1.jsonl").read_bytes()
    rollout(agent, QUESTIONS, out=tmp_path, samples=2)
    assert len(model.requests) == asked
    assert (tmp_path / "trajectories-0-of-1.jsonl").read_bytes() == before
    assert len(rollout(agent, QUESTIONS, out=tmp_path, samples=3)) == 36


def test_by_default_as_many_questions_are_in_flight_as_the_engine_holds_with_all_their_samples(search) -> None:
    model = ScriptedModel([answer("a")])
    assert default_concurrency(ReActAgent(model, [search])) == 32, "nobody knows"
    model.slots = 16
    assert default_concurrency(ReActAgent(model, [search])) == 16
    assert default_concurrency(SearchAgent(model, [search], samples=5, temperature=0.5)) == 3
    assert default_concurrency(SearchAgent(model, [search], samples=5, temperature=0.0)) == 16, "greedy: one sample"
    assert default_concurrency(SearchAgent(model, [search], samples=20)) == 1


def test_what_is_missing_is_redone_with_its_own_seed(tmp_path: Path, search) -> None:
    agent = ReActAgent(echo_model(), [search], few_shot=0)
    whole = answers(rollout(agent, QUESTIONS, out=tmp_path / "a", seed=3))
    rollout(agent, QUESTIONS, out=tmp_path / "b", seed=3, limit=5)
    file = tmp_path / "b" / "trajectories-0-of-1.jsonl"
    file.write_bytes(file.read_bytes()[:-50])
    assert answers(rollout(agent, QUESTIONS[::-1], out=tmp_path / "b", seed=3)) == whole
    other = rollout(agent, QUESTIONS, out=tmp_path / "c", seed=4)
    assert not set(answers(other).values()) & set(whole.values())
    with pytest.raises(RestillError, match="seed 3"):
        rollout(agent, QUESTIONS, out=tmp_path / "a", seed=5)


def test_half_a_surrogate_pair_in_an_id_ends_no_run(tmp_path: Path) -> None:
    def search(query: str) -> list[LangChainDocument]:
        """Find, as a loader names a file whose name is not UTF-8."""
        return [LangChainDocument("Rome", metadata={"source": "caf\udce9.txt"})]

    asked = [Question(id="\ud800", question="Where?"), Question(id="b", question="Who?")]
    run = rollout(ReActAgent(echo_model(), [search], few_shot=0), asked, out=tmp_path)
    assert {(t.question_id, t.status) for t in run} == {("\ufffd", "answered"), ("b", "answered")}


def test_another_agent_shares_the_folder_but_not_the_trajectories(tmp_path: Path, search) -> None:
    agent = ReActAgent(echo_model(), [search], few_shot=0)
    rollout(agent, QUESTIONS, out=tmp_path)
    run = rollout(agent.replace(temperature=0.7), QUESTIONS, out=tmp_path)
    assert len(run) == 24 and len(run.summary()) == 2 and len(run.manifest["agents"]) == 2


def test_shards_split_the_questions(tmp_path: Path, search) -> None:
    agent = ReActAgent(echo_model(), [search], few_shot=0)
    for part in range(3):
        run = rollout(agent, QUESTIONS, out=tmp_path, shard=(part, 3))
    assert len(Run.open(tmp_path)) == len(run) == 12
    assert len(list(tmp_path.glob("trajectories-*.jsonl"))) == 3
    assert answers(run) == answers(rollout(agent, QUESTIONS, out=tmp_path / "whole"))


async def test_no_more_than_so_many_are_in_flight(tmp_path: Path) -> None:
    flying, most = 0, 0

    async def search(query: str) -> str:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.005)
        flying -= 1
        return query

    agent = ReActAgent(echo_model(), [search], few_shot=0)
    await arollout(agent, QUESTIONS, out=tmp_path, concurrency=3)
    assert most == 3


def test_one_straggler_is_stopped_and_the_rest_go_on(tmp_path: Path, search) -> None:
    def reply(prompt: str, request: Any) -> str:
        return answer("x")

    class Slow(ScriptedModel):
        async def agenerate_tokens(self, request: Any) -> Any:
            if "What is 3?" in self.tokenizer.decode(request.prompt):
                await asyncio.sleep(60)
            return await super().agenerate_tokens(request)

    agent = ReActAgent(Slow(reply), [search], few_shot=0, budget=Budget(seconds=None))
    started = time.monotonic()
    run = rollout(agent, QUESTIONS, out=tmp_path, deadline=0.5)
    assert time.monotonic() - started < 10
    statuses = {t.question_id: t.status for t in run}
    assert statuses.pop("3") == "budget" and set(statuses.values()) == {"answered"}


def test_a_failing_model_is_tried_once_more(tmp_path: Path, search) -> None:
    model = ScriptedModel([ValueError("down")])
    agent = ReActAgent(model, [search])
    for _ in range(3):
        run = rollout(agent, QUESTIONS[:2], out=tmp_path)
    assert {t.status for t in run} == {"error"} and len(model.requests) == 4


async def test_a_cancelled_rollout_can_be_resumed(tmp_path: Path, search) -> None:
    agent = ReActAgent(echo_model(latency=0.05), [search], few_shot=0)
    task = asyncio.ensure_future(arollout(agent, QUESTIONS, out=tmp_path, concurrency=4))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = {t.question_id: t.to_json() for t in Run.open(tmp_path) if t.status == "answered"}
    assert len(list(Run.open(tmp_path).filter(status="cancelled"))) == 4 and len(left) >= 4
    run = await arollout(agent, QUESTIONS, out=tmp_path)
    assert {t.status for t in run} == {"answered"} and len(run) == 12
    assert {t.question_id: t.to_json() for t in run if t.question_id in left} == left


def test_a_full_disk_stops_the_rollout_with_one_clear_error(tmp_path: Path, search, monkeypatch) -> None:
    from restill.agents.shards import ShardWriter

    real = ShardWriter.write

    def write(self: ShardWriter, line: bytes, safe: int) -> int:
        if safe >= 3:
            raise RestillError("the disk is full")
        return real(self, line, safe)

    monkeypatch.setattr(ShardWriter, "write", write)
    agent = ReActAgent(echo_model(latency=0.01), [search], few_shot=0)
    with pytest.raises(RestillError, match="disk is full"):
        rollout(agent, QUESTIONS, out=tmp_path, concurrency=2)
    monkeypatch.undo()
    assert len(Run.open(tmp_path)) == 3
    assert len(rollout(agent, QUESTIONS, out=tmp_path)) == 12


def test_bad_arguments_are_refused(tmp_path: Path, search) -> None:
    agent = ReActAgent(echo_model(), [search])
    for options in ({"samples": 0}, {"concurrency": 0}, {"deadline": 0}, {"shard": (2, 2)}):
        with pytest.raises(RestillError):
            rollout(agent, QUESTIONS, out=tmp_path, **options)


def test_a_progress_bar_shows_what_is_done(tmp_path: Path, search, capsys) -> None:
    rollout(ReActAgent(echo_model(), [search]), QUESTIONS, out=tmp_path, progress=True)
    shown = capsys.readouterr()
    assert "12/12" in shown.err and "12 answered" in shown.err and not shown.out


SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with it ignored
import sys
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.rollout import rollout
from restill.agents.testing import ScriptedModel, answer, call

def search(query: str) -> str:
    "Search."
    return "x" * 300

def reply(prompt, request):
    done = "Observation: " in prompt.rsplit("Question: ", 1)[1]
    return answer(str(request.seed)) if done else call("search", query="a")

agent = ReActAgent(ScriptedModel(reply, latency=0.004), [search], few_shot=0)
questions = [Question(id=str(n), question=f"What is {n}?") for n in range(150)]
print("ready", flush=True)
rollout(agent, questions, out=sys.argv[1], concurrency=4)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_kill_9_loses_changes_and_repeats_nothing(tmp_path: Path) -> None:
    """Four kills at random moments, then one run to the end, against one that was never killed."""
    rng = random.Random(0)
    kept: dict[str, str] = {}
    phases = []
    for _ in range(4):
        process = _start(tmp_path / "killed")
        time.sleep(rng.uniform(0.02, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        held = {t.question_id: t.to_json() for t in Run.open(tmp_path / "killed")} if _exists(tmp_path) else {}
        assert kept.items() <= held.items(), "a finished trajectory was lost or changed"
        kept = held
        phases.append(len(held))
    assert _start(tmp_path / "killed").wait() == 0
    assert _start(tmp_path / "whole").wait() == 0
    killed, whole = Run.open(tmp_path / "killed"), Run.open(tmp_path / "whole")
    assert {t.question_id: t.to_json() for t in killed if t.question_id in kept} == kept
    assert answers(killed) == answers(whole) and len(killed) == 150, phases
    lines = (tmp_path / "killed" / "trajectories-0-of-1.jsonl").read_bytes().count(b"\n")
    assert lines == 150, "something was run twice"


def _exists(path: Path) -> bool:
    return (path / "killed" / "run.json").exists()


def _start(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child")
def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    process = _start(tmp_path / "run")
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0
    assert len(list(Run.open(tmp_path / "run").filter(status="answered"))) < 150
    assert _start(tmp_path / "run").wait() == 0
    assert {t.status for t in Run.open(tmp_path / "run")} == {"answered"}


def test_evaluation_resumes_too(tmp_path: Path, search) -> None:
    model = ScriptedModel([answer("3")])
    agent = ReActAgent(model, [search])
    report = evaluate(agent, QUESTIONS, out=tmp_path, limit=6)
    assert evaluate(agent, QUESTIONS, out=tmp_path).em == pytest.approx(1 / 12)
    assert report.em == pytest.approx(1 / 6) and len(model.requests) == 12
