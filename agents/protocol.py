"""The protocol react-1: how a turn is written, and the parser that reads any text and never raises.

A turn is ``Thought: ...`` on one line and ``Action: name {json}`` on the next, with nothing after it.
Adapters and loss masks depend on this form and on the prompt (prompt.py), the grammar (grammar.py) and the
rendering of observations (observation.py); a change to any of them needs a new version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..models.text import well_formed
from .grammar import FINISH_SCHEMA, finish_grammar, grammar
from .observation import render_observation
from .prompt import EXAMPLES, few_shot_messages, question_text, system_prompt
from .tools import FINISH, NAME
from .trajectory import Action

__all__ = [
    "EXAMPLES",
    "FINISH",
    "FINISH_SCHEMA",
    "PROTOCOL",
    "Parsed",
    "few_shot_messages",
    "finish_grammar",
    "grammar",
    "parse",
    "question_text",
    "render_observation",
    "system_prompt",
    "write_turn",
]

PROTOCOL = "react-1"
MAX_TURN = 20_000
"""Characters of the longest turn that is read at all."""
MAX_DEPTH = 16
"""Deepest nesting of an action's arguments."""

_TURN = re.compile(r"\s*Thought:[ \t]*(?P<thought>[^\n]*)\n[ \t]*Action:[ \t]*(?P<action>.*)", re.DOTALL)
_NAME = re.compile(rf"(?P<name>{NAME.pattern})[ \t]*")


@dataclass(frozen=True)
class Parsed:
    """A turn as read: ``action`` or ``error`` is set; ``error`` is short enough to show to the model."""

    thought: str = ""
    action: Action | None = None
    error: str | None = None


def parse(text: str, tools: Iterable[str] | None = None) -> Parsed:
    """Read a turn. Never raises, whatever the text.

    Args:
        text: what the model wrote.
        tools: names that may be called besides ``finish``; ``None``: any.
    """
    if not text.strip():
        return Parsed(error="the turn is empty; write a Thought line and an Action line")
    if len(text) > MAX_TURN:
        return Parsed(error=f"the turn has more than {MAX_TURN} characters")
    turn = _TURN.match(text)
    if turn is None:
        return Parsed(error=_missing(text))
    thought = turn["thought"].strip()
    if not thought:
        return Parsed(error='the line "Thought:" is empty')
    head = _NAME.match(turn["action"])
    if head is None:
        return Parsed(thought, error='after "Action:" must come the name of an action and its JSON arguments')
    name = head["name"]
    known = None if tools is None else [*tools, FINISH]
    if known is not None and name not in known:
        return Parsed(thought, error=f"there is no action {name[:40]!r}; use one of: {', '.join(known)}"[:300])
    rest = turn["action"][head.end() :]
    arguments, end, error = _read_object(rest)
    if error is None and rest[end:].strip():
        error = "there is text after the action; a turn ends with the closing brace"
    if error is None and name == FINISH:
        error = _finish_error(arguments)
    if error is not None:
        return Parsed(thought, error=error)
    return Parsed(thought, action=Action(tool=name, arguments=arguments))


def write_turn(thought: str, tool: str, arguments: dict[str, Any]) -> str:
    """A turn in the form that the grammar generates and :func:`parse` reads."""
    return f"Thought: {thought}\nAction: {tool} {json.dumps(arguments, ensure_ascii=False)}"


def _missing(text: str) -> str:
    if not text.lstrip().startswith("Thought:"):
        return 'a turn must begin with "Thought:"'
    return 'the line after the thought must begin with "Action:"'


def _read_object(text: str) -> tuple[dict[str, Any], int, str | None]:
    if not text.startswith("{"):
        return {}, 0, "the arguments must be a JSON object, such as {...}"
    try:
        value, end = _DECODER.raw_decode(text)
    except RecursionError:
        return {}, 0, "the arguments are nested too deeply"
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number out of range"
        return {}, 0, f"the arguments are not valid JSON: {reason}"
    if _depth_exceeds(value, MAX_DEPTH):
        return {}, 0, "the arguments are nested too deeply"
    if well_formed(said := json.dumps(value, ensure_ascii=False)) != said:  # no log and no tokenizer takes such text
        return {}, 0, "the arguments hold a broken Unicode escape"
    return value, end, None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("out of range")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
        if not level:
            return False
    return True


def _finish_error(arguments: dict[str, Any]) -> str | None:
    unknown = [name for name in arguments if name not in ("answer", "citations")]
    if unknown:
        return f"finish: there is no argument {unknown[0][:40]!r}"
    answer, citations = arguments.get("answer"), arguments.get("citations", [])
    if not isinstance(answer, str) or not answer.strip():
        return 'finish: "answer" must be a non-empty string'
    if not isinstance(citations, list) or any(type(c) is not int for c in citations):
        return 'finish: "citations" must be a list of passage numbers'
    return None
