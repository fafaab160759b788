"""The scripted expert: a stand-in for the model that knows each question's plan, for the cold start.

It speaks through the same agent, tools and prompt as the model it teaches, so its trajectories are logged and
trained on like any others. What it knows (the plan, the answer) never enters a prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..agents.model import ChatTokenizer
from ..agents.prompt import last_question
from ..agents.protocol import write_turn
from ..agents.question import Question
from ..models.engine.request import Completion, Request
from ..models.errors import RestillError
from .guide import expert as world_script

Turn = tuple[str, str, dict[str, Any]]
"""Thought, action, arguments."""
Script = Callable[[Question, Mapping[str, int]], list[Turn]]
"""The turns over one question, given the handles under which observations have shown its gold titles. The first one
that was not taken yet is the next; the last ends the run."""

_TOLD_APART = re.compile(r"\s*\([^)]*\)$")


class ExpertModel:
    """A ``TokenModel`` that writes the turns of a script.

    Args:
        tokenizer: of the model that will be trained on the trajectories.
        questions: those it may be asked.
        script: what to write; by default the World's plan where there is one, else the gold titles.
    """

    name = "expert"
    adapter = None
    max_context = 1_000_000

    def __init__(self, tokenizer: ChatTokenizer, questions: Iterable[Question], script: Script | None = None) -> None:
        self.tokenizer = tokenizer
        self._script = script or gold_script
        self._questions = {" ".join(q.question.split()): q for q in questions}
        keys = sorted(q.key for q in self._questions.values())
        if script is not None:
            keys += [repr(script(q, {})) for q in self._questions.values()]
        self.fingerprint = hashlib.sha256("/".join(keys).encode()).hexdigest()

    async def agenerate_tokens(self, request: Request) -> Completion:
        """The next turn of the script; its log-probabilities are 0, since nothing was drawn.

        Raises:
            RestillError: the question is not one of those given.
        """
        text = self.tokenizer.decode(request.prompt)
        so_far = text[last_question(text) :]
        asked = so_far.removeprefix("Question: ").partition("\n")[0].removesuffix("<|im_end|>").strip()
        question = self._questions.get(asked)
        if question is None:
            raise RestillError(f"the expert was not given the question {asked!r}")
        turns = [write_turn(*turn) for turn in self._script(question, _handles(question, so_far))]
        turn = next((turn for turn in turns if turn not in so_far), turns[-1])
        tokens = (*self.tokenizer.encode(turn), self.tokenizer.eos_ids[0])
        zeros = (0.0,) * len(tokens)
        return Completion(tokens=tokens, text=turn, logprobs=zeros, sampled_logprobs=zeros, finish_reason="stop")


def gold_script(question: Question, handles: Mapping[str, int]) -> list[Turn]:
    """The World's plan, or for any labelled question: look up each gold title, then answer.

    A title that the question names comes first, since only the other has to be found through it. Where it names
    none, the first search is for the question itself: nobody could guess the title.

    Raises:
        RestillError: the question has neither a plan nor gold titles, or no answer.
    """
    if question.metadata.get("plan"):
        by_document = {
            d: handles[t] for d, t in zip(question.gold, gold_titles(question), strict=False) if t in handles
        }
        return world_script(question, by_document)
    titles = _labelled(question)
    turns: list[Turn] = []
    for number, title in enumerate(titles):
        if number:
            turns.append((f"Next I need to read about {title}.", "search", {"query": title}))
        elif _named(title, question):
            turns.append((f"I need to read about {title}.", "search", {"query": title}))
        else:
            turns.append(("I need a passage that answers this.", "search", {"query": question.question}))
    return [*turns, _finish(question, titles, handles)]


def search_then_follow(question: Question, handles: Mapping[str, int]) -> list[Turn]:
    """For a search that finds what a question leads to: ask it as it is, then for each gold title not shown yet.

    Raises:
        RestillError: the question has no gold titles, or no answer.
    """
    titles = _labelled(question)
    queries = [told_apart(title) for title in titles if title not in handles]
    return [
        ("I need passages that answer this.", "search", {"query": question.question}),
        *[(f"Next I need to read about {query}.", "search", {"query": query}) for query in queries],
        _finish(question, titles, handles),
    ]


def search_then_reread(question: Question, handles: Mapping[str, int]) -> list[Turn]:
    """:func:`search_then_follow`, whose last thought says the question again (Xu et al. 2309.06275): hundreds of tokens
    of passages lie between where it was asked and where a small model answers.

    Raises:
        RestillError: the question has no gold titles, or no answer.
    """
    *turns, (thought, action, arguments) = search_then_follow(question, handles)
    return [*turns, (f"{' '.join(question.question.split())} {thought}", action, arguments)]


def gold_titles(question: Question) -> list[str]:
    """Titles of the documents to read, in the order in which to look for them."""
    if plan := question.metadata.get("plan"):
        return [step["entity"] for step in plan]
    return sorted(question.gold_titles, key=lambda t: not _named(t, question))


def _named(title: str, question: Question) -> bool:
    """``Ed Wood (film)`` is asked for as ``Ed Wood``."""
    return told_apart(title).lower() in question.question.lower()


def told_apart(title: str) -> str:
    """A title without what only tells it from others of its name, in parentheses."""
    return _TOLD_APART.sub("", title)


def _labelled(question: Question) -> list[str]:
    titles = gold_titles(question)
    if not titles or not question.answers:
        raise RestillError(f"question {question.id!r} has no gold_titles or no answers; the expert needs both")
    return titles


def _finish(question: Question, titles: list[str], handles: Mapping[str, int]) -> Turn:
    answer, citations = question.answers[0], [handles[title] for title in titles if title in handles]
    return f"The passages show that the answer is {answer}.", "finish", {"answer": answer, "citations": citations}


def _handles(question: Question, shown: str) -> dict[str, int]:
    """Number under which an observation first showed each gold title: not ``Ed Wood`` by ``[1] Ed Wood (film): ``."""
    end = r"(?! \([^)]*\):)(?=[:,;.(]|'s| [a-z0-9(])"
    found = {t: re.search(rf"\[(\d+)\] {re.escape(t)}{end}", shown) for t in gold_titles(question)}
    return {t: int(m[1]) for t, m in found.items() if m}
