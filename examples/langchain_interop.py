"""restill inside LangChain code, and a LangChain tool inside a restill agent.

python examples/langchain_interop.py docs/ "Who built the Kestrel?"
"""

from __future__ import annotations

from pathlib import Path

import typer
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import StructuredTool, tool

from restill import Budget, JaxChatModel, ReActAgent, Retriever


@tool
def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


def main(docs: Path, question: str, model: str = "smollm2-135m", encoder: str = "minilm") -> dict:
    """Answer QUESTION in four ways and print each."""
    retriever = Retriever.from_path(docs, encoder=encoder)
    chat = JaxChatModel.from_pretrained(model, max_tokens=48)

    # 1. Our retriever and our model as parts of an ordinary chain.
    prompt = ChatPromptTemplate.from_template("Answer briefly.\n{context}\nQuestion: {question}")
    context = retriever | RunnableLambda(lambda found: "\n".join(d.page_content for d in found))
    chain = {"context": context, "question": RunnablePassthrough()} | prompt | chat | StrOutputParser()

    # 2. Our model calls LangChain tools: bind_tools, with a grammar that allows well-formed calls only.
    search = StructuredTool.from_function(coroutine=retriever.as_tool())
    caller = chat.bind_tools([search, count_words], tool_choice="search")

    # 3. A LangChain tool inside our agent, beside our own.
    agent = ReActAgent(chat, [retriever.as_tool(), count_words], budget=Budget(steps=3, seconds=120))

    # 4. Our agent as a step of a chain: it is a Runnable.
    shout = agent | RunnableLambda(lambda result: str(result.answer).upper())

    answers = {
        "chain": chain.invoke(question),
        "tool calls": caller.invoke(question, max_tokens=96).tool_calls,
        "agent": agent.invoke(question).answer,
        "agent in a chain": shout.invoke(question),
    }
    for name, answer in answers.items():
        print(f"{name}: {answer}")
    return answers


if __name__ == "__main__":
    typer.run(main)
