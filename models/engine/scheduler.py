"""Which request computes what next: bookkeeping on the host, no device.

Requests are admitted in the order they came, as soon as a slot is free. Prompts are computed in chunks with a decode
step after every ``PREFILL_TOKENS`` or so: running requests wait for nobody's long prompt, and each of them takes part
in every decode step. None starves.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from .job import Job
from .request import FinishReason
from .shapes import Shapes
from .slots import Fork, SlotTable, Swap

PREFILL_TOKENS = 256
"""Prompt tokens, padding included, after which running requests have their turn."""


@dataclass(frozen=True)
class Chunk:
    """Compute ``tokens``, padded to ``width``, at position ``start`` of ``slot``.

    For a job that scores, ``targets`` are the tokens that follow each of them.
    """

    slot: int
    start: int
    tokens: tuple[int, ...]
    width: int
    job: Job
    targets: tuple[int, ...] = ()


class Scheduler:
    """The waiting, the one whose prompt is being computed, and the running.

    Attributes:
        running: jobs by slot, the one in prefill included.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.table, self._shapes = SlotTable(shapes), shapes
        self.waiting: deque[Job] = deque()
        self.running: dict[int, Job] = {}
        self._feeding: Job | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self.waiting or self.running)

    @property
    def jobs(self) -> list[Job]:
        """Everybody, the running first."""
        return [*self.running.values(), *self.waiting]

    @property
    def wanted(self) -> int:
        """How many of them somebody waits for."""
        return sum(not job.future.done() for job in self.jobs)

    def over(self) -> list[tuple[Job, FinishReason]]:
        """Those, waiting or running, whose caller left or failed to take text, or whose deadline has passed."""
        now, found = time.monotonic(), list[tuple[Job, FinishReason]]()
        for job in self.jobs:
            if job.future.done():
                found.append((job, "cancelled"))
            elif job.request.deadline is not None and now > job.request.deadline:
                found.append((job, "deadline"))
        return found

    def prefill(self) -> Iterator[Swap | Fork | Chunk]:
        """What to compute before the next decode step.

        A request is placed only when the prompt before it is done: then its slot can be forked. The last token of
        a prompt is left to the first decode step, which feeds it.
        """
        budget = PREFILL_TOKENS
        while budget > 0:
            job = self._feeding
            if job is None:
                if not self.waiting:
                    return
                first = self.waiting[0]
                placement = self.table.place(first.request.prompt[: first.scored], first.adapter)
                if placement is None:
                    return
                job = self._feeding = self.waiting.popleft()
                job.slot, job.cached = placement.slot, placement.shared
                self.running[placement.slot.index] = job
                yield from placement.moves
            slot = job.slot
            assert slot is not None
            todo = job.request.prompt[len(slot.tokens) : -1]
            if not todo:
                self._feeding = None
                continue
            start = len(slot.tokens)
            width = self._shapes.chunk(len(todo), start)
            tokens = todo[: min(width, self._shapes.rest(start))]
            targets = job.request.prompt[start + 1 : start + 1 + len(tokens)]
            scores = job.scored is not None and start + len(tokens) >= job.scored
            chunk = Chunk(slot.index, start, tokens, width, job, targets if scores else ())
            budget -= width
            slot.tokens.extend(chunk.tokens)
            if slot.plain == start and not scores:
                slot.plain = len(slot.tokens)
            yield chunk

    def rows(self) -> dict[int, Job]:
        """The jobs, by slot, that take part in the next decode step."""
        return {
            row: job
            for row, job in self.running.items()
            if job is not self._feeding and job.dispatched < job.max_tokens
        }

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it is; its slot is free at once."""
        if job is self._feeding:
            self._feeding = None
        if job.slot is not None:
            self.running.pop(job.slot.index, None)
            self.table.release(job.slot)
        elif job in self.waiting:
            self.waiting.remove(job)
