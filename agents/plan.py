"""What an agent gives each of its runs, and how seeds follow from one another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .budget import Budget
from .question import Question
from .tools import Tool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An agent's options, resolved; shared by all of its runs.

    Attributes:
        protocol: how its steps are written, with the version.
        fingerprint: the agent hash.
    """

    protocol: str
    model: Any
    tools: Mapping[str, Tool]
    budget: Budget
    few_shot: int
    temperature: float
    observation_tokens: int
    step_tokens: int
    hint: Callable[[Question], str] | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ReActPlan(Plan):
    """Of a ReAct agent.

    Attributes:
        grammar: of an ordinary turn; ``None``: unconstrained.
        finish_grammar: of the last, best-effort turn; ``None`` for models that take no grammar.
    """

    grammar: str | None
    finish_grammar: str | None


def derive_seed(*parts: object) -> int:
    """A seed (31 bits) from anything that prints the same everywhere: run seed and step, or question and
    sample.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
