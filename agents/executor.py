"""Who runs the workers of a job: an executor calls one function n times, each time in a fresh process, as shard i of n.

What is handed over is plain data, the function's name and JSON, so nothing is pickled and nothing is forked; what the
workers make is what they write. Every worker can be killed, and the same call goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any, Protocol

from ..models.errors import RestillError

POLL = 0.05
"""Seconds between two looks at the workers."""
MOST = 2000
"""Characters of what a failed worker said that are shown."""
GRACE = 10.0
"""Seconds that a worker has to end when it is told to."""


class WorkerError(RestillError):
    """A worker failed, which ended the others; ``why`` is what it said."""

    def __init__(self, worker: int, workers: int, why: str) -> None:
        self.why = why
        super().__init__(f"worker {worker} of {workers} failed: {why}; run the same again, it goes on where it stopped")


class Executor(Protocol):
    """Runs workers; :class:`Processes` on this machine, :class:`.ray_executor.RayExecutor` on a cluster."""

    @property
    def workers(self) -> int:
        """How many there are, all at the same time."""
        ...

    def run(self, function: Callable[..., object], **arguments: Any) -> None:
        """Call ``function(**arguments, shard=(i, n))`` in each of n workers, and wait for all.

        Args:
            function: of a module that workers can import too.
            arguments: what JSON can hold.

        Raises:
            WorkerError: a worker failed.
            RestillError: the call cannot be handed over.
        """
        ...


@dataclass(frozen=True)
class Processes:
    """Workers that are processes of this machine. They end when this process does.

    Worker 0 tells on the terminal's stderr what it does, the others only if they fail.
    """

    workers: int

    def __post_init__(self) -> None:
        check_workers(self.workers)

    def run(self, function: Callable[..., object], **arguments: Any) -> None:
        """See :meth:`Executor.run`."""
        call = to_call(function, arguments)
        with contextlib.ExitStack() as files:
            said = [files.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(self.workers)]
            running = list[subprocess.Popen[str]]()
            try:
                for i in range(self.workers):
                    running.append(self._start(call, i, said[i]))
                _await_all(running, said)
            finally:
                _stop(running)

    def _start(self, call: str, i: int, said: IO[str]) -> subprocess.Popen[str]:
        places = os.pathsep.join(os.path.abspath(place) for place in sys.path)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said if i else None,
            text=True,
            env={**os.environ, "PYTHONPATH": places},
        )
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died at once; its status will tell
                process.stdin.write(json.dumps([call, [i, self.workers]]) + "\n")
                process.stdin.flush()
        return process


def check_workers(workers: int) -> None:
    """Raises RestillError unless there is at least one."""
    if workers < 1:
        raise RestillError(f"workers={workers}: give at least 1")


def to_call(function: Callable[..., object], arguments: dict[str, Any]) -> str:
    """A call as JSON, for :func:`carry_out`.

    Raises:
        RestillError: the function has no name that another process could import, or an argument is not plain.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or not name.isidentifier():
        raise RestillError(f"{function!r:.80} cannot be found by another process; give a function of a module")
    try:
        return json.dumps({"module": module, "function": name, "arguments": arguments})
    except (TypeError, ValueError) as error:
        raise RestillError(f"the arguments of {name} must be plain JSON values: {error}") from None


def carry_out(call: str, shard: tuple[int, int]) -> None:
    """Make the call as one shard, in the process that this runs in."""
    wanted = json.loads(call)
    function = getattr(import_module(wanted["module"]), wanted["function"])
    function(**wanted["arguments"], shard=(int(shard[0]), int(shard[1])))


def _await_all(running: Sequence[subprocess.Popen[str]], said: Sequence[IO[str]]) -> None:
    statuses: list[int | None] = [None]
    while any(status is None or status for status in statuses):
        time.sleep(POLL)
        statuses = [process.poll() for process in running]
        failed = next((i for i, status in enumerate(statuses) if status), None)
        if failed is not None:
            said[failed].seek(0)
            stdout, rest = running[failed].stdout, said[failed].read().strip()
            why = (stdout.read() if stdout is not None else "") or f"status {statuses[failed]}\n{rest[-MOST:]}".strip()
            raise WorkerError(failed, len(running), why)


def _stop(running: Sequence[subprocess.Popen[str]]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()
    for process in running:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _work() -> None:
    """What a worker of :class:`Processes` runs: the call that its parent writes to it.

    Its stdout is for the one line that says why it failed; what the function prints there is lost.
    """
    call, shard = json.loads(sys.stdin.readline())
    why = os.fdopen(os.dup(1), "w", errors="replace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def follow() -> None:
        sys.stdin.read()  # ends when the parent does
        os.kill(os.getpid(), signal.SIGTERM)  # which Ray takes for a word to stop what it has started
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=follow, name="parent", daemon=True).start()
    try:
        carry_out(call, shard)
    except RestillError as error:
        why.write(str(error)[:MOST])
        why.close()
        raise SystemExit(1) from None


if __name__ == "__main__":
    _work()
