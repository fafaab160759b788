"""What the agent needs of a model: token ids in, token ids out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

from ..models.engine.request import Completion, Request
from ..models.engine.stats import Stats

CONTEXT_SLACK = 32
"""Positions left free: an engine pads the last piece of a prompt."""


class ChatTokenizer(Protocol):
    """The part of ``restill.models.tokenizer.Tokenizer`` that agents use."""

    eos_ids: tuple[int, ...]
    special_ids: frozenset[int]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of ``text``; unless ``special``, control tokens in it become ordinary ids."""
        ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of ``ids``."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation under the model's template."""
        ...

    def continue_chat(self, assistant_ids: Sequence[int], messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids that follow a sampled turn: its close, ``messages``, the opening of the next assistant turn."""
        ...


class Adapter(Protocol):
    """Which adapter a model carries."""

    name: str
    hash: str
    manifest: Mapping[str, Any]


class TokenModel(Protocol):
    """A model spoken to in token ids; ``JaxChatModel`` is one, and the test double ``ScriptedModel``.

    Attributes:
        fingerprint: hash of the weights and the tokenizer, without the adapter.
        max_context: positions of the longest prompt and continuation together.
    """

    name: Any
    fingerprint: str
    max_context: int

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The model's tokenizer."""
        ...

    @property
    def adapter(self) -> Adapter | None:
        """The adapter in use."""
        ...

    async def agenerate_tokens(self, request: Request) -> Completion:
        """Generate one continuation."""
        ...


def is_token_model(model: Any) -> TypeGuard[TokenModel]:
    """Whether ``model`` can be spoken to in token ids (else it must be a LangChain chat model)."""
    return callable(getattr(model, "agenerate_tokens", None)) and getattr(model, "tokenizer", None) is not None


def context_of(model: Any) -> int | None:
    """Positions a transcript may fill (``max_context`` of the model or its engine); ``None``: unknown."""
    for attribute in (None, "engine"):
        owner = model if attribute is None else getattr(model, attribute, None)
        if isinstance(value := getattr(owner, "max_context", None), int):
            return value - CONTEXT_SLACK
    return None


def slots_of(model: Any) -> int | None:
    """Sequences that a local model's engine decodes at once; ``None``: unknown."""
    value = getattr(model, "slots", None)
    return value if isinstance(value, int) else None


def counter_of(model: Any) -> Callable[[], Stats] | None:
    """What counts the work of a local model's engine, which starts if it has not; None where there is none."""
    return getattr(getattr(model, "engine", None), "stats", None)


def identity(model: Any) -> dict[str, Any]:
    """What a manifest tells of a model: name, fingerprint, adapter, precision, and ``deterministic`` if it is."""
    if is_token_model(model):
        adapter = model.adapter
        return {
            "name": str(model.name),
            "fingerprint": str(model.fingerprint),
            "adapter": None if adapter is None else adapter.name,
            "adapter_hash": None if adapter is None else adapter.hash,
            "precision": str(getattr(model, "precision", "") or ""),
            **({"deterministic": True} if getattr(model, "deterministic", False) else {}),
        }
    name = next((str(v) for a in ("model_name", "model", "name") if (v := getattr(model, a, None))), "")
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    named = name or type(model).__name__
    fingerprint = str(getattr(model, "fingerprint", "") or hashlib.sha256(f"{kind}:{name}".encode()).hexdigest())
    return {"name": named, "fingerprint": fingerprint, "adapter": None, "adapter_hash": None, "precision": ""}


def nameless(found: Mapping[str, Any]) -> dict[str, Any]:
    """What decides how a model behaves, of :func:`identity`: without names, for its files may lie anywhere."""
    named = not found["fingerprint"]  # nothing else tells it from others
    return {key: value for key, value in found.items() if named or key not in ("name", "adapter")}


def default_few_shot(model: Any) -> int:
    """Examples to show: what the adapter was trained with (its manifest), else 2."""
    adapter = model.adapter if is_token_model(model) else None
    if adapter is None:
        return 2
    value = adapter.manifest.get("few_shot", 0)
    return value if isinstance(value, int) else 0
