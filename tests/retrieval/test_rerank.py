"""Re-ranking by any callable, and late interaction."""

import numpy as np
import pytest

from restill.models.errors import RestillError
from restill.retrieval.rerank import LateInteraction, max_similarity, rerank

RESULTS = [("a", 3.0), ("b", 2.0), ("c", 1.0)]


def by_length(question, texts):
    return [len(text) for text in texts]


def test_the_scorer_decides_and_ties_keep_their_order():
    assert [r for r, _ in rerank("q", RESULTS, ["x", "xx", "xxx"], by_length)] == ["c", "b", "a"]
    assert [r for r, _ in rerank("q", RESULTS, ["x", "x", "x"], by_length)] == ["a", "b", "c"]
    assert rerank("q", [], [], by_length) == []


def test_weight_mixes_old_and_new():
    texts = ["x", "xxx", "xx"]
    assert [r for r, _ in rerank("q", RESULTS, texts, by_length, weight=0.0)] == ["a", "b", "c"]
    assert dict(rerank("q", RESULTS, texts, by_length, weight=0.4)) == pytest.approx({"a": 0.6, "b": 0.7, "c": 0.2})


def test_bad_input_is_named():
    with pytest.raises(RestillError, match="weight=2"):
        rerank("q", RESULTS, ["", "", ""], by_length, weight=2)
    with pytest.raises(RestillError, match="1 texts for 3 results"):
        rerank("q", RESULTS, [""], by_length)
    with pytest.raises(RestillError, match="one number each"):
        rerank("q", RESULTS, ["", "", ""], lambda q, t: [1.0])
    with pytest.raises(RestillError, match="one number each"):
        rerank("q", RESULTS, ["", "", ""], lambda q, t: [1.0, 2.0, float("nan")])


def test_max_similarity_is_the_mean_of_the_best_match_of_each_token():
    rng = np.random.default_rng(0)
    question, text = rng.normal(size=(3, 8)), rng.normal(size=(5, 8))
    direct = sum(max(float(q @ t) for t in text) for q in question) / 3
    assert max_similarity(question, text) == pytest.approx(direct)
    assert max_similarity(question[:0], text) == max_similarity(question, text[:0]) == -1.0


class OneHot:
    """A token is a letter."""

    def encode_tokens(self, texts, *, batch_size=32):
        return [np.eye(26, dtype=np.float32)[[ord(c) - 97 for c in text]] for text in texts]


def test_late_interaction_counts_the_questions_tokens_that_a_text_holds():
    scores = LateInteraction(OneHot())("abcd", ["abxx", "dcba", "", "zzzabcd"])
    assert scores == pytest.approx([0.5, 1.0, -1.0, 1.0])
