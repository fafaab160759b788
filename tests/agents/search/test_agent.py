"""The search agent: its options, its drafts and checks, its resampling, and models that speak text only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel

from restill.agents.budget import Budget
from restill.agents.rollout import rollout
from restill.agents.search.agent import SearchAgent
from restill.agents.testing import ByteTokenizer, ScriptedModel
from restill.models.engine.request import Request
from restill.models.errors import RestillError

LOOK = "Thought: I look.\nSearch: Rome"
NOTE = "Summary: Rome is a city.\nLinks: 1"
STOP = "Thought: I know.\nTerminate"
RUN = (LOOK, NOTE, STOP, "Answer: a city [1][2][9]", "Revise: a big city [1]", "Passed")


def script(*turns: str) -> ScriptedModel:
    """The turns, by how many of the model's turns the prompt holds."""

    def reply(prompt: str, request: Request) -> str:
        asked = prompt[prompt.rindex("Question: ") :]
        return turns[min(asked.count("<|im_start|>assistant\n") - 1, len(turns) - 1)]

    return ScriptedModel(reply, tokenizer=ByteTokenizer())


def agent(model: Any, search: Any, **options: Any) -> SearchAgent:
    return SearchAgent(model, [search], **{"few_shot": 0, "temperature": 0.0, "step_tokens": 300, **options})


def test_the_answer_is_bare_its_citations_are_resolved_and_the_draft_is_kept(search: Any) -> None:
    trajectory = asyncio.run(agent(script(*RUN), search).arun("What is Rome?"))
    assert (trajectory.status, trajectory.answer, trajectory.draft) == ("answered", "a big city", "a city")
    assert [c.doc_id for c in trajectory.citations] == [c.doc_id for c in trajectory.draft_citations] == ["d1"]
    assert trajectory.dropped_citations == [], "the revised answer cites only what there is"
    assert [s.kind for s in trajectory.steps] == ["decide", "summarise", "decide", "answer", "relevance", "grounding"]


def test_links_that_were_not_selected_or_never_shown_are_dropped_and_named(search: Any) -> None:
    trajectory = asyncio.run(agent(script(*RUN), search, checks=False).arun("What is Rome?"))
    assert (trajectory.answer, trajectory.dropped_citations, trajectory.draft) == ("a city", [2, 9], None)
    assert [s.kind for s in trajectory.steps] == ["decide", "summarise", "decide", "answer"]


def test_what_cannot_be_read_is_drawn_once_more_and_then_ends_in_a_best_effort(search: Any) -> None:
    """Eight broken samples of one step, all of them stored, then an answer under the grammar."""

    def reply(prompt: str, request: Request) -> str:
        return "Answer: Rome" if prompt.endswith("Answer<|im_end|>\n<|im_start|>assistant\n") else "Hm."

    model = ScriptedModel(reply, tokenizer=ByteTokenizer())
    trajectory = asyncio.run(agent(model, search, temperature=0.5).arun("What is Rome?"))
    broken, last = trajectory.steps
    assert (trajectory.status, trajectory.answer, trajectory.forced) == ("invalid", "Rome", True)
    assert [len(broken.samples), broken.action, last.forced, last.kind] == [8, None, True, "answer"]
    assert len({sample.seed for sample in broken.samples}) == 8
    assert "write a Thought line" in (trajectory.error or "")


def test_one_readable_sample_of_the_second_round_is_enough(search: Any) -> None:
    def reply(prompt: str, request: Request) -> str:
        return STOP if len(model.requests) == 7 else "Hm."

    model = ScriptedModel(reply, tokenizer=ByteTokenizer())
    step = asyncio.run(agent(model, search, temperature=0.5).arun("What is Rome?")).steps[0]
    assert (len(step.samples), step.chosen, step.action is not None) == (8, 6, True)


def test_a_check_that_cannot_be_read_leaves_the_answer(search: Any) -> None:
    trajectory = asyncio.run(agent(script(*RUN[:4], "Maybe."), search).arun("What is Rome?"))
    assert (trajectory.status, trajectory.answer, trajectory.draft) == ("invalid", "a city", "a city")
    assert not trajectory.forced


def test_the_searches_run_out_before_the_budget_does(search: Any) -> None:
    turns = [LOOK, *(t for n in (1, 3) for t in (f"Summary: So.\nLinks: {n}", LOOK))]
    trajectory = asyncio.run(agent(script(*turns), search, searches=2).arun("What is Rome?"))
    assert len(trajectory.calls("search")) == 2
    assert "no searches are left" in (trajectory.error or "")


def test_steps_that_run_out_are_a_status_with_an_answer(search: Any) -> None:
    model = script(LOOK, NOTE, "Answer: Rome [1]")
    trajectory = asyncio.run(agent(model, search, budget=Budget(steps=2)).arun("What is Rome?"))
    assert (trajectory.status, trajectory.answer, trajectory.forced) == ("budget", "Rome", True)
    assert [c.doc_id for c in trajectory.citations] == ["d1"]


def test_a_turn_that_the_budget_of_tokens_cut_short_is_the_budget_s_doing(search: Any) -> None:
    """A model whose turns can all be read never ends as "invalid", whatever it may spend."""
    statuses = set()
    for tokens in range(200, 2200, 9):
        trajectory = asyncio.run(agent(script(*RUN), search, budget=Budget(tokens=tokens)).arun("What is Rome?"))
        statuses.add(trajectory.status)
    assert statuses == {"budget", "answered"}


def test_a_hint_is_seen_and_never_stored(search: Any) -> None:
    model = script(*RUN)
    trajectory = asyncio.run(agent(model, search, hint=lambda q: "it is a city").arun("What is Rome?"))
    tokenizer = ByteTokenizer()
    assert all("Hint: it is a city" in tokenizer.decode(request.prompt) for request in model.requests)
    assert "Hint" not in tokenizer.decode(trajectory.token_ids()) and trajectory.guide


@pytest.mark.parametrize(
    ("format", "turns"),
    [
        ("compact", RUN),
        (
            "code",
            (
                " ActionWrapper(thoughts='I look.', action=Search(query='Rome'))\n# [END]",
                "# [link_id=1] Selected.\nACTION_SELECTED: LinkSelection = LinkSelection("
                "grounded_summarization='Rome is a city.', thoughts='It is.', selected_link_ids=[1])",
                " ActionWrapper(thoughts='I know.', action=Terminate())\n# [END]\nand more",
                " Answer(thoughts='I know.', answer='a city [link_id=1]')",
                "# No.\nACTION_SELECTED: Action = Revise_Answer(revised_answer='a big city [link_id=1]')\n# [END]",
                "# Yes.\nACTION_SELECTED: Action = Check_Answer(passed=True)\n# [END]",
            ),
        ),
    ],
)
def test_a_model_that_speaks_text_only_is_enough(search: Any, format: str, turns: Sequence[str]) -> None:
    model = GenericFakeChatModel(messages=iter(turns))
    trajectory = asyncio.run(agent(model, search, format=format).arun("What is Rome?"))
    assert (trajectory.status, trajectory.answer) == ("answered", "a big city"), trajectory.error
    assert trajectory.text_only and [c.doc_id for c in trajectory.citations] == ["d1"]
    with pytest.raises(RestillError, match="text only"):
        list(agent(model, search, format=format).replay(trajectory))


def test_runs_are_logged_and_final_when_they_could_not_be_read(search: Any, tmp_path: Any) -> None:
    lost = agent(script("Hm."), search)
    run = rollout(lost, ["What is Rome?"], out=tmp_path)
    assert [t.status for t in run] == ["invalid"]
    model = script(*RUN)
    assert len(rollout(lost.replace(model=model), ["What is Rome?"], out=tmp_path)) == 1
    assert not model.requests, "an unreadable trajectory was run again"


def test_every_option_changes_the_hash(search: Any) -> None:
    first = agent(script("-"), search)
    changes = [{"format": "code"}, {"searches": 9}, {"top_k": 2}, {"samples": 2}, {"checks": False}, {"few_shot": 1}]
    assert len({first.fingerprint, *(first.replace(**change).fingerprint for change in changes)}) == 7
    with pytest.raises(RestillError, match="never changes"):
        first.searches = 3
    assert "decide --> search" in first.mermaid() and "grounding" not in first.replace(checks=False).mermaid()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"format": "xml"}, "compact"),
        ({"samples": 0}, "samples=0"),
        ({"searches": -1}, "searches"),
        ({"few_shot": 3}, "2"),
    ],
)
def test_bad_options_are_refused_with_a_mend(search: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(RestillError, match=why):
        agent(script("-"), search, **options)


def test_it_needs_exactly_one_tool_that_takes_a_query() -> None:
    def add(a: int) -> int:
        return a

    for tools in ([], [add]):
        with pytest.raises(RestillError, match="one tool"):
            SearchAgent(script("-"), tools)
