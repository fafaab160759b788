"""Training a judge adapter: labelled answers in, a LoRA out that writes the two lines of a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..agents.model import ChatTokenizer
from .feedback_adapter import train_adapter
from .judge import JUDGE_FORMAT, judge_messages, write_verdict
from .judge_data import Labelled
from .mixture import Example, Mixture
from .trainer import TrainConfig

if TYPE_CHECKING:
    from ..models.checkpoint.load import Checkpoint

VERDICT_WEIGHT = 4.0
"""Of the tokens from ``Verdict:`` on, against 1 for the reasoning: few tokens, and the ones that count."""

JUDGE_TRAIN = TrainConfig(lr=3e-3, epochs=1, rows=1, row_length=512, frozen_layers=10)
"""About 1,500 answers in one pass; the same shape as the demo's training, so that its programs are shared."""


def judge_mixture(tokenizer: ChatTokenizer, labelled: Sequence[Labelled], *, seed: int = 0) -> Mixture:
    """One example an answer: the short prompt, weight on the verdict and its reasoning only."""
    return Mixture.of(_example(tokenizer, row, seed + number) for number, row in enumerate(labelled))


def _example(tokenizer: ChatTokenizer, row: Labelled, seed: int) -> Example:
    case = row.case
    messages = judge_messages(case.question, case.answer or "", case.references[0], style="short", seed=seed)
    prompt = tokenizer.chat(messages)
    reason, verdict = write_verdict(row.reason, row.right).split("\nVerdict:")
    first, second = tokenizer.encode(f"{reason}\n"), [*tokenizer.encode(f"Verdict:{verdict}"), tokenizer.eos_ids[0]]
    return Example(
        tokens=(*prompt, *first, *second),
        weights=(*[0.0] * len(prompt), *[1.0] * len(first), *[VERDICT_WEIGHT] * len(second)),
        provenance={"kind": row.kind, "right": row.right, "question": case.question},
    )


def train_judge(
    checkpoint: Checkpoint,
    labelled: Sequence[Labelled],
    *,
    out: str | Path,
    train: TrainConfig | None = None,
    progress: bool = False,
) -> Path:
    """Train a judge adapter; serve it with ``Judge(model=model.with_adapter(out))``."""
    mixture = judge_mixture(checkpoint.tokenizer, labelled)
    questions = sorted({row.case.question for row in labelled})
    return train_adapter(
        checkpoint, mixture, out=out, format=JUDGE_FORMAT, train=train or JUDGE_TRAIN,
        manifest={"answers": len(labelled), "train_questions": len(questions)}, progress=progress,
    )  # fmt: skip
