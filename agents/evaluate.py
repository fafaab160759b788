"""Evaluation: a rollout, scored against the answers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..models.errors import RestillError
from ..retrieval.intervals import bootstrap_interval, paired_interval
from .agent import Agent
from .evidence import LOSSES, Loss, evidence_recall, lost_to
from .question import Question
from .rollout import rollout
from .run import Run
from .scores import exact_match, f1, match, normalise, spelling
from .trajectory import Key, Trajectory

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "EvalReport",
    "EvalRow",
    "evaluate",
    "exact_match",
    "f1",
    "normalise",
    "score_run",
]


class EvalRow(BaseModel):
    """One question, averaged over its samples.

    Attributes:
        answers: predicted, one a sample.
        em_unforced: exact match, where an answer forced by the grammar after the budget ran out counts as
            wrong.
        recall: share of the gold documents that were retrieved; ``None`` when the question names none.
    """

    key: str
    id: str
    question: str
    golds: list[str]
    answers: list[str | None]
    statuses: list[str]
    em: float
    f1: float
    em_unforced: float
    answered: float
    forced: float
    searches: float
    recall: float | None = None


class EvalReport(BaseModel):
    """Scores of one agent over a set of questions; shares lie between 0 and 1.

    Attributes:
        em: exact match (:func:`.scores.match`), forced answers included; ``em_unforced`` counts those as wrong.
        answered: share that ended with ``finish`` within the budget.
        forced: share whose answer was drawn after the budget had run out.
        tool_calls: calls per trajectory, of any tool.
        tokens: generated tokens per trajectory; ``prompt_tokens`` with every prompt counted whole.
        recall: share of the gold documents that were retrieved, over the questions that name some.
        lost: of all trajectories over such questions, the shares that are wrong because of their format, retrieval, hop
            and reading (:func:`.evidence.lost_to`).
        missing: trajectories that the run does not hold (another shard's, say); they count as wrong.
        occupancy: share of the engine's slots that were decoding, over its steps; ``None`` without an engine.
    """

    agent: str
    config: dict[str, Any] = {}
    questions: int
    samples: int
    em: float
    em_interval: tuple[float, float]
    f1: float
    f1_interval: tuple[float, float]
    em_unforced: float
    answered: float
    forced: float
    statuses: dict[str, int]
    tool_calls: float
    tokens: float
    prompt_tokens: float
    seconds: float
    recall: float | None = None
    lost: dict[str, float] = {}
    missing: int = 0
    occupancy: float | None = None
    run: str = ""
    rows: list[EvalRow] = []

    def table(self) -> Table:
        """The report as a rich table."""
        from rich.table import Table

        table = Table(title=f"{self.questions} questions, {self.samples} sample(s) each", title_justify="left")
        table.add_column("measure")
        table.add_column("value", justify="right")
        table.add_column("95 % interval", justify="right")
        table.add_row("exact match", _percent(self.em), _interval(self.em_interval))
        table.add_row("F1", _percent(self.f1), _interval(self.f1_interval))
        table.add_row("exact match, forced answers wrong", _percent(self.em_unforced), "")
        table.add_row("answered within the budget", _percent(self.answered), "")
        table.add_row("answer forced after the budget", _percent(self.forced), "")
        if self.recall is not None:
            table.add_row("gold documents retrieved", _percent(self.recall), "")
        if self.lost:
            table.add_row("wrong for", ", ".join(f"{loss} {_percent(share)}" for loss, share in self.lost.items()), "")
        table.add_row("tool calls a question", f"{self.tool_calls:.2f}", "")
        table.add_row("generated tokens a question", f"{self.tokens:.0f}", "")
        table.add_row("statuses", ", ".join(f"{n} {s}" for s, n in sorted(self.statuses.items())), "")
        if self.occupancy is not None:
            table.add_row("engine occupancy", _percent(self.occupancy), "")
        if self.missing:
            table.add_row("missing trajectories", str(self.missing), "")
        return table

    def difference(self, other: EvalReport, seed: int = 0) -> tuple[float, tuple[float, float]]:
        """Exact match of this report minus ``other``'s on the questions both have, with its paired interval.

        Raises:
            RestillError: the reports share no question.
        """
        theirs = {row.key: row.em for row in other.rows}
        pairs = [(row.em, theirs[row.key]) for row in self.rows if row.key in theirs]
        if not pairs:
            raise RestillError("the two reports share no question; evaluate both on the same file")
        ours, others = [a for a, _ in pairs], [b for _, b in pairs]
        return _mean(ours) - _mean(others), paired_interval(ours, others, seed)


def evaluate(
    agent: Agent,
    questions: Iterable[Question],
    *,
    out: str | os.PathLike[str],
    samples: int = 1,
    seed: int = 0,
    limit: int | None = None,
    **options: Any,
) -> EvalReport:
    """Roll out ``agent`` into the run directory ``out`` (resumable) and score it.

    Args:
        options: of :func:`rollout`: concurrency, deadline, shard, progress.

    Raises:
        RestillError: a question without an answer, or whatever :func:`rollout` raises.
    """
    asked = list({q.key: q for q in questions}.values())[:limit]
    need_answers(asked)
    run = rollout(agent, asked, out=out, samples=samples, seed=seed, **options)
    return score_run(run, asked, agent=agent.fingerprint, samples=samples)


def score_run(run: Run, questions: Sequence[Question], *, agent: str, samples: int = 1, seed: int = 0) -> EvalReport:
    """Score what ``run`` holds of ``agent`` (its hash) on ``questions``; ``seed`` is the bootstrap's.

    Raises:
        RestillError: no questions, or one without an answer.
    """
    need_answers(questions)
    rows: list[EvalRow] = []
    losses: list[Loss | None] = []
    spent: list[tuple[str, int, int, int, float]] = []  # of each trajectory: they are not all kept in memory
    for question in questions:
        keys = [Key(question.key, sample, agent) for sample in range(samples)]
        trajectories = [t for key in keys if (t := run.get(key)) is not None]
        spent += [(t.status, len(t.calls()), t.usage.generated, t.usage.prompt, t.seconds) for t in trajectories]
        if question.gold or question.gold_titles:
            losses.extend(lost_to(question, t) for t in trajectories)
        rows.append(_row(question, trajectories, samples))
    worked = run.stats(agent)
    statuses, calls, generated, read, seconds = map(list, zip(*spent, strict=True)) if spent else ([],) * 5
    recalls = [row.recall for row in rows if row.recall is not None]
    return EvalReport(
        agent=agent,
        config=run.manifest.get("agents", {}).get(agent, {}),
        questions=len(rows),
        samples=samples,
        em=_mean([row.em for row in rows]),
        em_interval=bootstrap_interval([row.em for row in rows], seed),
        f1=_mean([row.f1 for row in rows]),
        f1_interval=bootstrap_interval([row.f1 for row in rows], seed),
        em_unforced=_mean([row.em_unforced for row in rows]),
        answered=_mean([row.answered for row in rows]),
        forced=_mean([row.forced for row in rows]),
        statuses=dict(Counter(statuses)),
        tool_calls=_mean(calls),
        tokens=_mean(generated),
        prompt_tokens=_mean(read),
        seconds=_mean(seconds),
        recall=_mean(recalls) if recalls else None,
        lost={loss: losses.count(loss) / len(losses) for loss in LOSSES} if losses else {},
        missing=len(rows) * samples - len(spent),
        occupancy=None if worked is None else worked.occupancy,
        run=str(run.path),
        rows=rows,
    )


def _row(question: Question, trajectories: list[Trajectory], samples: int) -> EvalRow:
    scores = [match(t, question.answers) for t in trajectories]
    recalls = [recall for t in trajectories if (recall := evidence_recall(question, t)) is not None]
    return EvalRow(
        key=question.key,
        id=question.id,
        question=question.question,
        golds=question.answers,
        answers=[t.answer for t in trajectories],
        statuses=[t.status for t in trajectories],
        em=sum(scores) / samples,
        f1=sum(f1(t.answer, question.answers, spelling(t)) for t in trajectories) / samples,
        em_unforced=sum(s for s, t in zip(scores, trajectories, strict=True) if not t.forced) / samples,
        answered=sum(t.status == "answered" for t in trajectories) / samples,
        forced=sum(t.forced and t.answer is not None for t in trajectories) / samples,
        searches=_mean([len(t.calls()) for t in trajectories]),
        recall=_mean(recalls) if recalls else None,
    )


def need_answers(questions: Sequence[Question]) -> None:
    """Raises RestillError when there are no questions, or one has no answer."""
    if not questions:
        raise RestillError("there are no questions to evaluate on")
    for question in questions:
        if not question.answers:
            raise RestillError(f"question {question.id!r} has no answer to score against; give 'answers' (or 'answer')")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"
