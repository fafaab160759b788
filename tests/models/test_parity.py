"""Our logits and tokens are those of Hugging Face transformers, on random and on the real weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from restill.models.checkpoint.load import Checkpoint
from restill.models.checkpoint.safetensors import load_decoder_folder
from restill.models.decoder import Decoder, attention, causal_mask, forward
from restill.models.engine.engine import Engine
from restill.models.engine.request import Request, Sampling

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_a_random_llama_has_the_logits_of_transformers() -> None:
    config, params = load_decoder_folder(FIXTURES / "tiny_llama")
    with np.load(FIXTURES / "tiny_llama.npz") as reference:
        params = {name: jnp.asarray(leaf) for name, leaf in params.items()}
        logits = jax.jit(forward, static_argnums=0)(config, params, jnp.asarray(reference["ids"]))
        np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)


@partial(jax.jit, static_argnums=0)
def at_every_position(config, params, tokens):  # type: ignore[no-untyped-def]
    """(logsumexp, logit of the next token, last position's logits) of a prompt ``[n]`` padded to a fixed length."""
    mask = causal_mask(jnp.zeros_like(tokens)[None])
    model = Decoder(config, params)
    hidden = model(tokens[None], jnp.arange(tokens.shape[0])[None], lambda _, q, k, v: attention(q, k, v, mask))
    logits = model.logits(hidden[0])
    following = jnp.take_along_axis(logits[:-1], tokens[1:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1), following, logits


@pytest.mark.slow
def test_smollm2_has_the_logits_of_transformers_and_decodes_the_same_text(smollm2: Checkpoint) -> None:
    engine = Engine(smollm2.config, smollm2.params, smollm2.tokenizer, slots=2, max_context=512)
    with np.load(FIXTURES / "decoder_reference.npz") as reference:
        for i in range(5):
            prompt = reference[f"prompt_{i}"]
            n = len(prompt)
            padded = np.zeros(320, np.int32)
            padded[:n] = prompt
            logsumexp, following, logits = at_every_position(smollm2.config, engine.params, padded)
            np.testing.assert_allclose(logsumexp[:n], reference[f"logsumexp_{i}"], atol=1e-3)
            np.testing.assert_allclose(following[: n - 1], reference[f"next_logit_{i}"], atol=1e-3)
            np.testing.assert_allclose(logits[n - 1], reference[f"last_logits_{i}"], atol=1e-3)
            logprobs = reference[f"next_logit_{i}"] - reference[f"logsumexp_{i}"][: n - 1]
            ids = prompt.tolist()
            np.testing.assert_allclose(engine.score(ids[:1], ids[1:]), logprobs, atol=1e-4)
        prompts = [reference[f"greedy_prompt_{j}"] for j in range(2)]
        wanted = [reference[f"greedy_{j}"].tolist() for j in range(2)]
    requests = [Request(prompt=tuple(p.tolist()), sampling=Sampling(max_tokens=64)) for p in prompts]
    assert [list(c.tokens) for c in engine.generate(requests)] == wanted
    # Prefill and decode give at every position what one full pass gives.
    for prompt, completion in zip(prompts, engine.generate(requests), strict=True):
        np.testing.assert_allclose(engine.score(prompt.tolist(), completion.tokens), completion.logprobs, atol=1e-4)
    engine.close()
