"""Observations: one line, every passage visible, never longer than allowed."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restill.agents.observation import Characters, render_observation
from restill.agents.testing import make_hit
from restill.agents.tool_results import ToolResult


def _ok(*passages: tuple[str, str]) -> ToolResult:
    return ToolResult(status="ok", hits=[make_hit(f"d{n}", *passage) for n, passage in enumerate(passages)])


def test_passages_are_numbered_and_their_titles_not_repeated() -> None:
    result = _ok(("Rome", "It is a\n city."), ("Oslo", "OSLO is cold."), ("", "No\ttitle\x00\u2028here."))
    assert render_observation(result, 4) == "Observation: [4] Rome: It is a city. [5] OSLO is cold. [6] No title here."


def test_failures_and_empty_results_are_said() -> None:
    failed = ToolResult(status="timeout", text="too\nslow", error="x")
    assert render_observation(failed, 1) == "Observation: error: too slow"
    assert render_observation(ToolResult(status="ok", text=" \n"), 1) == "Observation: nothing found"
    assert render_observation(ToolResult(status="ok", text="42"), 1) == "Observation: 42"


def test_long_passages_share_what_short_ones_leave() -> None:
    result = _ok(("A", "long " * 200), ("B", "short"), ("C", "long " * 200))
    text = render_observation(result, 1, Characters(), 60)
    first, rest = text.split("[2]")
    second, third = rest.split("[3]")
    assert second.strip() == "B: short"
    assert first.strip().endswith("...") and third.endswith("...")
    assert abs(len(first) - len("Observation: ") - len(third)) <= 12


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text(max_size=20), st.text(max_size=400)), min_size=1, max_size=6),
    st.integers(16, 200),
)
def test_no_text_makes_an_observation_longer_than_allowed(tokenizer, passages, most) -> None:
    text = render_observation(_ok(*passages), 1, tokenizer, most)
    assert len(tokenizer.encode(text)) <= most
    assert text.startswith("Observation:") and "\n" not in text and text == text.strip()
    assert not {"\x00", "\x1b", "\x7f", "\x85", "\u2028"} & set(text)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_every_passage_keeps_its_number(tokenizer, count: int) -> None:
    result = _ok(*[("", "word " * 300)] * count)
    text = render_observation(result, 1, tokenizer, 40 + 14 * count)
    assert all(f"[{n}]" in text for n in range(1, count + 1))
