"""The state of a search agent's run: the question, what was done so far, and what is to be decided on.

After "ReST meets ReAct" (Aksitov et al., arXiv 2312.10003), where ``PAST_ACTIONS`` is the whole state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...models.errors import RestillError
from ..tools import FINISH
from ..trajectory import Action, StepKind

SELECT, TERMINATE, CHECK, REVISE = "select", "terminate", "check", "revise"
"""Names under which steps that call no tool are stored (an answer is a ``finish``)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ResultItem(_Frozen):
    """A search result; ``link_id`` is unique in a run."""

    link_id: int
    link_text: str
    snippet: str


class Search(_Frozen):
    """A search that was made."""

    query: str
    thoughts: str = ""


class SelectLink(_Frozen):
    """The results that matter, and what they tell."""

    selected_links: tuple[ResultItem, ...]
    grounded_summarization: str
    thoughts: str = ""


class Terminate(_Frozen):
    """No more searches."""

    thoughts: str = ""


class Answer(_Frozen):
    """The answer with its citations, as written."""

    answer: str
    thoughts: str = ""


class CheckAnswer(_Frozen):
    """A self-check that the answer passed."""

    thoughts: str = ""


class ReviseAnswer(_Frozen):
    """A self-check that replaced the answer."""

    revised_answer: str
    thoughts: str = ""


PastAction = Search | SelectLink | Terminate | Answer | CheckAnswer | ReviseAnswer


@dataclass
class SearchState:
    """Everything that the next prompt is made of.

    Attributes:
        question: on one line.
        searches_left: searches that may still be made.
        past: what was done, in order.
        results: of the last search, until they are summarised.
        observation: those results as they are shown.
        answer: as it stands now, citations included.
        draft: as it stood before the checks.
    """

    question: str
    searches_left: int
    past: list[PastAction] = field(default_factory=list)
    results: tuple[ResultItem, ...] = ()
    observation: str = ""
    answer: str | None = None
    draft: str | None = None

    @property
    def selected(self) -> list[int]:
        """Ids of the links that were selected so far: what an answer may cite."""
        links = (link for a in self.past if isinstance(a, SelectLink) for link in a.selected_links)
        return list(dict.fromkeys(link.link_id for link in links))

    def apply(self, action: PastAction) -> None:
        """Go on with an action."""
        self.past.append(action)
        if isinstance(action, SelectLink):
            self.results, self.observation = (), ""
        elif isinstance(action, Answer):
            self.answer = self.draft = action.answer
        elif isinstance(action, ReviseAnswer):
            self.answer = action.revised_answer

    def found(self, results: Sequence[ResultItem], observation: str) -> None:
        """Take in what a search found."""
        self.results, self.observation = tuple(results), observation

    def select(self, ids: Sequence[int], summary: str, thoughts: str = "") -> SelectLink:
        """The selection of the shown results with these ids, in the order shown.

        Raises:
            RestillError: an id is not among the results.
        """
        shown = [item.link_id for item in self.results]
        if unknown := [n for n in ids if n not in shown]:
            raise RestillError(f"link {unknown[0]} is not among those shown: {', '.join(map(str, shown)) or 'none'}")
        links = tuple(item for item in self.results if item.link_id in set(ids))
        return SelectLink(selected_links=links, grounded_summarization=summary, thoughts=thoughts)


def to_record(action: PastAction, tool: str, argument: str) -> Action:
    """An action as a step stores it; ``tool`` and its ``argument`` are the search's."""
    if isinstance(action, Search):
        return Action(tool=tool, arguments={argument: action.query})
    if isinstance(action, SelectLink):
        ids = [link.link_id for link in action.selected_links]
        return Action(tool=SELECT, arguments={"summary": action.grounded_summarization, "links": ids})
    if isinstance(action, Answer):
        return Action(tool=FINISH, arguments={"answer": action.answer})
    if isinstance(action, ReviseAnswer):
        return Action(tool=REVISE, arguments={"answer": action.revised_answer})
    return Action(tool=TERMINATE if isinstance(action, Terminate) else CHECK)


def from_record(kind: StepKind, record: Action, thoughts: str, state: SearchState) -> PastAction:
    """What :func:`to_record` stored, in the state in which it was done."""
    values: dict[str, Any] = record.arguments
    if kind == "decide":
        if record.tool == TERMINATE:
            return Terminate(thoughts=thoughts)
        return Search(query=next(iter(values.values())), thoughts=thoughts)
    if kind == "summarise":
        return state.select(values["links"], values["summary"], thoughts)
    if kind == "answer":
        return Answer(answer=values["answer"], thoughts=thoughts)
    if record.tool == REVISE:
        return ReviseAnswer(revised_answer=values["answer"], thoughts=thoughts)
    return CheckAnswer(thoughts=thoughts)
