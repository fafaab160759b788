"""The prompt format search-code-1: code as the prompt, after Aksitov et al. (arXiv 2312.10003, appendix).

Each prompt is Python source, written anew from the state: typed objects, ``PAST_ACTIONS`` with all that was
done, the question once more, and a slot that the model fills; ``# [END]`` ends it. Text from outside stands
only in string literals (``repr``). One prompt and its output are one training example.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..observation import Counter, fold, shorten
from ..tool_results import ToolResult
from ..trajectory import StepKind
from .code_pages import read_page
from .code_reader import END_MARK, SLOTS, read_output
from .examples import EXAMPLES, example_steps
from .format import MAX_ANSWER, MAX_CITATIONS, MAX_SUMMARY, MAX_TEXT, PromptFormat, either
from .pages import Pages, open_pages
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

MAX_TITLE = 100
"""Characters of a result's title."""

_INSTRUCTIONS = {
    "decide": "Implement an agent that answers complex queries, searching several times if need be. "
    "Choose the next action.",
    "summarise": "Implement an agent that answers complex queries. "
    "Select the search results that help, and summarise what they tell, nothing else.",
    "answer": "Implement an agent that answers complex queries. "
    "Write the shortest answer that PAST_ACTIONS show, and cite selected links as [link_id=1].",
    "relevance": "Implement an agent that answers complex queries. "
    "Check that ANSWER addresses ORIGINAL_QUESTION; if it does not, revise it.",
    "grounding": "Implement an agent that answers complex queries. "
    "Check that the links selected in PAST_ACTIONS support ANSWER; if they do not, revise it.",
}
_TYPES = {
    "decide": "Search(Action): query: str|Terminate(Action)|ActionWrapper: thoughts: str; action: Action",
    "summarise": "ResultItem: link_id: int; link_text: str; snippet: str"
    "|SearchResult: links: List[ResultItem]; note: str"
    "|LinkSelection: grounded_summarization: str; thoughts: str; selected_link_ids: List[int]",
    "answer": "Answer(Action): thoughts: str; answer: str",
    "relevance": "Check_Answer(Action): passed: bool|Revise_Answer(Action): revised_answer: str",
}
_TYPES["grounding"] = _TYPES["relevance"]


class CodeFormat(PromptFormat):
    """See the module. It has no state."""

    name = "code"
    protocol = "search-code-1"
    stop = (END_MARK,)
    citation = re.compile(r"\[link_id=(\d{1,6})\]")

    def open(self, model: Any, state: SearchState, *, few_shot: int, hint: str | None) -> Pages:
        """The prompts, at the first decision."""
        first = self.page("decide", state, few_shot=few_shot, hint=hint)
        pages = open_pages(model, first, self.page("decide", state))
        pages.few_shot, pages.hint = few_shot, hint
        return pages

    def measure(self, transcript: Pages, kind: StepKind, state: SearchState) -> int:
        """Tokens of this step's prompt."""
        return transcript.measure(self._seen(transcript, kind, state))

    def ask(self, transcript: Pages, kind: StepKind, state: SearchState) -> None:
        """Put this step's prompt in the place of the one before."""
        transcript.show(self._seen(transcript, kind, state), self.page(kind, state))

    def _seen(self, transcript: Pages, kind: StepKind, state: SearchState) -> str:
        return self.page(kind, state, few_shot=transcript.few_shot, hint=transcript.hint)

    def page(self, kind: StepKind, state: SearchState, *, few_shot: int = 0, hint: str | None = None) -> str:
        """The prompt of a step: instruction and types, examples, the state, and the open slot."""
        parts = [f'"""{_INSTRUCTIONS[kind]}"""', _types(kind)]
        for number, (shown, output) in enumerate(self._examples(kind, few_shot), 1):
            parts += [_heading(f"Example {number}"), shown + output]
        parts += [_heading("Your turn")] if few_shot else []
        return "\n".join([*parts, _slot(kind, state, hint)])

    def _examples(self, kind: StepKind, count: int) -> list[tuple[str, str]]:
        found = []
        for number in range(len(EXAMPLES)):
            for step, state, action in example_steps(number, self):
                if step == kind:
                    found.append((_slot(kind, state), self.write(kind, action, state)))
        # The first and the last: of decisions, a search and an end.
        return [found[round(n * (len(found) - 1) / max(count - 1, 1))] for n in range(count)]

    def grammar(self, kind: StepKind, state: SearchState) -> str:
        """One regular expression a step, with the links that may be named, up to the end mark."""
        text, thought = _string(MAX_TEXT), f"thoughts={_string(MAX_TEXT)}"
        comment = rf"# [^\x00-\x20\x7f][^\x00-\x1f\x7f]{{0,{MAX_TEXT - 1}}}\n"
        slot = rf"ACTION_SELECTED: {SLOTS[kind]} = "
        if kind == "decide":
            ways = rf"(Search\(query={text}\)|Terminate\(\))" if state.searches_left else r"Terminate\(\)"
            turn = rf" ActionWrapper\({thought}, action={ways}\)"
        elif kind == "summarise":
            ids = either([item.link_id for item in state.results])
            links = f"({ids}(, {ids}){{0,{len(state.results) - 1}}})?" if state.results else ""
            notes = "".join(rf"# \[link_id={item.link_id}\] {comment[2:]}" for item in state.results)
            summary = f"grounded_summarization={_string(MAX_SUMMARY)}"
            turn = rf"{notes or comment}{slot}LinkSelection\({summary}, {thought}, selected_link_ids=\[{links}\]\)"
        elif kind == "answer":
            turn = rf" Answer\({thought}, answer={_answer_pattern(state)}\)"
        else:
            revise = rf"Revise_Answer\(revised_answer={_answer_pattern(state)}\)"
            turn = rf"{comment}{slot}(Check_Answer\(passed=True\)|{revise})"
        return f"start: TURN\nTURN: /{turn}\\n# \\[END\\]/\n"

    def parse(self, kind: StepKind, text: str, state: SearchState) -> PastAction:
        """Read an output; raises RestillError when it is no such step."""
        return read_output(kind, text, state, self.citation)

    def write(self, kind: StepKind, action: PastAction, state: SearchState) -> str:
        """The output that stands for an action, end mark included."""
        slot = f"ACTION_SELECTED: {SLOTS[kind]} = "
        if isinstance(action, Search):
            text = f" ActionWrapper(thoughts={action.thoughts!r}, action=Search(query={action.query!r}))"
        elif isinstance(action, Terminate):
            text = f" ActionWrapper(thoughts={action.thoughts!r}, action=Terminate())"
        elif isinstance(action, SelectLink):
            ids = [link.link_id for link in action.selected_links]
            notes = [
                f"# [link_id={item.link_id}] {fold(item.link_text) or 'No title'}: "
                f"{'Selected' if item.link_id in ids else 'Not selected'}.\n"
                for item in state.results
            ] or ["# There are no results.\n"]
            summary = f"grounded_summarization={action.grounded_summarization!r}, thoughts={action.thoughts!r}"
            text = f"{''.join(notes)}{slot}LinkSelection({summary}, selected_link_ids={ids})"
        elif isinstance(action, Answer):
            text = f" Answer(thoughts={action.thoughts!r}, answer={action.answer!r})"
        elif isinstance(action, CheckAnswer):
            text = f"# {fold(action.thoughts)}\n{slot}Check_Answer(passed=True)"
        else:
            text = f"# {fold(action.thoughts)}\n{slot}Revise_Answer(revised_answer={action.revised_answer!r})"
        return f"{text}\n{END_MARK}"

    def read(self, text: str) -> tuple[StepKind, SearchState]:
        """What a prompt asks for, and its state."""
        return read_page(text, _INSTRUCTIONS)

    def cite(self, answer: str, ids: Iterable[int]) -> str:
        """``Oslo [link_id=1] [link_id=3]``."""
        return " ".join([answer, *(f"[link_id={n}]" for n in ids)])

    def show(self, result: ToolResult, first: int, counter: Counter, max_tokens: int) -> tuple[str, list[ResultItem]]:
        """``SearchResult(links=[ResultItem(...), ...])``, each snippet cut to an equal share, and the items."""
        share = max(max_tokens // max(len(result.hits), 1), 4)
        items = [
            ResultItem(
                link_id=number,
                link_text=fold(hit.chunk.title),
                snippet=shorten(fold(hit.chunk.text), share, counter),
            )
            for number, hit in enumerate(result.hits, first)
        ]
        if items:
            return f"SearchResult(links=[{', '.join(map(_item, items))}])", items
        note = fold(result.text) or "nothing found"
        if result.status != "ok":
            note = f"error: {fold(result.text or result.error or result.status)}"
        return f"SearchResult(links=[], note={shorten(note, max_tokens, counter)!r})", items


def _types(kind: StepKind) -> str:
    lines = ["from typing import List", "class Action: ..."]
    for declared in _TYPES[kind].split("|"):
        head, _, fields = declared.partition(": ")
        lines.append(f"class {head}: {fields or '...'}")
    return "\n".join(lines)


def _heading(title: str) -> str:
    return f"########\n# {title}:\n########"


def _slot(kind: StepKind, state: SearchState, hint: str | None = None) -> str:
    question = f"ORIGINAL_QUESTION: str = {state.question!r}"
    past = "".join(f"    {_past(action)},\n" for action in state.past)
    lines = [question, f"HINT: str = {fold(hint)!r}"] if hint else [question]
    lines.append(f"PAST_ACTIONS: List[Action] = [\n{past}]" if past else "PAST_ACTIONS: List[Action] = []")
    if kind == "decide":
        lines.append(f"REMAINING_SEARCHES: int = {state.searches_left}")
    elif kind == "summarise":
        lines.append(f"CURRENT_SEARCH_RESULTS = {state.observation}")
    elif kind in ("relevance", "grounding"):
        lines.append(f"ANSWER: str = {state.answer!r}")
    lines.append(question)
    # Where the model first reasons in comments, it writes the slot's name itself.
    lines.append(f"ACTION_SELECTED: {SLOTS[kind]} =" if kind in ("decide", "answer") else "")
    return "\n".join(lines)


def _past(action: PastAction) -> str:
    if isinstance(action, Search):
        return f"Search(query={action.query!r}, thoughts={action.thoughts!r})"
    if isinstance(action, SelectLink):
        links = ", ".join(map(_item, action.selected_links))
        summary = f"grounded_summarization={action.grounded_summarization!r}, thoughts={action.thoughts!r}"
        return f"SelectLink(selected_links=[{links}], {summary})"
    if isinstance(action, Terminate):
        return f"Terminate(thoughts={action.thoughts!r})"
    if isinstance(action, Answer):
        return f"Answer(thoughts={action.thoughts!r}, answer={action.answer!r})"
    if isinstance(action, ReviseAnswer):
        return f"Revise_Answer(revised_answer={action.revised_answer!r})"
    return "Check_Answer(passed=True)"


def _item(item: ResultItem) -> str:
    return f"ResultItem(link_id={item.link_id}, link_text={item.link_text[:MAX_TITLE]!r}, snippet={item.snippet!r})"


def _string(longest: int) -> str:
    """A string literal of one line, without escapes, in either kind of quotes; it begins with no space."""
    single = rf"[^'\\\x00-\x20\x7f][^'\\\x00-\x1f\x7f]{{0,{longest - 1}}}"
    double = single.replace("'", '"')
    return f"""('{single}'|"{double}")"""


def _answer_pattern(state: SearchState) -> str:
    cited = rf"( \[link_id={either(state.selected)}\]){{0,{MAX_CITATIONS}}}" if state.selected else ""
    bare = r"[^'\\\x00-\x20\x7f\[\]][^'\\\x00-\x1f\x7f\[\]]"
    double = bare.replace("'", '"')
    rest = f"{{0,{MAX_ANSWER - 1}}}"
    return f"""('{bare}{rest}{cited}'|"{double}{rest}{cited}")"""
