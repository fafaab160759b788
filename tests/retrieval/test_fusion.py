"""Fusion: the formulas, and what must hold for any lists."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restill.models.errors import RestillError
from restill.retrieval.fusion import best_of, reciprocal_rank_fusion, scaled, weighted_score_fusion

_scores = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))
_list = st.dictionaries(st.sampled_from("abcdefgh"), _scores, max_size=8).map(
    lambda d: sorted(d.items(), key=lambda item: -item[1])
)
_lists = st.lists(_list, min_size=1, max_size=4)


@given(_lists, st.integers(0, 100), st.lists(st.floats(0, 5), min_size=4, max_size=4))
def test_reciprocal_rank_fusion_is_its_formula(lists, k, weights):
    direct = {
        d: sum(
            w / (k + [x for x, _ in hits].index(d) + 1)
            for hits, w in zip(lists, weights, strict=False)
            if d in dict(hits)
        )
        for d in {d for hits in lists for d, _ in hits}
    }
    fused = reciprocal_rank_fusion(lists, weights[: len(lists)], k=k)
    assert dict(fused) == pytest.approx(direct)
    assert [s for _, s in fused] == sorted((s for _, s in fused), reverse=True)


@given(_lists, st.lists(st.floats(0, 5), min_size=4, max_size=4), st.sampled_from([None, -10.0, 0.0]))
def test_weighted_score_fusion_is_its_formula(lists, weights, floor):
    direct: dict[str, float] = {}
    for hits, weight in zip(lists, weights, strict=False):
        if hits:
            low = min(s for _, s in hits) if floor is None else floor
            high = max(s for _, s in hits)
            for d, s in hits:
                share = float(s >= low) if high <= low else max(0.0, (s - low) / (high - low))
                direct[d] = direct.get(d, 0.0) + weight * share
    fused = weighted_score_fusion(lists, weights[: len(lists)], floors=[floor] * len(lists))
    assert dict(fused) == pytest.approx(direct)


@pytest.mark.parametrize("fuse", [reciprocal_rank_fusion, weighted_score_fusion])
@given(lists=_lists, seed=st.integers(0, 99))
def test_the_order_of_the_lists_does_not_matter(fuse, lists, seed):
    weights = [1.0, 0.5, 2.0, 0.1][: len(lists)]
    order = random.Random(seed).sample(range(len(lists)), len(lists))
    assert dict(fuse(lists, weights)) == dict(fuse([lists[i] for i in order], [weights[i] for i in order]))


@pytest.mark.parametrize("fuse", [reciprocal_rank_fusion, weighted_score_fusion])
@given(hits=_list)
def test_a_list_alone_keeps_its_order(fuse, hits):
    assert [d for d, _ in fuse([hits])] == [d for d, _ in hits]
    assert [d for d, _ in fuse([hits, []])] == [d for d, _ in hits]


@pytest.mark.parametrize("fuse", [reciprocal_rank_fusion, weighted_score_fusion])
@given(lists=_lists, at=st.integers(0, 7))
def test_a_document_that_rises_in_one_list_does_not_fall(fuse, lists, at):
    hits = lists[0]
    if at == 0 or at >= len(hits):
        return
    document, _ = hits[at]
    above, score_above = hits[at - 1]
    risen = [*hits[: at - 1], (document, score_above), (above, hits[at][1]), *hits[at + 1 :]]
    before, after = dict(fuse(lists)), dict(fuse([risen, *lists[1:]]))
    assert after[document] >= before[document] - 1e-12
    assert after[above] <= before[above] + 1e-12


@given(_list, st.floats(0.1, 10), st.floats(-5, 5))
def test_a_lists_unit_does_not_matter(hits, factor, shift):
    assert scaled([(d, factor * s + shift) for d, s in hits]) == pytest.approx(scaled(hits), abs=1e-6)


def test_a_document_has_the_place_of_its_best_passage():
    assert best_of([(4, 0.9), (1, 0.8), (5, 0.7), (0, 0.1)], lambda row: "ab"[row // 4]) == [("b", 0.9), ("a", 0.8)]


@pytest.mark.parametrize("fuse", [reciprocal_rank_fusion, weighted_score_fusion])
def test_bad_input_is_named(fuse):
    with pytest.raises(RestillError, match="2 weights for 1 lists"):
        fuse([[("a", 1.0)]], [1.0, 1.0])
    with pytest.raises(RestillError, match="0 or more"):
        fuse([[("a", 1.0)]], [-1.0])
    with pytest.raises(RestillError, match="twice"):
        fuse([[("a", 1.0), ("a", 0.5)]])
    with pytest.raises(RestillError, match="not finite"):
        weighted_score_fusion([[("a", math.nan)]])
    with pytest.raises(RestillError, match="k=-1"):
        reciprocal_rank_fusion([[("a", 1.0)]], k=-1)
