"""A LangChain tool inside our agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict

from .threads import in_thread
from .tools import Tool, _first_paragraph


class AnyArguments(BaseModel):
    """Arguments of a tool that brings a bare JSON schema: LangChain itself validates them."""

    model_config = ConfigDict(extra="allow")


def of_langchain(tool: Any) -> Tool:
    """Make a :class:`Tool` of a ``langchain_core.tools.BaseTool``; calls go through its ``ainvoke``.

    If it is not asynchronous, they go through ``invoke``, each in a thread of its own: LangChain has few, which
    hung calls fill.

    With ``response_format="content_and_artifact"``, an artifact that is a list of documents is what is read.
    """
    declared = tool.tool_call_schema
    if isinstance(declared, Mapping):
        args, schema = AnyArguments, dict(declared)
    elif isinstance(declared, type) and issubclass(declared, BaseModel):
        args, schema = declared, declared.model_json_schema()
    else:  # pydantic v1 models
        args, schema = AnyArguments, dict(declared.schema())
    with_artifact = getattr(tool, "response_format", "content") == "content_and_artifact"
    own = getattr(type(tool), "_arun", None) is not BaseTool._arun
    waits = bool(tool.coroutine) if hasattr(tool, "coroutine") else own

    async def call(given: Any) -> Any:
        return await (tool.ainvoke(given) if waits else in_thread(tool.invoke, {"input": given}))

    async def run(arguments: BaseModel) -> Any:
        # Only what the model wrote: LangChain fills in the defaults, and injects what is not the model's to
        # write.
        values = arguments.model_dump(exclude_unset=True, by_alias=True)
        if not with_artifact:
            return await call(values)
        message = await call({"type": "tool_call", "id": "call", "name": tool.name, "args": values})
        artifact = getattr(message, "artifact", None)
        if isinstance(artifact, list) and artifact and all(hasattr(item, "page_content") for item in artifact):
            return artifact
        return getattr(message, "content", message)

    return Tool(
        name=str(tool.name).replace(" ", "_"),
        description=_first_paragraph(tool.description or ""),
        args=args,
        schema=schema,
        run=run,
        fingerprint=str(getattr(tool, "fingerprint", "")),
    )
