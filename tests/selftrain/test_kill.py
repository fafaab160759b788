"""`restill improve` under kill -9: the real command on a random model, against the same job in peace."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from restill.benchmarks.kill_job import (
    JOB,
    Kill,
    command,
    differing,
    draw,
    finish,
    kill_and_compare,
    prepare,
    progress,
    repeated,
)
from restill.cli import app

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model, an index and questions; programs are compiled once."""
    folder = tmp_path_factory.mktemp("kill")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTILL_HOME", str(folder / "home"))
        yield prepare(folder)


@pytest.fixture(scope="module")
def peace(place: Path) -> Path:
    """The whole job, untouched."""
    return finish(command(place), place / "peace")


@pytest.mark.slow
def test_a_job_killed_in_training_ends_as_one_that_nobody_touched(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("--limit", "2", "--pilot", "0", "--noise", "0", "--steps", "5", "--epochs", "2")
    words, peace = command(place, *few), place / "few-in-peace" / JOB
    peace.parent.mkdir()
    monkeypatch.chdir(peace.parent)
    app(words[3:], standalone_mode=False)  # saves a start
    assert progress(peace, "gen1/rollout") == 2 and progress(peace, "gen1/train") == 4
    kill = Kill(phase="gen1/train", before="gen1/mixture", wanted=2, later=0.0)
    assert list(kill_and_compare(place / "few-killed", words, peace, [kill])) == []


@pytest.mark.slow
def test_a_job_killed_in_each_phase_ends_as_one_that_nobody_touched(place: Path, peace: Path) -> None:
    kills = draw(peace, 10, random.Random(0))
    assert len(kills) == 10
    assert list(kill_and_compare(place / "killed", command(place), peace, kills)) == []


@pytest.mark.slow
def test_two_workers_whose_parent_is_killed_in_each_phase_end_as_one_in_peace(place: Path, peace: Path) -> None:
    kills = draw(peace, 10, random.Random(1))
    assert list(kill_and_compare(place / "two-killed", command(place, "--workers", "2"), peace, kills)) == []


@pytest.mark.slow
def test_a_worker_that_was_killed_is_started_again_by_hand(place: Path, peace: Path) -> None:
    folder = place / "by-hand"
    folder.mkdir()

    def start(i: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command(place, "--shard", f"{i}/2"), cwd=folder, stdout=subprocess.DEVNULL)

    workers = [start(0), start(1)]
    try:
        for i, phase in ((1, "gen1/rollout"), (0, "gen1/train"), (1, "gen1/eval")):
            while not progress(folder / JOB, phase):
                assert all(worker.poll() is None for worker in workers)
                time.sleep(0.01)
            os.kill(workers[i].pid, signal.SIGKILL)
            workers[i].wait()
            workers[i] = start(i)
        assert [worker.wait(1200) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    assert repeated(folder / JOB) == [] == differing(peace, folder / JOB)
