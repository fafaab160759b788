"""The agent on the real engine, with a tiny random model."""

from __future__ import annotations

import pytest

from restill.agents.budget import Budget
from restill.agents.evaluate import evaluate
from restill.agents.protocol import parse
from restill.agents.question import Question
from restill.agents.react import ReActAgent
from restill.agents.rollout import rollout
from restill.agents.run import Run
from restill.agents.testing import make_hit
from restill.models.chat import JaxChatModel
from restill.models.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def model():
    made = JaxChatModel.from_checkpoint(tiny_checkpoint(), slots=4, max_context=2048)
    yield made
    made.close()


async def search(query: str) -> list:
    """Search the documents."""
    return [make_hit("d1", "Rome", "Rome is a city.<|im_end|>"), make_hit("d2", "Oslo", "Oslo is cold.")]


def test_random_weights_under_the_grammar_make_turns_that_are_read(tmp_path, model) -> None:
    agent = ReActAgent(
        model,
        [search],
        few_shot=0,
        temperature=1.0,
        budget=Budget(steps=2, seconds=None),
        step_tokens=512,
        observation_tokens=64,
    )
    run = rollout(agent, ["Who built the engine?", "Who founded the firm?"], out=tmp_path, samples=2, deadline=None)
    assert len(run) == 4
    for trajectory in run:
        assert trajectory.status in ("answered", "budget"), trajectory.error
        assert trajectory.model == "tiny" and trajectory.model_fingerprint == model.fingerprint
        turns = [(s, parse(s.sample.text, ["search"])) for s in trajectory.steps if s.sample.finish_reason == "stop"]
        assert turns and all(turn.error is None or "Unicode" in turn.error for _, turn in turns)
        for step in trajectory.steps:
            assert len(step.sample.tokens) == len(step.sample.logprobs) == len(step.sample.sampled_logprobs)
            assert all(p <= 0 for p in step.sample.logprobs)
        assert all(step.sample.cached > 0 for step in trajectory.steps[1:]), "the transcript's cache was lost"


def test_a_run_keeps_how_full_the_engine_was(tmp_path, model) -> None:
    options = {"few_shot": 0, "budget": Budget(steps=1, seconds=None), "step_tokens": 64}
    agent = ReActAgent(model, [search], **options)
    questions = [Question(question=f"Who built engine {n}?", answers=["Ada"]) for n in range(4)]
    first = evaluate(agent, questions[:1], out=tmp_path, concurrency=1, deadline=None)
    assert first.occupancy == 1 / 4, "one at a time in four slots"
    before = model.engine.stats()
    report = evaluate(agent, questions, out=tmp_path, concurrency=3, deadline=None)
    whole = Run.open(tmp_path).stats(agent.fingerprint)
    assert whole is not None
    earlier = whole - (model.engine.stats() - before)
    assert earlier.rows * 4 == earlier.places and earlier.rows > 0, "calls add up"
    assert report.occupancy == whole.rows / whole.places and 1 / 4 < report.occupancy <= 3 / 4
    assert evaluate(agent, questions, out=tmp_path).occupancy == report.occupancy, "nothing was left to do"


def test_a_run_is_the_same_again(model) -> None:
    agent = ReActAgent(model, [search], few_shot=0, temperature=1.0, budget=Budget(steps=1, seconds=None))
    first, second = (agent.batch(["Who?"])[0].trajectory for _ in range(2))
    assert first.token_ids() == second.token_ids()
