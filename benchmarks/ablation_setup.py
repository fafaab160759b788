"""What the arms of ``benchmarks/ablations.py`` share: how large they are, Worlds, indexes, questions, the base."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from restill import JaxChatModel, Retriever, SearchAgent, World, rollout
from restill.agents.budget import Budget
from restill.models.checkpoint.load import Checkpoint, load_decoder
from restill.models.student import Nano, make_student
from restill.retrieval.intervals import bootstrap_interval
from restill.retrieval.maintain import bring_up_to_date
from restill.selftrain.feedback import GoldRanker, RandomRanker, Ranker
from restill.selftrain.mixture import Example, Mixture
from restill.selftrain.search_expert import SearchExpertModel
from restill.selftrain.trainer import TrainConfig, Trainer
from restill.selftrain.world_relations import RELATIONS

PARENT = "smollm2-135m"
"""Its tokenizer, pruned, is the nano models'."""
FIRST_READ_WORLD, LABELLED_WORLD, ASKED_WORLD = 100, 60, 7
"""Seeds: of the first World that the base reads (the others follow), of the World with labels for the ranker adapter,
of the World of the experiment. 24 of its 300 names, mostly novels and ships, also stand in one of the others, with
other facts."""
ASKED = ("employer", "birthplace", "teacher", "founder", "seat", "director", "mayor", "region", "river")
"""The relations that a nano model is asked for: so many wordings as it can learn from so few questions."""
NOISE = 0.1
"""Share of the pilot's expert's steps that are a mistake; fixed by seed 0's pilots, before a generation was trained."""


@dataclass(frozen=True)
class Scale:
    """How large the experiment is.

    Attributes:
        model: a pretrained one; ``None``: a nano base of so many ``parameters``, trained here, in full.
        read, taught: Worlds whose documents the base reads, and how many of them also ask it questions.
        texts, one_hop: sequences that it reads, and questions of each World that teaches it.
        relations: those that are asked for.
        new_words: whether the held-out questions are the World's own, worded as no training question is. That takes a
            model that knows English: a nano model gets other questions in the training questions' words.
        hops: of the questions, number -> share.
        pilot, piloted: questions that the expert is asked, and how often.
        drawn, step_tokens: samples of a step, and how long it may be. steps, context: of a run.
        replay: add the pilot's mixture to that of each generation: from few of its own alone a model forgets hops.
        tune, ranker_tune: how models and the ranker adapter are trained.
    """

    model: str | None = None
    parameters: int = 1_500_000
    read: int = 52
    taught: int = 48
    texts: int = 800
    one_hop: int = 350
    entities: int = 300
    relations: tuple[str, ...] = ASKED
    new_words: bool = False
    hops: Mapping[int, float] = field(default_factory=lambda: {2: 1.0})
    train: int = 240
    held_out: int = 300
    pilot: int = 240
    piloted: int = 2
    labelled: int = 120
    grown: int = 4
    drawn: int = 4
    slots: int = 32
    steps: int = 24
    step_tokens: int = 128
    context: int = 2048
    replay: bool = False
    reward: Ranker = field(default_factory=GoldRanker)
    tune: TrainConfig = TrainConfig(method="full", embeddings=True, lr=1e-3, epochs=3, rows=2, row_length=768)
    ranker_tune: TrainConfig = TrainConfig(lr=5e-3, epochs=3, rank=32, alpha=64.0, rows=2, row_length=1024)


NANO = Scale()
SMOLLM2 = Scale(
    model=PARENT, relations=tuple(RELATIONS), new_words=True, hops={1: 0.5, 2: 0.5}, train=200, held_out=150,
    pilot=200, piloted=1, grown=2, drawn=2, replay=True, steps=16, step_tokens=64, context=1024,
    tune=TrainConfig(lr=4e-3, epochs=2, rows=1, frozen_layers=10),
    ranker_tune=TrainConfig(epochs=2, rows=1, frozen_layers=10),
)  # fmt: skip
_TINY: dict[str, Any] = {
    "entities": 60, "train": 8, "held_out": 6, "pilot": 6, "piloted": 1, "labelled": 4, "slots": 4,
    "steps": 12, "reward": RandomRanker(),
}  # fmt: skip
"""A model after so little training is right nowhere, so the reward keeps anything."""
QUICK_NANO = dataclasses.replace(NANO, parameters=200_000, read=3, taught=2, texts=40, one_hop=20, **_TINY)
QUICK_SMOLLM2 = dataclasses.replace(SMOLLM2, grown=2, **_TINY)


class Lab:
    """What all seeds share: Worlds, indexes, the base."""

    def __init__(self, out: Path, scale: Scale) -> None:
        self.out, self.scale = out, scale
        apart = scale.held_out if scale.new_words else 0
        self.world = self.make_world(ASKED_WORLD, scale.train + scale.held_out - apart, scale.hops, apart)
        asked = random.Random("restill-ablations train").sample(self.world.train, len(self.world.train))
        self.train, self.held_out = asked[: scale.train], self.world.heldout or asked[scale.train :]
        self.search = self.index(self.world, "asked")

    def make_world(self, seed: int, train: int, hops: Mapping[int, float], heldout: int = 0) -> World:
        """A World of the experiment's size and relations."""
        scale = self.scale
        return World.generate(
            entities=scale.entities, seed=seed, train=train, heldout=heldout, hops=hops, relations=scale.relations
        )

    def index(self, world: World, name: str) -> Retriever:
        """The World's documents, searched by words."""
        folder = self.out / "worlds" / name
        if not (folder / "world.json").exists():
            world.save(folder)
        bring_up_to_date(folder / "index", [str(folder / "corpus.jsonl")], progress=False)
        return Retriever.open(folder / "index", mode="sparse")

    def agent(self, model: Any, search: Retriever, *, checks: bool = True) -> SearchAgent:
        """The agent of all arms: greedy when it is scored, several samples a step when it grows."""
        return SearchAgent(
            model, [search.as_tool()], few_shot=0, temperature=0.0, top_k=2, checks=checks,
            samples=self.scale.drawn, step_tokens=self.scale.step_tokens,
            budget=Budget(steps=self.scale.steps, seconds=None),
        )  # fmt: skip

    def model(self, base: str, trained: Path | None = None) -> JaxChatModel:
        """A model to serve: the base, or what was trained from it."""
        low_rank = self.scale.tune.method == "lora"
        return JaxChatModel.from_pretrained(
            base if low_rank else trained or base, adapter=trained if low_rank else None,
            precision="f32" if self.scale.model is None else "auto", slots=self.scale.slots,
            max_context=self.scale.context,
        )  # fmt: skip

    def base(self, seen: Collection[int] = ()) -> str:
        """Where all arms start: a pretrained model, or a nano one that has learnt language and copying from documents
        and then one-hop questions of other Worlds. A finished one is taken as it is.

        Args:
            seen: the parent's tokens that a nano model's vocabulary shall hold besides.
        """
        if self.scale.model is not None:
            return self.scale.model
        if (made := self.out / "base" / "manifest.json").exists():
            return str(made.parent)
        scale, parent = self.scale, load_decoder(PARENT)
        asked = [scale.one_hop] * scale.taught + [0] * (scale.read - scale.taught)
        worlds = [self.make_world(seed, count, {1: 1.0}) for seed, count in enumerate(asked, FIRST_READ_WORLD)]
        taught: list[Example] = []
        for number, world in enumerate(worlds[: scale.taught]):
            agent = self.agent(SearchExpertModel(parent.tokenizer, world.train), self.index(world, f"taught{number}"))
            run = rollout(agent, world.train, out=self.out / "worlds" / f"taught{number}" / "run")
            taught += Mixture.from_trajectories(sorted(run, key=lambda t: t.key))
        texts = [[f"{d.title}: {d.text}" for d in w.documents] for w in (*worlds, self.world)]
        encode = parent.tokenizer.encode
        spoken = [t for part in texts for t in part] + [q.question for q in self.world.train]
        known = {t for e in taught for t in e.tokens} | {t for text in spoken for t in encode(text)}
        student, vocabulary = make_student(parent, Nano(parameters=scale.parameters), known | set(seen), seed=0)
        assert vocabulary is not None
        titled = {d.title: f"[1] {d.title}: {d.text}\n" for w in worlds for d in w.documents}
        lines = [vocabulary.map(encode(text)) for text in titled.values()]
        mapped = [dataclasses.replace(e, tokens=vocabulary.map(e.tokens)) for e in taught]
        read_first = TrainConfig(method="full", embeddings=True, lr=3e-3, epochs=1, rows=8, row_length=256)
        first = _fit(student, Mixture(tuple(repeats(lines, scale.texts))), read_first, self.out / "read")
        weighed = Mixture(
            tuple(dataclasses.replace(e, weights=(0.0, *[w or 0.1 for w in e.weights[1:]])) for e in mapped)
        )
        then = TrainConfig(method="full", embeddings=True, lr=2e-3, epochs=1, rows=1, row_length=768)
        return str(_fit(load_decoder(str(first)), weighed, then, self.out / "base"))


def _fit(start: Checkpoint, mixture: Mixture, train: TrainConfig, out: Path) -> Path:
    return Trainer(start.config, start.params, train, tokenizer=start.tokenizer).fit(mixture, out=out, progress=True)


def repeats(lines: Sequence[Sequence[int]], count: int) -> list[Example]:
    """Sequences of 256 tokens in which passages come again: what teaches a model to copy."""
    rng, examples = random.Random(1), []
    for _ in range(count):
        chosen = rng.sample(range(len(lines)), 3)
        tokens = [t for i in [*chosen, *(rng.choice(chosen) for _ in range(4))] for t in lines[i]][:256]
        weights = (0.0, *[1.0] * (len(tokens) - 1))
        examples.append(Example(tokens=tuple(tokens), weights=weights, provenance={"question_key": "none"}))
    return examples


def seed_list(text: str) -> list[int]:
    """The seeds that a command names: so many from 0, or those between commas (``"3,"`` is 3 alone)."""
    return [int(part) for part in text.split(",") if part] if "," in text else list(range(int(text)))


def bits(values: Sequence[float]) -> str:
    """One character a question, as cells keep them."""
    return "".join("1" if v else "0" for v in values)


def rights(cell: Mapping[str, Any], which: str = "right") -> np.ndarray:
    """A cell's bits, as numbers."""
    return np.array([bit == "1" for bit in cell[which]], float)


def gain(own: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any] | None]) -> str:
    """Mean difference, its interval over questions (a question's differences are averaged over seeds first)."""
    pairs = [rights(a) - rights(b) for a, b in zip(own, others, strict=True) if b is not None]
    if not pairs:
        return ""
    means = np.mean(pairs, axis=0)
    low, high = bootstrap_interval(means.tolist(), 0)
    return f"{100 * means.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
