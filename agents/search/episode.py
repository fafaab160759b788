"""One run of a search agent: its state, and how a step is sampled, chosen and stored."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ...models.errors import RestillError
from ..drawing import Drawing
from ..episode import LAST_MOMENT, MIN_OBSERVATION, MIN_TURN, Episode, cut_off, live
from ..plan import Plan, derive_seed
from ..tool_results import ToolResult
from ..trajectory import Observation, RunStatus, Sample, Step, StepKind
from ..transcript import Transcript
from .format import PromptFormat, split_answer
from .nodes import SEARCHES, search_graph
from .state import PastAction, Search, SearchState, to_record


@dataclass(frozen=True, kw_only=True)
class SearchPlan(Plan):
    """Of a search agent.

    Attributes:
        tool: name of the search tool, and ``argument``: where its query goes.
        grammars: of ordinary steps; the best-effort answer of a token model has one in any case.
    """

    format: PromptFormat
    tool: str
    argument: str
    searches: int
    top_k: int
    samples: int
    checks: bool
    grammars: bool


class SearchEpisode(Episode[SearchPlan]):
    """One run of a search agent."""

    _transcript: Transcript | None = None
    _trouble: tuple[RunStatus, str] | None = None
    _state: SearchState

    @property
    def _opened(self) -> Transcript | None:
        return self._transcript

    async def _loop(self) -> None:
        plan = self._plan
        hint = plan.hint(self._question) if plan.hint else None
        self._state = SearchState(question=" ".join(self._question.question.split()), searches_left=plan.searches)
        self._transcript = plan.format.open(plan.model, self._state, few_shot=plan.few_shot, hint=hint)
        left = self._spent.tokens_left(self._transcript.length)
        if left is not None and left < MIN_TURN:
            return self._end("budget", self._too_long(self._transcript.length))
        await search_graph(plan.checks).run(self)
        self._end(*(self._trouble or ("answered", None)))

    # -- what the nodes call

    def spend(self, budget: str) -> None:
        """Take one from a budget of the graph."""
        if budget != SEARCHES or self._state.searches_left < 1:
            raise RestillError(f"nothing is left of the budget {budget!r}")
        self._state.searches_left -= 1

    async def step(self, kind: StepKind, *, forced: bool = False) -> PastAction | None:
        """Ask for a step, draw its samples, and go on with the likeliest that can be read."""
        plan, state, transcript = self._plan, self._state, live(self._transcript)
        room, spent = self._room(kind, forced)
        if room < MIN_TURN:
            self._trouble = self._trouble or ("budget", f"the budget of {spent} ran out")
            return None
        if forced:
            self._forced = True
        else:
            self._spent.steps += 1  # reserved before the call: a call that fails is spent as well
        plan.format.ask(transcript, kind, state)
        step = Step(kind=kind, prompt=transcript.take_prompt(), samples=[], forced=forced)
        rounds = 1 if forced or plan.temperature == 0 else 2  # greedy draws would be the same again
        for _ in range(rounds):
            await self._draw(step, room)
            readable = [(s.perplexity, n) for n, s in enumerate(step.samples) if s.error is None]
            if readable or all(s.finish_reason == "deadline" for s in step.samples):
                break
        step.chosen = min(readable)[1] if readable else 0
        transcript.keep(step.sample)
        if not readable:
            return self._unreadable(step, spent if room < plan.step_tokens else None)
        action = plan.format.parse(kind, step.sample.text, state)
        step.action, step.thought = to_record(action, plan.tool, plan.argument), action.thoughts
        state.apply(action)
        self._settle()
        if not isinstance(action, Search):
            self._tell(step)
        return action

    async def search(self) -> None:
        """Call the search tool with the query that was decided on, and show what it found."""
        step = self._steps[-1]
        if step.action is None:
            raise RuntimeError("no search was decided on")
        try:
            result = await self._call(step.action)
        except asyncio.CancelledError:  # the one result of a call that was interrupted
            step.observation = Observation(status="cancelled", text="", error="cancelled")
            raise
        result = result.model_copy(update={"hits": result.hits[: self._plan.top_k]})
        text, passages = self._show(result)
        step.observation = Observation(
            status=result.status, text=text, passages=passages, seconds=result.seconds, error=result.error
        )
        self._tell(step)

    # -- inside

    async def _draw(self, step: Step, room: int) -> None:
        """One round of samples, each with why it cannot be read."""
        plan, transcript, number = self._plan, live(self._transcript), len(step.samples)
        count = plan.samples if plan.temperature > 0 else 1
        place = len(self._steps) - bool(step.samples)
        hard, soft = self._spent.deadline, self._spent.soft_deadline
        how = Drawing(
            grammar=plan.format.grammar(step.kind, self._state) if plan.grammars or self._bound(step) else None,
            max_tokens=room,
            temperature=plan.temperature,
            deadline=soft if not step.forced else None if hard is None else hard - LAST_MOMENT,
            stop=plan.format.stop,
        )
        drawn = await transcript.draw([derive_seed(self._seed, place, number + n) for n in range(count)], how)
        self._count(drawn, transcript.length)
        for sample in drawn:
            sample.error = self._why_unreadable(step.kind, sample)
        if not step.samples:
            self._steps.append(step)
        step.samples = [*step.samples, *drawn]

    def _bound(self, step: Step) -> bool:
        return step.forced and not live(self._transcript).text_only

    def _why_unreadable(self, kind: StepKind, sample: Sample) -> str | None:
        try:
            self._plan.format.parse(kind, sample.text, self._state)
        except RestillError as error:
            return cut_off(str(error), sample)
        # What reads well may still lack its end: half an answer, one link of two.
        return cut_off("", sample) or None

    def _unreadable(self, step: Step, short_of: str | None) -> None:
        """End the run; a turn that was cut because a budget left less than a whole one is the budget's doing."""
        error = step.sample.error
        step.observation = Observation(status="invalid", text="", error=error)
        ends = {sample.finish_reason for sample in step.samples}
        spent = "seconds" if ends == {"deadline"} else short_of if ends == {"length"} else None
        why = f"no sample of step {len(self._steps)} ({step.kind}) can be read: {error}"
        if self._trouble is None:
            self._trouble = ("budget", f"the budget of {spent} ran out") if spent else ("invalid", why)
        else:
            self._trouble = (self._trouble[0], f"{self._trouble[1]}; and the last turn gave no answer: {error}")
        self._tell(step)

    def _show(self, result: ToolResult) -> tuple[str, list]:
        """Show the results so that a summary and the last answer still fit."""
        plan, transcript, state = self._plan, live(self._transcript), self._state
        most = plan.observation_tokens
        left = self._spent.tokens_left(plan.format.measure(transcript, "summarise", state))
        if left is not None:
            most = min(most, left - MIN_TURN - self._kept_back("summarise"))
        passages = self._new_passages(result)
        text, items = plan.format.show(result, len(self._passages) + 1, transcript.counter, max(most, 4))
        passages = [p.model_copy(update={"text": i.snippet}) for p, i in zip(passages, items, strict=True)]
        self._passages.update((p.handle, p) for p in passages)
        state.found(items, text)
        return text, passages

    def _room(self, kind: StepKind, forced: bool) -> tuple[int, str]:
        """Most tokens that this step may write, and which budget bounds it."""
        plan = self._plan
        if not forced and self._spent.steps_left() <= 0:
            return 0, "steps"
        seconds = self._spent.seconds_left(soft=not forced)
        if seconds is not None and seconds <= (LAST_MOMENT if forced else 0):
            return 0, "seconds"
        left = self._spent.tokens_left(plan.format.measure(live(self._transcript), kind, self._state))
        if left is None:
            return plan.step_tokens, "tokens"
        kept = self._kept_back(kind) if kind in ("decide", "summarise") else 0
        return min(plan.step_tokens, left - kept), "tokens"

    def _kept_back(self, kind: StepKind) -> int:
        """Tokens that a step must leave for the last answer, whose prompt may be longer than its own."""
        measure, transcript, state = self._plan.format.measure, live(self._transcript), self._state
        longer = measure(transcript, "answer", state) - measure(transcript, kind, state)
        turns = 2 * (measure(transcript, "answer", state) - transcript.length)  # what asking adds to a chat
        return self._plan.step_tokens + MIN_OBSERVATION + max(longer, turns, 0)

    def _settle(self) -> None:
        """Keep the answer as it stands: whatever comes after may fail."""
        format, state = self._plan.format, self._state
        if state.answer is None:
            return
        self._answer, ids = split_answer(state.answer, format.citation)
        self._citations, self._dropped = self._resolve(ids, state.selected)
        if self._plan.checks and not self._forced and state.draft is not None:
            self._draft, ids = split_answer(state.draft, format.citation)
            self._draft_citations, _ = self._resolve(ids, state.selected)
