"""Knobs as plain values, for manifests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any

from ..agents.model import identity, nameless

NEWER = "newer"
"""In the metadata of a field that jobs of an earlier version did not have: the value that they would have had."""


def plain(value: Any) -> Any:
    """Knobs of a method or a ranker as plain values.

    Fields without a repr (models) are left out; so are ``NEWER`` ones at that value, so that earlier jobs go on.
    """
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr and not _left(value, f)}
        return {"kind": type(value).__name__, **named}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Callable):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return {"kind": type(value).__name__, **{k: plain(v) for k, v in sorted(vars(value).items())}}


def asked(value: Any) -> dict[str, Any]:
    """The models that a method or a ranker asks, by where they stand: ``step_ranker.model``."""
    found = dict[str, Any]()
    for name in [f.name for f in fields(value)] if is_dataclass(value) else ["model"]:
        part = getattr(value, name, None)
        if is_dataclass(part) and not isinstance(part, type):
            found |= {f"{name}.{inner}": model for inner, model in asked(part).items()}
        elif name in ("model", "teacher") and part is not None:
            found[name] = part
    return found


def models(value: Any) -> dict[str, dict[str, Any]]:
    """What decides how each of them behaves."""
    return {name: nameless(identity(model)) for name, model in asked(value).items()}


def _left(value: Any, field: Field[Any]) -> bool:
    """Whether a field says no more than jobs without it."""
    return NEWER in field.metadata and getattr(value, field.name) == field.metadata[NEWER]
