"""Sentence embeddings: equal to the reference, and independent of what is embedded beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from restill.models import encoder as module
from restill.models.encoder import TextEncoder
from restill.models.errors import RestillError
from restill.models.testing import save_tiny_encoder

REFERENCE = Path(__file__).parents[1] / "fixtures" / "encoder_reference.npz"


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    try:
        return TextEncoder.from_pretrained()
    except RestillError as error:
        if "cannot get" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return json.loads(str(np.load(REFERENCE)["texts"]))


def test_embeddings_equal_transformers(encoder: TextEncoder, texts: list[str]) -> None:
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), encoder.dim) and vectors.dtype == np.float32
    cosine = (vectors * np.load(REFERENCE)["embeddings"]).sum(1)
    assert cosine.min() > 0.99999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(
    encoder: TextEncoder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = encoder.encode(texts)
    for i in (0, 2, 6):
        np.testing.assert_allclose(encoder.encode([texts[i]])[0], together[i], atol=1e-5)
    some = texts[2:9]
    np.testing.assert_allclose(encoder.encode(some[::-1])[::-1], together[2:9], atol=1e-5)
    monkeypatch.setattr(module, "FINE_FROM", 0)
    np.testing.assert_allclose(encoder.encode(some), together[2:9], atol=1e-5)


@pytest.mark.parametrize(("positions", "longest"), [(200, 512), (1024, 1024)])
def test_any_length_that_the_model_has_places_for_is_embedded(tmp_path: Path, positions: int, longest: int) -> None:
    folder = save_tiny_encoder(tmp_path, positions=positions)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    encoder = TextEncoder.from_pretrained(folder)
    vectors = encoder.encode(["a" * count for count in (150, 190, 700)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_programs_are_few(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = set()

    def embed(graph: object, state: object, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        shapes.add(ids.shape)
        return np.zeros((len(ids), encoder.dim))

    monkeypatch.setattr(module, "_embed", embed)
    for count in range(1, 100):
        encoder.encode(["stone " * (7 * count * i % 300) for i in range(count)])
    assert shapes <= {(size, length) for size in (1, 8, 32) for length in (16, 32, 64, 128, 256)}
    shapes.clear()
    encoder.encode(["stone " * (i % 300) for i in range(1001)])
    assert len(shapes) <= 14 and (32, 96) in shapes


def test_nothing_gives_an_empty_matrix(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_text_beyond_the_limit_is_cut_off(encoder: TextEncoder) -> None:
    long = "stone " * 1000
    assert encoder.count_tokens(long) == 1002 and encoder.max_tokens == 256
    np.testing.assert_allclose(encoder.encode([long]), encoder.encode(["stone " * 254]), atol=1e-5)


def test_token_offsets_point_into_the_text(encoder: TextEncoder) -> None:
    text = "Zürich's 東京 tower\ud800 ends"
    pieces = [text[a:b] for a, b in encoder.token_offsets(text)]
    assert pieces[0].startswith("Z") and pieces[-1] == "ends" and "東" in pieces
    assert encoder.count_tokens(text) == len(pieces) + 2


def test_lone_surrogates_do_no_harm(encoder: TextEncoder) -> None:
    assert np.isfinite(encoder.encode(["a \ud800 b"])).all()


def test_progress_can_be_shown(encoder: TextEncoder, texts: list[str]) -> None:
    np.testing.assert_array_equal(encoder.encode(texts[:3], progress=True), encoder.encode(texts[:3]))


def test_token_vectors_are_those_that_the_sentence_vector_averages(encoder: TextEncoder, texts: list[str]) -> None:
    together = encoder.encode_tokens(texts)
    for text, tokens in zip(texts, together, strict=True):
        assert tokens.shape == (min(encoder.count_tokens(text), encoder.max_tokens) - 2, encoder.dim)
        np.testing.assert_allclose(np.linalg.norm(tokens, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_tokens([texts[2]])[0], together[2], atol=1e-4)
    mean = together[2].mean(0)  # all but the two framing tokens, and all of about the same length
    assert mean @ encoder.encode([texts[2]])[0] / np.linalg.norm(mean) > 0.9
    assert encoder.encode_tokens([]) == []
