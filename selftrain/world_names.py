"""Invented names for the World: made of syllables, unique, none within one letter of another."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from .world_relations import BOOK, FESTIVAL, FIRM, PERSON, PRODUCT, REGION, RIVER, SCHOOL, SHIP, TOWN

_ONSETS = "b br c cl d dr f fl g gl gr h j k l m n p pr qu r s st t th tr v w".split()
_VOWELS = "a e i o u".split()
_MIDDLES = "b d g l ll lm m mb n nd nn r rd rm rr s ss st t tt v".split()
_ENDS = "ane ask ath ell eth ick ilk ind ith ol olt om ond ost ova ow ul und".split()
_PLACES = "combe dale fell firth ford garth haven holm mere mouth stead strand thorpe wick".split()
_LANDS = "mark shire land moor wold".split()

KINDS_OF_FIRM: Sequence[str] = "Works Press Mills Yard Tools Press Glass Yard Motors Press Foundry Yard".split()
"""The last word of a firm's name, in turn: presses publish, yards build ships, the others make goods."""

_LAST_WORDS = {
    PRODUCT: """
        Lamp Clock Loom Plough Pump Kettle Lens Stove Radio Saddle Scale Drill Bicycle Piano Camera
        Barrow
    """.split(),
    SCHOOL: "College Academy School Institute Hall".split(),
    RIVER: ("River",),
    FESTIVAL: "Fair Feast Regatta Parade Carnival".split(),
}
_BOOK_FIRST = """
    Borrowed Broken Buried Burning Careful Crooked Distant Drowned Empty Faithful Forgotten Frozen
    Gentle Hidden Hollow Honest Idle Last Lonely Lost Patient Painted Private Quiet Restless Salted
    Second Secret Seventh Silent Sleeping Slow Stolen Stubborn Tall Thirsty Twisted Unfinished
    Wandering Winter
""".split()
_BOOK_SECOND = """
    Almanac Apron Attic Balcony Basket Bell Candle Carpet Cellar Chimney Corridor Cupboard Door
    Ferry Fiddle Garden Glove Hammer Harbour Island Key Ladder Lantern Letter Mirror Needle Orchard
    Oven Parcel Pavilion Pilgrim Ribbon Staircase Telescope Thimble Tunnel Umbrella Violin Window
    Witness
""".split()
_SHIP_FIRST = """
    Amber Azure Bronze Copper Coral Crimson Golden Grey Ivory Jade Russet Scarlet Silver Velvet
    White Yellow
""".split()
_SHIP_SECOND = """
    Badger Bear Bittern Crane Curlew Dolphin Eagle Falcon Finch Fox Gannet Gull Hare Heron Kestrel
    Lark Lynx Magpie Marten Otter Owl Petrel Plover Raven Robin Seal Stork Swallow Swan Tern Wren
    Wolf
""".split()

_RUDE = re.compile("dick|cu[mn]|tit|rap|nig|fag|wan[dk]|pis|pus|slu|hit|jew|naz|fuc|dam[mn]")
REAL_WORDS = frozenset(
    """
    babul barrow bedford below berwick bonmoor bornholm borrow bottom bradford bristol bristow bumstead
    burford burrow canford canova carell carol carrell carrick cassell cellul clifford clunford condom
    connell connick conund cordova custom dallol darol darrell darul demol denholm denmark denom derick
    derrick devane dimond dissol donell donnell dulverton dunford durrell falmouth fandom farrell fellow
    ferrell finland finnell florrick flotow follow galland gareth garland garrick glanford glendale
    glenmore gobind gombell gorrell gosford govind granul grimthorpe grinnell grissom grunow gullane
    hadath halford halstead harland harrell harrow hartford helmdale henwick hereford herford holford
    holland hollow horford humane ireland janeth jobeth judith kabul kallol kanell kendell kenneth
    keswick kilow kolleth lamond landmark lesund lilith lillith lindholm lolland lovell ludford marrow
    marstrand medford mellow merrick milford milind milland missick modell mogul mondale monmouth monnow
    morrow mosul mundane musick nanom nanost narrow nebul nordland northumberland nostell pennell pillow
    pistol poland polow predom promul provost punane random rebell redund regul remick remind resell
    resol resund revell revol revolt risom rochford romford russell salford sanford sarath satell sorrow
    stafford stamford stanford stardom stimul sudol telford thermost thurmond tolland tranmere tulane
    venom vermouth walford warwick watford welford welland wendell westland widow wilford willow wilmere
    window wordmark
    """.split()
)
"""What the syllables can spell that is a word or a name already: never drawn."""


class NameMaker:
    """Draws names that were never drawn before; the same generator state gives the same names."""

    def __init__(self, rng: random.Random, taken: Iterable[str] = ()) -> None:
        """``taken``: titles whose words may not come again (those of an existing World)."""
        self._rng = rng
        self._near: set[str] = set()  # every taken word and each of its one-letter deletions
        self._starts: set[str] = set()
        self._pairs: dict[str, list[tuple[str, str]]] = {}
        self._taken = frozenset(taken)
        for word in {word for title in self._taken for word in title.split()}:
            self._take(word)

    def title(self, kind: str, number: int = 0) -> str:
        """A fresh title for an entity of ``kind``; ``number`` in turn sets the trade of a firm."""
        if kind == PERSON:
            return f"{self._person_word()} {self._person_word()}"
        if kind == TOWN:
            return self._word((_ONSETS, _VOWELS, ("b", "l", "ld", "m", "n", "nd", "r", "rn", "s", "v", "z"), _PLACES))
        if kind == REGION:
            return self._word((_ONSETS, _VOWELS, ("l", "m", "n", "nd", "r", "rd", "rn", "st", "v"), _LANDS))
        if kind == FIRM:
            return f"{self._person_word()} {KINDS_OF_FIRM[number % len(KINDS_OF_FIRM)]}"
        if kind == BOOK:
            return "The " + self._pair(kind, _BOOK_FIRST, _BOOK_SECOND)
        if kind == SHIP:
            return self._pair(kind, _SHIP_FIRST, _SHIP_SECOND)
        return f"{self._person_word()} {self._rng.choice(_LAST_WORDS[kind])}"

    def _person_word(self) -> str:
        return self._word((_ONSETS, _VOWELS, _MIDDLES, _ENDS))

    def _word(self, parts: tuple[Sequence[str], ...]) -> str:
        attempt = 0
        while True:
            attempt += 1
            word = "".join(self._rng.choice(part) for part in parts).capitalize()
            # A fresh beginning tells names apart best; a large World runs out of them and does without.
            if word.lower() in REAL_WORDS or _RUDE.search(word.lower()) or (attempt < 40 and word[:3] in self._starts):
                continue
            if not _deletions(word) & self._near:
                self._take(word)
                return word
            if attempt > 10_000:  # more names than the syllables can spell apart: lengthen them
                parts = (*parts[:-1], _VOWELS, _MIDDLES, parts[-1])
                attempt = 40

    def _take(self, word: str) -> None:
        self._near |= _deletions(word)
        self._starts.add(word[:3])

    def _pair(self, kind: str, first: Sequence[str], second: Sequence[str]) -> str:
        # In rounds where no second word comes twice, so that a small World repeats none.
        if kind not in self._pairs:
            firsts, seconds = (self._rng.sample(words, len(words)) for words in (first, second))
            rounds = [
                (f, seconds[(i + turn) % len(seconds)]) for turn in range(len(seconds)) for i, f in enumerate(firsts)
            ]
            self._pairs[kind] = rounds[::-1]
        while pairs := self._pairs[kind]:
            pair = " ".join(pairs.pop())
            if pair not in self._taken and f"The {pair}" not in self._taken:
                return pair
        return f"{self._person_word()} {self._rng.choice(second)}"


def _deletions(word: str) -> set[str]:
    """The word and its one-letter deletions: two words within one edit share one of these."""
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}
