"""Workers on a Ray cluster, or on a Ray of this machine's own (``pip install 'restill[ray]'``)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..models.errors import RestillError
from .executor import carry_out, check_workers, to_call

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
        own = self._connect(ray)
        try:
            self._check_room(ray)
            self._await_all(ray, call)
        finally:
            if own:
                ray.shutdown()

    def _connect(self, ray: Any) -> bool:
        """Whether a connection was made that is to be closed."""
        if ray.is_initialized():
            return False
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address)
            return True
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=max(1, math.ceil(self.workers * self.cpus)),
            include_dashboard=False,
            object_store_memory=OBJECTS,
        )
        return True

    def _check_room(self, ray: Any) -> None:
        """Workers wait for one another, so all must run at once."""
        there = ray.cluster_resources()
        for name, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if each * self.workers > there.get(name, 0) + 1e-9:
                raise RestillError(
                    f"{self.workers} workers need {each * self.workers:g} {name}s, the Ray cluster has "
                    f"{there.get(name, 0):g}; give fewer workers, or less to each ({name.lower()}s=...)"
                )

    def _await_all(self, ray: Any, call: str) -> None:
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
                    raise RestillError(
                        f"worker {tasks[done]} of {self.workers} failed: {why}; "
                        "run the same again, it goes on where it stopped"
                    ) from None
        finally:
            for left in waiting:
                ray.cancel(left, force=True)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise RestillError("Ray is not installed: pip install 'restill[ray]'") from None
    return ray
