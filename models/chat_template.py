"""Chat templates (jinja2, as Hugging Face ships them), rendered without letting a message's text in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import RestillError

Part = str | int
"""A piece of a rendered conversation: template text, or the number of the message whose content it is."""

# Private-use characters, which no template contains; letters of both cases, so that `upper` is found out.
_SENTINEL = "\ue000cT{}\ue001"
_SENTINEL_RE = re.compile("\ue000cT(\\d+)\ue001")
_ROLE_RE = re.compile(r"[A-Za-z_]+")


class ChatTemplate:
    """A compiled template.

    Args:
        source: jinja2 text; runs in a sandbox with the globals that transformers offers.
        variables: what the template may read beside the messages (``bos_token``, ``eos_token``).

    Raises:
        RestillError: the text is no jinja2.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self._variables = dict(variables)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise RestillError(f"the chat template is not valid jinja2: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> list[Part]:
        """The conversation as template text and references to contents, in order.

        The template is given a placeholder for every content, so whatever a content holds, it changes nothing
        around it. Filters such as ``trim`` therefore do not act on contents.

        Raises:
            RestillError: a bad role or content, or a template that refuses, drops or rewrites a message.
        """
        shown = [_shown(i, message) for i, message in enumerate(messages)]
        try:
            text = self._template.render(
                messages=shown, add_generation_prompt=add_generation_prompt, tools=None, **self._variables
            )
        except TemplateError as error:
            raise RestillError(f"the chat template refuses these messages: {error}") from error
        pieces = enumerate(_SENTINEL_RE.split(text))  # text at even places, message numbers at odd ones
        parts: list[Part] = [int(piece) if i % 2 else piece for i, piece in pieces if piece]
        for i, message in enumerate(shown):
            if message["content"] and i not in parts:
                raise RestillError(
                    f"the chat template drops or rewrites the content of message {i} "
                    f"(role {message['role']!r}); use another template or role"
                )
        return parts


def _shown(index: int, message: Mapping[str, str]) -> dict[str, str]:
    """The message as the template sees it; only role and content pass."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not _ROLE_RE.fullmatch(role):
        raise RestillError(f"message {index} has role={role!r}; give a word such as 'user' or 'assistant'")
    if not isinstance(content, str):
        raise RestillError(f"message {index} has content={content!r}; give a string")
    return {"role": role, "content": _SENTINEL.format(index) if content else ""}


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
