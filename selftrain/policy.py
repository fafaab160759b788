"""The model in training, as agents ask it: p_theta in f32, and the newest parameters without a reload."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..agents.agent import Agent
from ..agents.question import Question
from ..agents.threads import run_sync
from ..agents.trajectory import Trajectory
from ..models.checkpoint.load import Checkpoint
from ..models.engine.engine import Engine
from ..models.engine.request import Completion, Request
from ..models.home import enable_compile_cache

IN_FLIGHT = 256
"""Runs at once; the engine decodes as many of them as it has slots."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One trajectory to draw."""

    question: Question
    seed: int
    sample: int = 0


class Policy:
    """A token model whose parameters change between batches of questions.

    Its engine is deterministic, so that a batch that is drawn again after a crash has the same bits, and in f32, so
    that what is drawn is what the loss takes it for.

    Args:
        checkpoint: shape and tokenizer; its parameters are replaced by those that :meth:`push` brings.
        slots: sequences decoded at once. max_context: most tokens of prompt and output together.
    """

    adapter = None
    precision = "f32"

    def __init__(self, checkpoint: Checkpoint, *, slots: int, max_context: int) -> None:
        self.name, self.fingerprint, self.tokenizer = checkpoint.name, checkpoint.fingerprint, checkpoint.tokenizer
        self.max_context = min(max_context, checkpoint.config.max_positions)
        self._checkpoint, self._slots, self._engine = checkpoint, slots, None

    @property
    def engine(self) -> Engine | None:
        """The running engine; ``None`` before the first :meth:`push`."""
        return self._engine

    def push(self, params: Mapping[str, Any]) -> None:
        """Draw from these canonical parameters from now on; nobody may be drawing."""
        if self._engine is not None:
            return self._engine.update(params)
        enable_compile_cache()
        self._engine = Engine(
            self._checkpoint.config,
            params,
            self._checkpoint.tokenizer,
            slots=self._slots,
            max_context=self.max_context,
            precision="f32",
            deterministic=True,
        )

    def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    async def agenerate_tokens(self, request: Request) -> Completion:
        """One continuation."""
        if self._engine is None:
            raise RuntimeError("no parameters were pushed")
        return await self._engine.agenerate(request)

    def drives(self, agent: Agent, **changes: Any) -> Agent:
        """The agent on this model; unconstrained at temperature 1 unless ``changes`` say otherwise.

        No grammar, no truncation and no choice among samples: what it draws follows the distribution in the loss.
        """
        free: dict[str, Any] = {"few_shot": 0, "hint": None, "temperature": 1.0, "constrained": False, "samples": 1}
        if "budget" in agent.options:  # a limit of seconds would make what is drawn depend on the clock
            free["budget"] = replace(agent.budget, seconds=None)
        free["seconds"] = None
        known = {name: value for name, value in {**free, **changes}.items() if name in agent.options}
        return agent.replace(model=self, **known)


def draw(agent: Agent, asked: Sequence[Draw]) -> list[Trajectory]:
    """Run an agent over all that is asked, in one large batch; prompts that are equal or begin alike are computed once.

    There is no deadline: what is drawn must not depend on the clock.
    """

    async def work() -> list[Trajectory]:
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def one(what: Draw) -> Trajectory:
            async with gate:
                return await agent.arun(what.question, seed=what.seed, sample=what.sample)

        return list(await asyncio.gather(*(one(what) for what in asked)))

    return run_sync(work())
