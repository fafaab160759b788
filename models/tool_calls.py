"""Tool calls for chat models that were never taught any: a prompt, a grammar and a parser.

Tools are described in the system turn. The grammar lets the model write either plain text or one JSON
object ``{"name": ..., "arguments": {...}}`` whose arguments follow the tool's own schema, so that a model
of any size makes well-formed calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from .errors import RestillError

_INSTRUCTION = (
    'You can call a tool. To call one, reply with nothing but {"name": tool, "arguments": {...}}. '
    "If you need no tool, reply in plain text.\nTools:\n"
)


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """The text that tells the model about its tools, one line each.

    Args:
        tools: in the OpenAI format, as ``convert_to_openai_tool`` makes them.
    """
    return _INSTRUCTION + "\n".join(_describe(tool["function"]) for tool in tools)


def _describe(function: Mapping[str, Any]) -> str:
    properties = function.get("parameters", {}).get("properties", {})
    arguments = ", ".join(f"{name}: {spec.get('type', 'any')}" for name, spec in properties.items())
    summary = " ".join((function.get("description") or "").split())
    return f"- {function['name']}({arguments}): {summary}"


def tool_grammar(tools: Sequence[Mapping[str, Any]], choice: Any = None) -> str | None:
    """A Lark grammar (llguidance) for "plain text or one tool call".

    Args:
        tools: in the OpenAI format.
        choice: ``None`` or ``"auto"`` leaves it to the model, ``"none"`` forbids calls (no grammar),
            ``"any"``, ``"required"`` or ``True`` demands a call, a tool's name or
            ``{"function": {"name": ...}}`` demands that tool.

    Raises:
        RestillError: ``choice`` names no tool.
    """
    if choice == "none" or choice is False:
        return None
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, Mapping):
        choice = choice.get("function", choice).get("name")
    forced = choice in ("any", "required", True)
    if isinstance(choice, str) and choice not in ("any", "required", "auto"):
        if choice not in names:
            raise RestillError(f"tool_choice={choice!r} is no tool here; choose one of {', '.join(names)}")
        tools = [tool for tool in tools if tool["function"]["name"] == choice]
        forced = True
    schema = {
        "x-guidance": {
            "whitespace_flexible": False,
            "key_separator": ": ",
            "item_separator": ", ",
            "lenient": True,
        },
        "anyOf": [_call_schema(tool["function"]) for tool in tools],
    }
    call = f"call: %json {json.dumps(schema)}\n"
    if forced:
        return f"start: call\n{call}"
    # Text may not begin with "{", so the first byte decides which of the two it is.
    return f"start: call | TEXT\n{call}TEXT: /(?s:[^{{\\s].*)/\n"


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(function.get("parameters") or {"type": "object", "properties": {}})
    arguments.setdefault("additionalProperties", False)
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def parse_tool_call(text: str, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The call that ``text`` is, as LangChain's ``{"name", "args", "id", "type"}``; None for plain text.

    Never raises: half a call (cut by the token limit) is plain text.
    """
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("arguments"), dict):
        return None
    if call.get("name") not in [tool["function"]["name"] for tool in tools]:
        return None
    return {
        "name": call["name"],
        "args": call["arguments"],
        "id": f"call_{uuid4().hex[:16]}",
        "type": "tool_call",
    }


def write_tool_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of a call, as the grammar spells it: what an earlier turn looked like to the model."""
    return json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
