"""The ReAct loop: one run over one question, with all of its state."""

from __future__ import annotations

import asyncio

from .drawing import Drawing
from .episode import LAST_MOMENT, MIN_OBSERVATION, MIN_TURN, Episode, cut_off, live
from .plan import ReActPlan, derive_seed
from .prompt import few_shot_messages, opening, question_text
from .protocol import FINISH, parse, render_observation
from .tool_results import ToolResult
from .trajectory import Action, Observation, Step
from .transcript import ChatTranscript, open_transcript


class ReActEpisode(Episode[ReActPlan]):
    """One run of a ReAct agent."""

    _transcript: ChatTranscript | None = None

    @property
    def _opened(self) -> ChatTranscript | None:
        return self._transcript

    async def _loop(self) -> None:
        self._transcript = transcript = self._open()
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

    def _open(self) -> ChatTranscript:
        plan, tools = self._plan, list(self._plan.tools.values())
        student = opening(tools, self._question.question)
        hint = plan.hint(self._question) if plan.hint else None
        asked = {"role": "user", "content": question_text(self._question.question, hint)}
        seen = [student[0], *few_shot_messages(tools, plan.few_shot), asked]
        return open_transcript(plan.model, seen, student)

    async def _turn(self, grammar: str | None, max_tokens: int, deadline: float | None, *, forced: bool) -> Step:
        transcript = live(self._transcript)
        prompt, length = transcript.take_prompt(), transcript.length
        if not forced:
            self._spent.steps += 1  # reserved before the call: a call that fails is spent as well
        [sample] = await transcript.draw(
            [derive_seed(self._seed, len(self._steps))],
            Drawing(grammar=grammar, max_tokens=max_tokens, temperature=self._plan.temperature, deadline=deadline),
        )
        transcript.keep(sample)
        self._count([sample], length)
        parsed = parse(sample.text, self._plan.tools)
        step = Step(prompt=prompt, samples=[sample], thought=parsed.thought, action=parsed.action, forced=forced)
        if parsed.error is not None:
            step.observation = Observation(status="invalid", text="", error=cut_off(parsed.error, sample))
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
        passages = self._new_passages(result)
        text = self._show(result, len(self._passages) + 1)
        self._passages.update((p.handle, p) for p in passages)
        return Observation(
            status=result.status, text=text, passages=passages, seconds=result.seconds, error=result.error
        )

    def _show(self, result: ToolResult, first_handle: int = 1) -> str:
        """Render the observation so that the last answer still fits, and append it."""
        transcript = live(self._transcript)
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
        left = self._spent.tokens_left(live(self._transcript).length)
        if left is not None and left < MIN_TURN + self._kept_back():
            return "tokens"
        return None

    def _kept_back(self) -> int:
        """Tokens that an ordinary turn must leave: for its observation and for the last answer."""
        return live(self._transcript).overhead + MIN_OBSERVATION + self._plan.step_tokens

    async def _force(self, spent: str) -> None:
        """The one last call, under the grammar that only allows ``finish``."""
        transcript = live(self._transcript)
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
        self._citations, self._dropped = self._resolve(action.arguments.get("citations", []), self._passages)
