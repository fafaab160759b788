"""Several workers in one job's folder: each its part, one for the rest, and the same results as one alone."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from restill.agents.run import Run
from restill.models.errors import RestillError
from restill.selftrain import phases, workers
from restill.selftrain.files import hash_json, write_json
from restill.selftrain.improve import improve
from restill.selftrain.job import Job
from restill.selftrain.report import Report
from restill.selftrain.rerank import rerank
from restill.selftrain.step_rankers import GoldStepRanker
from restill.selftrain.workers import at_work, wait_for

from .test_improve import METHOD, Trainable, agent, questions
from .test_improve_search import ASKED
from .test_improve_search import job as search_job


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "POLL", 0.01)


def work(out: Path, shard: tuple[int, int] | None = None, **options: Any) -> Report:
    """A job of three arms."""
    return improve(
        options.pop("agent", agent()), questions(6), out=out, method=METHOD, eval=questions(5, "eval"), shard=shard,
        **options,
    )  # fmt: skip


def begin(out: Path, shard: tuple[int, int]) -> Future[Report]:
    """The same in a thread, which is as good as a process here: a lock belongs to the file that was opened."""
    report = Future[Report]()

    def run() -> None:
        try:
            report.set_result(work(out, shard))
        except BaseException as error:
            report.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return report


def test_workers_make_what_one_makes_and_all_return_the_report(tmp_path: Path) -> None:
    one = work(tmp_path / "one")
    reports = [begun.result(600) for begun in [begin(tmp_path / "three", (i, 3)) for i in range(3)]]
    assert reports[0] == reports[1] == reports[2] == Report.load(tmp_path / "three")
    assert _facts(reports[0], tmp_path / "three") == _facts(one, tmp_path / "one")
    for run in ("base/eval", "pilot/rollout", "gen1/rollout", "gen1/eval"):
        alone, shared = (
            {t.key: _facts(t, tmp_path) for t in Run.open(tmp_path / name / run)} for name in ("one", "three")
        )
        assert alone == shared and len(list((tmp_path / "three" / run).glob("trajectories-?-of-3.jsonl"))) == 3, run
    for file in ("gen1/mixture.jsonl", "gen1/kept.jsonl", "gen1/adapter/adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "three" / file).read_bytes(), file
    assert not list((tmp_path / "three").rglob("*.part*"))
    (tmp_path / "three" / "gen1" / "rollout.done.json").unlink()
    model = Trainable()
    alone = work(tmp_path / "three", agent=agent(model))  # what n workers made, another number can go on with
    assert _facts(alone, tmp_path) == _facts(reports[0], tmp_path) and not model.requests


@pytest.mark.slow
def test_a_worker_that_died_is_started_again_while_the_other_waits(tmp_path: Path, monkeypatch: Any) -> None:
    real, deaths = phases.rollout, iter([1])

    def dies_once(*arguments: Any, **options: Any) -> Any:
        if options["shard"] == (1, 2) and options["samples"] == 2 and next(deaths, None):
            real(*arguments, **options, limit=3)
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(phases, "rollout", dies_once)
    leader = begin(tmp_path / "job", (0, 2))
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path / "job", (1, 2))
    assert not leader.done()
    again = work(tmp_path / "job", (1, 2))
    assert again == leader.result(600)
    lines = b"".join(f.read_bytes() for f in (tmp_path / "job/gen1/rollout").glob("*.jsonl")).splitlines()
    assert len(lines) == len({(r["question_key"], r["sample"]) for r in map(json.loads, lines)}) == 12


def test_the_rest_waits_for_worker_0_and_says_so_every_minute(monkeypatch: Any) -> None:
    said, looks = list[str](), iter([None, None, None, "there"])
    monkeypatch.setattr(workers, "REMIND", 0.015)
    assert wait_for(lambda: next(looks), said.append, "worker 0") == "there"
    assert said[0] == "waiting for worker 0" and len(said) > 1 and "min so far" in said[1]


def test_a_worker_runs_once_and_all_have_the_same_n(tmp_path: Path) -> None:
    with at_work(tmp_path, (1, 2)):
        with pytest.raises(RestillError, match="worker-1-of-2"), at_work(tmp_path, (1, 2)):
            pass
        with pytest.raises(RestillError, match="worker-1-of-2 is running .* give all workers of a job the same n"):
            with at_work(tmp_path, (0, 1)):
                pass
        with at_work(tmp_path, (0, 2)):
            pass
    with at_work(tmp_path, (0, 3)):
        pass
    with pytest.raises(RestillError, match=r"shard=\(2, 2\)"):
        Job(tmp_path, {}, shard=(2, 2))


def test_other_settings_are_refused_of_every_worker(tmp_path: Path) -> None:
    Job(tmp_path, {"seed": 1}, shard=(0, 2))
    with pytest.raises(RestillError, match="seed: 1 there, 2 now"):
        Job(tmp_path, {"seed": 2}, shard=(1, 2))


@pytest.mark.parametrize("finished", [True, False])
def test_what_other_inputs_made_is_thrown_away_before_any_part_begins(tmp_path: Path, finished: bool) -> None:
    made = tmp_path / "made"

    def phase(worker: int, inputs: str, break_off: bool = False) -> dict[str, Any]:
        job = Job(tmp_path, {}, shard=(worker, 2))

        def part() -> None:
            (made / inputs).mkdir(parents=True, exist_ok=True)
            (made / inputs / str(worker)).touch()

        def work() -> dict[str, Any]:
            if break_off:
                raise KeyboardInterrupt
            return {"made": sorted(str(file.relative_to(made)) for file in made.rglob("?"))}

        time.sleep(0 if worker else 0.1)  # worker 0 comes late
        return job.phase("a", {"x": inputs}, work, part=part, discard=lambda: shutil.rmtree(made))

    for inputs, break_off in (("one", not finished), ("two", False), ("two", False)):
        with ThreadPoolExecutor(2) as pool:
            led, followed = (pool.submit(phase, worker, inputs, break_off) for worker in (0, 1))
            if break_off:
                assert isinstance(led.exception(), KeyboardInterrupt)
                write_json(tmp_path / "a.done.json", {"inputs": hash_json({"x": inputs}), "seconds": 0, "result": {}})
                followed.result()
                (tmp_path / "a.done.json").unlink()  # the worker that waited is gone as well
    assert led.result()["made"] == followed.result()["made"] == ["two/0", "two/1"]


def test_parts_of_a_ranking_are_taken_up_and_none_is_ranked_twice(tmp_path: Path) -> None:
    search_job(tmp_path / "job", None)
    run = Run.open(tmp_path / "job" / "gen1" / "rollout")
    whole = rerank(run, GoldStepRanker(), ASKED, name="whole", settings={"a": 1})
    for i in range(3):
        part = rerank(run, GoldStepRanker(), ASKED, name="parts", settings={"a": 1}, shard=(i, 3))
        assert 0 < len(part.orders) < len(whole.orders)
    with pytest.raises(RestillError, match="was made with"):
        rerank(run, GoldStepRanker(), ASKED, name="parts", settings={"a": 2})

    class Idle:
        needs_labels = True

        def rank(self, choices: Any) -> Any:
            pytest.fail("ranked again")

    assert rerank(run, Idle(), ASKED, name="parts", settings={"a": 1}) == whole
    files = [(run.path / "rankings" / f"{name}.jsonl").read_bytes().split(b"\n", 1)[1] for name in ("whole", "parts")]
    assert files[0] == files[1] and not list((run.path / "rankings").glob("*.part"))


def _facts(value: Any, root: Path) -> Any:
    """All but times, and paths below ``root``."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "created")}
        if isinstance(value, list):
            return [strip(v) for v in value]
        return value.replace(str(root), "") if isinstance(value, str) else value

    return strip(value.model_dump(mode="json"))
