"""Tools: what an agent can call, made of typed functions or LangChain tools; one call has one result."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from ..models.errors import RestillError
from ..models.text import well_formed
from .threads import in_thread
from .tool_results import ToolResult, read_value

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""What a tool may be called."""
FINISH = "finish"
"""The action that ends a run; no tool may bear its name."""
_ERROR_CHARS = 300


@dataclass(frozen=True, kw_only=True)
class Tool:
    """Something an agent can call. Make one with :meth:`Tool.of`.

    Attributes:
        args: pydantic model that validates the arguments.
        schema: JSON schema of the arguments, from which the grammar and the prompt are made.
        fingerprint: what the tool reads besides its arguments (a retriever's index, say).
    """

    name: str
    description: str
    args: type[BaseModel]
    schema: Mapping[str, Any] = field(repr=False)
    run: Callable[[BaseModel], Awaitable[Any]] = field(repr=False)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise RestillError(f"tool name {self.name!r}: use letters, digits, '_' and '-', beginning with a letter")
        if self.name == FINISH:
            raise RestillError(f"a tool cannot be called {FINISH!r}, which ends the run; rename it")

    @staticmethod
    def of(obj: Any) -> Tool:
        """Make a tool of a typed function (sync or async), a LangChain tool, or a ``Tool``.

        Raises:
            RestillError: no such thing, or a parameter without a type.
        """
        if isinstance(obj, Tool):
            return obj
        if hasattr(obj, "ainvoke") and hasattr(obj, "args_schema"):
            from .langchain_tool import of_langchain

            return of_langchain(obj)
        if callable(obj) and not isinstance(obj, type):
            return _of_function(obj)
        raise RestillError(f"not a tool: {obj!r:.80}; give a typed function, a LangChain tool or a Tool")

    async def call(self, arguments: Mapping[str, Any], timeout: float | None = None) -> ToolResult:
        """Validate the arguments and run the tool, at most ``timeout`` seconds.

        Never raises, except ``asyncio.CancelledError`` when the caller itself is cancelled. What still runs
        after the timeout is cancelled (async) or left behind in a daemon thread (sync).
        """
        started = time.monotonic()

        def result(status: Any, text: str, **more: Any) -> ToolResult:
            return ToolResult(status=status, text=text, seconds=time.monotonic() - started, **more)

        try:
            arguments_read = self.args.model_validate(dict(arguments))
        except ValidationError as error:
            message = self._validation_message(error)
            return result("error", message, error=message)
        except Exception as error:  # a validator of the tool's own may raise anything
            message = _describe(error)
            return result("error", message, error=message)
        if timeout is not None and timeout <= 0:
            return result("timeout", f"{self.name} was not run: no time left", error="no time left")
        task = asyncio.ensure_future(self._guarded(arguments_read))
        task.add_done_callback(_retrieve)
        try:
            await asyncio.wait({task}, timeout=timeout)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            message = f"{self.name} took longer than {timeout:.3g} s"
            return result("timeout", message, error=message)
        if task.cancelled():
            return result("cancelled", f"{self.name} was cancelled", error="cancelled")
        if (failure := task.exception()) is not None:
            message = _describe(failure)
            return result("error", message, error=message)
        try:
            text, hits = read_value(task.result())
        except Exception as error:
            message = f"the result of {self.name} cannot be shown: {_describe(error)}"
            return result("error", message, error=message)
        return result("ok", text, hits=hits)

    async def _guarded(self, arguments: BaseModel) -> Any:
        try:
            return await self.run(arguments)
        except SystemExit as error:  # which would end the event loop
            raise RuntimeError(f"SystemExit: {error}") from None

    def _validation_message(self, error: ValidationError) -> str:
        parts = []
        for detail in error.errors(include_url=False, include_input=False, include_context=False)[:3]:
            where = ".".join(str(part) for part in detail["loc"]) or "arguments"
            parts.append(f"{where}: {detail['msg']}")
        return well_formed(f"{self.name}: {'; '.join(parts)}"[:_ERROR_CHARS])


def _of_function(function: Callable[..., Any]) -> Tool:
    name = getattr(function, "__name__", None) or type(function).__name__
    signature, hints = _signature(function, name)
    fields: dict[str, Any] = {}
    real_names: dict[str, str] = {}
    for position, (parameter, spec) in enumerate(signature.parameters.items()):
        if spec.kind in (spec.VAR_POSITIONAL, spec.VAR_KEYWORD, spec.POSITIONAL_ONLY):
            raise RestillError(
                f"tool {name!r}: parameter {parameter!r} cannot be passed by name; use ordinary parameters"
            )
        if parameter not in hints:
            raise RestillError(
                f"tool {name!r}: parameter {parameter!r} has no type; annotate it, as in '{parameter}: str'"
            )
        # A safe field name with the parameter as its alias: 'schema', 'copy' or '_x' would clash with
        # pydantic's own.
        safe = f"arg{position}"
        real_names[safe] = parameter
        default = ... if spec.default is spec.empty else spec.default
        fields[safe] = (hints[parameter], Field(default, alias=parameter))
    try:
        args = create_model(f"{name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)
        schema = args.model_json_schema(by_alias=True)
    except (PydanticUserError, TypeError, ValueError) as error:
        raise RestillError(f"tool {name!r}: its parameters cannot be written as JSON ({_describe(error)})") from None
    # Of a callable object, the class has the coroutine function.
    is_async = any(inspect.iscoroutinefunction(f) for f in (function, type(function).__call__))

    async def run(arguments: BaseModel) -> Any:
        values = {real: getattr(arguments, safe) for safe, real in real_names.items()}
        value = await (function(**values) if is_async else in_thread(function, values))
        return await value if inspect.isawaitable(value) else value

    description = _first_paragraph(inspect.getdoc(function) or "")
    fingerprint = str(getattr(function, "fingerprint", ""))
    return Tool(name=name, description=description, args=args, schema=schema, run=run, fingerprint=fingerprint)


def _signature(function: Callable[..., Any], name: str) -> tuple[inspect.Signature, dict[str, Any]]:
    target = function if hasattr(function, "__name__") else getattr(function, "func", type(function).__call__)
    try:
        signature = inspect.signature(function)
        hints = get_type_hints(target, include_extras=True)
    except (NameError, TypeError, ValueError) as error:
        raise RestillError(f"tool {name!r}: its parameter types cannot be read ({_describe(error)})") from None
    return signature, hints


def _first_paragraph(doc: str) -> str:
    return " ".join(doc.strip().split("\n\n")[0].split())[:200]


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # a __str__ that itself fails
        text = ""
    return well_formed(f"{type(error).__name__}: {text}"[:_ERROR_CHARS]).rstrip(": ")


def _retrieve(task: asyncio.Task[Any] | asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()  # mark as seen, so that a call left behind does not log at exit


def tools_fingerprint(tools: tuple[Tool, ...]) -> str:
    """SHA-256 over names, descriptions, schemas and what the tools read."""
    rows = [[t.name, t.description, t.schema, t.fingerprint] for t in tools]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
