"""Both prompt formats: what is written is read again, what the grammar allows is read, nothing else is."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from restill.agents.observation import fold
from restill.agents.search.agent import FORMATS
from restill.agents.search.examples import EXAMPLES, example_steps
from restill.agents.search.format import PromptFormat, split_answer
from restill.agents.search.state import (
    Answer,
    CheckAnswer,
    ResultItem,
    ReviseAnswer,
    Search,
    SearchState,
    SelectLink,
    Terminate,
    from_record,
    to_record,
)
from restill.models.errors import RestillError

_lines = st.text(max_size=30).map(fold).filter(bool)
_bare = _lines.map(lambda t: t.replace("[", "(").replace("]", ")"))
_ITEMS = tuple(ResultItem(link_id=n, link_text="T", snippet="s") for n in (4, 5))


@pytest.fixture(params=sorted(FORMATS))
def format(request: pytest.FixtureRequest) -> PromptFormat:
    """Each format in turn."""
    return FORMATS[request.param]


def _state(**changes: Any) -> SearchState:
    state = SearchState(question='Who\'s "it"?', searches_left=3, results=_ITEMS, observation="")
    state.past.append(SelectLink(selected_links=_ITEMS[:1], grounded_summarization="So."))
    for name, value in changes.items():
        setattr(state, name, value)
    return state


def _actions(format: PromptFormat, text: str, bare: str) -> list[tuple[Any, Any]]:
    thoughts = "" if format.name == "compact" else text
    answer = format.cite(bare, [4])
    return [
        ("decide", Search(query=text, thoughts=text)),
        ("decide", Terminate(thoughts=text)),
        ("summarise", SelectLink(selected_links=_ITEMS[1:], grounded_summarization=text, thoughts=thoughts)),
        ("summarise", SelectLink(selected_links=(), grounded_summarization=text, thoughts=thoughts)),
        ("answer", Answer(answer=answer, thoughts=thoughts)),
        ("relevance", CheckAnswer()),
        ("grounding", ReviseAnswer(revised_answer=answer)),
    ]


@pytest.mark.parametrize("name", sorted(FORMATS))
@settings(max_examples=150, deadline=None)
@given(text=_lines, bare=_bare)
def test_what_is_written_is_read_and_stored_and_read_again(name: str, text: str, bare: str) -> None:
    format, state = FORMATS[name], _state()
    for kind, action in _actions(format, text, bare):
        output = format.write(kind, action, state).split("\n# [END]")[0]
        read = format.parse(kind, output, state)
        assert read.model_copy(update={"thoughts": ""}) == action.model_copy(update={"thoughts": ""})
        if kind not in ("relevance", "grounding"):
            assert read.thoughts == action.thoughts
        record = to_record(read, "search", "query")
        assert from_record(kind, record, read.thoughts, state) == read
    assert split_answer(format.cite(bare, [4, 7]), format.citation) == (" ".join(bare.split()), [4, 7])


@pytest.mark.parametrize("name", sorted(FORMATS))
@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["decide", "summarise", "answer", "relevance", "grounding"]), st.data())
def test_any_text_is_read_or_refused_in_a_line(name: str, text: str, kind: Any, data: st.DataObject) -> None:
    format, state = FORMATS[name], _state()
    whole = data.draw(st.sampled_from([format.write(k, a, state) for k, a in _actions(format, "a b", "c")]))
    cut = data.draw(st.integers(0, len(whole)))
    for output in (text, whole[:cut] + text, whole[:cut] + text + whole[cut:]):
        try:
            format.parse(kind, output, state)
        except RestillError as error:
            assert len(str(error)) < 300


def test_what_the_grammar_allows_is_read_and_what_is_written_it_allows(format: PromptFormat, hf_tokenizer: Any) -> None:
    backend = LLTokenizer(hf_tokenizer.hf_json, eos_token=hf_tokenizer.eos_id)
    states = [_state(), _state(results=(), past=[]), _state(searches_left=0)]
    for state in states:
        shown = state.results[:1] if state.results else ()
        for kind, action in [
            ("decide", Terminate(thoughts="It's so.")),
            ("summarise", SelectLink(selected_links=shown, grounded_summarization="So it is.", thoughts="It's so.")),
            ("answer", Answer(answer=format.cite("it's 5", state.selected), thoughts="I see.")),
            ("relevance", CheckAnswer(thoughts="Fine.")),
            ("grounding", ReviseAnswer(revised_answer=format.cite("Oslo", state.selected), thoughts="No.")),
        ]:
            grammar = LLMatcher.grammar_from_lark(format.grammar(kind, state))  # type: ignore[arg-type]
            assert not LLMatcher.validate_grammar(grammar), LLMatcher.validate_grammar(grammar)
            tokens = hf_tokenizer.encode(format.write(kind, action, state))  # type: ignore[arg-type]
            assert _allowed(backend, grammar, tokens) == len(tokens), (kind, format.write(kind, action, state))  # type: ignore[arg-type]


def test_the_grammar_allows_no_search_when_none_is_left_and_no_link_that_was_not_shown(
    format: PromptFormat, hf_tokenizer: Any
) -> None:
    backend = LLTokenizer(hf_tokenizer.hf_json, eos_token=hf_tokenizer.eos_id)
    other = (ResultItem(link_id=9, link_text="T", snippet="s"),)
    bad = [
        ("decide", Search(query="a", thoughts="b"), _state(searches_left=0)),
        ("summarise", SelectLink(selected_links=other, grounded_summarization="a", thoughts="b"), _state()),
        ("answer", Answer(answer=format.cite("Oslo", [5]), thoughts="shown but not selected"), _state()),
        ("grounding", ReviseAnswer(revised_answer=format.cite("Oslo", [9]), thoughts="never shown"), _state()),
    ]
    for kind, action, state in bad:
        tokens = hf_tokenizer.encode(format.write(kind, action, state))  # type: ignore[arg-type]
        grammar = LLMatcher.grammar_from_lark(format.grammar(kind, state))  # type: ignore[arg-type]
        assert _allowed(backend, grammar, tokens) < len(tokens), (kind, action)


def _allowed(backend: Any, grammar: str, tokens: list[int]) -> int:
    matcher = LLMatcher(backend, grammar)
    count = next((n for n, token in enumerate(tokens) if not matcher.consume_token(token)), len(tokens))
    return count if count < len(tokens) or matcher.is_accepting() else count - 1


def test_a_prompt_tells_the_state_that_it_was_written_from(format: PromptFormat) -> None:
    """Through every step of the examples, with and without other examples in front."""
    from restill.agents.testing import ByteTokenizer, ScriptedModel

    model = ScriptedModel(["-"], tokenizer=ByteTokenizer())
    for few_shot in (0, 2):
        for number, example in enumerate(EXAMPLES):
            state = SearchState(question=example.question, searches_left=10)
            transcript = format.open(model, state, few_shot=few_shot, hint=None)
            for kind, here, action in example_steps(number, format):
                format.ask(transcript, kind, here)
                text = model.tokenizer.decode(transcript.ids, skip_special=True)  # type: ignore[attr-defined]
                asked, read = format.read(text)
                assert (asked, read.question, read.answer) == (kind, here.question, here.answer)
                assert [type(a) for a in read.past] == [type(a) for a in here.past]
                assert [i.link_id for i in read.results] == [
                    i.link_id for i in here.results
                ] and read.selected == here.selected
                if format.name == "code":
                    assert read.past == [a if not isinstance(a, CheckAnswer) else CheckAnswer() for a in here.past]
                output = format.write(kind, action, here)
                transcript.keep(_sample(model.tokenizer, output))


def _sample(tokenizer: Any, text: str) -> Any:
    from restill.agents.trajectory import Sample

    return Sample(text=text, tokens=[*tokenizer.encode(text), tokenizer.eos_id])


@pytest.mark.parametrize("few_shot", [0, 1, 2])
def test_a_code_prompt_with_examples_and_hint_is_python(few_shot: int) -> None:
    format: Any = FORMATS["code"]
    for number in range(len(EXAMPLES)):
        for kind, state, action in example_steps(number, format):
            page = format.page(kind, state, few_shot=few_shot, hint="it's \"\\ here")
            ast.parse(page + format.write(kind, action, state))
            assert page.count("# [END]") == few_shot


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("decide", " ActionWrapper(thoughts='a', action=Search(query=open('/etc/passwd')))"),
        ("decide", " ActionWrapper(thoughts='a', action=exec('1'))"),
        ("decide", " ActionWrapper('a', Terminate())"),
        ("decide", " ActionWrapper(thoughts='a', action=Terminate())\nimport os"),
        ("decide", " ActionWrapper(thoughts=f'{1}', action=Terminate())"),
        ("decide", " ActionWrapper(thoughts='a', thoughts='b', action=Terminate())"),
        ("decide", " ActionWrapper(thoughts='\\ud800', action=Terminate())"),
        (
            "summarise",
            "ACTION_SELECTED: A = LinkSelection(grounded_summarization='a', thoughts='b', selected_link_ids=[4, True])",
        ),
        (
            "summarise",
            "ACTION_SELECTED: A = LinkSelection(grounded_summarization='a', thoughts='b', selected_link_ids=[1])",
        ),
        ("answer", " Answer(thoughts='a', answer='[link_id=4]')"),
        ("relevance", "ACTION_SELECTED: A = Check_Answer(passed=False)"),
        ("relevance", "PAST_ACTIONS: A = Check_Answer(passed=True)"),
        ("grounding", "(" * 5000),
        ("grounding", "a" + ".b" * 9000),
    ],
)
def test_code_that_is_not_one_literal_object_is_refused(kind: Any, output: str) -> None:
    with pytest.raises(RestillError):
        FORMATS["code"].parse(kind, output, _state())
