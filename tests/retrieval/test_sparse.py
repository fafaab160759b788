"""Keyword search: what is found, in which order, and that the table follows every change."""

from __future__ import annotations

import math
import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.errors import RestillError
from restill.retrieval import sparse

PAGES = [
    (3, "Kestrel", "The kestrel hunts over open fields."),
    (5, "Falcons", "Falcons were trained for hunting; a kestrel is a small falcon."),
    (8, "Engines", "A steam engine was built by Hallow Works."),
    (13, "Hallow Works", "The works closed in 1931."),
]


@pytest.fixture
def table():
    connection = sqlite3.connect(":memory:")
    sparse.create(connection)
    sparse.add(connection, PAGES)
    connection.commit()
    return connection


def rows(connection, query, k=10, allowed=None):
    (hits,) = sparse.search(connection, [query], k, allowed)
    return [row for row, _ in hits]


def test_words_are_found_in_any_of_their_forms(table):
    assert set(rows(table, "hunted")) == {3, 5}
    assert rows(table, "engines building") == [8]
    assert set(rows(table, "FALCON'S")) == {5}


def test_accents_do_not_matter_however_they_are_written(table):
    sparse.add(table, [(21, "Café", "Zoë met André."), (22, "", "The cafe\u0301 of Zoe\u0308.")])
    for query in ("cafe", "Café", "cafe\u0301", "zoe", "Zoë"):
        assert set(rows(table, query)) == {21, 22}


def test_marks_that_no_letter_is_composed_with_cut_no_word(table):
    sparse.add(table, [(23, "", "the Ọ̀ṣun river"), (24, "", "ax\u0302b"), (25, "", "sun"), (26, "", "b")])
    assert rows(table, "Ọ̀ṣun") == rows(table, "osun") == [23]
    assert rows(table, "ax\u0302b") == [24]


def test_a_capital_that_lowers_to_two_characters_cuts_no_word(table):
    sparse.add(table, [(31, "", "A ferry from İstanbul."), (32, "", "stanbul"), (33, "", "i")])
    assert rows(table, "İstanbul") == rows(table, "istanbul") == rows(table, "İSTANBUL") == [31]
    assert rows(table, "THE İstanbul") == [31]


def test_a_word_in_the_title_counts_more_than_one_in_the_text():
    connection = sqlite3.connect(":memory:")
    sparse.create(connection)
    sparse.add(connection, [(1, "other", "kestrel"), (2, "kestrel", "other"), (3, "x", "y"), (4, "x", "y")])
    assert rows(connection, "kestrel") == [2, 1]


def test_stop_words_are_left_out_unless_nothing_else_is_asked(table):
    assert rows(table, "the engine of") == [8]
    assert set(rows(table, "the of it")) == {3, 13}


def test_the_score_is_okapi_bm25():
    connection = sqlite3.connect(":memory:")
    sparse.create(connection)
    texts = ["red red blue", "red", "green green green green", "blue", "grey", "pink"]
    sparse.add(connection, [(row, "", text) for row, text in enumerate(texts)])
    average = sum(len(text.split()) for text in texts) / len(texts)

    def bm25(text, words):
        score = 0.0
        for word in words:
            n = sum(word in other.split() for other in texts)
            tf = text.split().count(word)
            idf = math.log((len(texts) - n + 0.5) / (n + 0.5))
            score += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(text.split()) / average))
        return score

    (hits,) = sparse.search(connection, ["red blue"], 10)
    assert [row for row, _ in hits] == [0, 1, 3]
    for row, score in hits:
        assert score == pytest.approx(bm25(texts[row], ["red", "blue"]))


def test_equal_scores_come_by_row():
    connection = sqlite3.connect(":memory:")
    sparse.create(connection)
    sparse.add(connection, [(row, "", "same words") for row in (9, 4, 7, 2)])
    assert rows(connection, "words", k=3) == [2, 4, 7]


def test_a_filter_keeps_scores_and_order(table):
    everything = sparse.search(table, ["kestrel works falcon"], 10)[0]
    assert len(everything) > 2
    for allowed in ([3], [5, 13], [1, 2, 3, 1000], []):
        found = sparse.search(table, ["kestrel works falcon"], 10, np.array(allowed, np.int64))[0]
        assert found == [hit for hit in everything if hit[0] in allowed]


@pytest.mark.parametrize(
    "query", ['"', 'kestrel" OR *', "title:kestrel", "NEAR(a b)", "^ - + *", "a AND (b", "\0", "\ud800", "", "日本"]
)
def test_a_query_is_never_syntax(table, query):
    assert isinstance(sparse.search(table, [query], 3)[0], list)


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text())
def test_any_text_can_be_stored_and_asked(title, query):
    connection = sqlite3.connect(":memory:")
    sparse.create(connection)
    sparse.add(connection, [(1, title, query)])
    sparse.search(connection, [query, title], 3)
    assert sparse.check(connection) == {1}


def test_operators_are_words(table):
    sparse.add(table, [(30, "", "near misses")])
    assert set(rows(table, "NEAR(engine")) == {8, 30}


def test_a_query_of_thousands_of_words_is_answered(table):
    assert rows(table, " ".join(f"word{i}" for i in range(5000)) + " steam") == [8]


words = st.sampled_from("red green blue kestrel falcon engine works the of".split())
text = st.lists(words, max_size=8).map(" ".join)
change = st.one_of(st.tuples(st.just("add"), text, text), st.tuples(st.just("remove"), st.integers(0, 30), st.just("")))


@settings(max_examples=60, deadline=None)
@given(st.lists(change, max_size=30), st.lists(text, min_size=1, max_size=3))
def test_any_sequence_of_changes_searches_like_a_fresh_table(changes, queries):
    changed, fresh = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    sparse.create(changed)
    sparse.create(fresh)
    alive: dict[int, tuple[str, str]] = {}
    for row, (what, a, b) in enumerate(changes):
        if what == "add":
            sparse.add(changed, [(row, a, b)])
            alive[row] = (a, b)
        else:
            sparse.remove(changed, [a])
            alive.pop(a, None)
    sparse.add(fresh, [(row, *texts) for row, texts in alive.items()])
    assert sparse.search(changed, queries, 10) == sparse.search(fresh, queries, 10)
    assert sparse.check(changed) == set(alive)


def test_what_is_not_committed_is_gone(tmp_path):
    connection = sqlite3.connect(tmp_path / "store.db")
    sparse.create(connection)
    sparse.add(connection, PAGES)
    connection.commit()
    sparse.remove(connection, [3])
    sparse.add(connection, [(40, "", "kestrel")])
    connection.rollback()
    assert sparse.check(connection) == {row for row, *_ in PAGES}
    assert set(rows(connection, "kestrel")) == {3, 5}


def test_readers_search_during_a_write(tmp_path):
    writer = sqlite3.connect(tmp_path / "store.db")
    writer.execute("PRAGMA journal_mode = WAL")
    sparse.create(writer)
    sparse.add(writer, PAGES)
    writer.commit()
    reader = sqlite3.connect(f"file:{tmp_path / 'store.db'}?mode=ro", uri=True)
    sparse.remove(writer, [3])
    assert set(rows(reader, "kestrel")) == {3, 5}
    writer.commit()
    assert rows(reader, "kestrel") == [5]


def test_a_row_is_added_once(table):
    with pytest.raises(sqlite3.IntegrityError):
        sparse.add(table, [PAGES[0]])


def test_check_notices_damage_and_rebuild_mends_it(table):
    table.execute("UPDATE sparse_content SET c1 = 'something else' WHERE id = 5")
    table.commit()
    with pytest.raises(RestillError, match="--repair"):
        sparse.check(table)
    sparse.rebuild(table, PAGES)
    assert sparse.check(table) == {row for row, *_ in PAGES}
    assert sorted(rows(table, "hunting")) == [3, 5]


def test_check_leaves_no_transaction_open(table):
    sparse.check(table)
    assert not table.in_transaction
