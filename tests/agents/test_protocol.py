"""The parser, the prompt and the grammar of react-1."""

from __future__ import annotations

import json
import random
from functools import lru_cache

import llguidance
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.agents.protocol import (
    few_shot_messages,
    finish_grammar,
    grammar,
    parse,
    question_text,
    system_prompt,
    write_turn,
)
from restill.agents.testing import answer, call
from restill.agents.tools import Tool

TOOLS = ["search", "add"]


def add(a: int, b: int = 1, note: str | None = None, how: list[str] | None = None) -> int:
    """Add two numbers."""
    return a + b


def test_a_turn_is_read_as_it_was_written() -> None:
    parsed = parse(call("search", thought="Look up Ada.", query='say "hi"\\ ünï'))
    assert parsed.error is None and parsed.action is not None
    assert (parsed.thought, parsed.action.tool) == ("Look up Ada.", "search")
    assert parsed.action.arguments == {"query": 'say "hi"\\ ünï'}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("hello", 'begin with "Thought:"'),
        ('Action: search {"query": "a"}', 'begin with "Thought:"'),
        ("Thought: I think", '"Action:"'),
        ("Thought: one\ntwo\nAction: search {}", '"Action:"'),
        ('Thought:  \nAction: search {"query": "a"}', "empty"),
        ("Thought: a\nAction: ", "name of an action"),
        ("Thought: a\nAction: 123", "name of an action"),
        ("Thought: a\nAction: fly {}", "'fly'"),
        ("Thought: a\nAction: search", "JSON object"),
        ("Thought: a\nAction: search [1]", "JSON object"),
        ('Thought: a\nAction: search {"query": }', "not valid JSON"),
        ('Thought: a\nAction: search {"query": "a"', "not valid JSON"),
        ('Thought: a\nAction: search {"query": NaN}', "not valid JSON"),
        ('Thought: a\nAction: search {"query": 1e999}', "not valid JSON"),
        ('Thought: a\nAction: search {"query": ' + "9" * 5000 + "}", "not valid JSON"),
        ('Thought: a\nAction: search {"query": "\\ud800"}', "Unicode"),
        ('Thought: a\nAction: search {"query": "a"} and more', "text after the action"),
        ('Thought: a\nAction: search {"query": "a"}\nObservation: [1] x', "text after the action"),
        ('Thought: a\nAction: search {"query": ' + "[" * 5000 + "]" * 5000 + "}", "nested"),
        ('Thought: a\nAction: search {"query": ' + "[" * 30 + "]" * 30 + "}", "nested"),
        ("Thought: a\nAction: search " + '{"a":' * 3000, "nested"),
        ("Thought: a\nAction: finish {}", '"answer"'),
        ('Thought: a\nAction: finish {"answer": 3}', '"answer"'),
        ('Thought: a\nAction: finish {"answer": " "}', '"answer"'),
        ('Thought: a\nAction: finish {"answer": "a", "citations": "1"}', '"citations"'),
        ('Thought: a\nAction: finish {"answer": "a", "citations": [true]}', '"citations"'),
        ('Thought: a\nAction: finish {"answer": "a", "why": 1}', "'why'"),
        ("Thought: a\nAction: search {}" + " " * 30_000, "characters"),
    ],
)
def test_what_cannot_be_read_is_an_error_short_enough_to_show(text: str, expected: str) -> None:
    parsed = parse(text, TOOLS)
    assert parsed.action is None
    assert parsed.error is not None and expected in parsed.error
    assert len(parsed.error) <= 300


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(), max_size=300))
def test_no_text_makes_the_parser_raise(text: str) -> None:
    for candidate in (
        text,
        f"Thought: {text}",
        f"Thought: a\nAction: search {text}",
        f"Thought: a\nAction: {text}",
    ):
        parsed = parse(candidate, TOOLS)
        assert (parsed.action is None) != (parsed.error is None)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), _json, max_size=3))
def test_arguments_survive_writing_and_reading(arguments: dict) -> None:
    action = parse(write_turn("t", "search", arguments)).action
    assert action is not None and action.arguments == arguments


def test_the_prompt_names_every_tool_on_one_line() -> None:
    tools = [Tool.of(add)]
    lines = system_prompt(tools).splitlines()
    assert lines[1] == (
        'add {"a": integer, "b"?: integer, "note"?: string|null, "how"?: [string]|null}: Add two numbers.'
    )
    assert lines[-1].startswith("finish ")


def test_examples_are_turns_that_the_parser_reads(search) -> None:
    messages = few_shot_messages([Tool.of(search)], 2)
    turns = [parse(m["content"], ["search"]) for m in messages if m["role"] == "assistant"]
    assert len(turns) == 5 and all(turn.error is None for turn in turns)
    assert [m["role"] for m in messages[::2]] == ["user"] * 5


def test_without_a_search_tool_there_are_no_examples() -> None:
    assert few_shot_messages([Tool.of(add)], 2) == []


def test_a_question_is_one_line() -> None:
    assert question_text("Who\nis\r\nit?") == "Question: Who is it?"
    assert question_text("Who?", "Not\nher.") == "Question: Who?\nHint: Not her."


# -- the grammar, walked with llguidance


@lru_cache
def _backend(hf_json: str, eos_id: int):
    return llguidance.LLTokenizer(hf_json, eos_token=eos_id)


def _matcher(tokenizer, text: str):
    backend = _backend(tokenizer.hf_json, tokenizer.eos_id)
    assert llguidance.LLMatcher.validate_grammar(text, backend) == ""
    return llguidance.LLMatcher(backend, text)


def _accepts(tokenizer, text: str, turn: str) -> bool:
    matcher = _matcher(tokenizer, text)
    ids = tokenizer.encode(turn)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_the_grammar_takes_turns_and_nothing_else(hf_tokenizer, search) -> None:
    text = grammar([Tool.of(search), Tool.of(add)])
    good = [
        call("search", query="a"),
        call("add", a=1, b=-2, note="x", how=["y", "z"]),
        call("add", a=1),
        call("add", a=1, note=None),
        answer("Rome", 1, 22),
        answer("Rome"),
        answer('the "old" town\\ of Ünï, x' + "a" * 200),
    ]
    bad = [
        call("search", query="a") + " ",
        call("search", query="a") + "\n",
        call("search", query="a", k=3),
        call("search", query=1),
        call("search", query="a" * 201),
        call("search", thought="a\tb", query="a"),
        call("search", thought="a" * 201, query="a"),
        call("search", thought="", query="a"),
        call("fly", query="a"),
        call("search", query="a").replace('": "', '":"'),
        answer(""),
        answer(" "),
        answer("a" * 301),
        answer("a", *range(1, 10)),
        "Action: search {}",
    ]
    for turn in good:
        assert _accepts(hf_tokenizer, text, turn), turn
    for turn in bad:
        assert not _accepts(hf_tokenizer, text, turn), turn


def test_the_last_turn_can_only_finish(hf_tokenizer) -> None:
    assert _accepts(hf_tokenizer, finish_grammar(), answer("Rome", 1))
    assert not _accepts(hf_tokenizer, finish_grammar(), call("search", query="a"))


def test_whatever_the_grammar_allows_the_parser_reads(hf_tokenizer, search) -> None:
    """Random walks over allowed tokens; the turn can end only after the closing brace."""
    tools = [Tool.of(search), Tool.of(add)]
    rng = random.Random(0)
    texts = [
        b"Look.\nAction: ",
        b'"query": "',
        b"search {",
        b"finish {",
        b"add {",
        b'"}',
        b"]}",
        b"}",
        b'", "',
    ]
    hurry = [t for text in texts for t in hf_tokenizer.encode(text.decode())]
    ended = 0
    for _ in range(20):
        matcher = _matcher(hf_tokenizer, grammar(tools))
        ids: list[int] = []
        for _ in range(400):
            accepting = matcher.is_accepting()
            allowed = _allowed(matcher, hf_tokenizer.vocab_size)
            assert (hf_tokenizer.eos_id in allowed) == accepting
            if accepting:
                break
            wanted = [t for t in hurry if t in allowed]
            token = rng.choice(wanted) if wanted and rng.random() < 0.7 else rng.choice(sorted(allowed))
            assert token not in hf_tokenizer.special_ids
            assert matcher.consume_token(token)
            ids.append(token)
        else:
            continue
        ended += 1
        text = hf_tokenizer.decode(ids)
        parsed = parse(text, [t.name for t in tools])
        # Half a surrogate pair, written as an escape, is the one thing that JSON allows and text does not.
        assert parsed.error is None or "Unicode" in parsed.error, text
        assert text.endswith("}")
    assert ended >= 5


def _allowed(matcher, vocab_size: int) -> set[int]:
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[:vocab_size]).tolist())


def test_a_schema_that_the_grammar_cannot_express_becomes_any_object() -> None:
    tool = Tool.of(add)
    odd = Tool(
        name="odd",
        description="",
        args=tool.args,
        schema={
            "type": "object",
            "properties": {"x": {"type": "string", "format": "no-such-format", "not": {}}},
        },
        run=tool.run,
    )
    text = grammar([odd])
    schema = next(line for line in text.splitlines() if line.startswith("a0:")).split("%json ")[1]
    assert json.loads(schema)["type"] == "object"
    assert llguidance.LLMatcher.validate_grammar(text) == ""
