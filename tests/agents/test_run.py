"""Run directories: whole lines or none, one writer, nothing final ever changed."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from restill.agents.run import Run
from restill.agents.trajectory import Key, Sample, Step, Trajectory
from restill.agents.version import code_version, sources_hash
from restill.models.errors import RestillError

FILE = "trajectories-0-of-1.jsonl"


def make(name: str, status: str = "answered", agent: str = "agent", sample: int = 0) -> Trajectory:
    steps = [Step(samples=[Sample(text="hü", tokens=[1, 2], logprobs=[-0.123456789, float("-inf")])])]
    return Trajectory(
        protocol="react-1",
        question_key=name,
        sample=sample,
        agent=agent,
        question_id=f"id of {name}",
        question="Who?",
        status=status,  # type: ignore[arg-type]
        steps=steps,
    )


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", seed=1) as run:
        for name in "abc":
            run.append(make(name))
    again = Run.open(tmp_path / "run")
    assert [t.question_key for t in again] == ["a", "b", "c"]
    assert again[1] == make("b") and again[1].steps[0].sample.logprobs == [-0.12346, float("-inf")]
    assert again.keys() == {Key(name, 0, "agent") for name in "abc"}
    assert again.get(Key("b", 0, "agent")) == make("b") and again.get(Key("z", 0, "agent")) is None
    assert again.find("b") == again.find("id of b") == [make("b")]
    assert again.find("id of") == list(again) and again.find("no such") == []
    assert (tmp_path / "run" / FILE).read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_torn_last_line_is_passed_over_and_cut_off(tmp_path: Path, cut: int) -> None:
    with Run.create(tmp_path) as run:
        run.append(make("a"))
        run.append(make("b"))
    file = tmp_path / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    assert [t.question_key for t in Run.open(tmp_path)] == ["a"]
    with Run.open(tmp_path) as run:
        assert run.needs(Key("b", 0, "agent")) and not run.needs(Key("a", 0, "agent"))
        run.append(make("b"))
    assert file.read_bytes() == whole


def test_a_file_of_one_torn_line_is_empty(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"question_key": "' + b"x" * 200_000)
    with Run.open(tmp_path) as run:
        run.append(make("a"))
    assert len(Run.open(tmp_path)) == 1


def test_a_damaged_line_is_counted_and_its_question_run_again(tmp_path: Path) -> None:
    with Run.create(tmp_path) as run:
        run.append(make("a"))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"nonsense": 1}\n\xff\xfe\n[]\n')
    run = Run.open(tmp_path)
    assert (len(run), run.damaged) == (1, 3)


def test_final_trajectories_are_never_changed(tmp_path: Path) -> None:
    with Run.create(tmp_path) as run:
        for status in ("answered", "budget"):
            run.append(make(status, status))
            with pytest.raises(RestillError, match="never changed"):
                run.append(make(status, "error"))


def test_cancelled_ones_are_run_again_and_failed_ones_once(tmp_path: Path) -> None:
    key = Key("a", 0, "agent")
    with Run.create(tmp_path) as run:
        for _ in range(3):
            run.append(make("a", "cancelled"))
            assert run.needs(key)
        run.append(make("a", "error"))
        assert run.needs(key) and Run.open(tmp_path).needs(key)
        run.append(make("a", "error"))
        assert not run.needs(key) and not Run.open(tmp_path).needs(key)
    assert len(Run.open(tmp_path)) == 1


def test_one_process_writes_a_shard(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom restill.agents.run import Run\nfrom restill.models.errors import RestillError\n"
        "try:\n    Run.open(sys.argv[1]).start()\nexcept RestillError as error:\n    print(error)\n"
    )
    with Run.create(tmp_path) as run:
        run.append(make("a"))
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert "another process is writing" in other.stdout, other.stderr
        assert len(Run.open(tmp_path)) == 1
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert other.stdout == ""


@pytest.mark.parametrize("written", [0, 7])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    """The write fails at once, or after a few bytes."""
    with Run.create(tmp_path) as run:
        run.append(make("a"))
        real, calls = os.write, []

        def full(descriptor: int, data: memoryview) -> int:
            calls.append(1)
            if written and len(calls) == 1:
                return real(descriptor, bytes(data[:written]))
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(RestillError, match="disk is full. The 1 entries written before are safe"):
            run.append(make("b"))
        monkeypatch.setattr(os, "write", real)
        assert [t.question_key for t in Run.open(tmp_path)] == ["a"]
        run.append(make("b"))
    assert [t.question_key for t in Run.open(tmp_path)] == ["a", "b"]


def test_the_manifest_is_merged_and_keeps_the_seed(tmp_path: Path) -> None:
    Run.create(tmp_path, seed=1, samples=2, agents={"a": {"x": 1}})
    run = Run.create(tmp_path, seed=1, samples=1, agents={"b": {"x": 2}})
    assert run.manifest["agents"] == {"a": {"x": 1}, "b": {"x": 2}}
    assert (run.manifest["seed"], run.manifest["samples"]) == (1, 2)
    with pytest.raises(RestillError, match="made with seed 1"):
        Run.create(tmp_path, seed=2)
    assert not list(tmp_path.glob("*.tmp"))
    assert json.loads((tmp_path / "run.json").read_text())["code_versions"] == [code_version()]


def test_the_code_version_tells_one_state_of_the_sources_from_another(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    module, beside = tmp_path / "agents" / "a.py", tmp_path / "benchmark"
    seen = list[str]()
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        module.write_text(text)
        seen.append(sources_hash(tmp_path))
    beside.mkdir()
    (beside / "b.py").write_text("y = 1\n")
    assert seen[0] == seen[2] == sources_hash(tmp_path) != seen[1]
    assert re.fullmatch(r"\d[\w.]*\+[0-9a-f]{8}", code_version())


def test_the_summary_keeps_agents_apart(tmp_path: Path) -> None:
    with Run.create(tmp_path, agents={"x": {"few_shot": 2}}) as run:
        run.append(make("a", agent="x"))
        run.append(make("b", "budget", agent="x"))
        run.append(make("a", agent="y"))
    rows = {row["agent"]: row for row in Run.open(tmp_path).summary()}
    assert rows["x"]["statuses"] == {"answered": 1, "budget": 1} and rows["x"]["config"] == {"few_shot": 2}
    assert rows["y"]["trajectories"] == 1


def test_bad_paths_are_met_by_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for make_run, path in (
        (Run.open, tmp_path / "none"),
        (Run.open, tmp_path),
        (Run.create, tmp_path / "file"),
    ):
        with pytest.raises(RestillError):
            make_run(path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RestillError, match="not JSON"):
        _ = Run.open(tmp_path).manifest
