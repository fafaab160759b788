"""The search agent on the real engine with tiny random weights: grammar, shared prefill, and the choice of samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from restill.agents.budget import Budget
from restill.agents.search.agent import SearchAgent
from restill.agents.testing import make_hit
from restill.agents.trajectory import Trajectory
from restill.models.chat import JaxChatModel
from restill.models.decoder import forward
from restill.models.testing import save_tiny, tiny_checkpoint

FORMATS = ["compact", pytest.param("code", marks=pytest.mark.slow)]
LENGTHS = {"compact": 1024, "code": 2048}


async def search(query: str) -> list:
    """Search the documents."""
    return [make_hit("d1", "Rome", "Rome is a city.<|im_end|>"), make_hit("d2", "Oslo", "It's cold.")]


@cache
def run(format: str) -> Trajectory:
    """One run, all of its steps under the grammar."""
    model = JaxChatModel.from_checkpoint(tiny_checkpoint(), slots=4, max_context=LENGTHS[format], precision="f32")
    agent = SearchAgent(
        model,
        [search],
        format=format,
        searches=1,
        samples=3,
        temperature=1.0,
        few_shot=0,
        step_tokens=512 if format == "code" else 256,
        observation_tokens=64,
        budget=Budget(steps=24, seconds=None),
    )
    trajectory = agent.batch(["Who built the engine?"])[0].trajectory
    assert list(agent.replay(trajectory)) == list(trajectory.prompts())
    model.close()
    return trajectory


@pytest.mark.parametrize("format", FORMATS)
def test_random_weights_under_the_grammar_take_steps_that_are_read(format: str) -> None:
    trajectory = run(format)
    assert trajectory.status == "answered", trajectory.error
    for step in trajectory.steps:
        assert all(sample.error is None for sample in step.samples if sample.finish_reason == "stop")
        assert len(step.samples) == 3
    assert len({tuple(sample.tokens) for sample in trajectory.steps[0].samples}) == 3


@pytest.mark.parametrize("format", FORMATS)
def test_the_samples_of_a_step_share_one_prefill(format: str) -> None:
    trajectory = run(format)
    for prompt, step in zip(trajectory.prompts(), trajectory.steps, strict=True):
        assert all(sample.cached > len(prompt) - 64 for sample in step.samples[1:]), "the prompt was computed again"


def _chosen_is_likeliest(trajectory: Trajectory, logits: Callable[[list[list[int]]], list[np.ndarray]]) -> None:
    for prompt, step in zip(trajectory.prompts(), trajectory.steps, strict=True):
        means = []
        rows_of = logits([[*prompt, *sample.tokens] for sample in step.samples])
        for sample, rows in zip(step.samples, rows_of, strict=True):
            rows = rows[len(prompt) - 1 : len(prompt) + len(sample.tokens) - 1]
            rows = rows - rows.max(-1, keepdims=True)
            logp = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
            means.append(float(logp[np.arange(len(rows)), sample.tokens].mean()))
            np.testing.assert_allclose(np.exp(-means[-1]), sample.perplexity, rtol=1e-3)
        readable = [n for n, sample in enumerate(step.samples) if sample.error is None]
        best = max(means[n] for n in readable)
        assert step.chosen in readable and means[step.chosen] > best - 1e-5, (step.kind, means)


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_goes_on_with_the_sample_that_the_model_itself_finds_likeliest(format: str) -> None:
    checkpoint = tiny_checkpoint()
    params = {name: jnp.asarray(leaf) for name, leaf in checkpoint.params.items()}
    whole = jax.jit(forward, static_argnums=0)

    def logits(rows: list[list[int]]) -> list[np.ndarray]:
        padded = np.zeros((len(rows), LENGTHS[format]), np.int32)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        return list(np.asarray(whole(checkpoint.config, params, jnp.asarray(padded)), np.float64))

    _chosen_is_likeliest(run(format), logits)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["compact", "code"])
def test_transformers_on_the_same_weights_choose_the_same_samples(format: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(save_tiny(tmp_path / "tiny"), dtype=torch.float32)

    def logits(rows: list[list[int]]) -> list[np.ndarray]:
        with torch.no_grad():
            return [model(torch.tensor([ids])).logits[0].double().numpy() for ids in rows]

    _chosen_is_likeliest(run(format), logits)
