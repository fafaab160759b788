"""Grammars for constrained decoding, as Lark text for llguidance: ``model.invoke(messages, grammar=...)``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def json_grammar(schema: Mapping[str, Any]) -> str:
    """Exactly the JSON texts that ``schema`` (JSON Schema, as pydantic's ``model_json_schema`` makes it) accepts.

    What llguidance cannot enforce is refused when the request is made, never ignored.
    """
    return f"start: %json {json.dumps(schema)}"


def regex_grammar(pattern: str) -> str:
    """Exactly the texts that ``pattern`` (in the syntax of Rust's regex crate) matches from first to last character."""
    escaped = {"/": r"\/", "\n": r"\n"}
    return "start: /" + re.sub(r"\\.|[/\n]", lambda m: escaped.get(m[0], m[0]), pattern, flags=re.DOTALL) + "/"
