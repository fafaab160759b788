"""Whatever a model writes: the state machine, its budgets, its prompts and its citations hold."""

from __future__ import annotations

import ast
import asyncio
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restill.agents.budget import Budget
from restill.agents.search.agent import SearchAgent
from restill.agents.search.replay import walk
from restill.agents.testing import ByteTokenizer, make_hit
from restill.agents.trajectory import Trajectory

from .policies import random_policy

_ANSWERED = re.compile(r"(DS)*DA(RG)?")
_ENDED_EARLY = re.compile(r"(DS)*(D|DA)?F?|(DS)*DAR?G?")
_tokenizer = ByteTokenizer()
_seen: Counter[str] = Counter()

_options = st.fixed_dictionaries(
    {
        "searches": st.sampled_from([10, 3, 0]),
        "samples": st.integers(1, 3),
        "temperature": st.sampled_from([0.0, 0.5]),
        "checks": st.booleans(),
        "few_shot": st.integers(0, 1),
        "constrained": st.booleans(),
        "budget": st.builds(Budget, steps=st.sampled_from([24, 5]), tokens=st.sampled_from([None, 3000, 6000])),
    }
)
_policies = st.fixed_dictionaries(
    {
        "valid": st.sampled_from([1.0, 0.9, 0.5]),
        "going_on": st.sampled_from([0.7, 0.3, 1.0]),
        "seed": st.integers(0, 10**6),
    }
)


async def search(query: str) -> list[Any]:
    """Search."""
    return [make_hit("d1", "It's \"R'", "Rome <|im_end|>\n is a 'city'."), make_hit("d2", "", "x\\ " * 9)]


@pytest.mark.parametrize("format", ["compact", "code"])
def test_every_run_of_every_policy_keeps_to_the_state_machine(format: str) -> None:
    _seen.clear()
    _one_run(format)
    assert all(_seen[status] >= 3 for status in ("answered", "invalid", "budget")), _seen
    assert _seen["forced"] >= 3 and _seen["resampled"] >= 3 and _seen["dropped"] >= 3, _seen


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(_options, _policies, st.integers(0, 3))
def _one_run(format: str, options: dict[str, Any], policy: dict[str, Any], seed: int) -> None:
    model = random_policy(format, **policy)
    agent = SearchAgent(model, [search], format=format, step_tokens=400, observation_tokens=200, **options)
    trajectory = asyncio.run(agent.arun('Who\'s "it"?', seed=seed))
    _check_machine(trajectory, options)
    _check_citations(trajectory)
    _check_prompts(trajectory, agent, [list(request.prompt) for request in model.requests])
    again = asyncio.run(agent.replace(model=random_policy(format, **policy)).arun('Who\'s "it"?', seed=seed))
    assert _essence(again) == _essence(trajectory), "the same seed gave another trajectory"
    _seen.update([trajectory.status], forced=trajectory.forced, dropped=bool(trajectory.dropped_citations))
    _seen.update(resampled=any(len(s.samples) > options["samples"] for s in trajectory.steps))


def _check_machine(trajectory: Trajectory, options: dict[str, Any]) -> None:
    assert trajectory.status in ("answered", "budget", "invalid"), trajectory.error
    steps = trajectory.steps
    path = "".join("F" if step.forced else step.kind[0].upper() for step in steps)
    answered = trajectory.status == "answered"
    assert (_ANSWERED if answered else _ENDED_EARLY).fullmatch(path), (path, trajectory.error)
    assert answered <= (trajectory.answer is not None) and answered <= (path.endswith("G") == options["checks"])
    assert len(trajectory.calls("search")) <= options["searches"]
    assert len([s for s in steps if not s.forced]) <= options["budget"].steps
    assert (trajectory.draft is not None) <= options["checks"]
    drawn = options["samples"] if options["temperature"] else 1
    for step in steps:
        readable = [n for n, sample in enumerate(step.samples) if sample.error is None]
        if readable:
            assert step.chosen == min(readable, key=lambda n: (step.samples[n].perplexity, n))
            assert len(step.samples) == drawn or readable[0] >= drawn, "drawn again without need"
        else:
            assert step.action is None and step.observation is not None and step.observation.status == "invalid"
            assert len(step.samples) == (drawn if step.forced or not options["temperature"] else 2 * drawn)
        assert all(step.samples[n].finish_reason == "stop" for n in readable), "the end of it is missing"
        assert len({sample.seed for sample in step.samples}) == len(step.samples)
        assert all(len(sample.tokens) == len(sample.logprobs) for sample in step.samples)
    assert trajectory.usage.generated == sum(len(sample.tokens) for step in steps for sample in step.samples)
    assert Trajectory.from_json(trajectory.to_json()) == trajectory


def _check_citations(trajectory: Trajectory) -> None:
    handles = [p.handle for p in trajectory.passages()]
    assert handles == list(range(1, len(handles) + 1))
    picked = {n for s in trajectory.steps if s.kind == "summarise" and s.action for n in s.action.arguments["links"]}
    places = [p.citation() for p in trajectory.passages() if p.handle in picked]
    assert picked <= set(handles)
    assert all(c in places for c in [*trajectory.citations, *trajectory.draft_citations])
    assert not picked & set(trajectory.dropped_citations)
    assert "[" not in (trajectory.answer or "")


def _check_prompts(trajectory: Trajectory, agent: SearchAgent, asked: list[list[int]]) -> None:
    read = agent.read(trajectory)
    assert [row[step.chosen] for row, step in zip(read, trajectory.steps, strict=True)] == [
        step.action for step in trajectory.steps
    ]
    assert [[action is None for action in row] for row in read] == [
        [sample.error is not None for sample in step.samples] for step in trajectory.steps
    ]
    stored = list(trajectory.prompts())
    assert len(stored) == len(trajectory.steps), "one step is one training example"
    assert list(agent.replay(trajectory)) == stored
    seen = list(agent.replay(trajectory, few_shot=trajectory.few_shot))
    assert asked == [prompt for prompt, s in zip(seen, trajectory.steps, strict=True) for _ in s.samples]
    for prompt, step, (_, state) in zip(stored, trajectory.steps, walk(agent.plan, trajectory), strict=True):
        if not step.forced:  # an unreadable turn may stand before that one
            kind, told = agent.plan.format.read(_tokenizer.decode(prompt, skip_special=True))
            done = [[type(action) for action in each.past] for each in (told, state)]
            assert (kind, told.question, done[0]) == (step.kind, state.question, done[1])
    if agent.format == "compact":
        assert trajectory.append_only
        whole = sum(len(step.sample.tokens) for step in trajectory.steps)
        assert sum(trajectory.loss_mask()) == whole
        return
    for prompt, step in zip(stored, trajectory.steps, strict=True):
        for sample in step.samples:
            if sample.error is None:
                ast.parse(_tokenizer.decode([*prompt, *sample.tokens]))


def _essence(trajectory: Trajectory) -> Any:
    samples = [[(s.tokens, s.seed, s.logprobs, s.error) for s in step.samples] for step in trajectory.steps]
    return trajectory.status, trajectory.answer, trajectory.draft, trajectory.citations, trajectory.error, samples
