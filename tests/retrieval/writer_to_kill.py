"""A process that changes an index for ever and says so; started, and killed, by test_crash.py."""

from __future__ import annotations

import random
import sys

from conftest import HashingEncoder  # beside this file

from restill.retrieval.retriever import Retriever
from restill.retrieval.types import Document

KINDS = ["flat", "ivf", "hnsw"]


def document(name: str, version: int) -> Document:
    """Several passages, of which another version changes one."""
    sentences = [f"Document {name} says thing {n} of many things in words." for n in range(30)]
    sentences[version % 30] = f"Version {version} is here."
    return Document(id=name, title=name, text=" ".join(sentences), metadata={"version": version})


def main(folder: str, seed: int, version: int) -> None:
    """Say ``begin`` before every change and ``done`` when it was acknowledged."""
    retriever, rng = Retriever.open(folder, HashingEncoder()), random.Random(seed)
    there = {chunk.doc_id for chunk in retriever.chunks}
    while True:
        version += 1
        name = f"d{rng.randrange(12)}"
        what = rng.choices(["put", "delete", "compact"], [5, 3, 2])[0] if len(there) > 1 else "put"
        if what == "delete" and name not in there:
            continue
        print("begin", what, name, version, flush=True)
        if what == "delete":
            retriever.delete([name])
            there.discard(name)
        elif what == "compact":
            retriever.index.compact(rng.choice(KINDS))
        elif name in there:
            retriever.update([document(name, version)])
        else:
            retriever.add([document(name, version)])
            there.add(name)
        print("done", what, name, version, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
