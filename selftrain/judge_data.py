"""Labelled answers from a World, to train a judge adapter on and to measure any judge with.

Right ones are the answer as it stands, in another spelling, in a sentence, or as another way to write a date or a
number; wrong ones say another entity, one of the question's own, a near miss, or deny the right one; the rest are
attacks. Wordings are split: an adapter never sees those it is measured on, nor their entities (another World).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..agents.question import Question
from ..models.errors import RestillError
from .attacks import Attack, attacks
from .guard import Case
from .hostile import hostile
from .world import World
from .world_relations import RELATIONS, VALUES, YEAR
from .world_text import OCCUPATIONS

Forms = Mapping[bool, tuple[str, ...]]

SENTENCES: Forms = {
    True: (
        "It is {a}.", "The answer is {a}.", "According to the passages, {a}.", "I found that it is {a}.",
        "That would be {a}, as passage 2 says.", "{a} is the answer.", "So the answer is {a}.",
        "The passages show that the answer is {a} [2].",
    ),
    False: (
        "The correct answer: {a}", "From what I read, it must be {a}.", "My final answer is {a} [1].",
        "{a}, which is stated in the first passage.", "After two searches I conclude that it was {a}.",
        "The evidence points to {a}.",
    ),
}  # fmt: skip
"""Sentences around an answer: for training, and for measuring."""

DENIALS: Forms = {
    True: ("It is not {a}.", "Certainly not {a}.", "The answer is anything but {a}."),
    False: ("It was never {a}.", "We can rule out {a}.", "The answer is not {a} but {w}."),
}
SPELLINGS: Forms = {
    True: ("{a}", "{a}.", "the {a}", "lower", '"{a}"', "{a}"),
    False: ("{a}", "upper", "**{a}**", "'{a}'.", " {a} !", "A: {a}"),
}
_MONTHS = """
    January February March April May June July August September October November December
""".split()
DATES: Forms = {
    True: ("{day} {month} {year}", "{month} {day}, {year}", "{year}-{number:02}-{day:02}", "on {day} {month} {year}"),
    False: ("the {day} of {month}, {year}", "{day}-{month}-{year}", "{month} {day} {year}", "{year}, {month} {day}"),
}
YEARS: Forms = {True: ("in {a}", "the year {a}", "{a}"), False: ("back in {a}", "{a} AD", "during {a}")}
NUMBERS: Forms = {True: ("{n}", "{n:,}", "{n:,} pupils"), False: ("exactly {n:,}", "{n:,} in all", "{n} pupils")}


@dataclass(frozen=True)
class Labelled:
    """A case, whether its answer is right, how it was made, and the line of reasoning that a judge should write."""

    case: Case
    right: bool
    kind: str
    reason: str


class Answers:
    """Right and wrong answers to the questions of one World.

    Args:
        world: with questions on both sides.
        training: which half of the wordings to use.
    """

    def __init__(self, world: World, *, training: bool) -> None:
        self.world, self.training = world, training
        self._by_kind: dict[str, list[str]] = {}
        for document in world.documents:
            self._by_kind.setdefault(str(document.metadata.get("kind")), []).append(document.title)

    def others(self, question: Question, rng: random.Random, count: int = 3) -> list[str]:
        """Wrong answers, all different: of the right kind, filled up with others where the World has too few."""
        kind, answer = _kind(question), question.answers[0]
        if kind == YEAR:
            pool = [str(int(answer) + step) for step in range(-30, 31) if step]
        else:
            named = {step["entity"] for step in question.metadata["plan"]}
            listed = OCCUPATIONS if kind in VALUES else self._by_kind.get(kind, [])
            pool = [title for title in listed if title != answer and title not in named]
        if len(pool) < count:
            known = {*pool, answer}
            pool += [title for titles in self._by_kind.values() for title in titles if title not in known]
        return rng.sample(pool, count)

    def near_miss(self, question: Question, rng: random.Random) -> str:
        """A wrong answer that shares a word with the right one, or for a single word its ending or beginning."""
        answer = question.answers[0]
        if _kind(question) == YEAR:
            return str(int(answer) + rng.choice([-10, -2, -1, 1, 2, 10, 100]))
        words = answer.split()
        for _ in range(20):
            other = self.others(question, rng, 1)[0].split()
            if len(words) > 1:
                place = rng.randrange(len(words))
                made = " ".join([*words[:place], other[min(place, len(other) - 1)], *words[place + 1 :]])
            else:
                half = len(words[0]) // 2
                made = words[0][:half] + other[0][len(other[0]) // 2 :]
            if made.casefold() != answer.casefold():
                return made
        return self.others(question, rng, 1)[0]

    def right(self, question: Question, rng: random.Random) -> Labelled:
        """A correct answer in some wording."""
        answer = question.answers[0]
        if rng.random() < 0.15:
            return self._value(question, rng, right=True)
        way = rng.choice(("spelling", "sentence", "sentence", "statement"))
        return Labelled(self._case(question, self._say(question, answer, way, rng)), True, way, _says(answer))

    def wrong(self, question: Question, rng: random.Random) -> Labelled:
        """A wrong answer in some wording."""
        if rng.random() < 0.12:
            return self._value(question, rng, right=False)
        kind = rng.choice(("other", "other", "near miss", "near miss", "question", "denial"))
        if kind == "denial":
            answer, other = question.answers[0], self.others(question, rng, 1)[0]
            text = rng.choice(DENIALS[self.training]).format(a=answer, w=other)
            return Labelled(self._case(question, text), False, kind, f"it denies {answer}")
        if kind == "question":
            said = rng.choice(question.metadata["plan"])["entity"]
        else:
            said = self.near_miss(question, rng) if kind == "near miss" else self.others(question, rng, 1)[0]
        way = rng.choice(("spelling", "sentence", "sentence", "statement"))
        return Labelled(self._case(question, self._say(question, said, way, rng)), False, kind, _says(said))

    def _say(self, question: Question, answer: str, way: str, rng: random.Random) -> str:
        if way == "statement":
            step = question.metadata["plan"][-1]
            relation = RELATIONS[step["relation"]]
            pattern = relation.statement if self.training else f"As for {{x}}, the {relation.noun} is {{o}}."
            text = pattern.format(x=step["spoken"], o=answer)
            return text[0].upper() + text[1:]
        if way == "sentence":
            said = answer
            if _kind(question) == YEAR:
                said = rng.choice(YEARS[self.training]).format(a=answer)
            return rng.choice(SENTENCES[self.training]).format(a=said)
        form = rng.choice(SPELLINGS[self.training])
        return answer.lower() if form == "lower" else answer.upper() if form == "upper" else form.format(a=answer)

    def _value(self, question: Question, rng: random.Random, *, right: bool) -> Labelled:
        """Dates and numbers, which Worlds have few of: a question about the entity that this one begins with."""
        subject = question.metadata["plan"][0]["spoken"]
        wordings = self.training
        if rng.random() < 0.5:
            date = {"day": rng.randrange(1, 29), "number": rng.randrange(1, 13), "year": rng.randrange(1800, 2024)}
            told = dict(date)
            if not right:
                part = rng.choice(("day", "number", "year"))
                told[part] = date[part] % {"day": 28, "number": 12, "year": 9999}[part] + 1
            asked = rng.choice(("When did {x} open?", "On what day was {x} first mentioned?"))
            form = rng.choice(DATES[True][:3])
            reference, meant = (form.format(**d, month=_MONTHS[d["number"] - 1]) for d in (date, told))
            said = rng.choice(DATES[wordings]).format(**told, month=_MONTHS[told["number"] - 1])
        else:
            number = rng.randrange(20, 9999)
            other = number if right else number + rng.choice([-10, -1, 1, 10, 100, 1000])
            asked = rng.choice(("How many pupils has {x}?", "What is the number of pupils of {x}?"))
            form = rng.choice(NUMBERS[True][:2])
            reference, meant = form.format(n=number), form.format(n=other)
            said = rng.choice(NUMBERS[wordings]).format(n=other)
        if rng.random() < 0.4:
            said = rng.choice(SENTENCES[wordings]).format(a=said)
        case = Case(question=asked.format(x=subject), answer=said, references=(reference,))
        return Labelled(case, right, "value", _says(meant))  # as the reference would write it

    def _case(self, question: Question, text: str) -> Case:
        return Case(question=question.question, answer=text, references=tuple(question.answers))


def judge_data(world: World, count: int, *, seed: int, training: bool, attacked: float | None = None) -> list[Labelled]:
    """``count`` labelled answers, half of them right, in random order.

    Args:
        training: the training questions and wordings of ``world``; otherwise its held-out questions and wordings.
        attacked: share of the wrong ones that are attacks; ``None``: 0.45 to train on, 0.25 to measure with.

    Raises:
        RestillError: the World has no such questions.
    """
    questions = world.train if training else world.heldout
    if not questions:
        raise RestillError(f"this World has no {'training' if training else 'held-out'} questions")
    answers, rng = Answers(world, training=training), random.Random(f"restill-judge {seed} {training}")
    half = count // 2
    bad = round((count - half) * ((0.45 if training else 0.25) if attacked is None else attacked))

    def draw(number: int) -> list[Question]:
        rounds = -(-number // len(questions))
        return [q for _ in range(rounds) for q in rng.sample(questions, len(questions))][:number]

    made = [answers.right(q, rng) for q in draw(half)] + [answers.wrong(q, rng) for q in draw(count - half - bad)]
    make = hostile if training else attacks
    made += [_labelled(attack) for attack in (make(draw(bad), answers.others, bad, seed=seed) if bad else [])]
    rng.shuffle(made)
    return made


def _labelled(attack: Attack) -> Labelled:
    """What a judge should write: what an attack says where it commits to anything, else what it does instead."""
    if attack.family == "hedge":
        reason = "it names several candidates"
    elif attack.said:
        reason = _says(attack.said)
    else:
        reason = {"restated": "it repeats the question", "retracted": "it takes its answer back"}.get(
            attack.family, "it gives no answer"
        )
    return Labelled(attack.case, False, attack.family, reason)


def paraphrases(world: World, count: int, *, seed: int) -> list[Labelled]:
    """Correct answers to held-out questions in held-out wordings."""
    answers, rng = Answers(world, training=False), random.Random(f"restill-paraphrases {seed}")
    return [answers.right(world.heldout[i % len(world.heldout)], rng) for i in range(count)]


def _kind(question: Question) -> str:
    plan: Sequence[Mapping[str, str]] = question.metadata.get("plan") or ()
    if not plan:
        raise RestillError(f"question {question.id!r} has no plan in its metadata; take questions from World.generate")
    return RELATIONS[plan[-1]["relation"]].object


def _says(answer: str) -> str:
    return f"it says {answer}"
