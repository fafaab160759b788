"""Step mixtures: as many examples as steps, replaced targets exactly where the ranking says, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.agents.trajectory import Action, Observation, Prompt, Sample, Step, StepKind, Trajectory
from restill.models.errors import RestillError
from restill.selftrain.mixture import Mixture, is_good, target

KINDS: tuple[StepKind, ...] = ("", "decide", "summarise", "answer")
TOKENS = st.lists(st.integers(1, 50), min_size=1, max_size=4)


def sample(tokens: list[int], error: str | None = None) -> Sample:
    return Sample(text=f"t{tokens}", tokens=tokens, logprobs=[-0.5] * len(tokens), error=error)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    drawn = draw(st.lists(TOKENS, min_size=1, max_size=4))
    ranked = draw(st.one_of(st.just([]), st.permutations(range(len(drawn)))))
    readable = draw(st.booleans())
    kind = draw(st.sampled_from(KINDS))
    return Step(
        kind=kind,
        samples=[sample(tokens) for tokens in drawn],
        chosen=draw(st.integers(0, len(drawn) - 1)),
        ranking=list(ranked),
        action=Action(tool="search") if readable else None,
        observation=Observation(status="ok" if readable else "invalid", text="seen"),
        forced=draw(st.integers(0, 5)) == 0,
    )


@st.composite
def trajectories(draw: st.DrawFn, append_only: bool | None = None) -> Trajectory:
    listed = draw(st.lists(steps(), min_size=1, max_size=5))
    growing = draw(st.booleans()) if append_only is None else append_only
    length = 0
    for place, step in enumerate(listed):
        shared = length if growing else min(length, draw(st.integers(0, 2)))
        if not growing and place and shared == length:
            shared = 0
        step.prompt = Prompt(shared=shared, suffix=draw(TOKENS))
        length = shared + len(step.prompt.suffix) + len(step.sample.tokens)
    return Trajectory(
        protocol="p", question_key="k", sample=draw(st.integers(0, 3)), agent="a", question_id="i", question="q",
        status="answered", steps=listed,
    )  # fmt: skip


def learnt(step: Step) -> bool:
    """Whether a step has something worth learning."""
    return not step.forced and (target(step)[1] or is_good(step))


@settings(max_examples=60, deadline=None)
@given(st.lists(trajectories(), max_size=4))
def test_step_mode_makes_one_example_of_each_step_with_the_ranked_target(made: list[Trajectory]) -> None:
    mixture = Mixture.from_trajectories(made, mode="step")
    wanted = [
        (prompt, step.samples[step.ranking[0] if step.ranking else step.chosen].tokens)
        for trajectory in made
        for step, prompt in zip(trajectory.steps, trajectory.prompts(), strict=True)
        if learnt(step)
    ]
    assert len(mixture) == len(wanted)
    for example, (prompt, tokens) in zip(mixture, wanted, strict=True):
        assert list(example.tokens) == [*prompt, *tokens]
        assert list(example.weights) == [0.0] * len(prompt) + [1.0] * len(tokens)


@settings(max_examples=60, deadline=None)
@given(trajectories(append_only=True))
def test_a_packed_sequence_and_its_replaced_steps_train_every_good_target_once(made: Trajectory) -> None:
    mixture = Mixture.from_trajectories([made], mode="trajectory")
    kept = [step for step in made.steps if not target(step)[1] and is_good(step)]
    replaced = [step for step in made.steps if target(step)[1] and not step.forced]
    whole = [e for e in mixture if "step" not in e.provenance]
    if kept:
        assert [list(e.tokens) for e in whole] == [made.token_ids()]
        trained = [t for t, w in zip(whole[0].tokens, whole[0].weights, strict=True) if w]
        assert trained == [token for step in kept for token in step.sample.tokens]
        assert all(mine for w, mine in zip(whole[0].weights, made.loss_mask(), strict=True) if w)
    else:
        assert not whole
    own = [e for e in mixture if "step" in e.provenance]
    assert {(e.provenance["step"], e.provenance["target"]) for e in own} <= {
        (i, step.ranking[0]) for i, step in enumerate(made.steps) if step.ranking
    }
    unique = {
        (*p, *s.samples[s.ranking[0]].tokens) for s, p in zip(made.steps, made.prompts(), strict=True) if s in replaced
    }
    assert {e.tokens for e in own} == unique


@settings(max_examples=40, deadline=None)
@given(trajectories(append_only=False))
def test_prompts_that_are_rebuilt_give_an_example_a_step_in_either_mode(made: Trajectory) -> None:
    if made.append_only:
        return
    by_step = Mixture.from_trajectories([made], mode="step")
    either = Mixture.from_trajectories([made], mode="trajectory")
    assert {(e.tokens, e.weights) for e in either} == {(e.tokens, e.weights) for e in by_step}


def test_a_first_choice_that_says_the_same_replaces_nothing() -> None:
    step = Step(samples=[sample([1, 2]), sample([1, 2]), sample([3])], ranking=[1, 0, 2], action=Action(tool="search"))
    assert target(step) == (0, False)
    assert target(step.model_copy(update={"ranking": [2, 0, 1]})) == (2, True)


def test_a_ranked_target_can_stand_in_for_a_turn_that_could_not_be_read() -> None:
    broken = Step(
        prompt=Prompt(suffix=[9]),
        samples=[sample([1], error="no action"), sample([2])],
        ranking=[1, 0],
        observation=Observation(status="invalid", text="?"),
    )
    made = Trajectory(
        protocol="p", question_key="k", agent="a", question_id="i", question="q", status="answered", steps=[broken]
    )
    assert [e.tokens for e in Mixture.from_trajectories([made], mode="step")] == [(9, 2)]
    assert not len(Mixture.from_trajectories([made.model_copy(update={"steps": [
        broken.model_copy(update={"ranking": []})]})], mode="step"))  # fmt: skip


def test_equal_steps_of_two_trajectories_are_both_kept_and_the_mode_is_checked() -> None:
    step = Step(prompt=Prompt(suffix=[9]), samples=[sample([1])], action=Action(tool="search"))
    made = Trajectory(
        protocol="p", question_key="k", agent="a", question_id="i", question="q", status="answered", steps=[step]
    )
    assert len(Mixture.from_trajectories([made, made], mode="step")) == 2
    assert len(Mixture.from_trajectories([made, made])) == 1
    with pytest.raises(RestillError, match="'half'"):
        Mixture.from_trajectories([made], mode="half")  # type: ignore[arg-type]
