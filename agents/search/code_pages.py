"""Reads a code prompt back into the state that it was written from. Parsed with ``ast``, never run."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ...models.errors import RestillError
from ..trajectory import StepKind
from .state import Answer, CheckAnswer, PastAction, ResultItem, ReviseAnswer, Search, SearchState, SelectLink, Terminate

_KINDS: Mapping[str, type[PastAction] | type[ResultItem]] = {
    "Search": Search,
    "SelectLink": SelectLink,
    "Terminate": Terminate,
    "Answer": Answer,
    "Revise_Answer": ReviseAnswer,
    "ResultItem": ResultItem,
}


def read_page(text: str, instructions: Mapping[str, str]) -> tuple[StepKind, SearchState]:
    """What a prompt asks for, and its state (without the number of searches, where it does not show it).

    Args:
        instructions: docstring of the prompts of each kind.

    Raises:
        RestillError: it is no code prompt.
    """
    source = text + " None" if text.endswith("=") else text
    try:
        module = ast.parse(source)
        doc = ast.get_docstring(module, clean=False)
        kind: Any = next((kind for kind, line in instructions.items() if line == doc), None)
        # Examples come first: what is assigned last is the live state.
        values = {}
        for node in module.body:
            name = _assigned(node)
            if name is not None and name != "ACTION_SELECTED":
                values[name] = node.value  # type: ignore[attr-defined]
        question, past = ast.literal_eval(values["ORIGINAL_QUESTION"]), _value(values["PAST_ACTIONS"])
        state = SearchState(question=question, searches_left=0)
        if kind == "decide":
            state.searches_left = ast.literal_eval(values["REMAINING_SEARCHES"])
        for action in past:
            state.apply(action)
        if kind == "summarise":
            results = values["CURRENT_SEARCH_RESULTS"]
            links = next(k.value for k in results.keywords if k.arg == "links")
            state.found(_value(links), ast.unparse(results))
    except (SyntaxError, ValueError, KeyError, TypeError, AttributeError, StopIteration, ValidationError) as error:
        raise RestillError(f"not a prompt of search-code-1: {error!r:.100}") from None
    if kind is None:
        raise RestillError("not a prompt of search-code-1: its first line is another one")
    return kind, state


def _assigned(node: ast.stmt) -> str | None:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return next((t.id for t in targets if isinstance(t, ast.Name)), None)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.List):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "Check_Answer":
            return CheckAnswer()
        return _KINDS[node.func.id](**{k.arg or "": _value(k.value) for k in node.keywords})
    return ast.literal_eval(node)
