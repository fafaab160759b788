"""Reads a stored trajectory again, step by step: its state, its prompts, and what its samples would have done."""

from __future__ import annotations

from collections.abc import Iterator

from ...models.errors import RestillError
from ..trajectory import Action, Sample, Step, Trajectory
from .episode import SearchPlan
from .state import ResultItem, Search, SearchState, from_record, to_record


def walk(plan: SearchPlan, trajectory: Trajectory) -> Iterator[tuple[Step, SearchState]]:
    """Each step with the state before it. The state is one object, which goes on with the next step."""
    state = SearchState(question=" ".join(trajectory.question.split()), searches_left=plan.searches)
    for step in trajectory.steps:
        yield step, state
        if step.action is None:
            continue
        action = from_record(step.kind, step.action, step.thought, state)
        state.apply(action)
        if isinstance(action, Search) and step.observation is not None:
            state.searches_left -= 1
            items = [ResultItem(link_id=p.handle, link_text=p.title, snippet=p.text) for p in step.observation.passages]
            state.found(items, step.observation.text)


def read(plan: SearchPlan, trajectory: Trajectory) -> list[list[Action | None]]:
    """What each sample of each step would have done there; see :meth:`SearchAgent.read`."""

    def action(step: Step, state: SearchState, sample: Sample) -> Action | None:
        if sample.error is not None:
            return None
        try:
            return to_record(plan.format.parse(step.kind, sample.text, state), plan.tool, plan.argument)
        except RestillError:
            return None

    return [[action(step, state, sample) for sample in step.samples] for step, state in walk(plan, trajectory)]


def replay(plan: SearchPlan, trajectory: Trajectory, *, few_shot: int = 0) -> Iterator[list[int]]:
    """The prompt ids of each step; see :meth:`SearchAgent.replay`.

    Raises:
        RestillError: the trajectory has no token ids, or is of another protocol.
    """
    if trajectory.text_only or trajectory.protocol != plan.protocol:
        raise RestillError(
            f"trajectory {trajectory.id} ({trajectory.protocol}{', text only' if trajectory.text_only else ''}) "
            f"has no prompts in the token ids of {plan.protocol}; give one of this agent's own"
        )
    transcript = None
    for step, state in walk(plan, trajectory):
        if transcript is None:
            transcript = plan.format.open(plan.model, state, few_shot=few_shot, hint=None)
        plan.format.ask(transcript, step.kind, state)
        yield list(getattr(transcript, "ids"))  # noqa: B009 - of token models' transcripts alone
        transcript.keep(step.sample)
