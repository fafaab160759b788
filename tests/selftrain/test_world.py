"""The World: true to its facts, the same for the same seed, and not to be gamed."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.agents.question import Question
from restill.models.errors import RestillError
from restill.selftrain.guide import MOST_WORDS, expert, hint
from restill.selftrain.world import World
from restill.selftrain.world_baselines import no_search, top_passage
from restill.selftrain.world_names import REAL_WORDS
from restill.selftrain.world_relations import RELATIONS, TRAIN_ASKS, TRAIN_PHRASES

seeds = st.integers(0, 10_000)
few = settings(max_examples=8, deadline=None)


@cache
def world(seed: int = 0) -> World:
    return World.generate(seed=seed)


def solve(world: World, question: Question) -> set[str]:
    """Every answer the fact triples allow, found by scanning all of them for each hop."""
    reached = {question.metadata["plan"][0]["entity"]}
    for relation in question.metadata["chain"]:
        reached = {fact.object for fact in world.facts if fact.relation == relation and fact.subject in reached}
    return reached


def within_one_edit(a: str, b: str) -> bool:
    if abs(len(a) - len(b)) > 1:
        return False
    short, long = sorted((a, b), key=len)
    start = next((i for i, letter in enumerate(short) if letter != long[i]), len(short))
    return short[start + (len(a) == len(b)) :] == long[start + 1 :]


def mentions(text: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


# -- documents and facts


@few
@given(seeds)
def test_titles_are_unique_and_not_confusable(seed: int) -> None:
    documents = world(seed).documents
    titles = [document.title for document in documents]
    assert len(set(titles)) == len({d.id for d in documents}) == len(titles) == 200
    invented = [
        t.split()[0] for t, d in zip(titles, documents, strict=True) if d.metadata["kind"] not in ("book", "ship")
    ]
    invented += [d.title.split()[1] for d in documents if d.metadata["kind"] == "person"]
    assert not any(within_one_edit(a, b) for i, a in enumerate(invented) for b in invented[:i])
    assert not {word.lower() for word in invented} & REAL_WORDS


@few
@given(seeds)
def test_documents_are_short_and_state_their_facts(seed: int) -> None:
    text = {document.title: document.text for document in world(seed).documents}
    for document in world(seed).documents:
        assert 2 <= len(re.findall(r"\.(?: |$)", document.text)) <= 4, document.text
        assert 100 <= len(document.text) <= 220, document.text
        assert document.title in document.text and "{" not in document.text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |\bthe The\b", document.text), document.text
    for fact in world(seed).facts:
        assert mentions(text[fact.subject], fact.object), fact


@few
@given(seeds)
def test_every_relation_is_functional_and_leads_to_a_document(seed: int) -> None:
    kinds = {document.title: document.metadata["kind"] for document in world(seed).documents}
    assert max(Counter((f.subject, f.relation) for f in world(seed).facts).values()) == 1
    for fact in world(seed).facts:
        relation = RELATIONS[fact.relation]
        assert kinds[fact.subject] == relation.subject
        assert kinds.get(fact.object, relation.object) == relation.object


def test_worlds_of_other_seeds_share_almost_no_names() -> None:
    words = [{word for d in world(seed).documents for word in (d.title,)} for seed in (0, 1, 2)]
    assert max(len(words[i] & words[j]) for i in range(3) for j in range(i)) <= 0.03 * 200


# -- questions


@few
@given(seeds)
def test_the_solver_finds_exactly_the_answer(seed: int) -> None:
    for question in world(seed).train + world(seed).heldout:
        assert solve(world(seed), question) == set(question.answers)


@few
@given(seeds)
def test_the_answer_is_found_by_following_and_only_so(seed: int) -> None:
    by_id = {document.id: document for document in world(seed).documents}
    for question in world(seed).train + world(seed).heldout:
        chain = [by_id[doc] for doc in question.gold]
        plan, answer = question.metadata["plan"], question.answers[0]
        assert len(chain) == len(plan) == question.metadata["hops"]
        assert [document.title for document in chain] == [step["entity"] for step in plan]
        assert mentions(question.question, chain[0].title)
        assert not any(mentions(question.question, name) for name in (answer, *(d.title for d in chain[1:])))
        assert mentions(chain[-1].text, answer)
        assert not any(mentions(document.text, answer) for document in chain[:-1])
        assert not any(mentions(document.text, chain[0].title) for document in chain[1:])


@few
@given(seeds)
def test_the_splits_share_no_text_no_composition_and_no_family(seed: int) -> None:
    def starts(questions: list[Question]) -> set[tuple[str, ...]]:
        return {(q.metadata["plan"][0]["entity"], *q.metadata["chain"]) for q in questions}

    train, heldout = world(seed).train, world(seed).heldout
    assert (len(train), len(heldout)) == (200, 100)
    assert len({q.question for q in train + heldout}) == len({q.id for q in train + heldout}) == 300
    assert not starts(train) & starts(heldout)
    assert not {q.metadata["family"] for q in train} & {q.metadata["family"] for q in heldout}


def test_heldout_wordings_are_their_own() -> None:
    for relation in RELATIONS.values():
        assert len(set(relation.asks)) == len(relation.asks) == TRAIN_ASKS + 2
        assert len(set(relation.phrases)) == len(relation.phrases) in (0, TRAIN_PHRASES + 1)
        assert all(wording.count("{x}") == 1 for wording in relation.asks + relation.phrases)


@few
@given(seeds)
def test_the_mix_of_hops_is_exact_and_no_answer_is_a_favourite(seed: int) -> None:
    heldout = world(seed).heldout
    assert Counter(q.metadata["hops"] for q in heldout) == {1: 15, 2: 60, 3: 25}
    assert max(Counter(q.answers[0] for q in heldout).values()) <= 3


def test_four_hops_can_be_had() -> None:
    made = World.generate(entities=120, train=10, heldout=5, hops={4: 1})
    assert all(len(q.gold) == 4 and solve(made, q) == set(q.answers) for q in made.train + made.heldout)


# -- cannot be gamed


@few
@given(seeds)
def test_baselines_that_do_not_follow_stay_low(seed: int) -> None:
    assert max(no_search(world(seed)).values()) <= 0.25
    assert top_passage(world(seed)) <= 0.25


@few
@given(seeds, st.integers(0, 3))
def test_a_swap_changes_the_truth_to_a_fresh_answer(seed: int, again: int) -> None:
    here = world(seed)
    titles = {document.title for document in here.documents}
    for question in here.heldout[:40]:
        documents, answer = here.swap(question, again)
        old = question.answers[0]
        assert answer != old and answer not in titles
        before = {document.title: document.text for document in here.documents}
        after = {document.title: document.text for document in documents}
        last = question.metadata["plan"][-1]["entity"]
        assert mentions(after[last], answer) and not mentions(after[last], old)
        if old in titles:  # renamed everywhere, and nothing else is touched
            assert all(old not in f"{title} {text}" for title, text in after.items())
            assert [d.text.replace(answer, old) for d in documents] == [d.text for d in here.documents]
        else:
            assert [title for title in before if before[title] != after[title]] == [last]
        assert here.swap(question, again) == (documents, answer)


def test_a_swap_of_another_worlds_question_is_refused() -> None:
    with pytest.raises(RestillError, match="not about this World"):
        world(0).swap(world(1).heldout[0])


# -- the teacher


@few
@given(seeds)
def test_the_hint_and_the_expert_follow_the_plan(seed: int) -> None:
    by_id = {document.id: document for document in world(seed).documents}
    for question in world(seed).train:
        *searches, (last, name, arguments) = expert(question, {question.gold[-1]: 7})
        queries = [step["query"] for step in question.metadata["plan"]]
        assert [arguments["query"] for _, _, arguments in searches] == queries
        assert (name, arguments) == ("finish", {"answer": question.answers[0], "citations": [7]})
        assert question.answers[0] in last
        assert all(by_id[doc].title in query for doc, query in zip(question.gold, queries, strict=True))
        assert all(len(thought.split()) <= MOST_WORDS for thought in (last, *(t for t, _, _ in searches)))
        line = hint(question)
        assert line.startswith('Plan: search "') and line.endswith(f'answer "{question.answers[0]}".')
        assert "\n" not in line and all(f'search "{query}"' in line for query in queries)


def test_a_question_without_a_plan_has_no_expert() -> None:
    plain = Question(id="q", question="Who founded Rome?")
    for teacher in (hint, expert):
        with pytest.raises(RestillError, match="no plan"):
            teacher(plain)


# -- seeds, files, errors


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.iterdir()))).hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    world(5).save(tmp_path / "here")
    code = "import sys; from restill.selftrain.world import World; World.generate(seed=5).save(sys.argv[1])"
    for number in ("1", "2"):
        there = tmp_path / f"there{number}"
        subprocess.run(
            [sys.executable, "-c", code, str(there)], check=True, env={**os.environ, "PYTHONHASHSEED": number}
        )
        assert digest(there) == digest(tmp_path / "here")
    world(6).save(tmp_path / "other")
    assert digest(tmp_path / "other") != digest(tmp_path / "here")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = world().save(tmp_path / "world")
    assert sorted(f.name for f in folder.iterdir()) == [
        "corpus.jsonl",
        "heldout.jsonl",
        "train.jsonl",
        "world.json",
    ]
    loaded = World.load(folder)
    assert loaded == world()
    assert loaded.swap(loaded.heldout[0]) == world().swap(world().heldout[0])


def test_a_folder_that_is_no_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match="missing"):
        World.load(tmp_path)
    folder = World.generate(entities=60, train=5, heldout=5).save(tmp_path / "world")
    (folder / "world.json").write_text('{"format": "restill-world", "version": 99}')
    with pytest.raises(RestillError, match="version 99"):
        World.load(folder)
    (folder / "world.json").write_text("not JSON")
    with pytest.raises(RestillError, match="no readable World"):
        World.load(folder)


def test_too_many_questions_are_refused_with_a_size_that_does() -> None:
    with pytest.raises(RestillError, match=r"use entities=\d+") as error:
        World.generate(entities=60, train=600, heldout=300)
    enough = int(re.findall(r"use entities=(\d+)", str(error.value))[0])
    assert len(World.generate(entities=enough, train=600, heldout=300).heldout) == 300


@pytest.mark.parametrize("wrong", [{"entities": 10}, {"train": -1}, {"hops": {}}, {"hops": {5: 1}}, {"hops": {1: -1}}])
def test_numbers_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(RestillError):
        World.generate(**wrong)
