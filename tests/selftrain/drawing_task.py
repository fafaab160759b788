"""A task that a model of random weights can do now and then: its rationale is right if its first token is even."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from restill.agents.question import Question
from restill.agents.reason import ReasoningAgent
from restill.agents.search.agent import SearchAgent
from restill.agents.trajectory import Trajectory
from restill.models.chat import JaxChatModel
from restill.models.testing import tiny_checkpoint
from restill.selftrain.trainer import TrainConfig
from restill.selftrain.trice import TRICE

TRAIN = TrainConfig(rank=2, alpha=4.0, lr=0.02, rows=2, row_length=128, warmup=0.0)
SMALL: dict[str, Any] = dict(minibatch=4, resampled=4, guide_samples=2, slots=4, max_context=192, train=TRAIN)


def even(question: Question, trajectory: Trajectory) -> float:
    """1 for a first token with an even number."""
    return float(trajectory.steps[0].sample.tokens[0] % 2 == 0)


def graded(question: Question, trajectory: Trajectory) -> float:
    """Between 0 and 1."""
    return trajectory.steps[0].sample.tokens[0] % 4 / 3


def never(question: Question, trajectory: Trajectory) -> float:
    """Nothing is right."""
    return 0.0


def always(question: Question, trajectory: Trajectory) -> float:
    """Everything is right."""
    return 1.0


def questions(count: int = 8) -> list[Question]:
    """Questions of different lengths."""
    return [
        Question(id=str(i), question="why " * (i % 3 + 1) + str(i), answers=[str(i)], gold_titles=["Because"])
        for i in range(count)
    ]


def agent(**options: Any) -> ReasoningAgent:
    """On random weights; a rationale has at most 32 tokens."""
    model = JaxChatModel.from_checkpoint(tiny_checkpoint(), slots=2, max_context=256)
    return ReasoningAgent(model, step_tokens=32, instruction="Think.", **options)


def lookup(query: str) -> str:
    """Find passages."""
    return "nothing"


def searching() -> SearchAgent:
    """An agent that draws once more where it cannot read a turn, which with random weights is always."""
    model = JaxChatModel.from_checkpoint(tiny_checkpoint(), slots=2, max_context=640)
    return SearchAgent(model, [lookup], step_tokens=32, few_shot=0)


def method(**changes: Any) -> TRICE:
    """Few, small steps."""
    return TRICE(**{"steps": 4, "reward": even, **SMALL, **changes})


def saving() -> TRICE:
    """Long enough for checkpoints, in rows that hold a search agent's trajectory."""
    return method(
        steps=8, estimator="per-question", max_context=640, train=replace(TRAIN, row_length=640, checkpoint_steps=2)
    )


def logged(job: Path, name: str = "train_log") -> list[dict[str, Any]]:
    """The rows of a finished job's log."""
    from restill.selftrain.loss_log import LossLog

    return LossLog(job / "TRICE" / "adapter" / f"{name}.jsonl").rows()
