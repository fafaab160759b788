"""Tools: what becomes one, and that each call has exactly one result."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import time
from typing import Any, Literal

import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_core.tools import StructuredTool, ToolException, tool
from pydantic import BaseModel

from restill.agents.tool_results import ToolResult
from restill.agents.tools import Tool
from restill.models.errors import RestillError
from restill.retrieval.types import Document


class Point(BaseModel):
    x: int
    y: int = 0


def everything(n: int, kind: Literal["a", "b"] = "a", where: Point | None = None, schema: str = "s") -> dict[str, Any]:
    """First paragraph,
    on two lines.

    Second paragraph.
    """
    return {"n": n, "kind": kind, "where": where, "schema": schema}


def call(obj: Any, timeout: float | None = None, **arguments: Any) -> ToolResult:
    return asyncio.run(Tool.of(obj).call(arguments, timeout))


def test_a_typed_function_is_a_tool() -> None:
    made = Tool.of(everything)
    assert (made.name, made.description) == ("everything", "First paragraph, on two lines.")
    assert made.schema["required"] == ["n"] and list(made.schema["properties"]) == [
        "n",
        "kind",
        "where",
        "schema",
    ]
    result = call(everything, n="3", where={"x": 1})
    assert result.status == "ok"
    assert result.text == '{"n": 3, "kind": "a", "where": {"x": 1, "y": 0}, "schema": "s"}'


def test_methods_partials_and_callable_objects_are_tools() -> None:
    class Counter:
        def up(self, by: int) -> int:
            return by + 1

        async def __call__(self, by: int) -> int:
            return by + 2

    assert call(Counter().up, by=1).text == "2"
    assert Tool.of(Counter()).name == "Counter" and call(Counter(), by=1).text == "3"
    assert call(functools.partial(Counter().up), by=1).text == "2"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "n"),
        ({"n": "x"}, "n"),
        ({"n": 1, "kind": "c"}, "kind"),
        ({"n": 1, "more": 2}, "more"),
        ({"n": None}, "n"),
    ],
)
def test_bad_arguments_are_an_error_that_names_the_field(arguments: dict[str, Any], field: str) -> None:
    result = call(everything, **arguments)
    assert result.status == "error" and f"{field}: " in result.text and result.error == result.text


def _untyped(x):  # noqa: ANN001, ANN202
    return x


def _variadic(*x: int) -> None: ...


def finish(x: int) -> None: ...


@pytest.mark.parametrize("obj", [_untyped, _variadic, finish, 3, "search", int])
def test_what_cannot_be_a_tool_is_refused(obj: Any) -> None:
    with pytest.raises(RestillError):
        Tool.of(obj)


def test_exceptions_become_errors() -> None:
    def fail(x: int) -> str:
        raise ValueError("no " * 500)

    async def leave(x: int) -> str:
        raise SystemExit(3)

    def half(x: int) -> str:
        raise ValueError("\ud800")

    def leave_sync(x: int) -> str:
        raise SystemExit(3)

    result = call(fail, x=1)
    assert result.status == "error" and result.text.startswith("ValueError: no") and len(result.text) <= 300
    assert call(half, x=1).text == "ValueError: \ufffd"
    assert call(leave, x=1).status == call(leave_sync, x=1).status == "error"


async def test_a_slow_tool_times_out_and_a_sync_one_does_not_hold_up_the_program() -> None:
    release = threading.Event()

    def hang(x: int) -> int:
        release.wait(30)
        return x

    async def sleep(x: int) -> int:
        await asyncio.sleep(30)
        return x

    async def stubborn(x: int) -> int:
        while True:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                if release.is_set():
                    raise

    for slow in (hang, sleep, stubborn):
        started = time.monotonic()
        result = await Tool.of(slow).call({"x": 1}, 0.05)
        assert result.status == "timeout" and "0.05 s" in result.text
        assert time.monotonic() - started < 5
    assert (await Tool.of(sleep).call({"x": 1}, 0)).status == "timeout"
    release.set()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_a_tool_that_cancels_itself_has_a_result_and_our_cancellation_goes_on() -> None:
    async def give_up(x: int) -> int:
        raise asyncio.CancelledError

    async def sleep(x: int) -> int:
        await asyncio.sleep(30)
        return x

    assert (await Tool.of(give_up).call({"x": 1})).status == "cancelled"
    task = asyncio.ensure_future(Tool.of(sleep).call({"x": 1}))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@dataclasses.dataclass
class Pair:
    a: int


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (None, "done"),
        (True, "true"),
        (1.5, "1.5"),
        ([], "nothing found"),
        ({"a": [1, None]}, '{"a": [1, null]}'),
        ([1, "b"], '[1, "b"]'),
        (Point(x=1), '{"x": 1, "y": 0}'),
        (Pair(1), '{"a": 1}'),
        ({1}, "[1]"),
        ("half \ud800", "half \ufffd"),
        (b"\xff", "\ufffd"),
    ],
)
def test_results_are_read(value: Any, text: str) -> None:
    def give() -> Any:
        return value

    result = call(give)
    assert (result.status, result.text) == ("ok", text)
    result.model_dump_json()


def test_an_unreadable_result_is_an_error() -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("odd")

    def give() -> Any:
        return Odd()

    assert call(give).status == "error"


def test_documents_become_hits() -> None:
    def ours() -> list[Document]:
        return [Document(id="d", title="T", text="abc")]

    def theirs() -> list[Any]:
        metadata = {"source": "a.txt", "start_index": 5, "title": "T"}
        return [LangChainDocument("abc", metadata=metadata), LangChainDocument("no id")]

    (hit,) = call(ours).hits
    assert (hit.chunk.doc_id, hit.chunk.title, hit.chunk.start, hit.chunk.end) == ("d", "T", 0, 3)
    first, second = call(theirs).hits
    assert (first.chunk.doc_id, first.chunk.start, first.chunk.end) == ("a.txt", 5, 8)
    assert second.chunk.doc_id and second.chunk.chunk_id != first.chunk.chunk_id


@tool
def shout(text: str, times: int = 1) -> str:
    """Shout a text."""
    if text == "bad":
        raise ToolException("too loud")
    return text.upper() * times


def test_a_langchain_tool_is_a_tool() -> None:
    made = Tool.of(shout)
    assert (made.name, made.description) == ("shout", "Shout a text.")
    assert call(shout, text="a", times=2).text == "AA"
    assert call(shout, text="bad").text.startswith("ToolException: too loud")
    assert call(shout).status == "error"


def test_hung_langchain_tools_keep_nobody_waiting() -> None:
    hung, out = (
        threading.Event(),
        Tool.of(StructuredTool.from_function(lambda: hung.wait(60), name="hung", description="-")),
    )

    async def many() -> list[str]:
        stuck = await asyncio.gather(*[out.call({}, 0.05) for _ in range(40)])
        return [result.status for result in (*stuck, await Tool.of(shout).call({"text": "a"}, 5.0))]

    began = time.monotonic()
    assert asyncio.run(many()) == ["timeout"] * 40 + ["ok"]
    assert time.monotonic() - began < 30
    hung.set()


def test_a_langchain_tool_with_a_json_schema_or_an_artifact() -> None:
    async def find(query: str) -> tuple[str, list[LangChainDocument]]:
        return "found", [LangChainDocument(query, metadata={"source": "s"})]

    found = StructuredTool.from_function(
        coroutine=find, name="find", description="Find.", response_format="content_and_artifact"
    )
    assert call(found, query="q").hits[0].chunk.text == "q"

    schema = {
        "type": "object",
        "properties": {"query": {"type": "string"}},
        "required": ["query"],
        "title": "bare",
    }
    bare = StructuredTool(name="bare", description="Bare.", args_schema=schema, func=lambda query: query + "!")
    assert call(bare, query="q").text == "q!"
