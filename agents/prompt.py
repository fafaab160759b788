"""What stands before the first turn: the system turn, two invented examples, the question."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .tools import Tool

Message = dict[str, str]
_QUESTION_LINE = re.compile("^Question: ", re.M)

_INSTRUCTIONS = (
    "Answer the question. Each turn, write one Thought line and one Action line. Look facts up; do not guess. Actions:"
)
_FINISH_LINE = (
    'finish {"answer": string, "citations": [integer]}: End with the shortest answer '
    "and the numbers of the passages that show it."
)

EXAMPLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "What is the Ombrelline bridge made of?",
        (
            "Thought: I need the material of the Ombrelline bridge.\n"
            'Action: {search} {"{query}": "Ombrelline bridge material"}',
            "[1] Ombrelline bridge: The Ombrelline bridge is a footbridge of larch wood across the Tesk. "
            "[2] Tesk: The Tesk is a cold river.",
            'Thought: Passage 1 says larch wood.\nAction: finish {"answer": "larch wood", "citations": [1]}',
        ),
    ),
    (
        "In which town was the composer of the opera Zinnabeth born?",
        (
            "Thought: First I need the composer of Zinnabeth.\n"
            'Action: {search} {"{query}": "composer of the opera Zinnabeth"}',
            "[1] Zinnabeth: Zinnabeth is an opera in two acts by Pellam Urquist. "
            "[2] Opera in Gorrow: Gorrow has one opera house.",
            "Thought: The composer is Pellam Urquist. Now I need his town of birth.\n"
            'Action: {search} {"{query}": "Pellam Urquist born"}',
            "[3] Pellam Urquist: Pellam Urquist was born in Wexmoor and studied in Gorrow. "
            "[4] Wexmoor: Wexmoor is a market town.",
            "Thought: Passage 3 says he was born in Wexmoor.\n"
            'Action: finish {"answer": "Wexmoor", "citations": [1, 3]}',
        ),
    ),
)
"""Examples: the question, then turns and observations in alternation. All names are invented."""


def system_prompt(tools: Sequence[Tool]) -> str:
    """The system turn: what to do, and one line for each action."""
    return "\n".join([_INSTRUCTIONS, *(_tool_line(tool) for tool in tools), _FINISH_LINE])


def question_text(question: str, hint: str | None = None) -> str:
    """The user turn that asks; ``hint`` is for the guided pilot only."""
    text = f"Question: {' '.join(question.split())}"
    return f"{text}\nHint: {' '.join(hint.split())}" if hint else text


def opening(tools: Sequence[Tool], question: str) -> list[Message]:
    """The turns before the model's first, without examples and hint: what is stored and trained on."""
    return [
        {"role": "system", "content": system_prompt(tools)},
        {"role": "user", "content": question_text(question)},
    ]


def last_question(prompt: str) -> int:
    """Where the last ``Question: `` line of a decoded prompt starts, or -1; within a line the words mean nothing."""
    starts = [match.start() for match in _QUESTION_LINE.finditer(prompt)]
    return starts[-1] if starts else prompt.rfind("Question: ")  # a chat template may put turns into one line


def few_shot_messages(tools: Sequence[Tool], count: int) -> list[Message]:
    """The first ``count`` examples as chat turns.

    They show a search, so they are left out when no tool needs just one string named ``query``.
    """
    search = search_tool(tools)
    if search is None:
        return []
    name, query = search
    messages: list[Message] = []
    for question, turns in EXAMPLES[:count]:
        messages.append({"role": "user", "content": question_text(question)})
        for index, turn in enumerate(turns):
            if index % 2:
                messages.append({"role": "user", "content": f"Observation: {turn}"})
            else:
                text = turn.replace("{search}", name).replace("{query}", query)
                messages.append({"role": "assistant", "content": text})
    return messages


def search_tool(tools: Sequence[Tool]) -> tuple[str, str] | None:
    """The tool that searches and its one required argument, a string; ``None`` when there is none."""
    for tool in sorted(tools, key=lambda t: t.name != "search"):
        properties = tool.schema.get("properties", {})
        strings = [n for n, spec in properties.items() if isinstance(spec, Mapping) and spec.get("type") == "string"]
        required = list(tool.schema.get("required", []))
        if len(required) == 1 and required[0] in strings and (tool.name == "search" or required == ["query"]):
            return tool.name, required[0]
    return None


def _tool_line(tool: Tool) -> str:
    properties = tool.schema.get("properties", {})
    required = tool.schema.get("required", [])
    parts = []
    for name, spec in properties.items():
        note = f" ({spec['description']})" if isinstance(spec, Mapping) and spec.get("description") else ""
        mark = "" if name in required else "?"
        parts.append(f"{json.dumps(name)}{mark}: {_type(spec)}{note}")
    line = f"{tool.name} {{{', '.join(parts)}}}"
    return f"{line}: {tool.description}" if tool.description else line


def _type(spec: Any) -> str:
    if not isinstance(spec, Mapping):
        return "any"
    if "enum" in spec:
        return "|".join(json.dumps(v) for v in spec["enum"])[:120]
    for union in ("anyOf", "oneOf"):
        if union in spec:
            return "|".join(dict.fromkeys(_type(s) for s in spec[union]))
    if spec.get("type") == "array":
        return f"[{_type(spec.get('items', {}))}]"
    kind = spec.get("type", "object" if "$ref" in spec else "any")
    return "|".join(kind) if isinstance(kind, list) else str(kind)
