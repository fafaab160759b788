"""Ten thousand model outputs through parser and loop: no exception, one result a call, every budget holds."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restill.agents.budget import Budget
from restill.agents.protocol import parse
from restill.agents.react import ReActAgent
from restill.agents.testing import ByteTokenizer, ScriptedModel, make_hit, write_turn
from restill.agents.tools import Tool
from restill.agents.trajectory import Trajectory
from restill.models.engine.request import Completion, Request

TURNS = 12
OUTPUTS = 10_000
TOOLS = ["search", "add", "fail"]
EXAMPLES = 1700  # six to seven turns each

_words = st.text(st.characters(), max_size=40)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=6,
)
_calls_of = {
    "search": st.fixed_dictionaries({"query": _words}),
    "add": st.fixed_dictionaries({"a": st.integers()}, optional={"b": st.integers() | _json}),
    "fail": st.fixed_dictionaries({"query": _words}),
    "finish": st.fixed_dictionaries(
        {"answer": _words}, optional={"citations": st.lists(st.integers(-1, 9), max_size=4)}
    ),
}
_names = st.sampled_from([*_calls_of, "Search", "", "fly"]) | _words
_any_arguments = st.one_of(*_calls_of.values(), st.dictionaries(_words, _json, max_size=2), _json)
_each = {name: st.builds(write_turn, st.just("t"), st.just(name), call) for name, call in _calls_of.items()}
_good = st.one_of(*2 * [_each["search"], _each["add"], _each["fail"]], _each["finish"])
_close = st.builds(lambda t, n, a: f"Thought: {t}\nAction: {n} {json.dumps(a)}", _words, _names, _any_arguments)
_broken = st.builds(lambda turn, cut, more: turn[:cut] + more, _close | _good, st.integers(0, 120), _words)
_deep = st.builds(
    lambda n, c: 'Thought: a\nAction: search {"query": ' + c * n, st.integers(0, 3000), st.sampled_from('[{"')
)
_turns = _good | _good | _close | _broken | _deep | _words | st.text(st.characters(), max_size=400)
_ids = st.lists(st.integers(0, 258), max_size=60)
_outputs = _turns | _turns | _turns | _ids
_budgets = st.builds(
    Budget,
    steps=st.sampled_from([1, 3, TURNS, TURNS, TURNS]),
    tokens=st.none() | st.none() | st.none() | st.integers(1, 4000),
    per_tool=st.dictionaries(st.sampled_from(["search", "add"]), st.integers(0, 2), max_size=2),
)

_tokenizer = ByteTokenizer()
_calls: Counter[str] = Counter()
_through: Counter[str] = Counter()


async def search(query: str) -> list[Any]:
    """Search."""
    _calls["search"] += 1
    return [make_hit("d1", "T", query * 3), make_hit("d2", query, "x " * 60)]


async def add(a: int, b: int = 0) -> int:
    """Add."""
    _calls["add"] += 1
    return a + b


async def fail(query: str) -> str:
    """Fail."""
    _calls["fail"] += 1
    raise ValueError(query)


_tools = [Tool.of(search), Tool.of(add), Tool.of(fail)]


def _model(data: st.DataObject) -> ScriptedModel:
    def reply(prompt: str, request: Request) -> str | Completion:
        output = data.draw(_outputs)
        parsed = parse(output if isinstance(output, str) else _tokenizer.decode(output), TOOLS)
        assert (parsed.action is None) != (parsed.error is None)
        if isinstance(output, str):
            return output
        ids = tuple(output[: request.sampling.max_tokens])
        zeros = (0.0,) * len(ids)
        text = _tokenizer.decode(ids, skip_special=True)
        return Completion(tokens=ids, text=text, logprobs=zeros, sampled_logprobs=zeros, finish_reason="stop")

    return ScriptedModel(reply, tokenizer=_tokenizer)


def test_ten_thousand_model_outputs_break_neither_parser_nor_loop() -> None:
    _through.clear()
    _one_run()
    assert _through["outputs"] >= OUTPUTS
    assert all(_through[kind] > 100 for kind in ("ok", "error", "invalid", "end", "forced"))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), _budgets)
def _one_run(data: st.DataObject, budget: Budget) -> None:
    _calls.clear()
    model = _model(data)
    agent = ReActAgent(model, _tools, few_shot=0, budget=budget, observation_tokens=120, step_tokens=200)
    trajectory = asyncio.run(agent.arun("What?", seed=1))
    _check(trajectory, budget, model)
    _through.update(outputs=len(trajectory.steps), forced=trajectory.forced)
    _through.update(s.observation.status if s.observation else "end" for s in trajectory.steps)


def _check(trajectory: Trajectory, budget: Budget, model: ScriptedModel) -> None:
    assert trajectory.status in ("answered", "budget"), trajectory.error
    steps = trajectory.steps
    ordinary = [s for s in steps if not s.forced]
    assert len(ordinary) <= budget.steps and len(steps) - len(ordinary) <= 1
    assert not any(s.forced for s in steps[:-1])
    # Every call has exactly one result, and every turn but the last an observation.
    for step in steps[:-1]:
        assert step.observation is not None and step.observation.text.startswith("Observation:")
        assert (step.action is None) == (step.observation.status == "invalid")
    sent = Counter(s.action.tool for s in trajectory.calls() if s.action and s.observation.status == "ok")
    for tool, limit in budget.per_tool.items():
        assert _calls[tool] <= limit
    for tool in ("search", "add"):
        assert sent[tool] <= _calls[tool]
    assert sum(_calls.values()) <= len(ordinary)
    if budget.tokens is not None and steps:
        assert len(trajectory.token_ids()) <= budget.tokens
    # What is logged is what was asked, and it survives the file.
    assert [list(r.prompt) for r in model.requests] == list(trajectory.prompts())
    assert sum(trajectory.loss_mask()) == trajectory.usage.generated == sum(len(s.sample.tokens) for s in steps)
    assert Trajectory.from_json(trajectory.to_json()) == trajectory
    known = {p.handle for p in trajectory.passages()}
    assert not known & set(trajectory.dropped_citations)
    assert (trajectory.status == "answered") <= (trajectory.answer is not None)
