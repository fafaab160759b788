"""Workers on a Ray cluster, or on a Ray of this machine's own (``pip install 'restill[ray]'``)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..models.errors import RestillError
from .executor import Processes, WorkerError, carry_out, check_workers, to_call

OBJECTS = 100_000_000
"""Bytes of the shared memory of a Ray started here: nothing large goes through it."""


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """One Ray task a worker, in a fresh process each; Ray starts a worker again that was killed.

    restill must be installed where the tasks run, and paths must mean the same there.

    Attributes:
        address: of a cluster; ``None``: that of ``$RAY_ADDRESS``, or the Ray that this process is connected to, else
            one is started on this machine for as long as it is needed. It reports nothing to anybody.
        cpus, gpus: what one worker takes.
    """

    workers: int
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        check_workers(self.workers)

    def run(self, function: Callable[..., object], **arguments: Any) -> None:
        """See :meth:`.executor.Executor.run`."""
        call, ray = to_call(function, arguments), _ray()
        address = self.address or os.environ.get("RAY_ADDRESS")
        if ray.is_initialized():
            self.await_all(ray, call)
        elif address:
            ray.init(address=address)
            try:
                self.await_all(ray, call)
            finally:
                ray.shutdown()
        else:  # Ray forks when it starts here, and this process may have begun with JAX
            try:
                Processes(workers=1).run(start_and_run, call=call, **asdict(self))
            except WorkerError as error:
                raise RestillError(error.why) from None

    def _check_room(self, ray: Any) -> None:
        """Workers wait for one another, so all must run at once."""
        there = ray.cluster_resources()
        for name, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if each * self.workers > there.get(name, 0) + 1e-9:
                raise RestillError(
                    f"{self.workers} workers need {each * self.workers:g} {name}s, the Ray cluster has "
                    f"{there.get(name, 0):g}; give fewer workers, or less to each ({name.lower()}s=...)"
                )

    def await_all(self, ray: Any, call: str) -> None:
        """Make the call in all workers, with the Ray that this process is connected to."""
        self._check_room(ray)
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_calls=1)(carry_out)
        tasks = {task.remote(call, (i, self.workers)): i for i in range(self.workers)}
        waiting = list(tasks)
        try:
            while waiting:
                (done,), waiting = ray.wait(waiting, num_returns=1)
                try:
                    ray.get(done)
                except ray.exceptions.RayError as error:
                    why = str(getattr(error, "cause", None) or error)
                    raise WorkerError(tasks[done], self.workers, why) from None
        finally:
            for left in waiting:
                ray.cancel(left, force=True)


def start_and_run(call: str, shard: tuple[int, int], **settings: Any) -> None:
    """Start a Ray in this process, which is a fresh one, and make the call there.

    Args:
        shard: (0, 1): the fresh process is one alone.
        settings: of :class:`RayExecutor`.
    """
    executor, ray = RayExecutor(**settings), _ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cpus = max(1, math.ceil(executor.workers * executor.cpus))
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECTS)
    try:
        executor.await_all(ray, call)
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise RestillError("Ray is not installed: pip install 'restill[ray]'") from None
    return ray
