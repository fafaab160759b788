"""The sentences of the World's documents: opening lines, one line per relation, asides that lead nowhere.

In a template ``{x}`` is the document's entity, ``{relation name}`` the object of that relation, ``{p}`` and
``{q}`` the pronouns of a person (she, her), ``{a}`` an indefinite article that fits the occupation.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from .world_relations import BOOK, FESTIVAL, FIRM, PERSON, PRODUCT, REGION, RIVER, SCHOOL, SHIP, TOWN

OPENINGS: dict[str, tuple[str, ...]] = {
    PERSON: (
        "{x} is {a} {occupation} who was born in {birthplace}.",
        "{x}, {a} {occupation}, was born in {birthplace}.",
        "Born in {birthplace}, {x} became {a} {occupation}.",
        "{x} was born in {birthplace} and works as {a} {occupation}.",
        "{x} was born in {birthplace} in {birth year} and became {a} {occupation}.",
        "Born in {birthplace} in {birth year}, {x} is {a} {occupation}.",
        "{x}, born in {birth year} in {birthplace}, is {a} {occupation}.",
    ),
    FIRM: (
        "{x} is a firm in {seat} that was founded by {founder}.",
        "{x} was founded by {founder} and has its seat in {seat}.",
        "The firm {x} is based in {seat}; its founder was {founder}.",
        "Founded by {founder}, {x} is a firm based in {seat}.",
        "{founder} founded {x}, a firm based in {seat}, in {founded}.",
        "{x} was founded in {founded} by {founder} and is based in {seat}.",
        "Since {founded}, when {founder} founded it, {x} has had its seat in {seat}.",
    ),
    TOWN: (
        "{x} is a town in {region} on the banks of {river}.",
        "The town of {x} lies in {region}, beside {river}.",
        "{x} is an old town in {region}.",
        "The town of {x} lies in the hills of {region}.",
        "{x} is a quiet town on {river}.",
        "The town of {x} stands on {river}.",
        "{x} is a market town with narrow streets.",
        "{x} is a small town with a fine square.",
    ),
    REGION: (
        "{x} is a region whose capital is {capital}.",
        "The capital of {x}, a hilly region, is {capital}.",
        "{x}, a region of farms and forests, has its capital at {capital}.",
        "The region of {x} is governed from its capital, {capital}.",
    ),
    RIVER: (
        "{x} rises near {source} and meets the sea at {mouth}.",
        "From its source near {source}, {x} flows to the sea at {mouth}.",
        "{x} is a river that rises near {source} and reaches the sea at {mouth}.",
        "{x} has its source near {source} and its mouth at {mouth}.",
    ),
    SCHOOL: (
        "{x} is a school in {location}.",
        "The school known as {x} is located in {location}.",
        "{x} is an old school in the town of {location}.",
        "In {location} stands {x}, a school for {pupils} pupils.",
    ),
    PRODUCT: (
        "{x} was designed by {designer} and is made by {maker}.",
        "{designer} designed {x}, which is made by {maker}.",
        "{x} is made by {maker} to a design by {designer}.",
        "{maker} makes {x}, which was designed by {designer}.",
    ),
    BOOK: (
        "{x} is a novel by {author}, published by {publisher}.",
        "{author} wrote the novel {x}, which {publisher} published.",
        "The novel {x} was written by {author} and published by {publisher}.",
        "{x} is a novel that {author} wrote and {publisher} published in {published}.",
        "In {published} {publisher} published {x}, a novel by {author}.",
    ),
    SHIP: (
        "{x} is a ship built by {builder}.",
        "{x} is a sailing ship that {builder} built.",
        "The firm {builder} built {x}, a sailing ship.",
        "{x}, a ship with two masts, was built by {builder}.",
    ),
    FESTIVAL: (
        "{x} is held every summer in {venue}.",
        "Every year {x} is held in {venue}.",
        "{x} is a yearly festival held in {venue}.",
        "The town of {venue} is the venue of {x}, held every autumn.",
    ),
}  # fmt: skip

LINES: dict[str, tuple[str, ...]] = {
    "school": ("{p} studied at {school}.", "{p} went to {school}.", "{p} was a pupil of {school}.",
               "{q} school was {school}."),
    "teacher": ("{q} teacher was {teacher}.", "{p} was taught by {teacher}.",
                "{teacher} taught {o} the trade.",
                "{p} learned from {q} teacher, {teacher}."),
    "spouse": ("{p} is married to {spouse}.", "{q} {mate} is {spouse}.", "{p} and {spouse} are married."),
    "employer": ("{p} works for {employer}.", "{q} employer is {employer}.", "{p} is employed by {employer}.",
                 "{p} has worked for {employer} for years."),
    "director": ("Its director is {director}.", "{director} is the director.",
                 "The firm is run by {director}.",
                 "Today {director} directs the firm."),
    "mayor": ("Its mayor is {mayor}.", "The mayor is {mayor}.", "{mayor} is the mayor of the town.",
              "The town has {mayor} as its mayor."),
    "governor": ("Its governor is {governor}.", "The governor is {governor}.",
                 "{governor} governs the region."),
    "head": ("Its head is {head}.", "{head} is the head of the school.", "The school is led by {head}."),
    "setting": ("The story is set in {setting}.", "It is set in the town of {setting}.",
                "Its setting is the town of {setting}."),
    "captain": ("Its captain is {captain}.", "{captain} is the captain.",
                "The ship is commanded by {captain}."),
    "home port": ("Its home port is {home port}.", "The ship has its home port in {home port}.",
                  "Its home port is the town of {home port}."),
    "patron": ("Its patron is {patron}.", "{patron} is the patron of the festival.",
               "The patron is {patron}."),
    "region": ("It lies in {region}.", "The town belongs to {region}."),
    "river": ("It stands on {river}.", "The town lies on {river}."),
}  # fmt: skip

ASIDES: dict[str, tuple[str, ...]] = {
    PERSON: ("{p} keeps bees.", "{p} likes to sail.", "{p} speaks three languages.", "{p} collects old maps.",
             "{p} plays the cello.", "{p} never learned to swim.", "{p} is fond of chess.",
             "{p} grows pears.",
             "{p} sings in a choir.", "{p} owns two grey dogs.", "{p} paints in winter.",
             "{p} walks everywhere.",
             "{p} bakes bread on Sundays.", "{p} is afraid of horses.", "{p} has {few} children."),
    FIRM: ("It employs {number} people.", "It has {few} workshops.", "About {number} people work there.",
           "Its gates are painted green.", "It closes for two weeks in summer.",
           "It pays its workers weekly."),
    TOWN: ("It is known for its salt market.", "Its bridge has {few} arches.", "It has {few} bakeries.",
           "It is known for smoked fish.", "Its old wall still stands.", "It is famous for plum cake.",
           "Its clock tower leans a little.", "Many painters spend the summer there.",
           "It is known for blue pottery.", "The winters there are mild."),
    REGION: ("It is known for its apple orchards.", "It has {number} villages.",
             "Its hills are full of sheep.",
             "It exports wool and honey.", "Its forests are full of deer.", "It has {few} lakes."),
    RIVER: ("It is {number} miles long.", "It is rich in trout.", "It freezes in cold winters.",
            "It has {few} islands.", "Barges carry timber along it.", "Its water is very clear."),
    SCHOOL: ("It has {number} pupils.", "It is known for its choir.", "Its library is open to all.",
             "Its garden is well kept.", "It teaches {few} languages.", "Its roof was mended last year."),
    PRODUCT: ("It comes in {few} sizes.", "It weighs {few} kilos.", "It is sold in red and green.",
              "It needs little care.", "About {number} are sold each month.",
              "It is known to last for years."),
    BOOK: ("It has {few} chapters.", "It was later made into a play.", "It runs to {number} pages.",
           "Critics praised its humour.", "It sold {number} copies in its first week."),
    SHIP: ("It carries tea and timber.", "It has a crew of {few}.", "It carries grain and wool.",
           "Its sails are dark red.", "It is {number} feet long.",
           "It once crossed the ocean in {few} weeks."),
    FESTIVAL: ("It lasts {few} days.", "About {number} guests come each year.", "It ends with fireworks.",
               "There is a boat race on the last day.", "It is known for its music."),
}  # fmt: skip

OCCUPATIONS = tuple(
    """
    clockmaker glassblower botanist surveyor violinist printer weaver astronomer cartographer shipwright
    potter engraver chemist gardener carpenter journalist geologist tailor baker blacksmith lawyer
    translator physician architect bookbinder sculptor pilot beekeeper brewer cooper organist librarian
    photographer mathematician nurse painter fisherman linguist engineer locksmith historian dentist
    jeweller miller farmer composer dancer archivist
    """.split()
)
"""What people of the World do for a living."""

SHORT = 112  # characters: a shorter document gets an aside
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SLOT = re.compile(r"{([^}]+)}")


def article(noun: str) -> str:
    """``a`` or ``an``."""
    return "an" if noun[0] in "aeiou" else "a"


def write(kind: str, facts: Mapping[str, str], names: Mapping[str, str], rng: random.Random) -> str:
    """One document of 2 to 4 sentences that states every fact once.

    Args:
        kind: the kind of the entity.
        facts: relation name -> object as spoken in a sentence.
        names: ``x`` (the entity as spoken) and, for a person, the pronouns ``p q o mate``.
        rng: chooses the wordings, the order of the sentences and the asides.
    """
    known = {**facts, **names, "pupils": str(rng.randrange(20, 990))}
    if "occupation" in facts:
        known["a"] = article(facts["occupation"])
    usable = [line for line in OPENINGS[kind] if all(slot in known for slot in _SLOT.findall(line))]
    # The more facts the opening states the better: four sentences must do for all of them.
    most = max(len(_stated(line, facts)) for line in usable)
    opening = rng.choice([line for line in usable if len(_stated(line, facts)) == most])
    rest = [relation for relation in facts if relation not in _stated(opening, facts)]
    rng.shuffle(rest)
    lines = [_fill(line, known) for line in (opening, *(rng.choice(LINES[relation]) for relation in rest))]
    asides = [line for line in ASIDES[kind] if "{number} pupils" not in line or "{pupils}" not in opening]
    rng.shuffle(asides)
    more = rng.random() < 0.3
    while len(lines) == 1 or (len(lines) < 4 and (len(" ".join(lines)) < SHORT or more)):
        numbers = {"few": rng.choice(_NUMBERS), "number": str(rng.randrange(20, 990))}
        line = asides.pop()
        lines.append(_fill(line, known | numbers))
        asides = [other for other in asides if other.split()[:2] != line.split()[:2]]  # not "It has … It has …"
        more = False
    return " ".join(lines)


def _stated(line: str, facts: Mapping[str, str]) -> set[str]:
    return set(_SLOT.findall(line)) & set(facts)


def _fill(line: str, known: Mapping[str, str]) -> str:
    filled = _SLOT.sub(lambda slot: known[slot[1]], line)
    return filled[0].upper() + filled[1:]
