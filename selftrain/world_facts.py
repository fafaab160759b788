"""What is true in a World: its entities, and who founded, taught, married or built what."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..models.errors import RestillError
from .world_names import KINDS_OF_FIRM, NameMaker
from .world_relations import (
    BOOK,
    FESTIVAL,
    FIRM,
    PERSON,
    PRODUCT,
    REGION,
    RELATIONS,
    RIVER,
    SCHOOL,
    SHIP,
    TOWN,
    VALUES,
    spoken,
)
from .world_text import OCCUPATIONS, write

SHARES = {REGION: 6, RIVER: 6, TOWN: 26, SCHOOL: 11, FIRM: 30, PRODUCT: 20, BOOK: 14, SHIP: 9, FESTIVAL: 7}
"""How many of 200 entities are of each kind; the rest are persons."""

FEWEST = 60  # entities: below, some kinds have too few members to choose among


class Fact(NamedTuple):
    """``object`` is the title of an entity, or a value (a year, an occupation)."""

    subject: str
    relation: str
    object: str


@dataclass
class Entity:
    """One thing of the World and what its document says of it: relation name -> title or value."""

    title: str
    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    # Persons only; told in the document or not.
    born: int = 0
    she: bool = False
    mate: str = ""  # "wife" or "husband", what the spouse is


class _Bag:
    """Draws members in shuffled rounds, so that none is drawn much more often than another."""

    def __init__(self, members: Sequence[Entity], rng: random.Random) -> None:
        self._members, self._rng, self._queue = list(members), rng, list[Entity]()

    def draw(self) -> Entity:
        """The next member."""
        if not self._queue:
            self._refill()
        return self._queue.pop(0)

    def find(self, fits: Callable[[Entity], bool]) -> Entity | None:
        """The next member that fits, or None if none does."""
        for _ in range(2):
            for place, entity in enumerate(self._queue):
                if fits(entity):
                    return self._queue.pop(place)
            self._refill()
        return None

    def _refill(self) -> None:
        self._queue += self._rng.sample(self._members, len(self._members))


def build(count: int, seed: int) -> list[Entity]:
    """``count`` entities with their facts, in a fixed order by kind.

    Raises:
        RestillError: ``count`` is below the fewest that make a World.
    """
    if count < FEWEST:
        raise RestillError(f"entities={count} is too few for a World; use at least {FEWEST}")
    rng = random.Random(f"restill-world facts {seed}")
    maker = NameMaker(random.Random(f"restill-world names {seed}"))
    sizes = {kind: max(3, share * count // 200) for kind, share in SHARES.items()}
    sizes[TOWN] = max(sizes[TOWN], sizes[REGION] + 2 * sizes[RIVER])
    sizes[FIRM] = max(sizes[FIRM], 4)
    sizes[PERSON] = count - sum(sizes.values())
    of = {kind: [Entity(maker.title(kind, number), kind) for number in range(size)] for kind, size in sizes.items()}
    _geography(of, rng)
    _people(of, rng)
    _things(of, rng)
    return [entity for entities in of.values() for entity in entities]


def _geography(of: dict[str, list[Entity]], rng: random.Random) -> None:
    """Regions, rivers and towns.

    A capital does not tell its region, nor the towns at a river's ends their river: a document that named
    the place one came from would be found without following the chain.
    """
    towns = rng.sample(of[TOWN], len(of[TOWN]))
    regions, rivers = _Bag(of[REGION], rng), _Bag(of[RIVER], rng)
    for region in of[REGION]:
        capital = towns.pop()
        region.facts["capital"] = capital.title
        capital.facts["river"] = rivers.draw().title
    for river in of[RIVER]:
        for end in ("source", "mouth"):
            town = towns.pop()
            river.facts[end] = town.title
            town.facts["region"] = regions.draw().title
    for town in towns:
        town.facts["region"] = regions.draw().title
        if rng.random() < 0.6:
            town.facts["river"] = rivers.draw().title


def _people(of: dict[str, list[Entity]], rng: random.Random) -> None:
    towns, schools, firms, people = (_Bag(of[kind], rng) for kind in (TOWN, SCHOOL, FIRM, PERSON))
    trades = list[str]()
    for person in of[PERSON]:
        person.born, person.she = rng.randrange(1860, 1996), rng.random() < 0.5
    free = list(of[PERSON])  # unmarried so far
    for person in of[PERSON]:
        trades = trades or rng.sample(OCCUPATIONS, len(OCCUPATIONS))
        person.facts["birthplace"] = towns.draw().title
        person.facts["occupation"] = trades.pop()
        if rng.random() < 0.4:
            person.facts["birth year"] = str(person.born)
        for relation in rng.sample(("school", "teacher", "spouse", "employer"), 2):
            found: Entity | None = None
            if relation == "school":
                found = schools.draw()
            elif relation == "employer":
                found = firms.draw()
            elif relation == "teacher":
                found = people.find(lambda other, p=person: 18 <= p.born - other.born <= 50)
            elif person in free:
                # Only one of the two documents tells of the marriage, or each would lead back to the other.
                near = [p for p in free if p is not person and abs(p.born - person.born) <= 12]
                if near and (found := rng.choice(near)):
                    free.remove(person)
                    free.remove(found)
                    person.mate = "wife" if found.she else "husband"
            if found is None:  # the eldest have no teacher, and not everybody is married
                relation = "school" if "school" not in person.facts else "employer"
                found = schools.draw() if relation == "school" else firms.draw()
            person.facts[relation] = found.title


def _things(of: dict[str, list[Entity]], rng: random.Random) -> None:
    towns, people = _Bag(of[TOWN], rng), _Bag(of[PERSON], rng)
    by_trade: dict[str, list[Entity]] = {}
    for firm in of[FIRM]:
        by_trade.setdefault(firm.title.split()[-1], []).append(firm)
    presses, yards = _Bag(by_trade.pop("Press"), rng), _Bag(by_trade.pop("Yard"), rng)
    makers = _Bag([firm for trade in KINDS_OF_FIRM for firm in by_trade.pop(trade, [])], rng)

    def anyone(fits: Callable[[Entity], bool]) -> Entity:
        return people.find(fits) or rng.choice(of[PERSON])

    def alive() -> str:
        return anyone(lambda person: person.born >= 1925).title

    for firm in of[FIRM]:
        founder = anyone(lambda person: person.born < 1970)
        firm.facts["founder"] = founder.title
        firm.facts["seat"] = towns.draw().title
        if rng.random() < 0.5:
            firm.facts["founded"] = str(founder.born + rng.randrange(22, 50))
        if "founded" not in firm.facts or rng.random() < 0.7:
            firm.facts["director"] = anyone(lambda p, f=founder: p.born >= 1925 and p is not f).title
    for product in of[PRODUCT]:
        product.facts |= {"maker": makers.draw().title, "designer": people.draw().title}
    for book in of[BOOK]:
        author = anyone(lambda person: person.born < 1980)
        book.facts |= {"author": author.title, "publisher": presses.draw().title}
        if rng.random() < 0.5:
            book.facts["published"] = str(author.born + rng.randrange(23, 43))
        else:
            book.facts["setting"] = towns.draw().title
    for ship in of[SHIP]:
        ship.facts |= {"captain": alive(), "home port": towns.draw().title, "builder": yards.draw().title}
    for festival in of[FESTIVAL]:
        festival.facts |= {"venue": towns.draw().title, "patron": alive()}
    for school in of[SCHOOL]:
        school.facts |= {"location": towns.draw().title, "head": alive()}
    for region in of[REGION]:
        region.facts["governor"] = alive()
    for town in of[TOWN]:
        town.facts["mayor"] = alive()


def describe(entity: Entity, rng: random.Random) -> str:
    """The text of the entity's document."""
    facts = {
        relation: value if RELATIONS[relation].object in VALUES else spoken(RELATIONS[relation].object, value)
        for relation, value in entity.facts.items()
    }
    names = {"x": spoken(entity.kind, entity.title)}
    if entity.kind == PERSON:
        p, q, o = ("she", "her", "her") if entity.she else ("he", "his", "him")
        names |= {"p": p, "q": q, "o": o, "mate": entity.mate}
    return write(entity.kind, facts, names, rng)
