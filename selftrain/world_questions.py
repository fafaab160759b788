"""Questions on a World: chains of relations from one entity, asked in words, in two separate splits."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from .world_facts import Entity
from .world_relations import OF_KIND, RELATIONS, TRAIN_ASKS, TRAIN_PHRASES, VALUES, spoken

MOST_HOPS = 4
SHARE_OF_ONE_ANSWER = 0.03  # of the questions of a split: a favourite answer must not pay


class Instance(NamedTuple):
    """One composition: ``path[0]`` is the entity the question names, ``path[-1]`` the answer."""

    relations: tuple[str, ...]
    path: tuple[str, ...]  # titles, the last one may be a value; one longer than relations


class Asked(NamedTuple):
    """An instance in words."""

    text: str
    family: str
    instance: Instance


class Split(NamedTuple):
    """What could be made; fewer than wanted when the World is too small."""

    train: list[Asked]
    heldout: list[Asked]


def instances(entities: Mapping[str, Entity], hops: int, relations: Container[str] = RELATIONS) -> Iterator[Instance]:
    """Every composition of ``hops`` of the ``relations`` that can only be answered by following it.

    No relation and no entity comes twice. A document of the chain names the next entity and none of those
    after it, so no step can be skipped; and no later document names the first entity, so the question alone,
    which names nothing else, does not lead to them.
    """
    for start in entities.values():
        yield from _walk(entities, hops, relations, Instance((), (start.title,)))


def _walk(entities: Mapping[str, Entity], hops: int, relations: Container[str], so_far: Instance) -> Iterator[Instance]:
    here = entities[so_far.path[-1]]
    for relation in OF_KIND[here.kind]:
        target = here.facts.get(relation.name)
        if target is None or relation.name not in relations:
            continue
        if relation.name in so_far.relations or target in so_far.path:
            continue
        longer = Instance((*so_far.relations, relation.name), (*so_far.path, target))
        if any(target in entities[title].facts.values() for title in so_far.path[:-1]):
            continue
        if len(longer.relations) == hops:
            yield longer
        elif relation.object not in VALUES and longer.path[0] not in entities[target].facts.values():
            yield from _walk(entities, hops, relations, longer)


def ask(entities: Mapping[str, Entity], instance: Instance, family: int, *, heldout: bool) -> Asked:
    """Put an instance into words; ``family`` numbers the paraphrases within its split."""
    start = entities[instance.path[0]]
    words = spoken(start.kind, start.title)
    wording = 0
    for name in instance.relations[:-1]:
        phrases = RELATIONS[name].phrases
        phrases = phrases[TRAIN_PHRASES:] if heldout else phrases[:TRAIN_PHRASES]
        wording = family % len(phrases)
        words = phrases[wording].format(x=words)
    asks = RELATIONS[instance.relations[-1]].asks
    asks = asks[TRAIN_ASKS:] if heldout else asks[:TRAIN_ASKS]
    number = family % len(asks)
    chain = ".".join(name.replace(" ", "-") for name in instance.relations)
    return Asked(
        asks[number].format(x=words),
        f"{chain}/{'heldout' if heldout else 'train'}{number}{wording}",
        instance,
    )


def split(
    entities: Mapping[str, Entity],
    seed: int,
    hops: Mapping[int, int],
    hops_heldout: Mapping[int, int],
    relations: Container[str] = RELATIONS,
) -> Split:
    """Draw questions, so many of each number of hops, evenly over the chains.

    Per chain the starting entities are divided between the two splits. No answer takes more than its share.
    """
    rng = random.Random(f"restill-world questions {seed}")
    made = Split([], [])
    caps = [max(1, int(SHARE_OF_ONE_ANSWER * sum(wanted.values()))) for wanted in (hops, hops_heldout)]
    answers: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for length in sorted({*hops, *hops_heldout}):
        wanted = (hops.get(length, 0), hops_heldout.get(length, 0))
        if not any(wanted):
            continue
        chains: dict[tuple[str, ...], list[Instance]] = {}
        for instance in instances(entities, length, relations):
            chains.setdefault(instance.relations, []).append(instance)
        pools: tuple[list[list[Instance]], list[list[Instance]]] = ([], [])
        for members in chains.values():
            rng.shuffle(members)
            cut = round(len(members) * wanted[1] / sum(wanted))
            cut = min(max(cut, 1), len(members) - 1) if len(members) > 1 and all(wanted) else cut
            pools[1].append(members[:cut])
            pools[0].append(members[cut:])
        for side in (1, 0):
            chosen = _draw(pools[side], wanted[side], answers[side], caps[side], rng)
            made[side].extend(ask(entities, instance, rng.randrange(12), heldout=bool(side)) for instance in chosen)
    for asked in made:
        rng.shuffle(asked)
    return made


def _draw(
    pools: Sequence[list[Instance]], wanted: int, answers: Counter[str], cap: int, rng: random.Random
) -> list[Instance]:
    """Round robin over the chains, each giving its next instance whose answer is not used up."""
    chosen: list[Instance] = []
    live = [list(pool) for pool in pools]
    while live and len(chosen) < wanted:
        rng.shuffle(live)
        for pool in live:
            while pool and answers[pool[-1].path[-1]] >= cap:
                pool.pop()
            if pool and len(chosen) < wanted:
                instance = pool.pop()
                answers[instance.path[-1]] += 1
                chosen.append(instance)
        live = [pool for pool in live if pool]
    return chosen
