"""Bytes of a text file to text: byte order marks, UTF-8, UTF-16, and what to do with the rest."""

from __future__ import annotations

import codecs
import re

from ..models.errors import RestillError
from ..models.text import well_formed

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ASCII = bytes(range(128))
# What no text holds; tab, line ends, form feed and the escape of coloured logs are left out.
_CONTROLS = bytes({*range(32), 127} - set(b"\t\n\v\f\r\x1b\b"))
_SAMPLE = 65_536


class UnreadableFile(RestillError):
    """A file or page that gives no text; what is loaded with it is loaded without it."""


def decode(place: str, data: bytes, fallback: str | None) -> tuple[str, str]:
    """The text of ``data``, and a warning if it had to be guessed or repaired (else empty).

    In this order: a byte order mark decides (UTF-8, UTF-16, UTF-32); UTF-16 without one is known by its zero
    bytes; then UTF-8; UTF-8 with less damaged than sound characters beyond ASCII, the damage replaced by
    U+FFFD; else ``fallback``. Line ends become ``\\n``.

    Args:
        place: named in errors and the warning.
        data: the whole file.
        fallback: name of the encoding that is taken for text that is not Unicode; none refuses it.

    Raises:
        UnreadableFile: it is binary, breaks the encoding of its mark, or is not Unicode and has no fallback.
    """
    text, warning = _decode(place, data, fallback)
    return re.sub("\r\n?", "\n", text) if "\r" in text else text, warning


def _decode(place: str, data: bytes, fallback: str | None) -> tuple[str, str]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _strictly(place, data[len(mark) :], encoding), ""
    if encoding := _unmarked_utf16(data[:_SAMPLE]):
        return _strictly(place, data, encoding), ""
    if (zero := data.find(0)) >= 0:
        raise UnreadableFile(f"{place}: byte {zero} is zero, so this is no text; if it is, convert it to UTF-8")
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is {data[error.start]:#04x}"
    if len(data) - len(data.translate(None, _CONTROLS)) > len(data) // 1000:
        raise UnreadableFile(f"{place}: holds control characters and is not UTF-8 ({wrong}), so this is no text")
    repaired = data.decode("utf-8", "replace")
    damaged = repaired.count("\ufffd")
    beyond_ascii = len(repaired) - (len(data) - len(data.translate(None, _ASCII)))
    if beyond_ascii - damaged > damaged:
        return repaired, f"{place}: {damaged} places are not UTF-8 ({wrong}); each was replaced by U+FFFD"
    if fallback is None:
        raise UnreadableFile(f"{place}: not UTF-8 ({wrong}); convert it, for example with iconv -f LATIN1 -t UTF-8")
    return (
        data.decode(fallback, "replace"),
        f"{place}: not UTF-8 ({wrong}), read as {fallback}; if that is wrong, convert the file "
        "(iconv -f LATIN1 -t UTF-8) or name another fallback_encoding",
    )


def _strictly(place: str, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableFile(
            f"{place}: begins as {encoding} but is not ({error.reason} at byte {error.start}); convert it to UTF-8"
        ) from error


def _unmarked_utf16(sample: bytes) -> str | None:
    """UTF-16 of mostly ASCII has a zero in nearly every second byte, and hardly any in the others."""
    half = len(sample) // 2
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if half and max(even, odd) > 0.7 * half and min(even, odd) < 0.05 * half:
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def valid(text: str) -> str:
    """Replace lone surrogates and NULs: JSON escapes and PDF fonts can hold them, UTF-8 and SQLite cannot."""
    return well_formed(text).replace("\0", "\ufffd")
