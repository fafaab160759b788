"""Writes a stored trajectory's prompts anew, step by step, from the state that its steps hold."""

from __future__ import annotations

from collections.abc import Iterator

from ...models.errors import RestillError
from ..trajectory import Trajectory
from .episode import SearchPlan
from .state import ResultItem, Search, SearchState, from_record


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
    state = SearchState(question=" ".join(trajectory.question.split()), searches_left=plan.searches)
    transcript = plan.format.open(plan.model, state, few_shot=few_shot, hint=None)
    for step in trajectory.steps:
        plan.format.ask(transcript, step.kind, state)
        yield list(getattr(transcript, "ids"))  # noqa: B009 - of token models' transcripts alone
        transcript.keep(step.sample)
        if step.action is None:
            continue
        action = from_record(step.kind, step.action, step.thought, state)
        state.apply(action)
        if isinstance(action, Search) and step.observation is not None:
            state.searches_left -= 1
            items = [ResultItem(link_id=p.handle, link_text=p.title, snippet=p.text) for p in step.observation.passages]
            state.found(items, step.observation.text)
