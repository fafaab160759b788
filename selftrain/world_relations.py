"""The relations of the World, and how each is asked, named and stated in English.

A relation is functional: a subject has at most one object, so every question has one right answer.
Wordings come in two groups. The first three questions and the first two noun phrases are for training, the
rest are kept for held-out questions: these never use a sentence pattern met in training.
"""

from __future__ import annotations

from typing import NamedTuple

PERSON, FIRM, TOWN, REGION, RIVER = "person", "firm", "town", "region", "river"
SCHOOL, PRODUCT, BOOK, SHIP, FESTIVAL = "school", "product", "book", "ship", "festival"
YEAR, OCCUPATION = "year", "occupation"  # values, not entities: they have no document
VALUES = (YEAR, OCCUPATION)

TRAIN_ASKS = 3  # of Relation.asks; the others are for held-out questions
TRAIN_PHRASES = 2  # of Relation.phrases; the others are for held-out questions


class Relation(NamedTuple):
    """One relation; in the wordings ``{x}`` stands for the subject and ``{o}`` for the object."""

    name: str
    subject: str  # kind of the subject
    object: str  # kind of the object
    noun: str  # "founder": the search query is "founder of {x}"
    statement: str  # "{o} founded {x}."
    asks: tuple[str, ...]  # questions for the object
    phrases: tuple[str, ...] = ()  # noun phrases for the object; empty where no chain goes on

    def query(self, subject: str) -> str:
        """What to search for to learn the object: ``founder of Kestrel Works``."""
        return f"{self.noun} of {subject}"


_RELATIONS = (
    Relation("founder", FIRM, PERSON, "founder", "{o} founded {x}.",
             ("Who founded {x}?", "Who is the founder of {x}?", "Who set up {x}?",
              "Who started {x}?", "By whom was {x} founded?"),
             ("the founder of {x}", "the person who founded {x}", "the person who started {x}")),
    Relation("seat", FIRM, TOWN, "seat", "{x} has its seat in {o}.",
             ("In which town does {x} have its seat?", "Where is {x} based?",
              "In which town is the seat of {x}?",
              "Where does {x} have its head office?", "Which town is home to {x}?"),
             ("the seat of {x}", "the town where {x} is based", "the town that is home to {x}")),
    Relation("director", FIRM, PERSON, "director", "{o} directs {x}.",
             ("Who is the director of {x}?", "Who runs {x}?", "Who directs {x}?",
              "Who manages {x}?", "Who is in charge of {x}?"),
             ("the director of {x}", "the person who runs {x}", "the person in charge of {x}")),
    Relation("founded", FIRM, YEAR, "founding year", "{x} was founded in {o}.",
             ("In which year was {x} founded?", "When was {x} founded?", "What is the founding year of {x}?",
              "What year was {x} set up?", "In what year did {x} begin?")),
    Relation("maker", PRODUCT, FIRM, "maker", "{o} makes {x}.",
             ("Which firm makes {x}?", "Who is the maker of {x}?", "By which firm is {x} made?",
              "Which company produces {x}?", "What firm builds {x}?"),
             ("the maker of {x}", "the firm that makes {x}", "the company that produces {x}")),
    Relation("designer", PRODUCT, PERSON, "designer", "{o} designed {x}.",
             ("Who designed {x}?", "Who is the designer of {x}?", "Which person designed {x}?",
              "Who came up with {x}?", "By whom was {x} devised?"),
             ("the designer of {x}", "the person who designed {x}", "the person who came up with {x}")),
    Relation("author", BOOK, PERSON, "author", "{o} wrote {x}.",
             ("Who wrote {x}?", "Who is the author of {x}?", "Which person wrote {x}?",
              "Who penned {x}?", "By whom was {x} written?"),
             ("the author of {x}", "the person who wrote {x}", "the writer of {x}")),
    Relation("publisher", BOOK, FIRM, "publisher", "{o} published {x}.",
             ("Which firm published {x}?", "Who is the publisher of {x}?", "Who published {x}?",
              "Which company brought out {x}?", "What press issued {x}?"),
             ("the publisher of {x}", "the firm that published {x}", "the company that brought out {x}")),
    Relation("published", BOOK, YEAR, "publication year", "{x} was published in {o}.",
             ("In which year was {x} published?", "When was {x} published?",
              "What is the publication year of {x}?",
              "What year did {x} come out?", "In what year did {x} first appear?")),
    Relation("setting", BOOK, TOWN, "setting", "{x} is set in {o}.",
             ("In which town is {x} set?", "Where is {x} set?", "Which town is the setting of {x}?",
              "Where does the story of {x} take place?", "In what town does {x} play out?"),
             ("the setting of {x}", "the town where {x} is set", "the town where {x} plays out")),
    Relation("mayor", TOWN, PERSON, "mayor", "{o} is the mayor of {x}.",
             ("Who is the mayor of {x}?", "Which person is mayor of {x}?",
              "What is the name of the mayor of {x}?",
              "Who holds the office of mayor in {x}?", "Who serves as mayor of {x}?"),
             ("the mayor of {x}", "the person who is mayor of {x}", "the person serving as mayor of {x}")),
    Relation("region", TOWN, REGION, "region", "{x} lies in {o}.",
             ("In which region does {x} lie?", "Which region is {x} in?", "What is the region of {x}?",
              "To which region does {x} belong?", "What region is {x} part of?"),
             ("the region of {x}", "the region around {x}", "the region that includes {x}")),
    Relation("river", TOWN, RIVER, "river", "{x} stands on {o}.",
             ("On which river does {x} stand?", "Which river flows through {x}?", "What is the river of {x}?",
              "What river runs past {x}?", "On the banks of which river is {x}?"),
             ("the river of {x}", "the river that flows through {x}", "the river that runs past {x}")),
    Relation("birthplace", PERSON, TOWN, "birthplace", "{x} was born in {o}.",
             ("In which town was {x} born?", "Where was {x} born?", "What is the birthplace of {x}?",
              "Of which town is {x} a native?", "What town does {x} come from?"),
             ("the birthplace of {x}", "the town where {x} was born", "the native town of {x}")),
    Relation("school", PERSON, SCHOOL, "school", "{x} studied at {o}.",
             ("Which school did {x} attend?", "Where did {x} study?", "At which school did {x} study?",
              "Where was {x} educated?", "Where did {x} go to school?"),
             ("the school of {x}", "the school attended by {x}", "the place of education of {x}")),
    Relation("teacher", PERSON, PERSON, "teacher", "{o} taught {x}.",
             ("Who taught {x}?", "Who was the teacher of {x}?", "By whom was {x} taught?",
              "Under whom did {x} train?", "Who instructed {x}?"),
             ("the teacher of {x}", "the person who taught {x}", "the person who instructed {x}")),
    Relation("spouse", PERSON, PERSON, "spouse", "{x} is married to {o}.",
             ("Who is married to {x}?", "Who is the spouse of {x}?", "To whom is {x} married?",
              "Whom did {x} marry?", "Who is the husband or wife of {x}?"),
             ("the spouse of {x}", "the person married to {x}", "the husband or wife of {x}")),
    Relation("employer", PERSON, FIRM, "employer", "{x} works for {o}.",
             ("Which firm does {x} work for?", "Who is the employer of {x}?", "Which firm employs {x}?",
              "At what company does {x} have a job?", "On whose payroll is {x}?"),
             ("the employer of {x}", "the firm that employs {x}", "the company that gave a job to {x}")),
    Relation("occupation", PERSON, OCCUPATION, "occupation", "The occupation of {x} is {o}.",
             ("What is the occupation of {x}?", "What is the profession of {x}?",
              "What does {x} do for a living?",
              "What line of work is {x} in?", "What trade does {x} follow?")),
    Relation("birth year", PERSON, YEAR, "birth year", "{x} was born in {o}.",
             ("In which year was {x} born?", "When was {x} born?", "What is the birth year of {x}?",
              "What year saw the birth of {x}?", "In what year did {x} come into the world?")),
    Relation("location", SCHOOL, TOWN, "location", "{x} is in {o}.",
             ("In which town is {x}?", "Where is {x} located?", "What is the location of {x}?",
              "In what town can {x} be found?", "Where does one find {x}?"),
             ("the location of {x}", "the town of {x}", "the place where one finds {x}")),
    Relation("head", SCHOOL, PERSON, "head", "{o} is the head of {x}.",
             ("Who is the head of {x}?", "Who leads {x}?", "Which person heads {x}?",
              "Who is the principal of {x}?", "Who presides over {x}?"),
             ("the head of {x}", "the person who leads {x}", "the principal of {x}")),
    Relation("captain", SHIP, PERSON, "captain", "{o} is the captain of {x}.",
             ("Who is the captain of {x}?", "Who commands {x}?", "Which person is captain of {x}?",
              "Who is the skipper of {x}?", "Under whose command does {x} sail?"),
             ("the captain of {x}", "the person who commands {x}", "the skipper of {x}")),
    Relation("home port", SHIP, TOWN, "home port", "The home port of {x} is {o}.",
             ("What is the home port of {x}?", "Which town is the home port of {x}?",
              "Where is the home port of {x}?",
              "Which town does {x} sail from?", "In what harbour does {x} have its berth?"),
             ("the home port of {x}", "the port that is home to {x}", "the harbour of {x}")),
    Relation("builder", SHIP, FIRM, "builder", "{o} built {x}.",
             ("Which firm built {x}?", "Who is the builder of {x}?", "By which firm was {x} built?",
              "Which company constructed {x}?", "What shipyard launched {x}?"),
             ("the builder of {x}", "the firm that built {x}", "the company that constructed {x}")),
    Relation("venue", FESTIVAL, TOWN, "venue", "{x} is held in {o}.",
             ("In which town is {x} held?", "Where is {x} held?", "What is the venue of {x}?",
              "Which town hosts {x}?", "In what town does {x} take place?"),
             ("the venue of {x}", "the town where {x} is held", "the town that hosts {x}")),
    Relation("patron", FESTIVAL, PERSON, "patron", "{o} is the patron of {x}.",
             ("Who is the patron of {x}?", "Which person is patron of {x}?",
              "What is the name of the patron of {x}?",
              "Who sponsors {x}?", "Under whose patronage is {x} held?"),
             ("the patron of {x}", "the person who is patron of {x}", "the sponsor of {x}")),
    Relation("capital", REGION, TOWN, "capital", "{o} is the capital of {x}.",
             ("What is the capital of {x}?", "Which town is the capital of {x}?",
              "Where is the capital of {x}?",
              "From which town is {x} ruled?", "What is the chief town of {x}?"),
             ("the capital of {x}", "the town that is the capital of {x}", "the chief town of {x}")),
    Relation("governor", REGION, PERSON, "governor", "{o} is the governor of {x}.",
             ("Who is the governor of {x}?", "Who governs {x}?", "Which person is governor of {x}?",
              "Who rules {x}?", "Who is at the head of {x}?"),
             ("the governor of {x}", "the person who governs {x}", "the person who rules {x}")),
    Relation("mouth", RIVER, TOWN, "mouth", "{x} meets the sea at {o}.",
             ("At which town does {x} meet the sea?", "Where does {x} meet the sea?",
              "Which town is at the mouth of {x}?",
              "Where does {x} flow into the sea?", "At what town does {x} end?"),
             ("the town at the mouth of {x}", "the town where {x} meets the sea", "the town where {x} ends")),
    Relation("source", RIVER, TOWN, "source", "{x} rises near {o}.",
             ("Near which town does {x} rise?", "Which town is near the source of {x}?",
              "Where does {x} rise?",
              "Near what town does {x} begin?", "What town is beside the springs of {x}?"),
             ("the town near the source of {x}", "the town near which {x} rises",
              "the town where {x} begins")),
)  # fmt: skip

RELATIONS: dict[str, Relation] = {relation.name: relation for relation in _RELATIONS}
"""Every relation by name."""

OF_KIND: dict[str, tuple[Relation, ...]] = {
    kind: tuple(relation for relation in _RELATIONS if relation.subject == kind)
    for kind in (PERSON, FIRM, TOWN, REGION, RIVER, SCHOOL, PRODUCT, BOOK, SHIP, FESTIVAL)
}
"""The relations that a kind of entity can be the subject of."""


def spoken(kind: str, title: str) -> str:
    """The title as it stands inside a sentence: ``the Sellan River``, but ``Kestrel Works``."""
    return f"the {title}" if kind in (RIVER, PRODUCT, SHIP, FESTIVAL) else title
