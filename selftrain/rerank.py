"""The improve pass: a ranker's orders over a finished run, written beside it and never into it.

::

    <run>/rankings/<name>.jsonl         first the settings, then one line a trajectory: its key and an order a step
    <run>/rankings/<name>-i-of-n.part   the same of one part of the questions, until all are in the first

The run stays what it was, so rollouts are the same with a ranker and without. Killed at any time, the same call goes
on; a trajectory that is written is not ranked again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..agents.model import ChatTokenizer
from ..agents.question import Question
from ..agents.run import Run
from ..agents.shards import ShardWriter, checked_shard, in_shard
from ..agents.trajectory import Key, Trajectory
from ..models.errors import RestillError
from .choice import Choice, Reader, choices
from .files import hash_json
from .gold_steps import quality
from .step_rankers import Order, StepRanker

FORMAT = "restill-rankings-1"


@dataclass(frozen=True)
class Rankings:
    """The orders of a run: (question key, sample, agent) -> per step, all samples, best first.

    Attributes:
        stats: see :func:`rerank`.
    """

    orders: dict[Key, list[list[int]]]
    stats: dict[str, float] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the orders."""
        return hash_json([[*key, orders] for key, orders in sorted(self.orders.items())])

    def of(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory with ``Step.ranking`` filled in, everything else as it was; unranked ones come back as is.

        Raises:
            RestillError: the orders do not fit the trajectory's samples.
        """
        orders = self.orders.get(trajectory.key)
        if orders is None:
            return trajectory
        sizes = [len(step.samples) for step in trajectory.steps]
        if [sorted(order) for order in orders] != [list(range(size)) for size in sizes]:
            raise RestillError(f"the rankings of {trajectory.id} belong to other samples; rank the run again")
        steps = [step.model_copy(update={"ranking": o}) for step, o in zip(trajectory.steps, orders, strict=True)]
        return trajectory.model_copy(update={"steps": steps})


def rerank(
    run: Run,
    ranker: StepRanker,
    questions: Iterable[Question] = (),
    *,
    name: str,
    settings: Mapping[str, Any] | None = None,
    tokenizer: ChatTokenizer | None = None,
    read: Reader | None = None,
    among: Set[Key] | None = None,
    batch: int = 32,
    out: Path | None = None,
    shard: tuple[int, int] | None = None,
) -> Rankings:
    """Rank every step of every completed trajectory (status "answered" or "budget") of a run, once.

    Args:
        questions: those of the run; a ranker that needs labels needs them, and agreement with gold is told where
            they have labels. Any other ranker is handed the bare text.
        name: of the file, ``<run>/rankings/<name>.jsonl``; one name, one ranker.
        settings: what the orders depend on (model, adapter hash, seed); another value under this name is refused.
        tokenizer, read: see :func:`.choice.choices`.
        among: rank only these of them. Orders and ``stats`` are of all that the file holds: ``settings`` should tell.
        batch: trajectories ranked in one call of the ranker, and lost at most when killed.
        out: the file, if it is to lie elsewhere.
        shard: (i, n): rank the i-th of n parts of the questions, for a later call without ``shard`` to take up.

    Returns:
        The orders, and ``stats``: ``steps``; ``ranked`` (more than one candidate); ``unread`` (the ranker could not
        tell); ``changed``: share of the ranked whose first choice says something else than what went on; with
        labels also ``gold_agreement``: among ranked steps with samples of different quality, the share whose first
        choice is one of the best, and ``base_gold_agreement``, the same of what went on, over ``gold_steps`` steps.

    Raises:
        RestillError: a question is missing or has no labels where they are needed, or the file belongs to other
            settings.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise RestillError(f"name={name!r}: use letters, digits, - and _")
    by_key = {q.key: q for q in questions}
    whole, part = out or run.path / "rankings" / f"{name}.jsonl", checked_shard(shard)
    path = whole if shard is None else whole.with_name(f"{name}-{part[0]}-of-{part[1]}.part")
    identity = {"format": FORMAT, "name": name, "settings": dict(settings or {})}
    parts = sorted(whole.parent.glob(f"{name}-*-of-*.part")) if shard is None else []
    done, *ranked = [_rows_of(file, identity) for file in (path, *parts)]
    ready = {key: row for rows in ranked for key, row in rows.items()}
    completed = run.keys("answered", "budget")
    wanted = sorted(completed if among is None else completed & among)
    waiting = [key for key in wanted if key not in done and in_shard(key.question, part)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if waiting:
        writer = ShardWriter(path)
        try:
            if not path.stat().st_size:
                writer.write(json.dumps(identity).encode(), 0)
            for start in range(0, len(waiting), batch):
                keys = waiting[start : start + batch]
                left = [key for key in keys if key not in ready]
                rows = ready | (_rank(run, left, ranker, by_key, tokenizer, read) if left else {})
                for key in keys:
                    writer.write(json.dumps(rows[key]).encode(), len(done))
                    done[key] = rows[key]
        finally:
            writer.close()
    for file in parts:
        file.unlink(missing_ok=True)
    return _rankings(done)


def load_rankings(path: Path) -> Rankings:
    """What :func:`rerank` has written so far, a torn last line passed over.

    Raises:
        RestillError: the file holds something else.
    """
    head, done = _load(path)
    if head is not None and (not isinstance(head, dict) or head.get("format") != FORMAT):
        raise RestillError(f"{path} holds no rankings of this version; move it away")
    return _rankings(done)


def _rankings(rows: Mapping[Key, Mapping[str, Any]]) -> Rankings:
    return Rankings({key: row["orders"] for key, row in rows.items()}, _stats(list(rows.values())))


def _rank(
    run: Run,
    keys: Sequence[Key],
    ranker: StepRanker,
    questions: Mapping[str, Question],
    tokenizer: ChatTokenizer | None,
    read: Reader | None,
) -> dict[Key, dict[str, Any]]:
    found: dict[Key, list[Choice]] = {}
    labels: dict[Key, Question | None] = {}
    for key in keys:
        trajectory = run.get(key)
        if trajectory is None:
            raise RestillError(f"the run lost {key}")
        labelled = questions.get(key.question)
        if labelled is None and ranker.needs_labels:
            raise RestillError(f"{type(ranker).__name__} needs the labels of question {trajectory.question!r:.80}")
        bare = Question(id=trajectory.question_id, question=trajectory.question)
        shown = labelled if ranker.needs_labels and labelled is not None else bare
        found[key] = list(choices(trajectory, shown, tokenizer=tokenizer, read=read))
        labels[key] = labelled if labelled is not None and _has_gold(labelled) else None
    flat = [choice for listed in found.values() for choice in listed]
    orders = iter(ranker.rank(flat))
    rows = {}
    for key, listed in found.items():
        given = [next(orders) for _ in listed]
        facts = [_facts(choice, order, labels[key]) for choice, order in zip(listed, given, strict=True)]
        rows[key] = {"key": list(key), "orders": [order.order for order in given], "facts": facts}
    return rows


def _facts(choice: Choice, order: Order, labelled: Question | None) -> dict[str, Any]:
    """What the statistics need of one step."""
    if len(choice.candidates) < 2:
        return {}
    same = next(group for group in choice.groups if choice.step.chosen in group)
    facts: dict[str, Any] = {"read": order.read, "changed": order.order[0] not in same}
    if order.note:
        facts["note"] = order.note[:200]
    if labelled is not None:
        seen = replace(choice, question=labelled)
        scores = {place: quality(seen, place) for place in choice.candidates}
        best = max(scores.values())
        if min(scores.values()) < best:
            base = choice.candidates[0]
            facts |= {"gold": scores.get(order.order[0]) == best, "base_gold": scores[base] == best}
    return facts


def _has_gold(question: Question) -> bool:
    return bool(question.answers and (question.metadata.get("plan") or question.gold or question.gold_titles))


def _stats(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    facts = [fact for row in rows for fact in row["facts"]]
    ranked = [fact for fact in facts if fact]
    gold = [fact for fact in ranked if "gold" in fact]
    stats: dict[str, float] = {
        "steps": len(facts),
        "ranked": len(ranked),
        "unread": sum(not fact["read"] for fact in ranked),
        "changed": _share([fact["changed"] for fact in ranked]),
    }
    if gold:
        stats |= {
            "gold_steps": len(gold),
            "gold_agreement": _share([fact["gold"] for fact in gold]),
            "base_gold_agreement": _share([fact["base_gold"] for fact in gold]),
        }
    return stats


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _rows_of(path: Path, identity: Mapping[str, Any]) -> dict[Key, dict[str, Any]]:
    head, rows = _load(path)
    if head is not None and head != json.loads(json.dumps(identity)):
        raise RestillError(f"{path} was made with {head}, now {identity}; give another name, or delete it")
    return rows


def _load(path: Path) -> tuple[dict[str, Any] | None, dict[Key, dict[str, Any]]]:
    """The settings, ``None`` when none are written yet, and the rows."""
    if not path.is_file():
        return None, {}
    lines = path.read_bytes().split(b"\n")[:-1]  # what has no line end is torn; the writer cuts it off
    if not lines:
        return None, {}
    try:
        head, *rows = [json.loads(line) for line in lines]
        return head, {Key(*row["key"]): row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise RestillError(f"{path} holds no rankings ({error}); delete it, they can be made again") from None
