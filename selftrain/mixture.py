"""Training examples made from trajectories: token ids, one weight per token, and where they come from.

The weights come from the structure of the trajectory (which tokens the model sampled), never from the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..agents.trajectory import Sample, Step, Trajectory
from ..models.errors import RestillError
from .files import write_atomic

Mode = Literal["trajectory", "step"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sequence to learn from.

    Attributes:
        tokens: ids.
        weights: as many; ``weights[i]`` weighs -log p(tokens[i] | tokens[:i]). Zero on everything that is
            not the model's own; may be negative (push down).
        provenance: protocol, question key, sample index, agent hash, score; for an example of one step also its
            index, kind, the place of its target among the samples, and whether a ranker put that in.
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

    def scaled(self, by: float) -> Example:
        """The same sequence with every weight times ``by``; below 0, what was learnt is pushed down."""
        return replace(self, weights=tuple(by * weight for weight in self.weights))

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
    def from_trajectories(
        cls,
        trajectories: Iterable[Trajectory],
        *,
        scores: Iterable[float] | None = None,
        mode: Mode = "trajectory",
    ) -> Mixture:
        """What to learn from trajectories: every good turn, or where a step is ranked its best sample instead.

        Turns that could not be read as an action, and turns forced by the finishing grammar, have weight 0,
        everything else that the model (or, for a replaced target, the ranker's choice) wrote has weight 1. Few-shot
        examples and hints are in no prompt.

        Args:
            scores: one a trajectory, for the provenance.
            mode: "trajectory": one sequence each, wherever prompts only grow (a turn that a ranker replaced has
                weight 0 in it and becomes an example of its own); identical sequences count once. "step": one
                example a step, prompt and target (Aksitov et al. 2312.10003), as many as there are good steps.

        Raises:
            RestillError: a trajectory has no token ids, or an unknown mode.
        """
        check_mode(mode)
        scored = ((t, None) for t in trajectories) if scores is None else zip(trajectories, scores, strict=True)
        examples = [e for t, s in scored for e in _examples(t, s, mode)]
        return cls.of(examples) if mode == "trajectory" else cls(tuple(e for e in examples if e.targets))

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
        with path.open(encoding="utf-8", newline="\n") as lines:  # str.splitlines would part at U+2028 as well
            for number, line in enumerate(lines, 1):
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

    @property
    def trajectories(self) -> int:
        """How many trajectories the examples are of."""
        names = ("question_key", "sample", "agent")
        return len({tuple(e.provenance.get(name) for name in names) for e in self.examples})

    @property
    def protocol(self) -> str | None:
        """The protocol of all examples; ``None`` when they have several, or one does not say (older files)."""
        found = {e.provenance.get("protocol") for e in self.examples}
        return found.pop() if len(found) == 1 else None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def check_mode(mode: str) -> None:
    """Raises RestillError for an unknown mode."""
    if mode not in ("trajectory", "step"):
        raise RestillError(f"mode={mode!r} is unknown; use 'trajectory' or 'step'")


def is_readable(step: Step) -> bool:
    """Whether a turn could be read as an action."""
    return step.action is not None and (step.observation is None or step.observation.status != "invalid")


def is_good(step: Step) -> bool:
    """Whether a turn is worth imitating: read as an action, and not forced by the finishing grammar."""
    return is_readable(step) and not step.forced


def target(step: Step) -> tuple[int, bool]:
    """(place of the sample to learn, whether it replaces what went on): the ranker's first, else what went on.

    A first choice that says the same as what went on replaces nothing.
    """
    first = step.ranking[0] if step.ranking else step.chosen
    replaced = _content(step.samples[first]) != _content(step.sample)
    return (first, True) if replaced else (step.chosen, False)


def _content(sample: Sample) -> tuple[int, ...] | str:
    return tuple(sample.tokens) or sample.text


def _examples(trajectory: Trajectory, score: float | None, mode: Mode) -> Iterator[Example]:
    targets = [target(step) for step in trajectory.steps]
    for step, (place, _) in zip(trajectory.steps, targets, strict=True):
        if trajectory.text_only or any(s.text and not s.tokens for s in (step.sample, step.samples[place])):
            raise RestillError(
                f"trajectory {trajectory.id} has no token ids (its model speaks text only); "
                "roll out with a JaxChatModel to train on its own tokens"
            )
    source: dict[str, Any] = {
        "protocol": trajectory.protocol,
        "question_key": trajectory.question_key,
        "sample": trajectory.sample,
        "agent": trajectory.agent,
        "guide": trajectory.guide,
    }
    if score is not None:
        source["score"] = round(float(score), 6)
    whole = mode == "trajectory" and trajectory.append_only
    if whole:
        tokens: list[int] = []
        weights: list[float] = []
        for step, (_, replaced) in zip(trajectory.steps, targets, strict=True):
            weight = 1.0 if is_good(step) and not replaced else 0.0
            tokens += step.prompt.suffix + step.sample.tokens
            weights += [0.0] * len(step.prompt.suffix) + [weight] * len(step.sample.tokens)
        yield Example(tokens=tuple(tokens), weights=tuple(weights), provenance=source)
    prompts = list(trajectory.prompts())
    for index, (step, (place, replaced)) in enumerate(zip(trajectory.steps, targets, strict=True)):
        if whole and not replaced:
            continue
        sample = step.samples[place]
        # Readable: what went on, as the agent found; what a ranker put first, as it was drawn.
        good = (
            not step.forced and sample.error is None and sample.finish_reason == "stop" if replaced else is_good(step)
        )
        own = sample.tokens
        yield Example(
            tokens=(*prompts[index], *own),
            weights=(*[0.0] * len(prompts[index]), *[1.0 if good else 0.0] * len(own)),
            provenance={**source, "step": index, "kind": step.kind, "target": place, "replaced": replaced},
        )
