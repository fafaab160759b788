"""A pruned vocabulary: smaller, every text still written, the teacher's ids still meant."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.bpe import byte_table
from restill.models.engine.grammar import GrammarCompiler
from restill.models.errors import RestillError
from restill.models.testing import tiny_tokenizer
from restill.models.tokenizer import Tokenizer
from restill.models.vocabulary import prune_vocabulary, shared_vocabulary

WORDS = (
    'Answer the question with the tools. Think, then act. Who founded the firm that built the engine? {}\n"[1]'.split(
        " "
    )
)
SENTENCES = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=80, deadline=None)
@given(st.lists(SENTENCES, max_size=3), st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join))
def test_what_the_teacher_writes_in_kept_tokens_has_exactly_their_ids(seen: list[str], text: str) -> None:
    teacher = tiny_tokenizer()
    tokens = {token for one in seen for token in teacher.encode(one)}
    pruned = prune_vocabulary(teacher, tokens)
    kept = set(pruned.shared.tolist())
    assert tokens <= kept
    for one in [*seen, text]:
        ids = teacher.encode(one)
        if set(ids) <= tokens:
            assert tuple(pruned.tokenizer.encode(one)) == pruned.map(ids)
        elif not set(ids) <= kept:
            assert len(pruned.tokenizer.encode(one)) > len(ids)  # spelled in smaller pieces
        assert pruned.tokenizer.decode(pruned.tokenizer.encode(one)) == one


@settings(max_examples=80, deadline=None)
@given(TEXTS, TEXTS)
def test_any_text_comes_back(seen: str, text: str) -> None:
    teacher = tiny_tokenizer()
    pruned = prune_vocabulary(teacher, teacher.encode(seen)).tokenizer
    assert pruned.decode(pruned.encode(text)) == text
    assert not pruned.special_ids & set(pruned.encode(text + "<|im_end|>"))


@settings(max_examples=40, deadline=None)
@given(TEXTS)
def test_what_was_cut_is_found_again_from_the_two_tokenizers(seen: str) -> None:
    teacher = tiny_tokenizer()
    pruned = prune_vocabulary(teacher, teacher.encode(seen))
    assert np.array_equal(shared_vocabulary(teacher, pruned.tokenizer).ids, pruned.ids)
    if len(pruned.shared) < teacher.vocab_size:
        with pytest.raises(RestillError, match="was not cut from"):
            shared_vocabulary(pruned.tokenizer, teacher)


def test_equal_tokens_with_other_merges_are_another_vocabulary() -> None:
    teacher = tiny_tokenizer()
    data = json.loads(teacher.hf_json)
    data["model"]["merges"].reverse()
    with pytest.raises(RestillError, match="was not cut from"):
        shared_vocabulary(teacher, teacher.with_json(json.dumps(data)))


def test_bytes_that_the_teacher_lacks_are_added_behind_its_ids() -> None:
    data = json.loads(tiny_tokenizer().hf_json)
    letters = {letter for letter, byte in byte_table().items() if byte in (4, 0xF1, 0xFF)}
    data["model"]["vocab"] = {
        text: i for i, text in enumerate(t for t in data["model"]["vocab"] if not letters & set(t))
    }
    teacher = Tokenizer(json.dumps(data), eos="<|im_end|>", pad=None, chat_template=None, variables={})
    assert teacher.decode(teacher.encode("a\x04b")) == "ab"
    pruned = prune_vocabulary(teacher, [])
    assert pruned.tokenizer.decode(pruned.tokenizer.encode("a\x04b\U00050000")) == "a\x04b\U00050000"
    assert (pruned.ids < 0).sum() == 2 and (pruned.ids[-2:] < 0).all()  # no UTF-8 has byte 0xFF
    assert (np.diff(pruned.shared) > 0).all()


def test_chats_are_those_of_the_teacher_in_new_ids() -> None:
    teacher = tiny_tokenizer()
    turns = [{"role": "user", "content": "Who built <|im_end|> it?"}, {"role": "assistant", "content": "the firm"}]
    ids = teacher.chat(turns)
    pruned = prune_vocabulary(teacher, ids)
    assert tuple(pruned.tokenizer.chat(turns)) == pruned.map(ids)
    assert pruned.tokenizer.vocab_size == len(pruned.ids) < teacher.vocab_size
    assert pruned.map(teacher.eos_ids) == pruned.tokenizer.eos_ids
    assert pruned.map([teacher.pad_id]) == (pruned.tokenizer.pad_id,)


def test_the_file_is_a_tokenizer_json_like_any_other() -> None:
    teacher = tiny_tokenizer()
    ours = prune_vocabulary(teacher, teacher.encode("the engine")).tokenizer
    theirs = tokenizers.Tokenizer.from_str(ours.hf_json)
    assert theirs.get_vocab_size() == ours.vocab_size
    assert sorted(theirs.get_vocab().values()) == list(range(ours.vocab_size))
    text = "the engine<|im_end|> été"
    assert theirs.encode(text).ids == ours.encode(text, special=True)
    assert theirs.decode(theirs.encode(text).ids, skip_special_tokens=False) == text


def test_post_processors_get_the_new_ids() -> None:
    data = json.loads(tiny_tokenizer().hf_json)
    full = tokenizers.Tokenizer.from_str(json.dumps(data))
    full.post_processor = tokenizers.processors.TemplateProcessing(  # type: ignore[attr-defined]
        single="<|im_start|> $A", pair=None, special_tokens=[("<|im_start|>", 1)]
    )
    added = full.to_str().replace('"id": 1,', '"id": 1,')
    teacher = Tokenizer(added, eos="<|im_end|>", pad=None, chat_template=None, variables={})
    pruned = prune_vocabulary(teacher, [])
    got = tokenizers.Tokenizer.from_str(pruned.tokenizer.hf_json).encode("a").ids
    assert got == [*pruned.map([1]), *pruned.tokenizer.encode("a")]


def test_grammars_work_on_it() -> None:
    teacher = tiny_tokenizer()
    pruned = prune_vocabulary(teacher, teacher.encode("Thought: the engine")).tokenizer
    matcher = GrammarCompiler(pruned, pruned.vocab_size).matcher('start: "Thought: " /[a-zé ]+/ "\\n"')
    for token in [*pruned.encode("Thought: thé engine\n"), pruned.eos_id]:
        assert matcher.consume_token(token)
    assert matcher.is_stopped()


@pytest.mark.parametrize(("seen", "message"), [([10**6], "1000000"), ([-1], "-1")])
def test_tokens_of_another_tokenizer_are_refused(seen: list[int], message: str) -> None:
    with pytest.raises(RestillError, match=message):
        prune_vocabulary(tiny_tokenizer(), seen)
    with pytest.raises(RestillError, match=message):
        prune_vocabulary(tiny_tokenizer(), []).map(seen)
