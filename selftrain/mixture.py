"""Training examples made from trajectories: token ids, one weight per token, and where they come from.

The weights come from the structure of the trajectory (which tokens the model sampled), never from the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..agents.trajectory import Step, Trajectory
from ..models.errors import RestillError
from .files import write_atomic


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sequence to learn from.

    Attributes:
        tokens: ids.
        weights: as many; ``weights[i]`` weighs -log p(tokens[i] | tokens[:i]). Zero on everything that is
            not the model's own; may be negative (push down).
        provenance: question key, sample index, agent hash, score.
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.weights):
            raise RestillError(
                f"an example has {len(self.tokens)} tokens and {len(self.weights)} weights; give one each"
            )
        if self.weights and self.weights[0]:
            raise RestillError("the first token of an example has a weight; nothing predicts it, so give it 0")

    @property
    def targets(self) -> int:
        """Tokens with a weight other than zero."""
        return sum(1 for w in self.weights if w)

    def to_json(self) -> str:
        """One line of JSON; the weights as runs ``[[value, count], ...]``."""
        runs: list[list[float]] = []
        for weight in self.weights:
            if runs and runs[-1][0] == weight:
                runs[-1][1] += 1
            else:
                runs.append([weight, 1])
        return json.dumps({"tokens": self.tokens, "weights": runs, "provenance": self.provenance}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Example:
        """Read what :meth:`to_json` wrote."""
        row = json.loads(line)
        weights = tuple(float(value) for value, count in row["weights"] for _ in range(int(count)))
        return cls(tokens=tuple(row["tokens"]), weights=weights, provenance=row.get("provenance") or {})


@dataclass(frozen=True)
class Mixture(Sequence[Example]):
    """An ordered, duplicate-free list of examples."""

    examples: tuple[Example, ...]

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Mixture:
        """Keep the first of identical sequences (same tokens, same weights), drop those without a target."""
        unique = {(e.tokens, e.weights): e for e in reversed(list(examples)) if e.targets}
        return cls(tuple(reversed(unique.values())))

    @classmethod
    def from_trajectories(cls, trajectories: Iterable[Trajectory], *, scores: Iterable[float] | None = None) -> Mixture:
        """One example per trajectory: the un-hinted transcript, weight 1 on the model's own good turns.

        Turns that could not be read as an action, and turns forced by the finishing grammar, have weight 0.

        Raises:
            RestillError: a trajectory has no token ids.
        """
        listed = list(trajectories)
        given = [None] * len(listed) if scores is None else list(scores)
        return cls.of(_example(t, s) for t, s in zip(listed, given, strict=True))

    def save(self, path: Path) -> None:
        """Write JSONL, one example a line, atomically."""
        write_atomic(path, "".join(e.to_json() + "\n" for e in self.examples))

    @classmethod
    def load(cls, path: Path) -> Mixture:
        """Read JSONL.

        Raises:
            RestillError: no such file, or a line is no example.
        """
        if not path.is_file():
            raise RestillError(f"no mixture at {str(path)!r}; build it with Mixture.from_trajectories(...).save(path)")
        examples = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                examples.append(Example.from_json(line))
            except (ValueError, KeyError, TypeError) as error:
                raise RestillError(f"{path}, line {number} is no training example: {error!r}") from None
        return cls(tuple(examples))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over tokens and weights, in order."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(json.dumps([example.tokens, example.weights]).encode())
        return digest.hexdigest()

    @property
    def tokens(self) -> int:
        """Tokens in all examples."""
        return sum(len(e.tokens) for e in self.examples)

    @property
    def targets(self) -> int:
        """Tokens that the loss sees."""
        return sum(e.targets for e in self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def is_good(step: Step) -> bool:
    """Whether a turn is worth imitating: read as an action, and not forced by the finishing grammar."""
    readable = step.action is not None and (step.observation is None or step.observation.status != "invalid")
    return readable and not step.forced


def _example(trajectory: Trajectory, score: float | None) -> Example:
    if trajectory.text_only or any(not step.sample.tokens and step.sample.text for step in trajectory.steps):
        raise RestillError(
            f"trajectory {trajectory.id} has no token ids (its model speaks text only); "
            "roll out with a JaxChatModel to train on its own tokens"
        )
    tokens: list[int] = []
    weights: list[float] = []
    for step in trajectory.steps:
        shared, suffix, own = step.prompt.shared, step.prompt.suffix, step.sample.tokens
        weight = 1.0 if is_good(step) else 0.0
        tokens = tokens[:shared] + suffix + own
        weights = weights[:shared] + [0.0] * len(suffix) + [weight] * len(own)
    source: dict[str, Any] = {
        "question_key": trajectory.question_key,
        "sample": trajectory.sample,
        "agent": trajectory.agent,
        "guide": trajectory.guide,
    }
    if score is not None:
        source["score"] = round(float(score), 6)
    return Example(tokens=tuple(tokens), weights=tuple(weights), provenance=source)
