"""Latents: what a model drew by itself on the way to an answer, whether a rationale or a whole trajectory.

log p(z|x) is the sum over every token that the model emitted, read as an action or not. Observations, and the last turn
that a grammar forces when a budget has run out, are not the model's own draws: they have no part in it. Where a step
drew several samples (a search agent does once more, when it cannot read the first), all of them are part of z: the one
that went on alone would not follow the model's distribution.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..agents.trajectory import Trajectory
from ..models.errors import RestillError
from .mixture import Example


@dataclass(frozen=True, kw_only=True)
class Latent:
    """One z.

    Attributes:
        sequences: to condition on and to learn, weight 1 on the model's own tokens; one, unless each prompt is written
            anew (a search agent's).
        answer: what it came to.
        reward: r(z, y).
        born: the step whose proposal it was; -1 for the guide's.
    """

    sequences: tuple[Example, ...]
    answer: str | None = None
    reward: float = 0.0
    born: int = -1

    @classmethod
    def of(cls, trajectory: Trajectory) -> Latent:
        """The latent of a trajectory, with the prompt as training sees it: without few-shot examples and hint.

        Raises:
            RestillError: no token ids.
        """
        if trajectory.text_only:
            raise RestillError(f"trajectory {trajectory.id} has no token ids; TRICE needs a JaxChatModel")
        source = {
            "protocol": trajectory.protocol,
            "question_key": trajectory.question_key,
            "guide": trajectory.guide,
        }
        made: list[Example] = []
        whole = trajectory.append_only
        if whole:
            tokens: list[int] = []
            weights: list[float] = []
            for step in trajectory.steps:
                tokens += step.prompt.suffix + step.sample.tokens
                weights += [0.0] * len(step.prompt.suffix) + [float(not step.forced)] * len(step.sample.tokens)
            made.append(Example(tokens=tuple(tokens), weights=tuple(weights), provenance=source))
        for number, (prompt, step) in enumerate(zip(trajectory.prompts(), trajectory.steps, strict=True)):
            for place, sample in enumerate(step.samples):
                if not (whole and place == step.chosen):
                    own = (*[0.0] * len(prompt), *[float(not step.forced)] * len(sample.tokens))
                    where = {**source, "step": number, "sample": place}
                    made.append(Example(tokens=(*prompt, *sample.tokens), weights=own, provenance=where))
        return cls(sequences=tuple(e for e in made if e.targets), answer=trajectory.answer)

    @property
    def tokens(self) -> int:
        """Tokens that the model emitted."""
        return sum(e.targets for e in self.sequences)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prompt included."""
        return max((len(e.tokens) for e in self.sequences), default=0)

    def weighted(self, weight: float) -> list[Example]:
        """Its sequences with ``weight`` on every token of the model's own."""
        return [e.scaled(weight) for e in self.sequences]

    def rewarded(self, reward: float, born: int) -> Latent:
        """The same with its reward, and the step that proposed it."""
        return replace(self, reward=float(reward), born=born)

    def to_row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        sequences = [json.loads(e.to_json()) for e in self.sequences]
        return {"sequences": sequences, "answer": self.answer, "reward": self.reward, "born": self.born}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Latent:
        """Read what :meth:`to_row` gave."""
        sequences = tuple(Example.from_json(json.dumps(e)) for e in row["sequences"])
        return cls(sequences=sequences, answer=row["answer"], reward=row["reward"], born=row["born"])


def check_lengths(latents: Sequence[Latent], row_length: int) -> None:
    """Refuse a latent that a row cannot hold: cut, its log p would not be that of what was drawn.

    Raises:
        RestillError: naming the length that is needed.
    """
    longest = max((z.longest for z in latents), default=0)
    if longest > row_length:
        raise RestillError(
            f"a latent has {longest} tokens with its prompt and row_length is {row_length}; "
            f"raise row_length to at least {longest}, or lower step_tokens or the budget"
        )
