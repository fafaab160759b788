"""Grammar-constrained decoding: llguidance decides which tokens may come next."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask

from ..errors import RestillError
from ..tokenizer import Tokenizer


class GrammarCompiler:
    """Turns Lark grammars into matchers, each grammar compiled once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab_size
        self._backend: LLTokenizer | None = None
        self._compiled: dict[str, LLMatcher] = {}
        self._lock = threading.Lock()

    def matcher(self, grammar: str) -> LLMatcher:
        """A fresh matcher at the start of ``grammar``.

        Raises:
            RestillError: llguidance rejects the grammar; its reason is in the message.
        """
        with self._lock:
            if self._backend is None:
                self._backend = LLTokenizer(
                    self._tokenizer.hf_json, n_vocab=self._vocab, eos_token=self._tokenizer.eos_id
                )
            if grammar not in self._compiled:
                matcher = LLMatcher(self._backend, LLMatcher.grammar_from_lark(grammar), log_level=0)
                if matcher.is_error():
                    raise RestillError(f"the grammar cannot be used: {matcher.get_error()}")
                self._compiled[grammar] = matcher
            return self._compiled[grammar].deep_copy()


def mask_rows(
    matchers: Sequence[LLMatcher | None], vocab_size: int, drafts: Sequence[Sequence[int]], width: int
) -> np.ndarray:
    """Allowed-token bits ``[rows * width, ceil(vocab/32)]`` int32; a row without a matcher allows everything.

    The first of a row's ``width`` masks is for the next token, those after it for what follows its draft so far.
    """
    free = _all_allowed(len(matchers) * width, -(-vocab_size // 32))
    if all(matcher is None for matcher in matchers):
        return free
    bits = free.copy()
    for row, matcher in enumerate(matchers):
        if matcher is None:
            continue
        fill_next_token_bitmask(matcher, bits, row * width)
        if drafts[row]:
            ahead = matcher.deep_copy()
            for place, token in enumerate(drafts[row], 1):
                if not ahead.consume_token(token):
                    break
                fill_next_token_bitmask(ahead, bits, row * width + place)
                if ahead.is_stopped():  # all that may follow is the end of the turn
                    break
    return bits


@cache
def _all_allowed(rows: int, words: int) -> np.ndarray:
    bits = np.full((rows, words), -1, np.int32)
    bits.flags.writeable = False  # every step without a grammar shares it
    return bits
