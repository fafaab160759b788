"""The ReAct loop: one run over one question, with all of its state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ..models.errors import RestillError
from ..retrieval.types import Citation
from .budget import Spent
from .model import context_of, identity
from .observation import fold
from .plan import Plan, derive_seed
from .prompt import few_shot_messages, question_text, system_prompt
from .protocol import FINISH, PROTOCOL, parse, render_observation
from .question import Question
from .tool_results import ToolResult, well_formed
from .trajectory import Action, Observation, Passage, RunStatus, Seen, Step, Trajectory, Usage
from .transcript import Transcript, open_transcript

LAST_MOMENT = 0.5
"""Seconds before the hard end when the last call must return what it has."""
MIN_TURN = 16
"""Fewest tokens worth beginning a turn for."""
MIN_OBSERVATION = 16
"""Fewest tokens kept for an observation."""


class Episode:
    """One run. :meth:`complete` carries it out; :meth:`trajectory` can be read at any time, also after a
    cancellation.

    Args:
        deadline: hard end (``time.monotonic()``), besides the budget's own.
        on_step: called with each step when it is complete.
    """

    def __init__(
        self,
        plan: Plan,
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
        self._transcript: Transcript | None = None
        self._steps: list[Step] = []
        self._passages: dict[int, Passage] = {}
        self._usage = Usage()
        self._status: RunStatus = "cancelled"
        self._answer: str | None = None
        self._citations: list[Citation] = []
        self._dropped: list[int] = []
        self._forced = False
        self._error: str | None = None
        self._seconds: float | None = None

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
        transcript = self._transcript
        now = time.monotonic() - self._spent.started
        return Trajectory(
            protocol=PROTOCOL,
            question_key=question.key,
            sample=self._sample,
            agent=plan.fingerprint,
            question_id=question.id,
            question=question.question,
            status=self._status,
            answer=self._answer,
            citations=self._citations,
            dropped_citations=self._dropped,
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

    # -- the loop

    async def _loop(self) -> None:
        self._transcript = self._open()
        transcript = self._transcript
        left = self._spent.tokens_left(transcript.length)
        if left is not None and left < MIN_TURN:
            self._end("budget", self._too_long(transcript.length))
            return
        while (spent := self._exhausted()) is None:
            left = self._spent.tokens_left(transcript.length)
            room = self._plan.step_tokens if left is None else min(self._plan.step_tokens, left - self._kept_back())
            step = await self._turn(self._plan.grammar, room, self._spent.soft_deadline, forced=False)
            if step.action is not None and step.action.tool == FINISH:
                self._finish(step.action)
                self._end("answered")
                return self._tell(step)
            step.observation = await self._observe(step)
            self._tell(step)
        await self._force(spent)

    @property
    def _live(self) -> Transcript:
        if self._transcript is None:
            raise RuntimeError("the run has not begun")
        return self._transcript

    def _open(self) -> Transcript:
        plan, tools = self._plan, list(self._plan.tools.values())
        system = {"role": "system", "content": system_prompt(tools)}
        student = [system, {"role": "user", "content": question_text(self._question.question)}]
        hint = plan.hint(self._question) if plan.hint else None
        asked = {"role": "user", "content": question_text(self._question.question, hint)}
        seen = [system, *few_shot_messages(tools, plan.few_shot), asked]
        return open_transcript(plan.model, seen, student)

    async def _turn(self, grammar: str | None, max_tokens: int, deadline: float | None, *, forced: bool) -> Step:
        transcript = self._live
        prompt, length = transcript.take_prompt(), transcript.length
        if not forced:
            self._spent.steps += 1  # reserved before the call: a call that fails is spent as well
        sample = await transcript.sample(
            grammar=grammar,
            max_tokens=max_tokens,
            temperature=self._plan.temperature,
            seed=derive_seed(self._seed, len(self._steps)),
            deadline=deadline,
        )
        usage = self._usage
        self._usage = Usage(
            prompt=usage.prompt + length,
            generated=usage.generated + len(sample.tokens),
            cached=usage.cached + sample.cached,
        )
        parsed = parse(sample.text, self._plan.tools)
        error = parsed.error
        if error is not None and sample.finish_reason in ("length", "deadline"):
            why = f"after {len(sample.tokens)} tokens" if sample.finish_reason == "length" else "because time ran out"
            error = f"the turn was cut off {why}; write shorter thoughts"
        step = Step(prompt=prompt, samples=[sample], thought=parsed.thought, action=parsed.action, forced=forced)
        if error is not None:
            step.observation = Observation(status="invalid", text="", error=error)
        self._steps.append(step)
        return step

    async def _observe(self, step: Step) -> Observation:
        if step.action is None:
            reason = step.observation.error if step.observation else None
            text = self._show(ToolResult(status="error", text=reason or "the turn cannot be read"))
            return Observation(status="invalid", text=text, error=reason)
        try:
            result = await self._call(step.action)
        except asyncio.CancelledError:  # the one result of a call that was interrupted
            step.observation = Observation(status="cancelled", text="", error="cancelled")
            raise
        first = len(self._passages) + 1
        passages = [
            Passage(
                handle=handle,
                doc_id=hit.chunk.doc_id,
                chunk_id=hit.chunk.chunk_id,
                title=fold(hit.chunk.title),
                start=hit.chunk.start,
                end=hit.chunk.end,
                score=round(hit.score, 5),
            )
            for handle, hit in enumerate(result.hits, first)
        ]
        text = self._show(result, first)
        self._passages.update((p.handle, p) for p in passages)
        return Observation(
            status=result.status, text=text, passages=passages, seconds=result.seconds, error=result.error
        )

    async def _call(self, action: Action) -> ToolResult:
        if not self._spent.take_call(action.tool):
            limit = self._spent.budget.per_tool[action.tool]
            message = f"no calls of {action.tool} are left (limit {limit})"
            return ToolResult(status="error", text=message, error=message)
        return await self._plan.tools[action.tool].call(action.arguments, self._spent.seconds_left(soft=True))

    def _show(self, result: ToolResult, first_handle: int = 1) -> str:
        """Render the observation so that the last answer still fits, and append it."""
        transcript = self._live
        most = self._plan.observation_tokens
        left = self._spent.tokens_left(transcript.length)
        if left is not None:
            most = min(most, left - self._plan.step_tokens - transcript.overhead)
        text = render_observation(result, first_handle, transcript.counter, max(most, 4))
        transcript.observe(text)
        return text

    # -- ends

    def _exhausted(self) -> str | None:
        """Which budget has no room for one more ordinary step, or ``None``."""
        if self._spent.steps_left() <= 0:
            return "steps"
        seconds = self._spent.seconds_left(soft=True)
        if seconds is not None and seconds <= 0:
            return "seconds"
        left = self._spent.tokens_left(self._live.length)
        if left is not None and left < MIN_TURN + self._kept_back():
            return "tokens"
        return None

    def _kept_back(self) -> int:
        """Tokens that an ordinary turn must leave: for its observation and for the last answer."""
        return self._live.overhead + MIN_OBSERVATION + self._plan.step_tokens

    async def _force(self, spent: str) -> None:
        """The one last call, under the grammar that only allows ``finish``."""
        transcript = self._live
        left = self._spent.tokens_left(transcript.length)
        room = self._plan.step_tokens if left is None else min(self._plan.step_tokens, left)
        if room < MIN_TURN:
            return self._end("budget", f"the budget of {spent} ran out")
        self._forced = True
        if transcript.text_only and self._steps:  # no grammar there: ask in words
            transcript.observe("No steps are left. Finish now.")
        end = None if self._spent.deadline is None else self._spent.deadline - LAST_MOMENT
        step = await self._turn(self._plan.finish_grammar, room, end, forced=True)
        if step.action is not None and step.action.tool == FINISH:
            self._finish(step.action)
            self._end("budget", f"the budget of {spent} ran out")
        else:
            reason = step.observation.error if step.observation else "it called a tool"
            step.action = None
            step.observation = Observation(status="invalid", text="", error=reason)
            self._end("budget", f"the budget of {spent} ran out, and the last turn gave no answer: {reason}")
        self._tell(step)

    def _finish(self, action: Action) -> None:
        self._answer = str(action.arguments["answer"]).strip()
        for handle in dict.fromkeys(action.arguments.get("citations", [])):
            passage = self._passages.get(handle)
            if passage is None:
                self._dropped.append(handle)
            else:
                self._citations.append(passage.citation())

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


def _describe(error: BaseException) -> str:
    return well_formed(f"{type(error).__name__}: {error}"[:500])
