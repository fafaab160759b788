"""Training a judge adapter: labelled answers in, a LoRA out that writes the two lines of a verdict; then its floor."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ..agents.model import ChatTokenizer
from ..models.errors import RestillError
from .feedback_adapter import train_adapter
from .files import read_json, write_json
from .hostile import hostile
from .judge import FLOOR, JUDGE_FORMAT, Judge, judge_messages, write_verdict
from .judge_data import Answers, Labelled
from .mixture import Example, Mixture
from .trainer import TrainConfig

if TYPE_CHECKING:
    from ..models.chat import JaxChatModel
    from ..models.checkpoint.load import Checkpoint
    from .world import World

VERDICT_WEIGHT = 4.0
"""Of the tokens from ``Verdict:`` on, against 1 for the reasoning: few tokens, and the ones that count."""

JUDGE_TRAIN = TrainConfig(lr=3e-3, epochs=1, rows=1, row_length=512, frozen_layers=12)
"""About 1,500 answers in one pass; 18 of SmolLM2's 30 layers, an adapter of 12 MB."""


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


def calibrate(model: JaxChatModel, adapter: Path, world: World, *, count: int = 200, seed: int = 0) -> float:
    """Choose how sure a True must be, on a World of its own, and write it into the adapter's manifest.

    Args:
        model: the base model; it may carry another adapter or none.
        adapter: a folder that :func:`train_judge` made.
        world: one that is used neither to train nor to measure; its held-out questions are asked.
        count: right answers, wrong answers, and hostile ones of wordings kept for this (:func:`.hostile.hostile`).

    Returns:
        The floor; a judge of this adapter goes by it from now on (:attr:`.judge.Judge.floor`).
    """
    answers, rng = Answers(world, training=True), random.Random(f"restill-calibrate {seed}")
    asked = [world.heldout[i % len(world.heldout)] for i in range(count)]
    right = [answers.right(question, rng).case for question in asked]
    wrong = [answers.wrong(question, rng).case for question in asked]
    bad = [attack.case for attack in hostile(asked, answers.others, count, seed=seed, validating=True)]
    chat = model.with_adapter(adapter)
    try:
        sure = [v.sure for v in Judge(model=chat, repetitions=1, floor=0.0).judge([*right, *wrong, *bad])]
    finally:
        chat.close()
    parts = {"right": sure[:count], "wrong": sure[count : 2 * count], "hostile": sure[2 * count :]}
    floor = best_floor(parts["right"], [*parts["wrong"], *parts["hostile"]])
    found = {name: sum(s >= floor for s in part) / count for name, part in parts.items()}
    chosen = {"world": world.parameters.get("seed"), "of_each": count, "accepted": found}
    manifest = read_json(adapter / "manifest.json") or {}
    write_json(adapter / "manifest.json", {**manifest, FLOOR: floor, f"{FLOOR}_chosen": chosen})
    return floor


def best_floor(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The floor of the highest balanced accuracy when what is at least as sure is accepted.

    Between two scores all floors are alike: it is the middle of the widest of the best gaps.

    Raises:
        RestillError: one side is empty.
    """
    if not right or not wrong:
        raise RestillError("a floor needs scores of right and of wrong answers")
    scores = sorted({0.0, 1.0, *right, *wrong})

    def worth(gap: tuple[float, float]) -> tuple[float, float]:
        kept, passed = (sum(score >= gap[1] for score in side) / len(side) for side in (right, wrong))
        return kept - passed, gap[1] - gap[0]

    below, above = max(pairwise(scores), key=worth)
    return (below + above) / 2
