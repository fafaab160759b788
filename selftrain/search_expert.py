"""The scripted expert of the search agent, with seeded mistakes, for the cold start.

It speaks through the same agent, tool and prompt as the model it teaches: it reads the state from the prompt
and goes on from there. What it knows (the plan, the answer) never enters a prompt, and it answers right only
what its selected links show.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..agents.model import ChatTokenizer
from ..agents.question import Question
from ..agents.scores import exact_match, normalise
from ..agents.search.agent import FORMATS
from ..agents.search.format import split_answer
from ..agents.search.state import (
    Answer,
    CheckAnswer,
    PastAction,
    ResultItem,
    ReviseAnswer,
    Search,
    SearchState,
    SelectLink,
    Terminate,
)
from ..agents.trajectory import StepKind
from ..models.engine.request import Completion, Request
from ..models.errors import RestillError
from .expert import gold_script, gold_titles
from .world_relations import RELATIONS

SPARE_SEARCHES = 2
"""Searches beyond one a hop, after which it gives up."""
NOTICED = 0.5
"""Chance that a self-check notices a wrong answer where the links show the right one."""
MOST_WORDS = 30
"""Of a summary made of a passage's sentence."""


@dataclass(frozen=True)
class _Hop:
    """A document to be found: its title, what to think and to search, and what it tells (if that is known)."""

    title: str
    thought: str
    query: str
    noun: str = ""
    told: str = ""


class SearchExpertModel:
    """A ``TokenModel`` that takes the steps of one who knows each question's plan.

    Args:
        tokenizer: of the model that will be trained on the trajectories.
        questions: those it may be asked, with answers and a World's plan or gold titles.
        format: of the agent that it speaks through.
        noise: share of its decisions, selections and answers that are a plausible mistake: a worse query, an
            early end, a wrong link, a wrong answer (which a check then revises half of the time). Drawn from
            the request's seed.

    Raises:
        RestillError: noise outside 0 to 1, or an unknown format.
    """

    name = "search-expert"
    adapter = None
    max_context = 1_000_000

    def __init__(
        self, tokenizer: ChatTokenizer, questions: Iterable[Question], *, format: str = "compact", noise: float = 0.0
    ) -> None:
        if not 0 <= noise <= 1:
            raise RestillError(f"noise={noise}: give a share between 0 and 1")
        if format not in FORMATS:
            raise RestillError(f"format={format!r} is unknown; choose {' or '.join(map(repr, FORMATS))}")
        self.tokenizer = tokenizer
        self._format, self._noise = FORMATS[format], noise
        self._questions = {" ".join(q.question.split()): q for q in questions}
        keys = sorted(q.key for q in self._questions.values())
        self.fingerprint = hashlib.sha256("/".join([format, str(noise), *keys]).encode()).hexdigest()

    async def agenerate_tokens(self, request: Request) -> Completion:
        """The next step; its log-probabilities are 0, since nothing was drawn.

        Raises:
            RestillError: the question is not one of those given, or has no plan, titles or answer.
        """
        kind, state = self._format.read(self.tokenizer.decode(request.prompt, skip_special=True))
        question = self._questions.get(state.question)
        if question is None:
            raise RestillError(f"the expert was not given the question {state.question!r}")
        rng = random.Random(f"restill-search-expert {question.key} {kind} {len(state.past)} {request.seed}")
        output = self._format.write(kind, self._act(question, kind, state, rng), state)
        ends = () if self._format.stop else (self.tokenizer.eos_ids[0],)
        tokens = (*self.tokenizer.encode(output), *ends)
        cut = tokens[: request.sampling.max_tokens]
        text = output if cut == tokens else self.tokenizer.decode(cut)
        for stop in self._format.stop:
            text = text.split(stop)[0]
        zeros = (0.0,) * len(cut)
        finish = "stop" if cut == tokens else "length"
        return Completion(tokens=cut, text=text, logprobs=zeros, sampled_logprobs=zeros, finish_reason=finish)

    def _act(self, question: Question, kind: StepKind, state: SearchState, rng: random.Random) -> PastAction:
        hops = _hops(question)
        mistaken = rng.random() < self._noise
        if kind == "decide":
            return _decide(question, hops, state, rng, mistaken)
        if kind == "summarise":
            return _summarise(question, hops, state, rng, mistaken)
        known = _knows(question, hops, state)
        if kind == "answer":
            wrong = mistaken or not known
            return Answer(
                answer=self._answer(question, hops, state, rng, wrong),
                thoughts="I answer what the links tell." if wrong else gold_script(question, {})[-1][0],
            )
        right = exact_match(split_answer(state.answer or "", self._format.citation)[0], question.answers)
        if right or not known or rng.random() >= NOTICED:
            what = "is what the question asks for" if kind == "relevance" else "stands in the selected links"
            return CheckAnswer(thoughts=f"The answer {what}.")
        return ReviseAnswer(
            revised_answer=self._answer(question, hops, state, rng, wrong=False),
            thoughts="The selected links show another answer.",
        )

    def _answer(self, question: Question, hops: list[_Hop], state: SearchState, rng: random.Random, wrong: bool) -> str:
        links = [link for a in state.past if isinstance(a, SelectLink) for link in a.selected_links]
        gold = [link.link_id for link in links if any(_is(link, hop.title) for hop in hops)]
        if not wrong:
            return self._format.cite(question.answers[0], dict.fromkeys(gold))
        # What it has heard of on the way, and mistakes for the answer.
        heard = [hop.title for hop in hops if not exact_match(hop.title, question.answers)]
        return self._format.cite(rng.choice(heard) if heard else "unknown", dict.fromkeys(gold[-1:]))


def _decide(
    question: Question, hops: list[_Hop], state: SearchState, rng: random.Random, mistaken: bool
) -> Search | Terminate:
    missing = [hop for hop in hops if not _found(hop, state)]
    made = [action.query for action in state.past if isinstance(action, Search)]
    if not missing:
        return Terminate(thoughts=gold_script(question, {})[-1][0])
    if not state.searches_left or len(made) >= len(hops) + SPARE_SEARCHES:
        return Terminate(thoughts="I cannot find more.")
    if mistaken and rng.random() < 0.5:
        return Terminate(thoughts="I know enough.")
    hop = missing[0]
    if mistaken:
        return Search(query=hop.noun or " ".join(question.question.split()[-2:]), thoughts=hop.thought)
    untried = [q for q in (hop.query, hop.title, question.question) if q not in made]
    thought = hop.thought if hop.query not in made else "That did not tell it. I search again."
    return Search(query=untried[0] if untried else hop.query, thoughts=thought)


def _summarise(
    question: Question, hops: list[_Hop], state: SearchState, rng: random.Random, mistaken: bool
) -> SelectLink:
    gold = [(item, hop) for hop in hops for item in state.results if _is(item, hop.title) and not _found(hop, state)]
    others = [item for item in state.results if all(item is not link for link, _ in gold)]
    if mistaken and others:
        wrong = rng.choice(others)
        return state.select([wrong.link_id], _sentence(wrong, []), f"Link {wrong.link_id} helps.")
    if not gold:
        return state.select([], "The results do not tell it.", "No link helps.")
    told = list(dict.fromkeys(hop.told or _sentence(item, question.answers) for item, hop in gold))
    ids = list(dict.fromkeys(item.link_id for item, _ in gold))
    helps = "helps" if len(ids) == 1 else "help"
    return state.select(ids, " ".join(told), f"Link {' and '.join(map(str, ids))} {helps}.")


def _hops(question: Question) -> list[_Hop]:
    turns, titles = gold_script(question, {}), gold_titles(question)
    plan = question.metadata.get("plan")
    hops = []
    for number, (title, (thought, _, arguments)) in enumerate(zip(titles, turns, strict=False)):
        noun = told = ""
        if plan:
            relation = RELATIONS[plan[number]["relation"]]
            noun = relation.noun
            told = relation.statement.format(x=plan[number]["spoken"], o=plan[number]["spoken_yields"])
            told = told[0].upper() + told[1:]
        hops.append(_Hop(title, thought, arguments["query"], noun, told))
    return hops


def _found(hop: _Hop, state: SearchState) -> bool:
    selected = (link for a in state.past if isinstance(a, SelectLink) for link in a.selected_links)
    return any(_is(link, hop.title) for link in selected)


def _knows(question: Question, hops: list[_Hop], state: SearchState) -> bool:
    """Whether the selected links show the answer (yes and no stand nowhere: then all documents must be there)."""
    if all(_found(hop, state) for hop in hops):
        return True
    links = [link for a in state.past if isinstance(a, SelectLink) for link in a.selected_links]
    read = f" {normalise(' '.join(f'{link.link_text} {link.snippet}' for link in links))} "
    return any(f" {answer} " in read for a in question.answers if (answer := normalise(a)) not in ("", "yes", "no"))


def _is(item: ResultItem, title: str) -> bool:
    """Whether a result is the document of this title (which a compact prompt shows at the head of its text)."""
    if item.link_text:
        return item.link_text.casefold() == title.casefold()
    return re.match(rf"{re.escape(title)}(?=$|[^\w\s]|\s+[a-z(])", item.snippet) is not None


def _sentence(item: ResultItem, answers: list[str]) -> str:
    """The sentence of a result that holds an answer, else its first."""
    sentences = re.split(r"(?<=[.!?])\s+", item.snippet) or [item.snippet]
    holding = (s for s in sentences if any(normalise(a) and normalise(a) in normalise(s) for a in answers))
    words = next(holding, sentences[0]).split()
    return " ".join(words[:MOST_WORDS]) or item.link_text or "The link has no text."
