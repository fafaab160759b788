"""The reasoning agent: no tools, one turn that thinks step by step and ends with its answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..models.errors import RestillError
from .agent import Agent
from .budget import Budget
from .drawing import Drawing
from .episode import MIN_TURN, Episode, cut_off
from .plan import Plan, derive_seed
from .prompt import Message
from .question import Question
from .scores import REASONING
from .trajectory import Action, Observation, Step
from .transcript import ChatTranscript, open_transcript

PROTOCOL = f"{REASONING}1"
INSTRUCTION = 'Think step by step. End with one sentence: "The answer is ...".'
_SAYS = re.compile(r"the answer is:?", re.IGNORECASE)


def read_answer(text: str) -> str | None:
    """What the last line says after its last "The answer is", without the full stop; ``None``: no such thing."""
    parts = _SAYS.split(text.rstrip().rpartition("\n")[2])
    return (parts[-1].strip().removesuffix(".").strip() or None) if len(parts) > 1 else None


def answer_hint(question: Question) -> str:
    """The guide of TRICE and of STaR's rationalisation: the answer, for the model to explain.

    Raises:
        RestillError: the question has no answer.
    """
    if not question.answers:
        raise RestillError(f"question {question.id!r} has no answers; a guide needs one")
    return f"The answer is {question.answers[0]}."


@dataclass(frozen=True, kw_only=True)
class ReasoningPlan(Plan):
    """Of a reasoning agent.

    Attributes:
        messages: the conversation before the rationale; takes the question, a hint and the number of demonstrations.
    """

    messages: Callable[..., list[Message]]


class ReasoningEpisode(Episode[ReasoningPlan]):
    """One rationale over one question."""

    _transcript: ChatTranscript | None = None

    @property
    def _opened(self) -> ChatTranscript | None:
        return self._transcript

    async def _loop(self) -> None:
        plan, question = self._plan, self._question
        hint = None if plan.hint is None else plan.hint(question)
        seen = plan.messages(question, hint=hint, few_shot=plan.few_shot)
        self._transcript = transcript = open_transcript(plan.model, seen, plan.messages(question))
        left = self._spent.tokens_left(transcript.length)
        if left is not None and left < MIN_TURN:
            return self._end("budget", self._too_long(transcript.length))
        prompt, length = transcript.take_prompt(), transcript.length
        room = plan.step_tokens if left is None else min(plan.step_tokens, left)
        how = Drawing(grammar=None, max_tokens=room, temperature=plan.temperature, deadline=self._spent.deadline)
        self._spent.steps += 1
        [sample] = await transcript.draw([derive_seed(self._seed, 0)], how)
        transcript.keep(sample)
        self._count([sample], length)
        step = Step(prompt=prompt, samples=[sample], thought=sample.text)
        self._steps.append(step)
        self._answer = read_answer(sample.text) if sample.finish_reason == "stop" else None
        if self._answer is None:
            error = cut_off('it does not end with "The answer is ..."', sample)
            step.observation = Observation(status="invalid", text="", error=error)
            self._end("invalid", error)
        else:
            step.action = Action(tool="finish", arguments={"answer": self._answer, "citations": []})
            self._end("answered")
        self._tell(step)


class ReasoningAgent(Agent):
    """An agent that only thinks: chain of thought (Wei et al. 2201.11903) as one turn, in the protocol reason-1.

    Args:
        model: a ``JaxChatModel`` (token ids are kept) or any LangChain chat model (text only).
        demonstrations: (question, rationale that ends with "The answer is ...") pairs for the prompt, at most 8.
        few_shot: how many of them are shown; ``None``: all, or what the model's adapter was trained with. As with
            other agents they are not stored: training is on the bare question.
        instruction: stands before the question.
        hint: text shown under the question and never stored, such as :func:`answer_hint`.
        step_tokens: longest rationale.
        seconds: when the rationale is cut short.

    Raises:
        RestillError: a demonstration without an answer, or a number out of range.
    """

    most_examples = 8
    episode = ReasoningEpisode

    demonstrations: tuple[tuple[str, str], ...]
    instruction: str
    seconds: float | None

    def __init__(
        self,
        model: Any,
        demonstrations: Sequence[tuple[str, str]] = (),
        *,
        few_shot: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        hint: Callable[[Question], str] | None = None,
        instruction: str = INSTRUCTION,
        step_tokens: int = 256,
        seconds: float | None = None,
    ) -> None:
        pairs = tuple((str(asked), str(rationale)) for asked, rationale in demonstrations)
        if len(pairs) > self.most_examples:
            raise RestillError(f"{len(pairs)} demonstrations: give at most {self.most_examples}")
        if few_shot is not None and few_shot > len(pairs):
            raise RestillError(f"few_shot={few_shot}: there are {len(pairs)} demonstrations")
        for asked, rationale in pairs:
            if read_answer(rationale) is None:
                raise RestillError(f'the demonstration of {asked!r:.60} does not end with "The answer is ..."')
        self._freeze(
            model=model,
            demonstrations=pairs,
            instruction=instruction,
            few_shot=few_shot,
            temperature=temperature,
            seed=seed,
            hint=hint,
            step_tokens=step_tokens,
            tools=(),
            seconds=seconds,
            budget=Budget(steps=1, seconds=seconds),
            constrained=False,
            observation_tokens=16,
        )

    @cached_property
    def examples(self) -> int:
        """How many demonstrations the prompt holds."""
        adapter = getattr(self.model, "adapter", None)
        trained = len(self.demonstrations) if adapter is None else int(adapter.manifest.get("few_shot", 0))
        return min(trained if self.few_shot is None else self.few_shot, len(self.demonstrations))

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every option, as plain values."""
        shown = json.dumps(self.demonstrations[: self.examples])
        return {
            "protocol": PROTOCOL,
            **self._shared_config(),
            "instruction": self.instruction,
            "demonstrations": hashlib.sha256(shown.encode()).hexdigest() if self.examples else None,
        }

    def messages(self, question: Question, *, hint: str | None = None, few_shot: int = 0) -> list[Message]:
        """The conversation before the rationale."""
        turns: list[Message] = []
        for asked, rationale in self.demonstrations[:few_shot]:
            turns.append({"role": "user", "content": self._ask(asked, None if hint is None else _hint_of(rationale))})
            turns.append({"role": "assistant", "content": rationale})
        return [*turns, {"role": "user", "content": self._ask(question.question, hint)}]

    def _ask(self, question: str, hint: str | None) -> str:
        text = f"{self.instruction}\n\nQuestion: {question.strip()}"
        return text if hint is None else f"{text}\nHint: {hint}"

    @cached_property
    def plan(self) -> ReasoningPlan:
        """The options, resolved."""
        return ReasoningPlan(**self._shared_plan(), tools={}, messages=self.messages)


def _hint_of(rationale: str) -> str:
    return f"The answer is {read_answer(rationale)}."
