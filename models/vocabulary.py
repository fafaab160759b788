"""A vocabulary cut down to what a student needs, such that its teacher's ids and logits still apply."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bpe import byte_table, merge_pairs
from .errors import RestillError
from .tokenizer import Tokenizer

NOT_UTF8 = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])
"""Bytes that no UTF-8 text has."""


@dataclass(frozen=True)
class PrunedVocabulary:
    """A student's tokenizer and where its ids come from.

    Attributes:
        tokenizer: of the student: control tokens, chat template and pre-tokenizer are the teacher's.
        ids: ``[n]`` int32, the teacher's id of each of the student's, ascending; -1, at the end, for bytes that the
            teacher's vocabulary lacks.
    """

    tokenizer: Tokenizer
    ids: NDArray[np.int32] = field(repr=False)

    @cached_property
    def _student_ids(self) -> dict[int, int]:
        return {int(theirs): ours for ours, theirs in enumerate(self.ids) if theirs >= 0}

    @property
    def shared(self) -> NDArray[np.int32]:
        """``ids`` without the -1 at the end: row i of the teacher's head that belongs to student id i."""
        return self.ids[self.ids >= 0]

    def map(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The student's ids of the teacher's ``tokens``.

        Raises:
            RestillError: a token is not in the student's vocabulary.
        """
        try:
            return tuple(self._student_ids[token] for token in tokens)
        except KeyError as error:
            raise RestillError(
                f"token {error.args[0]} is not in the pruned vocabulary of {len(self.ids)} ids; "
                "prune with the mixture that holds it; a student that has learnt before keeps its vocabulary"
            ) from None


def prune_vocabulary(tokenizer: Tokenizer, seen: Iterable[int]) -> PrunedVocabulary:
    """Keep the tokens ``seen``, those that BPE makes them from, all control tokens and every byte of UTF-8.

    Ids are given anew in the teacher's order. The merges are those whose two parts and whose result are kept.
    Therefore any text can be written, and a text whose encoding by the teacher has only ``seen`` tokens is encoded to
    exactly their student ids: every merge on the way to a kept token is kept, and of the merges that BPE can choose
    from at any time none was added, so it makes the same choices.

    Raises:
        RestillError: the tokenizer is no byte-level BPE, or a token is none of its ids.
    """
    data = json.loads(tokenizer.hf_json)
    model = data["model"]
    if '"ByteLevel"' not in json.dumps(data.get("decoder")):
        raise RestillError(
            "only byte-level BPE vocabularies (SmolLM2, Qwen, Llama 3) can be pruned; use such a teacher"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise RestillError("a BPE vocabulary with word prefixes or suffixes cannot be pruned; use a byte-level teacher")
    theirs = _texts(data)
    texts = {id: text for text, id in theirs.items()}
    wanted = set(seen)
    if unknown := sorted(wanted - texts.keys()):
        raise RestillError(f"token {unknown[0]} is not in the tokenizer's vocabulary; give the mixture's own tokenizer")
    pairs = merge_pairs(model)
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    letters = {letter for letter, byte in byte_table().items() if byte not in NOT_UTF8}
    added = {t["content"] for t in data["added_tokens"]}
    kept = added | letters
    for text in (texts[token] for token in wanted):
        if text not in added:
            kept |= {text, *_made_from(text, ranks)}
    order = sorted((text for text in kept if text in theirs), key=theirs.__getitem__)
    missing = sorted(kept - theirs.keys(), key=byte_table().__getitem__)
    ours = {text: i for i, text in enumerate([*order, *missing])}
    # A control token outside the model's own vocabulary would be numbered by its position: all are put inside.
    pruned = {
        **data,
        "model": {**model, "vocab": ours, "merges": [list(p) for p in pairs if {*p, "".join(p)} <= kept]},
        "added_tokens": [{**t, "id": ours[t["content"]]} for t in data["added_tokens"]],
        "post_processor": _renumbered(data.get("post_processor"), ours),
    }
    ids = np.array([theirs.get(text, -1) for text in ours], np.int32)
    return PrunedVocabulary(tokenizer.with_json(json.dumps(pruned, ensure_ascii=False)), ids)


def shared_vocabulary(tokenizer: Tokenizer, student: Tokenizer) -> PrunedVocabulary:
    """What ``prune_vocabulary`` gave when ``student`` was cut from ``tokenizer``.

    Raises:
        RestillError: cutting gives another tokenizer: other tokens, merges, control tokens or chat template.
    """
    theirs, ours = (_texts(json.loads(t.hf_json)) for t in (tokenizer, student))
    cut = prune_vocabulary(tokenizer, [theirs[text] for text in ours if text in theirs])
    made, given = ((json.loads(t.hf_json), t.hf_config()) for t in (cut.tokenizer, student))
    if made != given:
        foreign = next((text for text in ours if text not in theirs and text not in byte_table()), None)
        named = "" if foreign is None else f" (it has {foreign!r})"
        raise RestillError(
            f"the student's tokenizer was not cut from the teacher's{named}; give the teacher that it was made from"
        )
    return cut


def _texts(data: Mapping[str, Any]) -> dict[str, int]:
    return {**data["model"]["vocab"], **{t["content"]: t["id"] for t in data["added_tokens"]}}


def _made_from(token: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """What BPE (Sennrich et al. 1508.07909) makes of the letters of ``token``, step by step."""
    parts, made = list(token), set(token)
    while True:
        found = [(rank, i) for i in range(len(parts) - 1) if (rank := ranks.get((parts[i], parts[i + 1]))) is not None]
        if not found:
            return made
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        made.add(parts[i])


def _renumbered(part: Any, ours: Mapping[str, int]) -> Any:
    """A post-processor with the student's ids: ``{"ids": [..], "tokens": [..]}`` and ``["</s>", 2]``."""
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int) and part[0] in ours:
            return [part[0], ours[part[0]]]
        return [_renumbered(item, ours) for item in part]
    if not isinstance(part, dict):
        return part
    if "ids" in part and "tokens" in part:
        return {**part, "ids": [ours[token] for token in part["tokens"]]}
    return {key: _renumbered(item, ours) for key, item in part.items()}
