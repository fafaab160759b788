"""Text that can be written down."""

from __future__ import annotations

import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """``text`` with lone surrogates, which no UTF-8 can hold, as U+FFFD; offsets stay."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
