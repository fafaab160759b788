"""The methods of ``restill improve``, made from its options, and which option is whose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ..models.errors import RestillError

if TYPE_CHECKING:
    from ..selftrain.latent_method import LatentMethod
    from ..selftrain.pilot import Pilot
    from ..selftrain.rest import ReST
    from ..selftrain.step_rankers import StepRanker
    from ..selftrain.trainer import TrainConfig

REST = "rest"
LATENT = ("trice", "star", "rejection", "filtered", "reference", "direct")
_DRAWS_OFTEN = ("rejection", "filtered")
_WHOSE: dict[str, tuple[str, ...]] = {  # options that not every method has
    **dict.fromkeys(("generations", "ranker", "step_ranker", "temperature", "replay", "per_step", "control"), (REST,)),
    **dict.fromkeys(("shard", "workers", "ray"), (REST,)),
    "samples": (REST, *_DRAWS_OFTEN),
    "minibatch": ("trice", "rejection"),
    **dict.fromkeys(("estimator", "guide"), ("trice",)),
    **dict.fromkeys(("updates", "resampled", "eval_every"), LATENT),
}


def given(context: typer.Context, option: str) -> bool:
    """Whether the command line has an option, rather than its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def refuse_foreign(context: typer.Context, method: str) -> None:
    """Find options that ``--method`` would ignore.

    Raises:
        RestillError: there is one, or there is no such method.
    """
    if method not in (REST, *LATENT):
        raise RestillError(f"--method {method!r} is unknown; use {', '.join((REST, *LATENT))}")
    for option, whose in _WHOSE.items():
        if method not in whose and given(context, option):
            name = option.replace("_", "-")
            raise RestillError(f"--{name} is an option of --method {' or '.join(whose)}, not of {method}: leave it out")


def make_rest(*, ranker: str, samples: int, **knobs: Any) -> ReST:
    """ReST with a trajectory ranker by name.

    Raises:
        RestillError: no such ranker.
    """
    from ..selftrain.feedback import CompletedRanker, GoldRanker, LikelihoodRanker
    from ..selftrain.rest import ReST

    rankers = {"gold": GoldRanker, "likelihood": LikelihoodRanker, "completed": CompletedRanker}
    if ranker not in rankers:
        raise RestillError(f"--ranker {ranker!r} is unknown; use {' or '.join(rankers)}")
    keep = samples if ranker == "completed" else 1
    return ReST(ranker=rankers[ranker](), samples=samples, keep_per_question=keep, **knobs)


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


def make_latent(
    context: typer.Context,
    method: str,
    *,
    agent: str,
    pilot: Pilot | None,
    train: TrainConfig,
    samples: int,
    guide: str | None,
    estimator: str,
    **knobs: Any,
) -> LatentMethod:
    """TRICE or one of its baselines.

    Args:
        agent: "reason" is guided by the answer, others by the scripted expert unless ``guide`` says otherwise.
        knobs: the other fields of :class:`~restill.selftrain.latent_method.LatentMethod`.

    Raises:
        RestillError: a knob out of range.
    """
    from ..selftrain.baselines import DirectAnswer, FilteredSFT, ReferenceSFT, RejectionSampling, STaR
    from ..selftrain.trice import TRICE

    made: dict[str, type[LatentMethod]] = {
        "trice": TRICE,
        "star": STaR,
        "rejection": RejectionSampling,
        "filtered": FilteredSFT,
        "reference": ReferenceSFT,
        "direct": DirectAnswer,
    }
    if method == "trice":
        first = guide or ("answer" if agent == "reason" else "expert")
        knobs |= {"guide": None if first == "none" else first, "estimator": estimator}
    elif method == "star":
        knobs["rounds"] = min(3, knobs["steps"])
    elif method in _DRAWS_OFTEN and given(context, "samples"):
        knobs["samples"] = samples
    return made[method](pilot=pilot, train=train, max_context=train.row_length, **knobs)


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
