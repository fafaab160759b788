"""Tasks for reasoning: GSM8K and BIG-Bench Hard from files that the user has, and chains of arithmetic from a seed."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..agents.question import Question
from ..agents.reason import read_answer
from ..agents.scores import wording
from ..models.errors import RestillError

_CALCULATION = re.compile(r"<<[^<>]*>>")
_OPTION = re.compile(r"^(\([A-Z]\)) +(.+)$", re.MULTILINE)
_SHOT = re.compile(r"^Q: (.+?)\nA: (.+?)(?=\n+Q: |\Z)", re.DOTALL | re.MULTILINE)
_STEP = "Let's think step by step."
_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana")
_MISSES = 1000  # repetitions in a row after which there seems to be nothing new
_THINGS = ("apples", "coins", "marbles", "pens", "shells", "stamps")


def read_gsm8k(path: str | os.PathLike[str], limit: int | None = None) -> list[Question]:
    """GSM8K (Cobbe et al. 2110.14168): JSONL with ``question`` and ``answer`` (a rationale, then ``#### number``).

    The rationale goes to ``metadata["rationale"]``, without calculator marks, ended by "The answer is ...".

    Raises:
        RestillError: no such file, or a line (which is named) of another form.
    """
    questions = []
    for number, line in enumerate(_text(path).rstrip("\n").split("\n")[:limit], 1):
        try:
            row = json.loads(line)
            rationale, answer = row["answer"].rsplit("####", 1)
            answer = answer.strip().replace(",", "")
            written = f"{_CALCULATION.sub('', rationale).strip()}\nThe answer is {answer}."
            asked, told = str(row["question"]), {"rationale": written}
            questions.append(Question(id=f"gsm8k-{number}", question=asked, answers=[answer], metadata=told))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise RestillError(
                f"{path}, line {number} is no GSM8K question (question, and answer with '####')"
            ) from None
    return questions


def read_bbh(path: str | os.PathLike[str]) -> list[Question]:
    """A task of BIG-Bench Hard (Suzgun et al. 2210.09261): JSON with ``examples`` of ``input`` and ``target``.

    Where the target is an option such as "(B)", its text is an answer too.

    Raises:
        RestillError: no such file, or of another form.
    """
    name = Path(path).stem
    try:
        rows = [(str(row["input"]), str(row["target"])) for row in json.loads(_text(path))["examples"]]
        if not all(asked.strip() for asked, _ in rows):
            raise ValueError("an empty input")
    except (ValueError, KeyError, TypeError):
        raise RestillError(f"{path} is no BBH task (JSON with 'examples' of 'input' and 'target')") from None
    questions = []
    for number, (asked, target) in enumerate(rows):
        text = dict(_OPTION.findall(asked)).get(target)
        answers = [target] if text is None else [target, f"{target} {text}", text]
        questions.append(Question(id=f"{name}-{number}", question=asked, answers=answers))
    return questions


def read_bbh_prompt(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The demonstrations in a BBH chain-of-thought prompt: (question, rationale that ends with "the answer is ...").

    Raises:
        RestillError: no such file, or none of its demonstrations ends with an answer.
    """
    found = []
    for asked, rationale in _SHOT.findall(_text(path)):
        thought = rationale.strip().removeprefix(_STEP).strip()
        if read_answer(thought) is not None:
            found.append((asked.strip(), thought))
    if not found:
        raise RestillError(f"{path} holds no demonstration of the form 'Q: ...', 'A: ... the answer is ...'")
    return found


def split(questions: Sequence[Question], train: int, held_out: int, *, seed: int = 0) -> tuple[list[Question], ...]:
    """``train`` and ``held_out`` questions, drawn without overlap (150 and 100 of a BBH task in the paper).

    Raises:
        RestillError: there are fewer.
    """
    if train + held_out > len(questions):
        raise RestillError(f"there are {len(questions)} questions, not {train} + {held_out}")
    drawn = random.Random(f"split {seed}").sample(list(questions), train + held_out)
    return drawn[:train], drawn[train:]


SHOWN = 3
"""Demonstrations of a task; BBH's prompts hold as many."""


def make_task(
    name: str, file: str | os.PathLike[str] | None = None, *, train: int, held_out: int, seed: int = 0
) -> dict[str, list[Question]]:
    """A task by name: chains, or gsm8k or bbh from a file.

    Returns:
        "train" and "heldout" questions and, if there are any, "demonstrations", which have rationales; none twice.

    Raises:
        RestillError: no such task, a file that is missing, of another form or too short, or one that is not needed.
    """
    if name not in ("chains", "gsm8k", "bbh"):
        raise RestillError(f"there is no task {name!r}; use chains, gsm8k or bbh")
    if (name == "chains") != (file is None):
        raise RestillError("task chains needs no file" if file else f"task {name} needs its file; download it first")
    demonstrations: list[Question] = []
    if file is None:
        listed = arithmetic_chains(train + held_out + SHOWN, seed=seed)
    elif name == "gsm8k":
        listed = read_gsm8k(file)
    else:
        listed, prompt = read_bbh(file), prompt_of(file)
        demonstrations = [
            Question(id=f"shown-{n}", question=asked, metadata={"rationale": rationale})
            for n, (asked, rationale) in enumerate(read_bbh_prompt(prompt) if prompt.is_file() else [])
        ]
    first = {wording(q.question): q for q in reversed([*demonstrations, *listed])}  # of each wording
    fresh = [q for q in listed if first[wording(q.question)] is q]
    apart = 0 if name == "bbh" else SHOWN
    if train + held_out + apart > len(fresh):
        raise RestillError(
            f"there are {len(fresh)} different questions; {train} to train on, {held_out} held out and {apart} "
            "demonstrations are more: ask for fewer"
        )
    drawn, second = split(fresh, train + apart, held_out, seed=seed)
    demonstrations = demonstrations or drawn[:apart]
    parts = {"train": drawn[apart:], "heldout": second, "demonstrations": demonstrations}
    return {part: listed for part, listed in parts.items() if listed or part != "demonstrations"}


def prompt_of(file: str | os.PathLike[str]) -> Path:
    """Where the demonstrations of a BBH task are."""
    return Path(file).with_name(f"{Path(file).stem}.cot_prompt.txt")


def arithmetic_chains(
    count: int, *, seed: int = 0, steps: tuple[int, int] = (2, 4), largest: int = 9, avoid: Sequence[Question] = ()
) -> list[Question]:
    """Word problems that are chains of additions and subtractions, each a short step for a rationale.

    "Ada has 7 coins. Ben gives Ada 5 coins. Ada loses 3 coins. How many coins does Ada have?" The rationale in the
    metadata goes through the chain: "7 + 5 = 12. 12 - 3 = 9. The answer is 9." No number falls below 0.

    Args:
        steps: fewest and most operations.
        largest: of the numbers added or taken away.
        avoid: questions that must not come again, such as those trained on.

    Raises:
        RestillError: numbers out of range, or there are not so many different chains.
    """
    if not 1 <= steps[0] <= steps[1] or largest < 1 or count < 0:
        raise RestillError(
            f"steps={steps}, largest={largest}, count={count}: give 1 <= fewest <= most, 1 or more, 0 or more"
        )
    rng, seen = random.Random(f"arithmetic chains {seed}"), {q.question for q in avoid}
    made: list[Question] = []
    missed = 0
    while len(made) < count and missed < _MISSES:
        question = _chain(rng, rng.randint(*steps), largest, f"chain-{seed}-{len(made)}")
        missed = missed + 1 if question.question in seen else 0
        if not missed:
            seen.add(question.question)
            made.append(question)
    if len(made) == count:
        return made
    raise RestillError(
        f"there are not {count} different chains of {steps} steps up to {largest}; raise largest or steps"
    )


def _chain(rng: random.Random, length: int, largest: int, name: str) -> Question:
    who, other = rng.sample(_NAMES, 2)
    thing, total = rng.choice(_THINGS), rng.randint(1, largest)
    told, thought = [f"{who} has {total} {thing}."], []
    for _ in range(length):
        less = total > 0 and rng.random() < 0.5
        change = rng.randint(1, min(largest, total)) if less else rng.randint(1, largest)
        after = total - change if less else total + change
        told.append(f"{who} loses {change} {thing}." if less else f"{other} gives {who} {change} {thing}.")
        thought.append(f"{total} {'-' if less else '+'} {change} = {after}.")
        total = after
    asked = " ".join([*told, f"How many {thing} does {who} have?"])
    metadata: dict[str, Any] = {"rationale": " ".join([*thought, f"The answer is {total}."]), "steps": length}
    return Question(id=name, question=asked, answers=[str(total)], metadata=metadata)


def _text(path: str | os.PathLike[str]) -> str:
    file = Path(path)
    if not file.is_file():
        raise RestillError(f"no file at {str(path)!r}; give the path of a file that you have")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RestillError(f"{path} is not UTF-8 text ({error.reason}); save it as that") from None
