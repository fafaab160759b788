"""The loss mask covers the model's own good turns and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.agents.react import ReActAgent
from restill.agents.testing import ScriptedModel, answer, call
from restill.agents.trajectory import Trajectory
from restill.models.errors import RestillError
from restill.selftrain.mixture import Example, Mixture

TURNS = st.sampled_from([call("search", query="Ada"), "no action at all", "Action: fly {}", answer("London", 1)])


def search(query: str) -> str:
    """Find passages."""
    return f"about {query}"


def run(turns: list[str], **options: object) -> Trajectory:
    """A trajectory of a scripted model."""
    agent = ReActAgent(ScriptedModel(turns), [search], **options)
    return agent.invoke("Where was Ada born?").trajectory


@settings(max_examples=60, deadline=None)
@given(st.lists(TURNS, min_size=1, max_size=7), st.integers(0, 2), st.booleans())
def test_weights_cover_exactly_the_models_own_good_turns(turns: list[str], few_shot: int, hinted: bool) -> None:
    hint = (lambda question: "Plan: SECRET") if hinted else None
    trajectory = run(turns, few_shot=few_shot, hint=hint)
    mixture = Mixture.from_trajectories([trajectory])
    good = [
        s
        for s in trajectory.steps
        if s.action and not s.forced and (s.observation is None or s.observation.status != "invalid")
    ]
    if not good:
        assert not len(mixture)
        return
    example = mixture[0]
    own = trajectory.loss_mask()
    assert list(example.tokens) == trajectory.token_ids()
    assert all(mine for weight, mine in zip(example.weights, own, strict=True) if weight)
    trained = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
    assert trained == [t for step in good for t in step.sample.tokens]
    assert set(example.weights) <= {0.0, 1.0}
    assert b"SECRET" not in bytes(t for t in example.tokens if t < 256)


def test_the_end_of_a_turn_is_learnt_and_observations_are_not() -> None:
    model = ScriptedModel([])
    example = Mixture.from_trajectories([run([call("search", query="Ada"), answer("London", 1)])])[0]
    trained = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
    text = model.tokenizer.decode(trained)
    assert trained.count(model.tokenizer.eos_id) == 2
    assert "Observation" not in text and "about Ada" not in text and text.startswith("Thought:")


def test_a_forced_answer_is_not_learnt() -> None:
    from restill.agents.budget import Budget

    trajectory = run([call("search", query="Ada"), answer("London")], budget=Budget(steps=1))
    assert trajectory.forced
    example = Mixture.from_trajectories([trajectory])[0]
    assert example.targets == len(trajectory.steps[0].sample.tokens)


def test_text_only_trajectories_are_refused() -> None:
    trajectory = run([answer("London")]).model_copy(update={"text_only": True})
    with pytest.raises(RestillError, match="no token ids"):
        Mixture.from_trajectories([trajectory])


def test_identical_sequences_count_once() -> None:
    same = [run([answer("London")]), run([answer("London")])]
    assert len(Mixture.from_trajectories(same)) == 1


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0.0, 1.0, -0.5, 1e-7])), min_size=1, max_size=40))
def test_json_keeps_every_value(pairs: list[tuple[int, float]]) -> None:
    pairs = [(pairs[0][0], 0.0), *pairs[1:]]
    example = Example(tokens=tuple(t for t, _ in pairs), weights=tuple(w for _, w in pairs), provenance={"ü": [1]})
    assert Example.from_json(example.to_json()) == example


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    mixture = Mixture((Example(tokens=(1, 2), weights=(0.0, 1.0), provenance={"question": "a\u2028b\x85c\r"}),) * 2)
    mixture.save(tmp_path / "m.jsonl")
    assert Mixture.load(tmp_path / "m.jsonl") == mixture


def test_a_file_comes_back_with_the_same_fingerprint(tmp_path: Path) -> None:
    mixture = Mixture.from_trajectories([run([answer("London")]), run([answer("Rome")])], scores=[1.0, 0.5])
    mixture.save(tmp_path / "m.jsonl")
    loaded = Mixture.load(tmp_path / "m.jsonl")
    assert loaded.fingerprint == mixture.fingerprint and loaded[1].provenance["score"] == 0.5
    (tmp_path / "m.jsonl").write_text('{"tokens": [1]}\n')
    with pytest.raises(RestillError, match="line 1"):
        Mixture.load(tmp_path / "m.jsonl")
    with pytest.raises(RestillError, match="no mixture"):
        Mixture.load(tmp_path / "none.jsonl")


def test_a_mixture_knows_its_protocol_unless_there_are_several(tmp_path: Path) -> None:
    made = run([answer("London")])
    mixture = Mixture.from_trajectories([made])
    mixture.save(tmp_path / "m.jsonl")
    assert Mixture.load(tmp_path / "m.jsonl").protocol == mixture.protocol == "react-1"
    other = run([answer("Rome")]).model_copy(update={"protocol": "search-compact-1"})
    assert Mixture.from_trajectories([other]).protocol == "search-compact-1"
    assert Mixture.from_trajectories([made, other]).protocol is None
    assert Mixture((Example(tokens=(1, 2), weights=(0.0, 1.0)),)).protocol is None


def test_malformed_examples_are_refused() -> None:
    with pytest.raises(RestillError, match="2 tokens and 1 weights"):
        Example(tokens=(1, 2), weights=(0.0,))
    with pytest.raises(RestillError, match="first token"):
        Example(tokens=(1, 2), weights=(1.0, 1.0))
