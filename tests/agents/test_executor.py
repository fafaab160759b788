"""Executors: each shard once, in a process of its own; what fails ends the rest, and nothing outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from restill.agents.executor import Processes, carry_out, to_call
from restill.agents.ray_executor import RayExecutor
from restill.models.errors import RestillError

WORK = """
import os
import time
from pathlib import Path
from restill.models.errors import RestillError

def write(out, text, shard):
    (Path(out) / f"{shard[0]}-of-{shard[1]}").write_text(f"{text} {os.getpid()}")

def fail(out, shard):
    if shard[0] == 1:
        raise RestillError("the second cannot")
    time.sleep(900)

def sleep(out, shard):
    write(out, "sleeps", shard)
    time.sleep(900)

def die_once(out, shard):
    marker = Path(out) / f"tried-{shard[0]}"
    if shard[0] == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
    write(out, "lives", shard)

def rolled_out(out, shard):
    from restill.agents.budget import Budget
    from restill.agents.react import ReActAgent
    from restill.agents.rollout import rollout
    from restill.models.chat import JaxChatModel
    from restill.models.testing import tiny_checkpoint

    def search(query: str) -> str:
        "Find."
        return f"{query} was made by Ada."

    model = JaxChatModel.from_checkpoint(tiny_checkpoint(), slots=2, max_context=512, deterministic=True)
    agent = ReActAgent(
        model, [search], budget=Budget(steps=2, seconds=None), few_shot=0, temperature=1.0, step_tokens=32,
        observation_tokens=32,
    )
    questions = [f"Who made ship {i}?" for i in range(6)]
    rollout(agent, questions, out=out, samples=2, concurrency=3, deadline=None, shard=shard)
    model.close()
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that workers can import."""
    name = f"work_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{name}.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))  # for Ray's workers
    return __import__(name)


def test_each_shard_is_called_once_in_a_process_of_its_own(tmp_path: Path, work: Any) -> None:
    Processes(workers=3).run(work.write, out=str(tmp_path), text="from")
    said = {file.name: file.read_text() for file in tmp_path.glob("*-of-*")}
    assert set(said) == {"0-of-3", "1-of-3", "2-of-3"} and len(set(said.values())) == 3
    assert all(text.startswith("from ") and text != f"from {os.getpid()}" for text in said.values())


def test_a_worker_that_fails_ends_the_others_and_says_why(tmp_path: Path, work: Any) -> None:
    started = time.monotonic()
    with pytest.raises(RestillError, match="worker 1 of 2 failed: the second cannot; run the same again"):
        Processes(workers=2).run(work.fail, out=str(tmp_path))
    assert time.monotonic() - started < 600


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path, work: Any) -> None:
    code = f"from restill.agents.executor import Processes; import {work.__name__} as w; " + (
        f"Processes(workers=2).run(w.sleep, out={str(tmp_path)!r})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        _until(lambda: len(list(tmp_path.glob("*-of-2"))) == 2)
        workers = [int(file.read_text().split()[1]) for file in tmp_path.glob("*-of-2")]
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _until(lambda: not any(_runs(worker) for worker in workers))


def test_what_cannot_be_handed_over_is_refused(tmp_path: Path) -> None:
    for function, arguments, message in (
        (lambda shard: None, {}, "cannot be found by another process"),
        (_local(), {}, "cannot be found by another process"),
        (_runs, {"worker": object()}, "must be plain JSON values"),
    ):
        with pytest.raises(RestillError, match=message):
            Processes(workers=1).run(function, **arguments)
    for executor in (Processes, RayExecutor):
        with pytest.raises(RestillError, match="workers=0"):
            executor(workers=0)


def test_a_call_is_plain_text(tmp_path: Path, work: Any) -> None:
    carry_out(to_call(work.write, {"out": str(tmp_path), "text": "é"}), (1, 2))
    assert (tmp_path / "1-of-2").read_text() == f"é {os.getpid()}"


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RestillError, match=r"pip install 'restill\[ray\]'"):
        RayExecutor(workers=1).run(_runs)


@pytest.mark.slow
def test_ray_calls_each_shard_and_again_one_that_was_killed(tmp_path: Path, work: Any) -> None:
    ray = pytest.importorskip("ray")
    RayExecutor(workers=2).run(work.die_once, out=str(tmp_path))
    assert {file.name for file in tmp_path.glob("*-of-2")} == {"0-of-2", "1-of-2"} and (tmp_path / "tried-1").exists()
    assert not ray.is_initialized()
    with pytest.raises(RestillError, match="worker 1 of 2 failed: .*the second cannot"):
        RayExecutor(workers=2).run(work.fail, out=str(tmp_path))


@pytest.mark.slow
def test_ray_refuses_more_workers_than_can_run_at_once(work: Any) -> None:
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
    try:
        with pytest.raises(RestillError, match="3 workers need 3 CPUs, the Ray cluster has 2"):
            RayExecutor(workers=3).run(work.write, out="", text="")
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("executor", [Processes(workers=2), RayExecutor(workers=2)], ids=["processes", "ray"])
def test_a_rollout_of_two_workers_is_that_of_one(tmp_path: Path, work: Any, executor: Any) -> None:
    from restill.agents.run import Run

    if isinstance(executor, RayExecutor):
        pytest.importorskip("ray")
    work.rolled_out(str(tmp_path / "one"), None)
    executor.run(work.rolled_out, out=str(tmp_path / "two"))
    one, two = ({t.key: _timeless(t.model_dump()) for t in Run.open(tmp_path / name)} for name in ("one", "two"))
    assert len(one) == 12 and two == one
    assert len(list((tmp_path / "two").glob("trajectories-?-of-2.jsonl"))) == 2


def _timeless(value: Any) -> Any:
    """All but times, and how much of a prompt was found in a cache."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "created", "cached")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _local() -> Any:
    def inner(shard: tuple[int, int]) -> None: ...

    return inner


def _runs(worker: int = 0) -> bool:
    try:
        os.kill(worker, 0)
    except ProcessLookupError:
        return False
    return True


def _until(condition: Any) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "waited for 300 s"
        time.sleep(0.02)
