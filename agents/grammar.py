"""The grammar of a turn: a Lark text for llguidance, built from the tools' schemas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from .tools import FINISH, Tool

MAX_THOUGHT = 200
"""Characters of a thought."""
MAX_STRING = 200
"""Characters of a string argument that states no limit of its own."""
MAX_ANSWER = 300
MAX_CITATIONS = 8

FINISH_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "pattern": rf"^\S.{{0,{MAX_ANSWER - 1}}}$"},
        "citations": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 999},
            "maxItems": MAX_CITATIONS,
        },
    },
    "required": ["answer", "citations"],
    "additionalProperties": False,
}
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_DROPPED = frozenset({"title", "description", "default", "examples", "$schema", "$comment"})


def grammar(tools: Iterable[Tool]) -> str:
    """One turn: a thought on one line, then one of ``tools`` or ``finish`` with its arguments."""
    return _lark([(tool.name, tool.schema) for tool in tools] + [(FINISH, FINISH_SCHEMA)])


def finish_grammar() -> str:
    """One turn that can only be ``finish``: the best-effort answer when the budget has run out."""
    return _lark([(FINISH, FINISH_SCHEMA)])


def _lark(actions: list[tuple[str, Mapping[str, Any]]]) -> str:
    lines = [
        r'start: "Thought: " THOUGHT "\nAction: " action',
        # No control character, and no space in front: the parser gives back exactly what was written.
        rf"THOUGHT: /[^\x00-\x20\x7f][^\x00-\x1f\x7f]{{0,{MAX_THOUGHT - 1}}}/",
        "action: " + " | ".join(f"a{n}" for n in range(len(actions))),
    ]
    for n, (name, schema) in enumerate(actions):
        lines.append(f'a{n}: "{name} " %json {_compiled(json.dumps(schema, default=str))}')
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=256)
def _compiled(schema_json: str) -> str:
    """The schema, bounded and compactly spaced; any JSON object where llguidance cannot express it."""
    from llguidance import LLMatcher

    schema = {"x-guidance": _SPACING, **_bounded(json.loads(schema_json))}
    text = json.dumps(schema)
    if LLMatcher.validate_grammar(f"start: %json {text}\n"):
        text = json.dumps({"x-guidance": _SPACING, "type": "object"})
    return text


def _bounded(schema: Any, *, names: bool = False) -> Any:
    """Bound every string and array, allow no unknown arguments, and drop what only people read.

    ``names``: the keys are names of properties or definitions, not keywords.
    """
    if isinstance(schema, list):
        return [_bounded(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if names:
        return {key: _bounded(value) for key, value in schema.items()}
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _DROPPED:
            continue
        if key in ("enum", "const"):
            out[key] = value
        else:
            out[key] = _bounded(value, names=key in ("properties", "$defs", "definitions", "patternProperties"))
    if out.get("type") == "string" and not {"enum", "const", "format", "pattern", "maxLength"} & out.keys():
        out["maxLength"] = MAX_STRING
    if out.get("type") == "array" and "maxItems" not in out:
        out["maxItems"] = MAX_CITATIONS
    if "properties" in out and "additionalProperties" not in out:
        out["additionalProperties"] = False
    return out
