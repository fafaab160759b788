"""One run of an agent over one question: what every kind of run keeps, and how it ends."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from ..models.errors import RestillError
from ..models.text import well_formed
from ..retrieval.types import Citation
from .budget import Spent
from .model import context_of, identity
from .observation import fold
from .plan import Plan
from .question import Question
from .tool_results import ToolResult
from .trajectory import Action, Passage, RunStatus, Sample, Seen, Step, Trajectory, Usage
from .transcript import Transcript

LAST_MOMENT = 0.5
"""Seconds before the hard end when the last call must return what it has."""
MIN_TURN = 16
"""Fewest tokens worth beginning a turn for."""
MIN_OBSERVATION = 16
"""Fewest tokens kept for an observation."""

AnyPlan = TypeVar("AnyPlan", bound=Plan)
AnyTranscript = TypeVar("AnyTranscript", bound=Transcript)


class Episode(ABC, Generic[AnyPlan]):
    """One run. :meth:`complete` carries it out; :meth:`trajectory` can be read at any time, also after a
    cancellation.

    Args:
        deadline: hard end (``time.monotonic()``), besides the budget's own.
        on_step: called with each step when it is complete.
    """

    def __init__(
        self,
        plan: AnyPlan,
        question: Question,
        *,
        seed: int,
        sample: int = 0,
        deadline: float | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self._plan = plan
        self._question = question
        self._seed = seed
        self._sample = sample
        self._on_step = on_step
        self._spent = Spent(plan.budget, context=context_of(plan.model), deadline=deadline)
        self._created = time.time()
        self._steps: list[Step] = []
        self._passages: dict[int, Passage] = {}
        self._usage = Usage()
        self._status: RunStatus = "cancelled"
        self._answer: str | None = None
        self._citations: list[Citation] = []
        self._dropped: list[int] = []
        self._draft: str | None = None
        self._draft_citations: list[Citation] = []
        self._forced = False
        self._error: str | None = None
        self._seconds: float | None = None

    @abstractmethod
    async def _loop(self) -> None:
        """Run to an end, and say which with :meth:`_end`."""

    @property
    @abstractmethod
    def _opened(self) -> Transcript | None:
        """The conversation; ``None`` until there is one."""

    async def complete(self) -> Trajectory:
        """Run to the end. Whatever fails becomes the trajectory's status; only a cancellation is raised."""
        left = self._spent.seconds_left(soft=False)
        hard = asyncio.timeout(None if left is None else max(left, 0.0))
        try:
            async with hard:
                await self._loop()
        except asyncio.CancelledError:
            self._end("cancelled", "cancelled")
            raise
        except TimeoutError as error:
            if hard.expired():
                self._end("budget", "the time ran out")
            else:
                self._end("error", _describe(error))
        except Exception as error:  # of the model: tools turn theirs into results
            self._end("error", well_formed(str(error)) if isinstance(error, RestillError) else _describe(error))
        return self.trajectory()

    def trajectory(self) -> Trajectory:
        """What has happened so far; the status is "cancelled" until the run has ended."""
        plan, question = self._plan, self._question
        model = identity(plan.model)
        transcript = self._opened
        now = time.monotonic() - self._spent.started
        return Trajectory(
            protocol=plan.protocol,
            question_key=question.key,
            sample=self._sample,
            agent=plan.fingerprint,
            question_id=question.id,
            question=question.question,
            status=self._status,
            answer=self._answer,
            citations=self._citations,
            dropped_citations=self._dropped,
            draft=self._draft,
            draft_citations=self._draft_citations,
            forced=self._forced,
            error=self._error,
            model=model["name"],
            model_fingerprint=model["fingerprint"],
            adapter=model["adapter"],
            few_shot=plan.few_shot,
            guide=plan.hint is not None,
            text_only=transcript.text_only if transcript else False,
            temperature=plan.temperature,
            seed=self._seed,
            seen=transcript.seen if transcript else Seen(),
            usage=self._usage,
            seconds=self._seconds if self._seconds is not None else now,
            created=round(self._created, 3),
            steps=list(self._steps),
        )

    # -- what runs share

    def _count(self, samples: Sequence[Sample], length: int) -> None:
        """Add the samples of one call to the usage; each read a prompt of ``length`` tokens."""
        usage = self._usage
        self._usage = Usage(
            prompt=usage.prompt + length * len(samples),
            generated=usage.generated + sum(len(sample.tokens) for sample in samples),
            cached=usage.cached + sum(sample.cached for sample in samples),
        )

    async def _call(self, action: Action) -> ToolResult:
        if not self._spent.take_call(action.tool):
            limit = self._spent.budget.per_tool[action.tool]
            message = f"no calls of {action.tool} are left (limit {limit})"
            return ToolResult(status="error", text=message, error=message)
        return await self._plan.tools[action.tool].call(action.arguments, self._spent.seconds_left(soft=True))

    def _new_passages(self, result: ToolResult) -> list[Passage]:
        """The passages of a result, numbered on; they can be cited once they are in ``_passages``."""
        return [
            Passage(
                handle=handle,
                doc_id=well_formed(hit.chunk.doc_id),
                chunk_id=well_formed(hit.chunk.chunk_id),
                title=fold(hit.chunk.title),
                start=hit.chunk.start,
                end=hit.chunk.end,
                score=round(hit.score, 5),
            )
            for handle, hit in enumerate(result.hits, len(self._passages) + 1)
        ]

    def _resolve(self, handles: Iterable[int], known: Iterable[int]) -> tuple[list[Citation], list[int]]:
        """Citations of the handles among ``known``, each once, and the handles that are not."""
        allowed, cited, dropped = set(known), list[Citation](), list[int]()
        for handle in dict.fromkeys(handles):
            if handle in allowed:
                cited.append(self._passages[handle].citation())
            else:
                dropped.append(handle)
        return cited, dropped

    def _end(self, status: RunStatus, error: str | None = None) -> None:
        self._status = status
        self._error = error
        self._seconds = time.monotonic() - self._spent.started

    def _too_long(self, length: int) -> str:
        return (
            f"the prompt has {length} tokens and the limit is {self._spent.max_tokens}; "
            "raise Budget(tokens=...) or the model's max_context, or use fewer tools and few_shot=0"
        )

    def _tell(self, step: Step) -> None:
        if self._on_step is not None:
            self._on_step(step)


def cut_off(error: str, sample: Sample) -> str:
    """Why a turn cannot be read: ``error``, unless it was cut off."""
    if sample.finish_reason not in ("length", "deadline"):
        return error
    why = f"after {len(sample.tokens)} tokens" if sample.finish_reason == "length" else "because time ran out"
    return f"the turn was cut off {why}; write shorter thoughts"


def live(transcript: AnyTranscript | None) -> AnyTranscript:
    """The conversation of a run that has begun."""
    if transcript is None:
        raise RuntimeError("the run has not begun")
    return transcript


def _describe(error: BaseException) -> str:
    return well_formed(f"{type(error).__name__}: {error}"[:500])
