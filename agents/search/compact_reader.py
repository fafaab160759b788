"""Reads a compact prompt back into the state that it was written from, line by line."""

from __future__ import annotations

import re

from ...models.errors import RestillError
from ..prompt import last_question
from ..trajectory import StepKind
from .state import Answer, CheckAnswer, ResultItem, ReviseAnswer, Search, SearchState, Terminate

_HANDLE = re.compile(r"\[(\d+)\] ")
_REQUESTS: dict[str, StepKind] = {
    "Summarise": "summarise",
    "Answer": "answer",
    "Relevance": "relevance",
    "Grounding": "grounding",
}


def read_chat(text: str) -> tuple[StepKind, SearchState]:
    """What a prompt asks for, and its state. The text of a result is its ``snippet``, title included.

    Raises:
        RestillError: it is no compact prompt.
    """
    start = last_question(text)
    if start < 0:
        raise RestillError("not a prompt of search-compact-1: it has no line 'Question: ...'")
    state, kind, thought, summary = SearchState(question="", searches_left=0), "", "", ""
    for line in text[start:].splitlines():
        head, _, rest = line.strip().partition(": ")
        if head in _REQUESTS and not rest:
            kind = _REQUESTS[head]
        elif head == "Question":
            state.question = rest
        elif head == "Searches left":
            kind, state.searches_left = "decide", int(rest)
        elif head == "Thought":
            thought = rest
        elif head == "Search":
            state.apply(Search(query=rest, thoughts=thought))
        elif head == "Terminate":
            state.apply(Terminate(thoughts=thought))
        elif head == "Observation":
            state.found(_items(line), line)
        elif head == "Summary":
            summary = rest
        elif head == "Links":
            ids = [int(n) for n in rest.split(",")] if rest != "none" else []
            state.apply(state.select(ids, summary))
        elif head == "Answer":
            state.apply(Answer(answer=rest))
        elif head == "Passed":
            state.apply(CheckAnswer())
        elif head == "Revise":
            state.apply(ReviseAnswer(revised_answer=rest))
    if not kind:
        raise RestillError("not a prompt of search-compact-1: nothing is asked for after the question")
    return kind, state


def _items(observation: str) -> list[ResultItem]:
    """The results by their numbers, which follow each other."""
    matches: list[re.Match[str]] = []
    for match in _HANDLE.finditer(observation):
        if not matches or int(match[1]) == int(matches[-1][1]) + 1:
            matches.append(match)
    ends = [*(m.start() for m in matches[1:]), len(observation)][: len(matches)]
    return [
        ResultItem(link_id=int(m[1]), link_text="", snippet=observation[m.end() : end].strip())
        for m, end in zip(matches, ends, strict=True)
    ]
