"""The prompt format search-compact-1: chat turns of a line or two, which only grow, for small models.

The model's turns: ``Thought: ...`` with ``Search: query`` or ``Terminate``; ``Summary: ...`` with
``Links: 1, 3`` or ``Links: none``; ``Answer: Oslo [1][3]``; and for the checks ``Passed`` or ``Revise: ...``.
The turns between carry the observation and one word for what comes next. A whole trajectory is one training
sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ...models.errors import RestillError
from ..observation import Counter, fold, render_observation
from ..prompt import Message
from ..tool_results import ToolResult
from ..trajectory import StepKind
from ..transcript import ChatTranscript, open_transcript
from .compact_reader import read_chat
from .examples import example_steps
from .format import (
    MAX_ANSWER,
    MAX_CITATIONS,
    MAX_OUTPUT,
    MAX_SUMMARY,
    MAX_TEXT,
    PromptFormat,
    checked_answer,
    checked_text,
    either,
)
from .state import (
    Answer,
    CheckAnswer,
    PastAction,
    ResultItem,
    ReviseAnswer,
    Search,
    SearchState,
    SelectLink,
    Terminate,
)

SYSTEM = (
    "Answer the question by searching. Write what is asked for, each on its line. "
    "Searches left: Thought and Search, or Terminate. "
    "Summarise: Summary of what helps, and its Links. "
    "Answer: the shortest answer with its links, as in Oslo [1][3]. "
    "Relevance: does the answer fit the question? Grounding: do the links show it? Passed, or Revise."
)
"""The system turn."""

_LINE = r"[^\x00-\x20\x7f][^\x00-\x1f\x7f]"
_BARE = r"[^\x00-\x20\x7f\[\]][^\x00-\x1f\x7f\[\]]"
_DECIDE = re.compile(r"Thought:[ \t]*([^\n]*)\n[ \t]*(?:Search:[ \t]*([^\n]*)|(Terminate))")
_SUMMARISE = re.compile(r"Summary:[ \t]*([^\n]*)\n[ \t]*Links:[ \t]*(none|\d{1,6}(?:[ \t]*,[ \t]*\d{1,6})*)")
_ANSWER = re.compile(r"Answer:[ \t]*([^\n]*)")
_CHECK = re.compile(r"(Passed)|Revise:[ \t]*([^\n]*)")
_FORMS = {
    "decide": "write a Thought line, then a line with Search or Terminate",
    "summarise": "write a Summary line, then a Links line",
    "answer": "write one Answer line",
    "relevance": "write Passed, or Revise with a better answer",
    "grounding": "write Passed, or Revise with a better answer",
}


class CompactFormat(PromptFormat):
    """See the module. It has no state."""

    name = "compact"
    protocol = "search-compact-1"
    stop = ()
    citation = re.compile(r"\[(\d{1,6})\]")

    def open(self, model: Any, state: SearchState, *, few_shot: int, hint: str | None) -> ChatTranscript:
        """The conversation, at the question."""
        system = {"role": "system", "content": SYSTEM}
        student = [system, _user(_asked(state))]
        seen = [system, *self._examples(few_shot), _user(_asked(state, hint))]
        return open_transcript(model, seen, student)

    def measure(self, transcript: ChatTranscript, kind: StepKind, state: SearchState) -> int:
        """Tokens with the request for this step."""
        if not transcript.answered:
            return transcript.length
        return transcript.length + transcript.overhead + len(transcript.counter.encode(_request(kind, state)))

    def ask(self, transcript: ChatTranscript, kind: StepKind, state: SearchState) -> None:
        """Append the request for this step (the question is one already)."""
        if transcript.answered:
            transcript.observe(_request(kind, state))

    def grammar(self, kind: StepKind, state: SearchState) -> str:
        """One regular expression a step, with the links that may be named."""
        if kind == "decide":
            ways = rf"(Search: {_LINE}{{0,{MAX_TEXT - 1}}}|Terminate)" if state.searches_left else "Terminate"
            turn = rf"Thought: {_LINE}{{0,{MAX_TEXT - 1}}}\n{ways}"
        elif kind == "summarise":
            ids = either([item.link_id for item in state.results])
            links = f"(none|{ids}(, {ids}){{0,{len(state.results) - 1}}})" if state.results else "none"
            turn = rf"Summary: {_LINE}{{0,{MAX_SUMMARY - 1}}}\nLinks: {links}"
        elif kind == "answer":
            turn = f"Answer: {_answer_pattern(state)}"
        else:
            turn = f"(Passed|Revise: {_answer_pattern(state)})"
        return f"start: TURN\nTURN: /{turn}/\n"

    def parse(self, kind: StepKind, text: str, state: SearchState) -> PastAction:
        """Read a turn; raises RestillError when it is no such step."""
        if len(text) > MAX_OUTPUT:
            raise RestillError(f"the turn has more than {MAX_OUTPUT} characters")
        form = {"decide": _DECIDE, "summarise": _SUMMARISE, "answer": _ANSWER}.get(kind, _CHECK)
        match = form.fullmatch(text.strip())
        if match is None:
            raise RestillError(_FORMS[kind])
        if kind == "decide":
            thoughts = checked_text(match[1], "the thought")
            if match[3]:
                return Terminate(thoughts=thoughts)
            if not state.searches_left:
                raise RestillError("no searches are left; write Terminate")
            return Search(query=checked_text(match[2], "the query"), thoughts=thoughts)
        if kind == "summarise":
            ids = [] if match[2] == "none" else [int(n) for n in match[2].split(",")]
            return state.select(ids, checked_text(match[1], "the summary"))
        if kind == "answer":
            return Answer(answer=checked_answer(match[1], self.citation))
        return CheckAnswer() if match[1] else ReviseAnswer(revised_answer=checked_answer(match[2], self.citation))

    def write(self, kind: StepKind, action: PastAction, state: SearchState) -> str:
        """The turn that stands for an action."""
        if isinstance(action, Search):
            return f"Thought: {action.thoughts}\nSearch: {action.query}"
        if isinstance(action, Terminate):
            return f"Thought: {action.thoughts}\nTerminate"
        if isinstance(action, SelectLink):
            links = ", ".join(str(link.link_id) for link in action.selected_links) or "none"
            return f"Summary: {action.grounded_summarization}\nLinks: {links}"
        if isinstance(action, Answer):
            return f"Answer: {action.answer}"
        return f"Revise: {action.revised_answer}" if isinstance(action, ReviseAnswer) else "Passed"

    def read(self, text: str) -> tuple[StepKind, SearchState]:
        """What a prompt asks for, and its state."""
        return read_chat(text)

    def cite(self, answer: str, ids: Iterable[int]) -> str:
        """``Oslo [1][3]``."""
        return f"{answer} {''.join(f'[{n}]' for n in ids)}".strip()

    def show(self, result: ToolResult, first: int, counter: Counter, max_tokens: int) -> tuple[str, list[ResultItem]]:
        """``Observation: [1] Title: text [2] ...`` on one line, and the items without their texts."""
        # The text of the passages stands in the observation, once.
        items = [
            ResultItem(link_id=n, link_text=fold(hit.chunk.title), snippet="")
            for n, hit in enumerate(result.hits, first)
        ]
        return render_observation(result, first, counter, max_tokens), items

    def _examples(self, count: int) -> list[Message]:
        messages: list[Message] = []
        for number in range(count):
            for kind, state, action in example_steps(number, self):
                messages.append(_user(_request(kind, state) if state.past else _asked(state)))
                messages.append({"role": "assistant", "content": self.write(kind, action, state)})
        return messages


def _asked(state: SearchState, hint: str | None = None) -> str:
    hinted = f"\nHint: {fold(hint)}" if hint else ""
    return f"Question: {state.question}{hinted}\nSearches left: {state.searches_left}"


def _request(kind: StepKind, state: SearchState) -> str:
    if kind == "decide":
        return f"Searches left: {state.searches_left}"
    if kind == "summarise":
        return f"{state.observation}\nSummarise"
    return kind.capitalize()


def _answer_pattern(state: SearchState) -> str:
    text = rf"{_BARE}{{0,{MAX_ANSWER - 1}}}"
    return rf"{text}(\[{either(state.selected)}\]){{0,{MAX_CITATIONS}}}" if state.selected else text


def _user(content: str) -> Message:
    return {"role": "user", "content": content}
