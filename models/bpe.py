"""The parts of a byte-level BPE ``tokenizer.json``: its bytes, its merges, and the same without some tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any


def without_tokens(data: Mapping[str, Any], gone: Set[str]) -> str:
    """``data`` as tokenizer.json text, the tokens ``gone`` taken out of added tokens, vocabulary and merges."""
    model = dict(data["model"])
    model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in gone}
    model["merges"] = [list(p) for p in merge_pairs(model) if not {*p, "".join(p)} & gone]
    if model.get("unk_token") in gone:
        model["unk_token"] = None
    added = [t for t in data["added_tokens"] if t["content"] not in gone]
    return json.dumps({**data, "model": model, "added_tokens": added, "post_processor": None})


def merge_pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE model of a ``tokenizer.json``, by rank; older files write each as one string."""
    split = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in split]


def byte_table() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    table.update({chr(256 + i): b for i, b in enumerate(others)})
    return table
