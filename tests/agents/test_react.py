"""The loop: what a run does, what it logs, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda

from restill.agents.agent import AgentResult
from restill.agents.budget import Budget
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.testing import ScriptedModel, answer, call, make_hit
from restill.agents.trajectory import Step, Trajectory
from restill.models.engine.request import Completion
from restill.models.errors import RestillError


@dataclasses.dataclass(frozen=True)
class FakeAdapter:
    name: str = "starter"
    hash: str = "abc"
    manifest: dict[str, Any] = dataclasses.field(default_factory=lambda: {"few_shot": 0})


def model(*replies: Any, **options: Any) -> ScriptedModel:
    return ScriptedModel(replies, **options)


def test_a_question_is_answered_with_citations(search) -> None:
    result = ReActAgent(model(call("search", query="Rome"), answer("a city", 2, 2, 9)), [search]).invoke("What?")
    assert (result.answer, result.status) == ("a city", "answered")
    assert [c.doc_id for c in result.citations] == ["d2"]
    assert (result.citations[0].start, result.citations[0].end) == (7, 7 + len("A text about Rome."))
    trajectory = result.trajectory
    assert trajectory.dropped_citations == [9]
    assert trajectory.doc_ids() == ["d1", "d2"] and len(trajectory.calls("search")) == 1
    assert trajectory.steps[0].observation.text == "Observation: [1] Rome is a city. [2] A text about Rome."
    assert trajectory.steps[1].observation is None


def test_handles_go_on_counting_across_searches(search) -> None:
    agent = ReActAgent(model(call("search", query="a"), call("search", query="a"), answer("x", 3)), [search])
    trajectory = agent.invoke("What?").trajectory
    assert [p.handle for p in trajectory.passages()] == [1, 2, 3, 4]
    assert trajectory.citations[0].doc_id == "d1"


def test_a_trajectory_rebuilds_every_prompt_token_by_token(tokenizer, search) -> None:
    script = [call("search", query="ä"), "nonsense", call("fly", x=1), call("search"), answer("x", 1)]
    double = ScriptedModel(script, tokenizer=tokenizer)
    trajectory = ReActAgent(double, [search], few_shot=0).invoke("What?").trajectory
    prompts = list(trajectory.prompts())
    assert prompts == [list(request.prompt) for request in double.requests]
    sampled = [step.sample.tokens for step in trajectory.steps]
    assert trajectory.token_ids() == prompts[-1] + sampled[-1]
    mask = trajectory.loss_mask()
    assert [t for t, kept in zip(trajectory.token_ids(), mask, strict=True) if kept] == sum(sampled, [])
    assert all(turn[-1] in tokenizer.eos_ids for turn in sampled)
    assert Trajectory.from_json(trajectory.to_json()) == trajectory


def test_examples_and_hints_are_seen_and_not_stored(tokenizer, search) -> None:
    double = ScriptedModel([call("search", query="a"), answer("x")], tokenizer=tokenizer)
    agent = ReActAgent(double, [search], few_shot=2, hint=lambda q: f"It is {q.answers[0]}.")
    question = Question(question="What?", answers=["Zanzibar"])
    guided = asyncio.run(agent.arun(question))
    bare_model = ScriptedModel([call("search", query="a"), answer("x")], tokenizer=tokenizer)
    bare = asyncio.run(ReActAgent(bare_model, [search], few_shot=0).arun(question))

    assert "Hint: It is Zanzibar." in tokenizer.decode(double.requests[0].prompt)
    assert guided.guide and guided.few_shot == 2 and not bare.guide
    assert "Zanzibar" not in guided.to_json()
    assert guided.token_ids() == bare.token_ids() and guided.prompt0 == bare.prompt0
    assert guided.seen.length == len(double.requests[0].prompt) > bare.seen.length == len(bare.prompt0)
    for prompt, request in zip(guided.prompts(), double.requests, strict=True):
        assert prompt[len(guided.prompt0) :] == list(request.prompt[guided.seen.length :])


def test_an_adapters_manifest_sets_the_examples(search) -> None:
    assert ReActAgent(model("x"), [search]).examples == 2
    assert ReActAgent(model("x", adapter=FakeAdapter()), [search]).examples == 0
    assert ReActAgent(model("x", adapter=FakeAdapter(manifest={})), [search], few_shot=1).examples == 1


def test_bad_turns_cost_a_step_and_are_answered(search) -> None:
    agent = ReActAgent(model("nonsense", call("fly", x=1), call("search", q=1), answer("x")), [search])
    trajectory = agent.invoke("What?").trajectory
    kinds = [(s.action and s.action.tool, s.observation and s.observation.status) for s in trajectory.steps]
    assert kinds == [(None, "invalid"), (None, "invalid"), ("search", "error"), ("finish", None)]
    assert all(s.observation.text.startswith("Observation: error: ") for s in trajectory.steps[:3])


def test_a_turn_that_is_too_long_is_cut_and_answered(search) -> None:
    agent = ReActAgent(model(call("search", thought="a" * 300, query="a"), answer("x")), [search], step_tokens=100)
    trajectory = agent.invoke("What?").trajectory
    assert trajectory.status == "answered"
    assert "cut off after 100 tokens" in trajectory.steps[0].observation.text
    assert trajectory.steps[0].sample.finish_reason == "length"
    assert sum(trajectory.loss_mask()) == trajectory.usage.generated


def test_when_the_steps_run_out_one_last_turn_answers(search) -> None:
    searches = [call("search", query="a")] * 3
    double = model(*searches, answer("best effort", 1))
    result = ReActAgent(double, [search], budget=Budget(steps=3)).invoke("What?")
    assert (result.status, result.answer) == ("budget", "best effort")
    assert result.trajectory.forced and result.citations
    assert [s.forced for s in result.trajectory.steps] == [False, False, False, True]
    assert "search" not in double.requests[-1].grammar and "search" in double.requests[0].grammar
    stubborn = ReActAgent(model(*searches), [search], budget=Budget(steps=2)).invoke("What?")
    assert (stubborn.status, stubborn.answer) == ("budget", None)
    assert len(stubborn.trajectory.calls()) == 2


def test_calls_per_tool_are_limited(search) -> None:
    agent = ReActAgent(
        model(*[call("search", query="a")] * 2, answer("x")), [search], budget=Budget(per_tool={"search": 1})
    )
    first, second = agent.invoke("What?").trajectory.calls()
    assert first.observation.status == "ok"
    assert second.observation.status == "error" and "no calls of search are left" in second.observation.text


def test_the_context_is_never_exceeded(tokenizer, search) -> None:
    def find(query: str) -> list[Any]:
        """Search."""
        return [make_hit("d", "T", "word " * 500)] * 3

    double = ScriptedModel([call("find", query="a")], tokenizer=tokenizer, max_context=1400)
    result = ReActAgent(double, [find], few_shot=0, budget=Budget(steps=50)).invoke("What?")
    assert result.status == "budget" and "tokens" in result.trajectory.error
    assert result.trajectory.forced
    assert max(len(r.prompt) + r.sampling.max_tokens for r in double.requests) <= 1400


def test_a_prompt_longer_than_the_context_is_a_status(search) -> None:
    result = ReActAgent(model("x", max_context=200), [search]).invoke("What? " * 100)
    assert result.status == "budget" and not result.trajectory.steps
    assert "the limit is" in result.trajectory.error


def test_time_that_runs_out_still_gives_an_answer(search) -> None:
    async def slow(query: str) -> str:
        """Search slowly."""
        await asyncio.sleep(30)
        return query

    started = time.monotonic()
    agent = ReActAgent(model(call("slow", query="a"), answer("x")), [slow], budget=Budget(seconds=4))
    trajectory = agent.invoke("What?").trajectory
    assert trajectory.steps[0].observation.status == "timeout"
    assert (trajectory.status, trajectory.answer) == ("budget", "x") and trajectory.forced
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("where", ["model", "argument"])
def test_the_deadline_is_hard(search, where: str) -> None:
    seconds = 0.2 if where == "model" else 60
    agent = ReActAgent(model(answer("x"), latency=30), [search], budget=Budget(seconds=seconds))
    started = time.monotonic()
    deadline = started + 0.2 if where == "argument" else None
    trajectory = asyncio.run(agent.arun("What?", deadline=deadline))
    assert (trajectory.status, trajectory.error) == ("budget", "the time ran out")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (ValueError("boom"), "ValueError: boom"),
        (TimeoutError("model"), "TimeoutError: model"),
        (RestillError("the engine is closed"), "the engine is closed"),
        (
            Completion(tokens=(), text="", logprobs=(), sampled_logprobs=(), finish_reason="error", error="oom"),
            "oom",
        ),
    ],
)
def test_a_model_that_fails_is_a_status(search, reply: Any, expected: str) -> None:
    result = ReActAgent(model(call("search", query="a"), reply), [search]).invoke("What?")
    assert result.status == "error" and expected in result.trajectory.error
    assert len(result.trajectory.steps) == 1


async def test_a_cancelled_run_can_still_be_read(search) -> None:
    async def slow(query: str) -> str:
        """Search slowly."""
        await asyncio.sleep(30)
        return query

    episode = ReActAgent(model(call("slow", query="a")), [slow]).begin("What?")
    task = asyncio.ensure_future(episode.complete())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    trajectory = episode.trajectory()
    assert trajectory.status == "cancelled"
    assert [s.observation.status for s in trajectory.steps] == ["cancelled"]


def test_seeds_follow_from_the_runs_seed(search) -> None:
    def seeds(seed: int) -> list[int]:
        double = model(call("search", query="a"), answer("x"))
        asyncio.run(ReActAgent(double, [search]).arun("What?", seed=seed))
        return [request.seed for request in double.requests]

    assert seeds(1) == seeds(1) != seeds(2)
    assert len(set(seeds(1))) == 2


async def test_one_agent_runs_a_thousand_questions_at_once() -> None:
    async def search(query: str) -> str:
        """Search."""
        await asyncio.sleep(0)
        return f"found {query}"

    def reply(prompt: str, request: Any) -> str:
        asked = prompt.rsplit("Question: ", 1)[1]
        number = asked.split("?")[0]
        if "found" not in asked:
            return call("search", query=number)
        return answer(asked.split("found ")[1].split("<")[0])

    agent = ReActAgent(ScriptedModel(reply), [search], few_shot=0)
    results = await agent.abatch([f"{n}?" for n in range(1000)])
    assert [r.answer for r in results] == [str(n) for n in range(1000)]


def test_batches_keep_their_order(search) -> None:
    agent = ReActAgent(ScriptedModel(lambda prompt, _: answer(prompt.rsplit("Question: ")[-1][:2])), [search])
    assert [r.answer for r in agent.batch(["aa?", "bb?"], {"max_concurrency": 1})] == ["aa", "bb"]


async def test_steps_are_streamed_as_they_end(search) -> None:
    agent = ReActAgent(model(call("search", query="a"), answer("x")), [search])
    parts = [part async for part in agent.astream("What?")]
    assert [type(part) for part in parts] == [Step, Step, AgentResult]
    async for part in agent.astream("What?"):
        assert isinstance(part, Step)
        break


async def test_invoke_works_inside_a_running_loop_and_a_chain(search) -> None:
    agent = ReActAgent(model(answer("x")), [search])
    assert agent.invoke("What?").answer == "x"
    chain = agent | RunnableLambda(lambda result: result.answer + "!")
    assert chain.invoke({"question": "What?"}) == await chain.ainvoke("What?") == "x!"


def test_an_agent_never_changes(search) -> None:
    agent = ReActAgent(model("x"), [search])
    with pytest.raises(RestillError, match="replace"):
        agent.temperature = 1.0
    warmer = agent.replace(temperature=1.0)
    assert (agent.temperature, warmer.temperature) == (0.0, 1.0)
    with pytest.raises(RestillError, match="no option"):
        agent.replace(colour="red")


def test_the_agent_hash_covers_what_changes_its_runs(search) -> None:
    def find(query: str) -> str:
        return query

    agent = ReActAgent(model("x"), [search])
    others = [
        agent.replace(budget=Budget(steps=5)),
        agent.replace(temperature=0.5),
        agent.replace(few_shot=1),
        agent.replace(constrained=False),
        agent.replace(tools=[find]),
        agent.replace(hint=lambda q: "x"),
        agent.replace(model=model("x", fingerprint="other")),
        agent.replace(model=model("x", adapter=FakeAdapter(manifest={"few_shot": 2}))),
        agent.replace(step_tokens=64),
    ]
    prints = [a.fingerprint for a in (agent, *others)]
    assert len(set(prints)) == len(prints)
    assert agent.replace(seed=9).fingerprint == agent.fingerprint
    search_again = agent.replace(tools=[search])
    assert search_again.fingerprint == agent.fingerprint
    adapted = [model("x", name=name, adapter=FakeAdapter(name=name)) for name in ("here", "elsewhere")]
    assert len({agent.replace(model=each).fingerprint for each in adapted}) == 1
    unknown = [model("x", name=name, fingerprint="") for name in ("one", "other")]
    assert len({agent.replace(model=each).fingerprint for each in unknown}) == 2


@pytest.mark.parametrize(
    "options",
    [{"tools": []}, {"few_shot": 3}, {"temperature": -1}, {"temperature": float("nan")}, {"step_tokens": 1}],
)
def test_bad_options_are_refused(search, options: dict[str, Any]) -> None:
    with pytest.raises(RestillError):
        ReActAgent(**{"model": model("x"), "tools": [search], **options})


def test_two_tools_of_one_name_and_models_that_are_none_are_refused(search) -> None:
    with pytest.raises(RestillError, match="two tools"):
        ReActAgent(model("x"), [search, search])
    with pytest.raises(RestillError, match="not a model"):
        ReActAgent("gpt", [search])
    for bad in ({"steps": 0}, {"tokens": 0}, {"seconds": 0}, {"per_tool": {"search": -1}}):
        with pytest.raises(RestillError):
            Budget(**bad)


def test_any_chat_model_works_in_text(search) -> None:
    replies = [call("search", query="a") + "\nObservation: [7] I make this up", answer("x", 1)]
    agent = ReActAgent(FakeListChatModel(responses=replies), [search])
    trajectory = agent.invoke("What?").trajectory
    assert (trajectory.status, trajectory.answer, trajectory.text_only) == ("answered", "x", True)
    assert trajectory.citations[0].doc_id == "d1"
    assert trajectory.token_ids() == [] == trajectory.loss_mask()
    endless = ReActAgent(FakeListChatModel(responses=replies[:1]), [search], budget=Budget(steps=2)).invoke("What?")
    assert (endless.status, endless.answer) == ("budget", None)
