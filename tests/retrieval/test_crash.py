"""kill -9 during add, update, delete and compaction: what was acknowledged is there, once, and all agrees."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from restill.retrieval.index import Index
from restill.retrieval.retriever import Retriever

SCRIPT = Path(__file__).with_name("writer_to_kill.py")


def killed_after(seconds: float, folder: Path, seed: int, version: int) -> list[list[str]]:
    """What a writer said before it was killed."""
    command = [sys.executable, str(SCRIPT), str(folder), str(seed), str(version)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()  # it is at work
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    process.wait()
    process.stdout.close()
    return [line.split() for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]


def kill_and_check(tmp_path: Path, make_encoder, kills: int) -> Counter[str]:
    folder = Retriever.from_documents([{"_id": "first", "text": "stays"}], make_encoder()).save(tmp_path / "index")
    rng, hit = random.Random(0), Counter()
    versions: dict[str, int] = {"first": -1}
    last = 0
    for number in range(kills):
        said = killed_after(rng.uniform(0, 0.4), folder, number, last)
        before = dict(versions)
        for state, what, name, version in said:
            last = int(version)
            if state == "begin":
                before = dict(versions)
            if what == "delete":
                versions.pop(name, None)
            elif what == "put":
                versions[name] = last
        hit[said[-1][1] if said[-1][0] == "begin" else "between"] += 1
        index = Index.open(folder)
        assert index.check() == [], (number, said[-3:])
        rows = index.view.store.select("SELECT doc_id, json_extract(metadata, '$.version') FROM documents")
        found = {name: -1 if version is None else version for name, version in rows}
        assert len(found) == len(rows)
        # The last change may have been committed and not yet acknowledged, or not have happened; nothing between.
        assert found == versions or (said[-1][0] == "begin" and found == before), (number, said[-1])
        versions = found
    index.compact()
    assert index.orphans() == [] and index.check() == []
    return hit


def test_two_kills_lose_nothing(tmp_path: Path, make_encoder) -> None:
    kill_and_check(tmp_path, make_encoder, 2)


@pytest.mark.slow
def test_fifty_kills_lose_nothing(tmp_path: Path, make_encoder) -> None:
    hit = kill_and_check(tmp_path, make_encoder, 50)
    assert {"put", "delete", "compact"} <= set(hit)  # every kind of change was hit while under way
