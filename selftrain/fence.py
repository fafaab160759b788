"""Fences around text that nobody vouches for, so that what is judged cannot pose as what judges.

The nonce of a call is drawn from the texts themselves, and drawn again while any of them holds it: no text can
close its fence or open another, even one written by somebody who knows the seed and this code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from ..models.errors import RestillError

_LETTERS = "bcdfghjkmnpqrstvwxz"  # no vowels: no words
_LENGTH = 6


@dataclass(frozen=True)
class Fence:
    """The marks of one call; make it with :meth:`around`."""

    nonce: str

    @classmethod
    def around(cls, texts: Iterable[str], *seed: object) -> Fence:
        """A fence for these texts: a nonce that none of them holds, whatever its case; equal for equal arguments.

        Raises:
            RestillError: the texts were made to hold every nonce that is tried.
        """
        held = [text.casefold() for text in texts]
        for attempt in range(1_000_000):
            key = json.dumps([*map(str, seed), attempt, *held]).encode("utf-8", "surrogatepass")
            number = int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")
            letters = []
            for _ in range(_LENGTH):
                number, place = divmod(number, len(_LETTERS))
                letters.append(_LETTERS[place])
            nonce = "".join(letters)
            if not any(nonce in text for text in held):
                return cls(nonce)
        raise RestillError("these texts hold a million nonces; nothing can be fenced in them")

    def line(self, name: str, text: str) -> str:
        """``text`` on one line of its own, behind the nonce: what does not begin with the nonce is never ours."""
        return f"{self.nonce} {name}: {' '.join(text.split())}"

    def block(self, name: str, text: str) -> str:
        """``text`` as it is, between two lines that hold the nonce."""
        return f"<<{self.nonce} {name}>>\n{text}\n<<{self.nonce} end>>"
