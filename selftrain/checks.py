"""What a self-training job refuses before it begins, so that nothing fails after hours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..agents.agent import Agent
from ..agents.evaluate import need_answers
from ..agents.question import Question
from ..agents.scores import wording
from ..models.errors import RestillError
from .files import read_json
from .latent_method import LatentMethod
from .plain import asked
from .rest import ReST
from .rewards import right
from .trainer import Trainer


def refuse(agent: Agent, train: Sequence[Question], held_out: Sequence[Question], method: ReST | LatentMethod) -> None:
    """Find what would fail later.

    Raises:
        RestillError: a model without local weights, labels or answers that are missing, held-out questions that are
            trained on, a pilot that can guide nothing, or adapters of different ranks.
    """
    model = agent.model
    if not hasattr(model, "checkpoint") or not hasattr(model, "with_adapter"):
        raise RestillError(f"{type(model).__name__} has no local weights to train; use a JaxChatModel")
    if not train:
        raise RestillError("there are no questions to train on")
    if isinstance(method, ReST):
        _refuse_unlabelled(train, method)
    elif method.reward is right and (missing := [q for q in train if not q.answers]):
        raise RestillError(
            f"{len(missing)} of {len(train)} training questions have no answers, such as "
            f"{missing[0].question!r:.80}; {type(method).__name__} needs them, or a reward that does not"
        )
    if held_out:
        need_answers(held_out)
    refuse_overlap(train, held_out)
    if method.pilot is not None:
        method.pilot.check(agent)
        method.pilot.guided(agent, method.pilot.choose(train, 0))
    if isinstance(method, LatentMethod):
        method.check(agent, train)
        if method.eval_every and not held_out:
            raise RestillError(f"eval_every={method.eval_every} asks held-out questions, and there are none; give eval")
    own, full = model.adapter, method.train.method == "full"
    learnt = {f"the adapter {own.path}": Path(own.path)} if own is not None else {}
    if (folder := model.checkpoint.folder) is not None:
        learnt[f"the model {folder}"] = folder
    for name, other in asked(method).items():
        if (adapter := getattr(other, "adapter", None)) is not None and getattr(adapter, "path", None):
            learnt[f"the adapter {adapter.path} of {name}"] = Path(adapter.path)
    for name, path in learnt.items():
        known = trained_on(path)
        if seen := [q for q in held_out if q.key in known]:
            raise RestillError(
                f"{len(seen)} of the {len(held_out)} eval questions are among those that {name} was trained on, such "
                f"as {seen[0].question!r:.90}; take them out, or begin with another"
            )
    first = method.pilot.train or method.train if method.pilot is not None else method.train
    # Construct, so that a rank that does not fit is found now and not after hours of rollouts.
    checkpoint = model.checkpoint
    start = None if own is None or method.start == "base" else own.path
    Trainer(checkpoint.config, checkpoint.params, first, start=start, tokenizer=checkpoint.tokenizer)
    if method.pilot is not None and not full and method.start == "previous":
        if (first.rank, first.alpha) != (method.train.rank, method.train.alpha):
            raise RestillError(
                f"the pilot trains rank={first.rank}, alpha={first.alpha}, the generations "
                f"rank={method.train.rank}, alpha={method.train.alpha}; make them equal, or use start='base'"
            )


def trained_on(folder: Path | None) -> set[str]:
    """Keys of the questions that an adapter or a model, or what it was trained on from, has learned from, by its
    manifest."""
    manifest = None if folder is None else read_json(folder / "manifest.json")
    return set((manifest or {}).get("train_question_hashes", []))


def _refuse_unlabelled(train: Sequence[Question], method: ReST) -> None:
    missing = [q for q in train if not q.answers]
    if method.ranker.needs_labels and missing:
        raise RestillError(
            f"{len(missing)} of {len(train)} training questions have no answers, such as "
            f"{missing[0].question!r:.80}; "
            f"{type(method.ranker).__name__} needs them, LikelihoodRanker does not"
        )
    steps = method.step_ranker
    if steps is not None and steps.needs_labels and missing:
        raise RestillError(
            f"{len(missing)} of {len(train)} training questions have no answers, such as "
            f"{missing[0].question!r:.80}; {type(steps).__name__} needs them, a ranker adapter does not"
        )


def refuse_overlap(train: Sequence[Question], held_out: Sequence[Question]) -> None:
    """Raises RestillError when the text of a held-out question is also that of a training question."""
    texts = {wording(q.question) for q in train}
    both = [q for q in held_out if wording(q.question) in texts]
    if both:
        raise RestillError(
            f"{len(both)} of the {len(held_out)} eval questions are training questions too, "
            f"such as {both[0].question!r:.90}; take them out of one of the two"
        )
