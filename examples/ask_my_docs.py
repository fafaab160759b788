"""Ask a question over your own folder of text, Markdown, HTML, PDF and JSONL files.

python examples/ask_my_docs.py docs/ "Who founded the firm that built the Kestrel?"
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restill import AgentResult, Budget, JaxChatModel, ReActAgent, Retriever


def main(
    docs: Path,
    question: str,
    model: str = "smollm2-135m",
    adapter: Annotated[str | None, typer.Option()] = None,
    encoder: str = "minilm",
) -> AgentResult:
    """Index DOCS in memory, let the agent search them, and print the answer with its sources."""
    retriever = Retriever.from_path(docs, encoder=encoder, progress=True)
    chat = JaxChatModel.from_pretrained(model, adapter=adapter)
    agent = ReActAgent(chat, [retriever.as_tool()], budget=Budget(steps=6, seconds=120))

    result = agent.invoke(question)
    for step in result.trajectory.steps:
        if step.observation:
            print("searched:", step.action.arguments if step.action else step.sample.text)
    print(f"answer:   {result.answer}  ({result.status})")
    for citation in result.citations:
        print(f"source:   {citation.doc_id}, characters {citation.start} to {citation.end}")
    return result


if __name__ == "__main__":
    typer.run(main)
