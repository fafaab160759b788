"""Tasks: what they read, and that a chain's rationale computes its answer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restill.agents.reason import read_answer
from restill.agents.scores import same_answer
from restill.models.errors import RestillError
from restill.selftrain.tasks import arithmetic_chains, make_task, read_bbh, read_bbh_prompt, read_gsm8k, split


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(0, 3), st.integers(1, 30))
def test_a_chain_computes_its_answer_step_by_step(seed: int, fewest: int, more: int, largest: int) -> None:
    [question] = arithmetic_chains(1, seed=seed, steps=(fewest, fewest + more), largest=largest)
    rationale = question.metadata["rationale"]
    sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", rationale)
    assert fewest <= len(sums) == question.metadata["steps"] <= fewest + more
    numbers = [int(n) for n in re.findall(r"\d+", question.question)]
    assert [int(sums[0][0]), *(int(s[2]) for s in sums)] == numbers
    for (a, sign, b, result), after in zip(sums, [*sums[1:], None], strict=True):
        assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
        assert after is None or after[0] == result
    assert read_answer(rationale) == question.answers[0] == sums[-1][3]


def test_chains_follow_from_the_seed_and_avoid_what_is_trained_on() -> None:
    train = arithmetic_chains(200, seed=1, steps=(1, 1), largest=3)
    held_out = arithmetic_chains(200, seed=1, steps=(1, 1), largest=3, avoid=train)
    assert train == arithmetic_chains(200, seed=1, steps=(1, 1), largest=3)
    assert not {q.question for q in train} & {q.question for q in held_out}
    assert len({q.question for q in train}) == len({q.id for q in train}) == 200
    with pytest.raises(RestillError, match="not 99999 different chains"):
        arithmetic_chains(99999, steps=(1, 1), largest=1)
    with pytest.raises(RestillError, match=r"steps=\(3, 2\)"):
        arithmetic_chains(1, steps=(3, 2))


def test_gsm8k_is_read_with_its_rationale(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "He has 500*2 = <<500*2=1000>>1000.\n#### 1,000"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    [question] = read_gsm8k(tmp_path / "a.jsonl")
    assert question.answers == ["1000"] and same_answer("1,000", question.answers)
    assert question.metadata["rationale"] == "He has 500*2 = 1000.\nThe answer is 1000."
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + '\n{"question": "?", "answer": "5"}\n')
    with pytest.raises(RestillError, match="line 2 is no GSM8K question"):
        read_gsm8k(tmp_path / "b.jsonl")
    with pytest.raises(RestillError, match="no file at"):
        read_gsm8k(tmp_path / "c.jsonl")


def test_bbh_is_read_with_the_text_of_its_options(tmp_path: Path) -> None:
    asked = "What has Bob?\nOptions:\n(A) Ulysses\n(B) The Lolita"
    rows = [{"input": asked, "target": "(B)"}, {"input": "not True is", "target": "False"}]
    (tmp_path / "books.json").write_text(json.dumps({"examples": rows}))
    books, logic = read_bbh(tmp_path / "books.json")
    assert books.answers == ["(B)", "(B) The Lolita", "The Lolita"] and logic.answers == ["False"]
    assert not same_answer("(A)", books.answers) and same_answer("B", books.answers)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(RestillError, match="is no BBH task"):
        read_bbh(tmp_path / "bad.json")


def test_the_letter_a_is_no_article() -> None:
    assert same_answer("A", ["(A)"]) and not same_answer("the", ["(A)"]) and not same_answer("", ["(A)"])


def test_a_bbh_prompt_becomes_demonstrations(tmp_path: Path) -> None:
    shots = [("1 + 1 =\nOptions:\n(A) 2", "One and one.\nSo the answer is (A)."), ("x =", "So it is y.")]
    text = "\n\n".join(f"Q: {q}\nA: Let's think step by step.\n{a}" for q, a in shots)
    (tmp_path / "p.txt").write_text(f"canary\n-----\nDo sums.\n\n{text}\n")
    assert read_bbh_prompt(tmp_path / "p.txt") == [shots[0]]
    (tmp_path / "q.txt").write_text("Q: x\nA: y\n")
    with pytest.raises(RestillError, match="holds no demonstration"):
        read_bbh_prompt(tmp_path / "q.txt")


def test_a_split_has_no_overlap() -> None:
    pool = arithmetic_chains(30)
    train, held_out = split(pool, 20, 10, seed=3)
    assert len(train) == 20 and len(held_out) == 10 and not {q.id for q in train} & {q.id for q in held_out}
    with pytest.raises(RestillError, match=r"not 25 \+ 10"):
        split(pool, 25, 10)


def test_a_task_has_no_question_twice(tmp_path: Path) -> None:
    told = [{"question": f"How many {n % 20}?", "answer": f"There are {n}.\n#### {n}"} for n in range(23)]
    (tmp_path / "gsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    rows = [{"input": f"not True is {n}", "target": str(n)} for n in range(20)]
    (tmp_path / "logic.json").write_text(json.dumps({"examples": rows}))
    (tmp_path / "logic.cot_prompt.txt").write_text("Q: not True is 7\nA: So the answer is 7.\n")
    sources = {"chains": (None, 3), "gsm8k": (tmp_path / "gsm.jsonl", 3), "bbh": (tmp_path / "logic.json", 1)}
    for name, (file, shown) in sources.items():
        made = make_task(name, file, train=9, held_out=7, seed=2)
        assert [len(made[part]) for part in ("train", "heldout", "demonstrations")] == [9, 7, shown]
        listed = [q for part in made.values() for q in part]
        assert len({q.question for q in listed}) == len(listed)
        assert made == make_task(name, file, train=9, held_out=7, seed=2)
        assert all(read_answer(q.metadata["rationale"]) for q in made["demonstrations"])
    with pytest.raises(RestillError, match="19 different questions; 15 to train on, 7 held out"):
        make_task("bbh", tmp_path / "logic.json", train=15, held_out=7)
    (tmp_path / "logic.cot_prompt.txt").unlink()
    assert "demonstrations" not in make_task("bbh", tmp_path / "logic.json", train=1, held_out=1)
    (tmp_path / "logic.json").write_bytes(b"\xff")
    with pytest.raises(RestillError, match="is not UTF-8"):
        make_task("bbh", tmp_path / "logic.json", train=1, held_out=1)
