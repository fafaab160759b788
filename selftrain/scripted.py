"""Scripted policies of a given quality in a World: noisy trajectories, and several samples a step to be ranked.

They stand in for a trained agent where none exists yet: to train a ranker adapter before the first rollout, and to
measure rankers and judges against exact labels.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from ..agents.model import ChatTokenizer
from ..agents.protocol import write_turn
from ..agents.question import Question
from ..agents.trajectory import Sample, Trajectory
from ..models.errors import RestillError
from .expert import Script, Turn
from .guide import expert
from .judge_data import Answers
from .world_relations import RELATIONS


def noisy_script(answers: Answers, noise: float, *, seed: int = 0) -> Script:
    """The expert of a World, but before each hop it strays with probability ``noise``, and so errs in its answer.

    Raises:
        RestillError: ``noise`` is no probability.
    """
    if not 0 <= noise <= 1:
        raise RestillError(f"noise={noise} must lie between 0 and 1")

    def script(question: Question, handles: Mapping[str, int]) -> list[Turn]:
        rng = random.Random(f"restill-noise {seed} {question.key}")
        turns: list[Turn] = []
        for turn in expert(question, handles):
            stray = rng.random() < noise
            wrong = wrong_turns(question, answers, rng)
            if turn[1] == "finish":
                turns.append(next(w for w in wrong if w[1] == "finish") if stray else turn)
            else:
                turns += [next(w for w in wrong if w[1] == "search"), turn] if stray else [turn]
        return turns

    return script


def wrong_turns(question: Question, answers: Answers, rng: random.Random) -> list[Turn]:
    """Turns that a weak policy writes, in random order: wrong searches, and answers that are wrong."""
    plan = question.metadata["plan"]
    step = rng.choice(plan)
    relation = rng.choice([r for name, r in RELATIONS.items() if name != step["relation"]])
    other = answers.others(question, rng, 1)[0]
    on_the_way = rng.choice([s["entity"] for s in plan])
    near = answers.near_miss(question, rng)
    searches: list[Turn] = [
        (f"I need the {relation.noun} of {other}.", "search", {"query": relation.query(other)}),
        ("I look it up.", "search", {"query": question.question}),
        (f"Now I need the {step['relation']} of {near}.", "search", {"query": f"{step['relation']} of {near}"}),
    ]
    finishes: list[Turn] = [
        ("That is the answer.", "finish", {"answer": other, "citations": [1]}),
        (f"So the answer is {on_the_way}.", "finish", {"answer": on_the_way, "citations": [1]}),
        (f"The answer is {near}.", "finish", {"answer": near, "citations": [2]}),
    ]
    listed = [*searches, *finishes]
    rng.shuffle(listed)
    return listed


def with_samples(
    trajectory: Trajectory, question: Question, answers: Answers, tokenizer: ChatTokenizer, *, count: int, seed: int
) -> Trajectory:
    """The ReAct trajectory with ``count`` samples a step: what went on, turns of the expert, and wrong ones.

    Their log-probabilities are drawn at random, so that the order without a ranker knows nothing.
    """
    handles = {p.title: p.handle for p in trajectory.passages()}
    by_document = {d: handles[t] for d, t in zip(question.gold, _titles(question), strict=False) if t in handles}
    right = expert(question, by_document)
    steps = []
    for index, step in enumerate(trajectory.steps):
        rng = random.Random(f"restill-samples {seed} {trajectory.key} {index}")
        turns = [*rng.sample(right, min(2, len(right))), *wrong_turns(question, answers, rng)]
        drawn = [_sample(write_turn(*turn), tokenizer, rng) for turn in turns[: count - 1]]
        place = rng.randrange(len(drawn) + 1)
        went_on = step.sample.model_copy(update={"logprobs": _logprobs(len(step.sample.tokens), rng)})
        samples = [*drawn[:place], went_on, *drawn[place:]]
        steps.append(step.model_copy(update={"samples": samples, "chosen": place, "ranking": []}))
    return trajectory.model_copy(update={"steps": steps})


def _sample(text: str, tokenizer: ChatTokenizer, rng: random.Random) -> Sample:
    tokens = [*tokenizer.encode(text), tokenizer.eos_ids[0]]
    return Sample(text=text, tokens=tokens, logprobs=_logprobs(len(tokens), rng))


def _logprobs(count: int, rng: random.Random) -> list[float]:
    mean = -rng.uniform(0.05, 1.0)
    return [mean] * count


def _titles(question: Question) -> list[str]:
    return [step["entity"] for step in question.metadata["plan"]]
