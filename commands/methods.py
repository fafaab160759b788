"""The methods of ``restill improve``, made from its options."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import typer

from ..models.errors import RestillError
from .common import given, refuse_others

if TYPE_CHECKING:
    from ..agents.agent import Agent
    from ..selftrain.latent_method import LatentMethod
    from ..selftrain.pilot import Pilot
    from ..selftrain.rest import ReST
    from ..selftrain.step_rankers import StepRanker
    from ..selftrain.trainer import TrainConfig
    from ..selftrain.trice_gradient import Estimator

REST = "rest"
LATENT = ("trice", "star", "rejection", "filtered", "reference", "direct")
_WHOSE: dict[str, tuple[str, ...]] = {  # options that not every method has
    **dict.fromkeys(("generations", "ranker", "step_ranker", "temperature", "replay", "per_step", "control"), (REST,)),
    **dict.fromkeys(("shard", "workers", "ray"), (REST,)),
    "samples": (REST, "rejection", "filtered"),
    "minibatch": ("trice", "rejection"),
    **dict.fromkeys(("estimator", "guide"), ("trice",)),
    **dict.fromkeys(("updates", "resampled", "eval_every"), LATENT),
}
_GUIDE_ROOM = 1024
"""Tokens of the examples that an agent with tools is shown beside a hint."""


def refuse_foreign(context: typer.Context, method: str) -> None:
    """Find options that ``--method`` would ignore.

    Raises:
        RestillError: there is one, or there is no such method.
    """
    refuse_others(context, "method", method, (REST, *LATENT), _WHOSE)


def make_pilot(method: str, agent: str, questions: int | None, noise: float, teacher: Any) -> Pilot | None:
    """The pilot: by default of ReST with an agent that searches, and where a teacher or noise is asked for.

    Raises:
        RestillError: a teacher or noise for no questions.
    """
    from ..selftrain.pilot import Pilot

    asked = teacher is not None or noise > 0
    if questions is None:
        questions = 100 if asked or (method == REST and agent != "reason") else 0
    if not questions and asked:
        raise RestillError(f"--pilot 0 leaves nothing for --{'noise' if teacher is None else 'teacher'}; give a number")
    return Pilot(questions=questions, noise=noise, teacher=teacher) if questions else None


def make_rest(*, ranker: str, samples: int | None, **knobs: Any) -> ReST:
    """ReST with a trajectory ranker by name.

    Raises:
        RestillError: no such ranker.
    """
    from ..selftrain.feedback import CompletedRanker, GoldRanker, LikelihoodRanker
    from ..selftrain.rest import ReST

    rankers = {"gold": GoldRanker, "likelihood": LikelihoodRanker, "completed": CompletedRanker}
    if ranker not in rankers:
        raise RestillError(f"--ranker {ranker!r} is unknown; use {' or '.join(rankers)}")
    grown = samples or 2
    keep = grown if ranker == "completed" else 1
    return ReST(ranker=rankers[ranker](), samples=grown, keep_per_question=keep, **knobs)


def make_latent(
    context: typer.Context,
    method: str,
    agent: str,
    *,
    pilot: Pilot | None,
    train: TrainConfig,
    samples: int | None,
    guide: str | None,
    estimator: str,
    **knobs: Any,
) -> LatentMethod:
    """TRICE or one of its baselines.

    Args:
        agent: one that searches is guided by the scripted expert, unless ``guide`` says otherwise.
        knobs: the other fields of :class:`~restill.selftrain.latent_method.LatentMethod`.

    Raises:
        RestillError: a knob out of range, or one that would be ignored.
    """
    from ..selftrain.baselines import FilteredSFT, RejectionSampling, STaR
    from ..selftrain.trice import TRICE
    from ..selftrain.written import DirectAnswer, ReferenceSFT

    if pilot is None and given(context, "epochs"):
        raise RestillError(f"--epochs is of the pilot, and --method {method} has none; say --updates, or add --pilot")
    first: Any = guide or ("answer" if agent == "reason" else "expert")
    if first not in ("answer", "expert", "none"):
        raise RestillError(f"--guide {first!r} is unknown; use answer, expert or none")
    shared: dict[str, Any] = {"pilot": pilot, "train": train, "max_context": max(32, train.row_length), **knobs}
    drawn = {} if samples is None else {"samples": samples}
    match method:
        case "trice":
            return TRICE(guide=None if first == "none" else first, estimator=cast("Estimator", estimator), **shared)
        case "star":
            return STaR(rounds=min(3, knobs["steps"]), **shared)
        case "rejection":
            return RejectionSampling(**drawn, **shared)
        case "filtered":
            return FilteredSFT(**drawn, **shared)
        case "reference":
            return ReferenceSFT(**shared)
        case _:
            return DirectAnswer(**shared)


def with_guide_room(method: ReST | LatentMethod, agent: Agent) -> ReST | LatentMethod:
    """The method with room in its engine's context for what only a guide sees (examples and hint), if it has one."""
    from ..agents.reason import ReasoningAgent
    from ..selftrain.baselines import STaR
    from ..selftrain.trice import TRICE

    if not isinstance(method, STaR) and not (isinstance(method, TRICE) and method.guide == "answer"):
        return method
    room = _GUIDE_ROOM
    if isinstance(agent, ReasoningAgent) and hasattr(agent.model, "tokenizer"):  # a remote one is refused by improve
        shown = [text for pair in agent.demonstrations for text in pair]
        room = 64 + sum(32 + len(agent.model.tokenizer.encode(text)) for text in shown)
    return replace(method, max_context=method.max_context + room)


def make_step_ranker(name: str | None, agent: str, model: str, deterministic: bool) -> StepRanker | None:
    """A step ranker by name, or an adapter's.

    Raises:
        RestillError: an agent that draws one sample a step, or no such adapter.
    """
    from ..selftrain.ranker_adapter import AdapterStepRanker
    from ..selftrain.step_rankers import GoldStepRanker, RandomStepRanker

    known = {"gold": GoldStepRanker, "random": RandomStepRanker}
    if name is None:
        return None
    if agent != "search":
        raise RestillError(
            f"--step-ranker {name} orders the samples of a step, and --agent {agent} draws one; add --agent search"
        )
    if name in known:
        return known[name]()
    from ..models.chat import JaxChatModel

    return AdapterStepRanker(model=JaxChatModel.from_pretrained(model, adapter=name, deterministic=deterministic))
