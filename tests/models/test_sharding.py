"""Sharding changes where the work happens, not the result."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, numpy as np
from restill.models.config import DecoderConfig
from restill.models.decoder import forward, init_params
from restill.models.sharding import make_mesh, shard_batch, shard_params

config = DecoderConfig(vocab_size=96, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
                       intermediate_size=64)
params = init_params(config, jax.random.key(0), scale=0.3)
tokens = jax.random.randint(jax.random.key(1), (4, 17), 0, 96)
run = jax.jit(forward, static_argnums=0)
alone = np.asarray(run(config, params, tokens))
mesh = make_mesh(**dict(zip(("data", "tensor"), map(int, {shape!r}.split("x")))))
sharded = run(config, shard_params(params, mesh), shard_batch(tokens, mesh))
assert len(sharded.sharding.device_set) == 2, sharded.sharding
np.testing.assert_allclose(np.asarray(sharded), alone, atol=2e-5)
"""


@pytest.mark.parametrize("shape", ["2x1", "1x2"])
def test_two_devices_give_the_logits_of_one(shape: str) -> None:
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM.replace("{shape!r}", repr(shape))], env=env, check=True)
