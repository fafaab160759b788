"""A choice: one step of a stored trajectory with all samples that were drawn there, ready to be ranked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..agents.model import ChatTokenizer
from ..agents.protocol import parse
from ..agents.question import Question
from ..agents.trajectory import Action, Sample, Step, Trajectory
from .mixture import is_good

Reader = Callable[[Trajectory], Sequence[Sequence[Action | None]]]
"""Per step and sample, what the sample would have done there, as a step stores it; ``None`` when it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One step and its samples.

    Attributes:
        question: without labels, unless the ranker said that it needs them.
        prompt: ids before the turn; empty for a text-only trajectory.
        seen: what the model saw, as text.
        actions: per sample what it does, as far as that is known; ``None``: it cannot be read, or nobody said how.
        readable: per sample, whether it can be read.
    """

    trajectory: Trajectory
    index: int
    question: Question
    prompt: tuple[int, ...] = ()
    seen: str = ""
    actions: tuple[Action | None, ...] = ()
    readable: tuple[bool, ...] = ()

    @property
    def step(self) -> Step:
        """The step itself."""
        return self.trajectory.steps[self.index]

    @property
    def samples(self) -> list[Sample]:
        """The samples, in the order in which they are stored."""
        return self.step.samples

    @property
    def base(self) -> list[int]:
        """The order without a ranker: what went on, then by perplexity, what cannot be read at the end."""
        chosen = self.step.chosen

        def key(place: int) -> tuple[bool, bool, float, int]:
            sample = self.samples[place]
            perplexity = sample.perplexity if self.readable[place] else math.inf
            return place != chosen, not self.readable[place], perplexity, place

        return sorted(range(len(self.samples)), key=key)

    @property
    def groups(self) -> list[list[int]]:
        """Samples that say the same, each group and the groups in base order; a ranker sees one of each."""
        found: dict[object, list[int]] = {}
        for place in self.base:
            found.setdefault(_content(self.samples[place]), []).append(place)
        return list(found.values())

    @property
    def candidates(self) -> list[int]:
        """One readable sample of each group, in base order: what there is to rank."""
        return [group[0] for group in self.groups if self.readable[group[0]]]


def choices(
    trajectory: Trajectory,
    question: Question,
    *,
    tokenizer: ChatTokenizer | None = None,
    read: Reader | None = None,
) -> Iterator[Choice]:
    """Every step of a trajectory as a choice.

    Args:
        tokenizer: of the model that wrote the trajectory: ``seen`` is then its prompt, byte for byte; without,
            the turns and observations so far.
        read: how to read the samples that did not go on; by default as ReAct turns where the step is one.
    """
    readings = None if read is None else read(trajectory)
    for index, (step, prompt) in enumerate(zip(trajectory.steps, trajectory.prompts(), strict=True)):
        known = None if readings is None else readings[index]
        actions = tuple(_action(step, place, known) for place in range(len(step.samples)))
        readable = tuple(_readable(step, place, action) for place, action in enumerate(actions))
        seen = history(trajectory, index) if tokenizer is None or not prompt else tokenizer.decode(prompt)
        yield Choice(
            trajectory=trajectory,
            index=index,
            question=question,
            prompt=tuple(prompt),
            seen=seen,
            actions=actions,
            readable=readable,
        )


def history(trajectory: Trajectory, index: int) -> str:
    """The question, and the turns and observations before step ``index``, one a line."""
    lines = [f"Question: {trajectory.question}"]
    for step in trajectory.steps[:index]:
        lines.append(_folded(step.sample.text))
        if step.observation is not None:
            lines.append(_folded(step.observation.text))
    return "\n".join(lines)


def full_order(choice: Choice, candidates: Sequence[int]) -> list[int]:
    """All samples, best first: ``candidates`` in their order, each with its likes, then all others in base order.

    So identical samples tie and keep their order, and what cannot be read stays last.
    """
    groups = {group[0]: group for group in choice.groups}
    order = [place for first in candidates for place in groups[first]]
    return order + [place for place in choice.base if place not in set(order)]


def _action(step: Step, place: int, known: Sequence[Action | None] | None) -> Action | None:
    sample = step.samples[place]
    if place == step.chosen or _content(sample) == _content(step.sample):
        return step.action
    if sample.error is not None or sample.finish_reason in ("length", "deadline"):
        return None
    if known is not None:
        return known[place]
    return parse(sample.text).action if not step.kind else None


def _readable(step: Step, place: int, action: Action | None) -> bool:
    sample = step.samples[place]
    if place == step.chosen or _content(sample) == _content(step.sample):
        return is_good(step)
    if step.kind:  # the agent says of each sample whether it can be read
        return sample.error is None
    return action is not None


def _content(sample: Sample) -> object:
    return tuple(sample.tokens) or sample.text


def _folded(text: str) -> str:
    return " ".join(text.split())
