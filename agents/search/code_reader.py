"""Reads what a model wrote into the slot of a code prompt. Parsed with ``ast``, literals only; never run."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from typing import Any

from ...models.errors import RestillError
from ..trajectory import StepKind
from .format import MAX_OUTPUT, checked_answer, checked_text
from .state import Answer, CheckAnswer, PastAction, ReviseAnswer, Search, SearchState, Terminate

END_MARK = "# [END]"
SLOTS: Mapping[str, str] = {
    "decide": "ActionWrapper",
    "summarise": "LinkSelection",
    "answer": "Answer",
    "relevance": "Action",
    "grounding": "Action",
}
"""Type of the slot ``ACTION_SELECTED`` at each kind of step."""
_CALLS: Mapping[str, Mapping[str, type]] = {
    "ActionWrapper": {"thoughts": str, "action": ast.Call},
    "Search": {"query": str},
    "Terminate": {},
    "LinkSelection": {"grounded_summarization": str, "thoughts": str, "selected_link_ids": list},
    "Answer": {"thoughts": str, "answer": str},
    "Check_Answer": {"passed": bool},
    "Revise_Answer": {"revised_answer": str},
}
"""The calls that may stand there, and the types of their arguments, all of which must be named."""


def read_output(kind: StepKind, text: str, state: SearchState, citation: re.Pattern[str]) -> PastAction:
    """The action that an output stands for.

    Raises:
        RestillError: it is no such step.
    """
    if len(text) > MAX_OUTPUT:
        raise RestillError(f"the output has more than {MAX_OUTPUT} characters")
    open_slot = kind in ("decide", "answer")
    call = _call_in(f"ACTION_SELECTED: {SLOTS[kind]} ={text}" if open_slot else text)
    name, values = _read(call)
    if kind == "decide" and name == "ActionWrapper":
        thoughts = checked_text(values["thoughts"], "thoughts")
        name, values = _read(values["action"])
        if name == "Terminate":
            return Terminate(thoughts=thoughts)
        if name == "Search" and not state.searches_left:
            raise RestillError("REMAINING_SEARCHES is 0; choose Terminate()")
        if name == "Search":
            return Search(query=checked_text(values["query"], "query"), thoughts=thoughts)
    elif kind == "summarise" and name == "LinkSelection":
        summary = checked_text(values["grounded_summarization"], "grounded_summarization")
        return state.select(values["selected_link_ids"], summary, checked_text(values["thoughts"], "thoughts"))
    elif kind == "answer" and name == "Answer":
        thoughts = checked_text(values["thoughts"], "thoughts")
        return Answer(answer=checked_answer(values["answer"], citation), thoughts=thoughts)
    elif kind in ("relevance", "grounding"):
        if name == "Check_Answer":
            if not values["passed"]:
                raise RestillError("an answer that does not pass needs Revise_Answer(revised_answer=...)")
            return CheckAnswer(thoughts=_comments(text))
        if name == "Revise_Answer":
            revised = checked_answer(values["revised_answer"], citation)
            return ReviseAnswer(revised_answer=revised, thoughts=_comments(text))
    raise RestillError(f"{name} cannot stand in ACTION_SELECTED: {SLOTS[kind]} of this step")


def _call_in(source: str) -> ast.Call:
    """The call that is assigned to ACTION_SELECTED, the only statement there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes in what the model wrote
            module = ast.parse(source)
    except SyntaxError as error:
        raise RestillError(f"the output is no Python: {error.msg}"[:200]) from None
    except (ValueError, RecursionError, MemoryError):
        raise RestillError("the output is no Python that can be read") from None
    match module.body:
        case [ast.AnnAssign(target=ast.Name(id="ACTION_SELECTED"), value=ast.Call() as call)]:
            return call
    raise RestillError("the output must be one object for ACTION_SELECTED")


def _read(call: ast.Call) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call; the value of ``action`` stays a call."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    wanted = _CALLS.get(name)
    if wanted is None:
        raise RestillError(f"only these can be selected: {', '.join(_CALLS)}")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if call.args or set(given) != set(wanted) or len(given) < len(call.keywords):
        raise RestillError(f"{name} takes {', '.join(wanted) or 'nothing'}, each by its name, once")
    return name, {key: _value(f"{name}({key}=...)", given[key], kind) for key, kind in wanted.items()}


def _value(where: str, node: ast.expr, kind: type) -> Any:
    if kind is ast.Call and isinstance(node, ast.Call):
        return node
    if isinstance(node, ast.Constant) and type(node.value) is kind:
        return node.value
    if kind is list and isinstance(node, ast.List):
        return [_value(where, item, int) for item in node.elts]
    raise RestillError(f"{where} must be a literal of type {'int list' if kind is list else kind.__name__}")


def _comments(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#")).strip()
