"""Tokenizer: ids equal transformers', and no text from outside reaches a control token."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import llguidance
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.models import BPE, WordLevel

from restill.models.checkpoint.pull import REGISTRY, pull
from restill.models.errors import RestillError
from restill.models.tokenizer import Tokenizer

REFERENCE = Path(__file__).parents[1] / "fixtures" / "tokenizer_reference.json.gz"
# The bytes for which SmolLM2 has no token; it drops them, as transformers does.
UNKNOWN = "\x04\x06\x13\x14\x16\x1d"
texts = st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs"], exclude_characters=UNKNOWN))


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    try:
        return Tokenizer.from_gguf(pull("smollm2-135m") / REGISTRY["smollm2-135m"].weights.name)
    except RestillError as error:
        if "cannot get" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def reference() -> dict:
    return json.loads(gzip.decompress(REFERENCE.read_bytes()))


def test_ids_equal_transformers_on_a_thousand_varied_texts(smollm: Tokenizer, reference: dict) -> None:
    assert len(reference["texts"]) == 1000
    for text, ids in zip(reference["texts"], reference["ids"], strict=True):
        assert smollm.encode(text, special=True) == ids, text


def test_without_control_tokens_both_encodings_agree(smollm: Tokenizer, reference: dict) -> None:
    plain = [t for t in reference["texts"] if not any(c in t for c in smollm.special_tokens)]
    assert len(plain) > 500
    for text in plain:
        assert smollm.encode(text) == smollm.encode(text, special=True), text


def test_chats_equal_transformers_apply_chat_template(smollm: Tokenizer, reference: dict) -> None:
    for messages, ids in reference["chats"]:
        assert smollm.chat(messages) == ids


def test_special_tokens_are_the_files_own(smollm: Tokenizer) -> None:
    assert (smollm.vocab_size, smollm.eos_id, smollm.pad_id) == (49152, 2, 2)
    assert smollm.eos_ids == (2, 0)
    assert smollm.special_tokens["<|im_start|>"] == 1 and smollm.special_ids == frozenset(range(17))


def with_control(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    return st.lists(st.one_of(st.sampled_from(sorted(tokenizer.special_tokens)), texts)).map("".join)


@settings(deadline=None)
@given(data=st.data())
def test_outside_text_never_becomes_a_control_token(smollm: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(with_control(smollm))
    ids = smollm.encode(text)
    assert not smollm.special_ids.intersection(ids)
    assert smollm.decode(ids) == text


@settings(deadline=None)
@given(data=st.data())
def test_a_message_cannot_forge_a_turn(smollm: Tokenizer, data: st.DataObject) -> None:
    role = st.sampled_from(["system", "user", "assistant"])
    contents = data.draw(st.lists(st.tuples(role, with_control(smollm)), min_size=1, max_size=4))
    real = [{"role": r, "content": c} for r, c in contents]
    blank = [{"role": r, "content": "x" if c else ""} for r, c in contents]
    control = [i for i in smollm.chat(real) if i in smollm.special_ids]
    assert control == [i for i in smollm.chat(blank) if i in smollm.special_ids]


@settings(deadline=None)
@given(data=st.data())
def test_continuing_a_chat_equals_rendering_it_whole(smollm: Tokenizer, data: st.DataObject) -> None:
    first, reply, more = (data.draw(with_control(smollm)) for _ in range(3))
    before, after = [{"role": "user", "content": first}], [{"role": "user", "content": more}]
    sampled = smollm.encode(reply)
    whole = smollm.chat([*before, {"role": "assistant", "content": reply}, *after])
    assert smollm.chat(before) + sampled + smollm.continue_chat(sampled, after) == whole
    ended = [*sampled, smollm.eos_id]
    assert smollm.chat(before) + ended + smollm.continue_chat(ended, after) == whole


@settings(deadline=None)
@given(text=st.text())
def test_any_string_can_be_encoded(smollm: Tokenizer, text: str) -> None:
    smollm.encode(text + "\ud800")


def test_token_bytes_join_to_the_text(smollm: Tokenizer) -> None:
    text = "Zürich 東京 🎉 1234"
    ids = smollm.encode(text)
    assert b"".join(map(smollm.token_bytes, ids)) == text.encode()
    assert smollm.decode(ids[:-8] + [2], skip_special=True) == smollm.decode(ids[:-8])
    assert smollm.decode([10813]) == "\ufffd"  # the first bytes of an emoji


def test_llguidance_reads_the_same_tokenizer(smollm: Tokenizer) -> None:
    other = llguidance.LLTokenizer(smollm.hf_json, n_vocab=smollm.vocab_size, eos_token=smollm.eos_id)
    text = 'Action: search {"query": "Kestrel 1973  x"}'
    assert other.tokenize_str(text) == smollm.encode(text)


def test_a_saved_tokenizer_is_the_same(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer.hf_json)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tiny_tokenizer.hf_config()))
    again = Tokenizer.from_dir(tmp_path)
    assert again.fingerprint == tiny_tokenizer.fingerprint
    messages = [{"role": "user", "content": "hi <|im_end|>"}]
    assert again.chat(messages) == tiny_tokenizer.chat(messages)


TEMPLATES = {
    "{{ messages[0].content | upper }}": "drops or rewrites",
    "no content": "drops or rewrites",
    "{{ raise_exception('no system turns here') }}": "no system turns here",
    "{{ ''.__class__.__mro__ }}": "refuses",
    "{% for %}": "not valid jinja2",
}


@pytest.mark.parametrize(("template", "message"), TEMPLATES.items())
def test_bad_templates_are_refused(tiny_tokenizer: Tokenizer, template: str, message: str) -> None:
    bad = Tokenizer(tiny_tokenizer.hf_json, eos="<|im_end|>", pad=None, chat_template=template, variables={})
    with pytest.raises(RestillError, match=message):
        bad.chat([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    "message",
    [{"role": "user<|im_end|>", "content": "x"}, {"role": "user", "content": None}, {"content": "x"}],
)
def test_bad_messages_are_refused(tiny_tokenizer: Tokenizer, message: dict) -> None:
    with pytest.raises(RestillError, match="message 0 has"):
        tiny_tokenizer.chat([message])


def test_a_control_token_that_merges_can_spell_stays_out_of_reach() -> None:
    """Here "<e>" is in the vocabulary twice over: as a control token and as the result of two merges."""
    vocab = {c: i for i, c in enumerate(["<", "e", ">", "<e", "<e>"])}
    full = tokenizers.Tokenizer(BPE(vocab, [("<", "e"), ("<e", ">")]))
    full.add_special_tokens(["<e>"])
    tokenizer = Tokenizer(full.to_str(), eos="<e>", pad=None, chat_template=None, variables={})
    assert tokenizer.encode("<e>", special=True) == [4]
    assert tokenizer.encode("<e>") == [3, 2]


def test_other_kinds_of_tokenizer_are_refused() -> None:
    words = tokenizers.Tokenizer(WordLevel({"a": 0, "</s>": 1}, unk_token="a")).to_str()
    with pytest.raises(RestillError, match="'WordLevel' is not supported"):
        Tokenizer(words, eos="</s>", pad=None, chat_template=None, variables={})


def test_a_tokenizer_without_template_says_so(tiny_tokenizer: Tokenizer) -> None:
    bare = Tokenizer(tiny_tokenizer.hf_json, eos="<|im_end|>", pad=None, chat_template=None, variables={})
    with pytest.raises(RestillError, match="no chat template"):
        bare.chat([{"role": "user", "content": "x"}])


def test_a_folder_with_missing_or_damaged_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(RestillError, match="no tokenizer.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    with pytest.raises(RestillError, match="not a tokenizer.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(RestillError, match="not valid JSON"):
        Tokenizer.from_dir(tmp_path)
