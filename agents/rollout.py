"""Rollouts: an agent over many questions at once, logged as they finish, resumable at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..models.errors import RestillError
from .agent import Agent
from .model import counter_of, slots_of
from .plan import derive_seed
from .progress import Progress, progress_bar
from .question import Question
from .run import Run
from .shards import checked_shard, in_shard
from .threads import run_sync
from .trajectory import Key

_IN_FLIGHT = 32
"""Questions in flight where nobody knows how many requests the model takes at once."""


@dataclass(frozen=True)
class Task:
    """One trajectory to make."""

    question: Question
    sample: int
    seed: int


def rollout(
    agent: Agent,
    questions: Iterable[Question],
    *,
    out: str | os.PathLike[str],
    samples: int = 1,
    concurrency: int | None = None,
    deadline: float | None = 120.0,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    progress: bool = False,
    limit: int | None = None,
    retry: bool = False,
) -> Run:
    """Run ``agent`` ``samples`` times over each question; log every trajectory in the directory ``out``.

    The run keeps what the model's engine did meanwhile (``Run.stats``), work for others included.

    Calling it again does only what is missing: finished trajectories (status "answered", "budget" or "invalid") are
    never run again or changed, cancelled ones are run again, failed ones once more. A redone trajectory uses
    its own seed again, which follows from ``seed``, the question and the sample's index.

    Args:
        concurrency: questions in flight; ``None``: as many as the model's engine has slots for, or 32 where that is
            not known. With more, each question's transcript is pushed out of the cache before its next step.
        deadline: hard limit in seconds for one trajectory, besides the agent's budget.
        shard: (i, n): do only the i-th of n parts of the questions, so that n processes can share ``out``.
        progress: show a progress bar with the time left.
        limit: use only so many questions.
        retry: also run those again that failed twice.

    Raises:
        RestillError: a bad argument, a full disk (what was written is safe), or a shard that another process
            writes.
    """
    return run_sync(
        arollout(
            agent,
            questions,
            out=out,
            samples=samples,
            concurrency=concurrency,
            deadline=deadline,
            seed=seed,
            shard=shard,
            progress=progress,
            limit=limit,
            retry=retry,
        )
    )


async def arollout(
    agent: Agent,
    questions: Iterable[Question],
    *,
    out: str | os.PathLike[str],
    samples: int = 1,
    concurrency: int | None = None,
    deadline: float | None = 120.0,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    progress: bool = False,
    limit: int | None = None,
    retry: bool = False,
) -> Run:
    """Like :func:`rollout`, for asynchronous code. A cancellation leaves a run that can be resumed."""
    concurrency = default_concurrency(agent) if concurrency is None else concurrency
    for name, value in (("samples", samples), ("concurrency", concurrency)):
        if value < 1:
            raise RestillError(f"{name}={value}: give at least 1")
    if deadline is not None and not deadline > 0:
        raise RestillError(f"deadline={deadline}: give a positive number of seconds, or None")
    part = checked_shard(shard)
    asked = list({q.key: q for q in map(Question.of, questions)}.values())[:limit]
    run = Run.create(out, agents={agent.fingerprint: agent.config}, seed=seed, samples=samples, questions=len(asked))
    try:
        run.start(part)
        mine = [q for q in asked if in_shard(q.key, part)]
        tasks = [
            Task(q, s, derive_seed(seed, q.key, s))
            for q in mine
            for s in range(samples)
            if run.needs(Key(q.key, s, agent.fingerprint), retry=retry)
        ]
        with progress_bar(progress, total=len(mine) * samples, done=len(mine) * samples - len(tasks)) as bar:
            with _counted(run, agent) if tasks else contextlib.nullcontext():
                await _Pool(agent, run, iter(tasks), deadline, bar).work(min(concurrency, len(tasks)))
    finally:
        run.close()
    return run


def default_concurrency(agent: Agent) -> int:
    """Questions in flight that fill the engine of ``agent``'s model and leave each its place in the cache."""
    slots = slots_of(agent.model)
    return _IN_FLIGHT if slots is None else max(1, slots // agent.at_once)


@contextlib.contextmanager
def _counted(run: Run, agent: Agent) -> Iterator[None]:
    counter = counter_of(agent.model)
    before = counter and counter()
    try:
        yield
    finally:
        if counter and before:
            with contextlib.suppress(RestillError):  # a full disk has its own error, and these are only counts
                run.count(agent.fingerprint, counter() - before)


@dataclass
class _Pool:
    agent: Agent
    run: Run
    tasks: Iterator[Task]
    deadline: float | None
    bar: Progress

    async def work(self, size: int) -> None:
        """Work with so many at a time until nothing is left; the first error ends all."""
        workers = [asyncio.ensure_future(self._worker()) for _ in range(size)]
        if not workers:
            return
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        for worker in done:
            if not worker.cancelled() and (error := worker.exception()) is not None:
                raise error

    async def _worker(self) -> None:
        for task in self.tasks:
            end = None if self.deadline is None else time.monotonic() + self.deadline
            episode = self.agent.begin(task.question, seed=task.seed, sample=task.sample, deadline=end)
            self.bar.begin()
            try:
                trajectory = await episode.complete()
            except asyncio.CancelledError:
                with contextlib.suppress(RestillError):  # a full disk may be what cancelled us
                    self.run.append(episode.trajectory())
                raise
            self.run.append(trajectory)
            self.bar.end(trajectory.status)
            await asyncio.sleep(0)  # a run that never waits must not keep the others out
