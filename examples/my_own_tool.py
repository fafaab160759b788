"""Give the agent a tool of your own: any function with typed arguments and a docstring.

The types become the grammar of the tool's arguments, so even a small model calls it correctly; pydantic
checks the values. Whatever the tool raises comes back to the agent as an observation.

python examples/my_own_tool.py "How many days are there between 1969-07-20 and 2001-01-01?"
"""

from __future__ import annotations

from datetime import date

import typer

from restill import AgentResult, Budget, JaxChatModel, ReActAgent


def days_between(first: date, second: date) -> int:
    """Count the days from one date to another (YYYY-MM-DD)."""
    return (second - first).days


async def weekday(day: date) -> str:
    """Tell the day of the week of a date (YYYY-MM-DD)."""
    return day.strftime("%A")


def main(question: str, model: str = "smollm2-135m", seconds: float = 120) -> AgentResult:
    """Answer QUESTION with two tools; a call that fails or takes too long is told to the agent."""
    agent = ReActAgent(
        JaxChatModel.from_pretrained(model),
        [days_between, weekday],
        budget=Budget(steps=4, seconds=seconds, per_tool={"weekday": 2}),
    )
    result = agent.invoke(question)
    for step in result.trajectory.steps:
        if step.action and step.observation:
            print(step.action.tool, step.action.arguments, "->", step.observation.text)
    print(f"answer: {result.answer}  ({result.status})")
    return result


if __name__ == "__main__":
    typer.run(main)
