"""Bootstrap intervals."""

from __future__ import annotations

import math

import pytest

from restill.retrieval.intervals import bootstrap_interval, paired_interval


def test_intervals_hold_the_mean_and_are_the_same_each_time() -> None:
    values = [1.0] * 30 + [0.0] * 70
    low, high = bootstrap_interval(values, 0)
    assert low < 0.3 < high and high - low == pytest.approx(2 * 1.96 * math.sqrt(0.21 / 100), rel=0.15)
    assert bootstrap_interval(values, 0) == (low, high)
    uneven = [n**0.5 for n in range(20)]
    assert bootstrap_interval(uneven, 0) == bootstrap_interval(uneven, 0) != bootstrap_interval(uneven, 1)
    assert bootstrap_interval([1.0] * 5, 0) == (1.0, 1.0)
    assert all(math.isnan(v) for v in bootstrap_interval([], 0))


def test_paired_intervals_see_what_unpaired_ones_cannot() -> None:
    hard = [float(n % 2) for n in range(200)]
    better = [min(1.0, v + (n % 10 == 0)) for n, v in enumerate(hard)]
    low, _ = paired_interval(better, hard, 0)
    assert low > 0
    assert bootstrap_interval(better, 0)[0] < bootstrap_interval(hard, 0)[1]
    with pytest.raises(ValueError):
        paired_interval([1.0], [1.0, 2.0], 0)
