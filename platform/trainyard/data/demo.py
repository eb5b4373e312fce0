"""Generated demo data: sentence pairs like GLUE's, whose shared words do not reveal the label.

A pair is equivalent (1) if both sentences state the same fact in different words: synonyms, passive
for active, another order, "A before B" as "B after A". Otherwise (0) one part of the fact differs:
agent and patient, negation, an antonym, a number, a place, a time, a reason or an event. The facts
of both labels have the same distribution, so neither a single sentence nor the shared words reveal
the label. People, things, places and events of validation and test never occur in training.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = "2ebf2ef2c5837b2dc287e864d43cc215a440308749ac127568f1de2385b86517"
"""Part of the data fingerprint of every demo run; change it if `generate` yields other rows."""

DEFAULT_ROWS = {"train": 2400, "validation": 400, "test": 400}

EXAMPLES: tuple[tuple[str, str, int], ...] = (
    ("My cousin bought a bicycle in Oslo.", "A bicycle was purchased by my cousin in Oslo.", 1),
    ("My cousin bought a bicycle in Oslo.", "My cousin did not buy a bicycle in Oslo.", 0),
    ("Before the ceremony began, she hid.", "The ceremony started after she hid.", 1),
    ("The librarian praised the sailor.", "The sailor praised the librarian.", 0),
)
"""Example inputs of a trained model, with nouns that `generate` never writes.

The last pair is hard: small encoders learn the roles of agent and patient last.
"""

_BLOCK = 4096
"""Rows of a block. Each block has its own seed, so the first rows do not depend on the total."""
_COPIED = (0.6, 0.3)
"""Probability, by label, that sentence 2 repeats a wording of sentence 1; balances word overlap."""
_SAID = {"place": 0.5, "time": 0.25, "event": 0.12, "claim": 0.08}
"""Probability of each optional part of a fact."""

_Column = NDArray[Any]  # one entry per row: a number, or words
_Columns = dict[str, _Column]

# Content words of training | of validation and test.
_PEOPLE = """
nurse pilot teacher lawyer farmer painter doctor waiter singer baker judge student driver tailor
plumber author guard chef dancer actor | engineer butcher soldier gardener scientist journalist
carpenter priest dentist coach mechanic musician senator violinist hunter cashier
"""
_THINGS = """
lamps chairs apples books tickets carpets guitars candles bottles coats paintings radios baskets
phones mirrors blankets pencils lemons | tables oranges cameras shoes clocks umbrellas drums cups
hats knives melons curtains pillows pianos
"""
_PLACES = """
Paris Berlin Madrid Vienna Lisbon Dublin Prague Warsaw Athens Geneva Milan Oxford | Rome London
Helsinki Boston Tokyo Cairo Toronto Sydney Munich Lyon
"""
_HAPPENS = {
    "shop museum | bank library": "opened, opened its doors / closed, shut its doors",
    "train ferry | bus flight": "arrived, came in / departed, left",
    "meeting | lecture": "began, started / ended, finished",
    "price | rent": "rose, went up / fell, went down",
}
# The words are part of the data set: change VERSION with them.
# Synonyms / the opposite's synonyms; each verb as base, past, participle.
_TO_PEOPLE = """
praise praised praised, compliment complimented complimented / criticise criticised criticised, blame blamed blamed
help helped helped, assist assisted assisted / hinder hindered hindered, obstruct obstructed obstructed
admire admired admired, respect respected respected / despise despised despised, scorn scorned scorned
protect protected protected, defend defended defended / attack attacked attacked, assault assaulted assaulted
"""  # noqa: E501
_TO_THINGS = """
buy bought bought, purchase purchased purchased / sell sold sold, auction auctioned auctioned
find found found, discover discovered discovered / lose lost lost, misplace misplaced misplaced
repair repaired repaired, fix fixed fixed / break broke broken, smash smashed smashed
hide hid hidden, conceal concealed concealed / display displayed displayed, exhibit exhibited exhibited
"""
_TIMES = """
at noon, at midday / at midnight, in the middle of the night / at dawn, at sunrise
at dusk, at nightfall / two weeks ago, a fortnight ago / in autumn, in the fall
last night, yesterday evening / in December, in the last month of the year
"""
_NUMBERS = "two three four five six seven eight nine ten eleven twelve"
# [relation][wording] between a fact and an event: first word, word in the middle, and 1 if the
# event comes first. Each relation is next to its opposite.
_LINKS = [
    [("", "because", 0), ("because", ",", 1), ("", ", so", 1), ("since", ",", 1)],
    [("", "although", 0), ("although", ",", 1), ("", ", but", 1), ("", "even though", 0)],
    [("", "before", 0), ("before", ",", 1), ("", "after", 1), ("", ", and then", 0)],
    [("", "after", 0), ("after", ",", 1), ("", "before", 1), ("", ", and then", 1)],
]
_CLAIMS = ("the {} said that", "according to the {},", ", the {} said", ", according to the {}")


def _senses(table: str) -> list[list[str]]:
    """Parse a table of words into [meaning][wording]; a meaning is next to its opposite."""
    meanings = table.strip().replace("\n", "/").split("/")
    return [[wording.strip() for wording in meaning.split(",")] for meaning in meanings]


def _voices(verb: str, were: str) -> list[list[str]]:
    """Build the forms of a verb, indexed by [denied][passive]."""
    base, past, participle = verb.split()
    return [[past, f"{were} {participle} by"], [f"did not {base}", f"{were} not {participle} by"]]


def _table(words: Any) -> _Column:
    return np.array(words, dtype=object)


_TIME, _NUMBER, _LINK = _table(_senses(_TIMES)), _table(_NUMBERS.split()), _table(_LINKS)
_TO_PERSON = _senses(_TO_PEOPLE)
_VERB = _table(
    [[_voices(verb, "was") for verb in wordings] for wordings in _TO_PERSON]
    + [[_voices(verb, "were") for verb in wordings] for wordings in _senses(_TO_THINGS)]
)


class _Words:
    """Content words of a split, as arrays for vectorized look-up."""

    def __init__(self, held_out: bool) -> None:
        tables = (_PEOPLE, _THINGS, _PLACES)
        people, things, places = (table.split("|")[held_out].split() for table in tables)
        self.people = _table([f"the {person}" for person in people])
        self.claims = _table([[claim.format(person) for claim in _CLAIMS] for person in people])
        self.things, self.places = _table(things), _table([f"in {place}" for place in places])
        events = [
            [f"the {noun} {wording}" for wording in wordings]
            for nouns, table in _HAPPENS.items()
            for noun in nouns.split("|")[held_out].split()
            for wordings in _senses(table)
        ]
        self.events = _table(events)


def generate(split: str, rows: int, seed: int = 0) -> Iterator[tuple[str, str, int]]:
    """Yield `rows` rows (sentence1, sentence2, label) of a split; row i does not depend on `rows`.

    `split` is a key of DEFAULT_ROWS. The label is 1 for an equivalent pair, else 0.
    """
    words = _Words(held_out=split != "train")
    for block in range(-(-rows // _BLOCK)):
        rng = np.random.default_rng([seed, list(DEFAULT_ROWS).index(split), block])
        yield from itertools.islice(_pairs(rng, words), rows - block * _BLOCK)


def _pairs(rng: np.random.Generator, words: _Words) -> Iterator[tuple[str, str, int]]:
    """Yield a block of rows; one of every two is equivalent, so that any prefix is balanced."""
    label = np.repeat(rng.integers(2, size=_BLOCK // 2), 2)
    label[1::2] ^= 1
    fact, wording = _draw_fact(rng, words), _draw_wording(rng)
    other_fact = {k: np.where(label, fact[k], v) for k, v in _alter(rng, words, fact).items()}
    other = _draw_wording(rng)
    for name, kept in wording.items():
        other[name] = np.where(rng.random(_BLOCK) < np.array(_COPIED)[label], kept, other[name])
    # An equivalent pair is never a copy: where the voice is the same, the verb is the synonym.
    alike = (label == 1) & (other["passive"] == wording["passive"])
    other["verb"] = np.where(alike, 1 - wording["verb"], other["verb"])
    first, second = _write(words, fact, wording), _write(words, other_fact, other)
    yield from zip(first, second, label.tolist(), strict=True)


def _draw_fact(rng: np.random.Generator, words: _Words) -> _Columns:
    people = rng.permuted(np.tile(np.arange(len(words.people)), (_BLOCK, 1)), axis=1)
    said = {f"has {part}": rng.random(_BLOCK) < share for part, share in _SAID.items()}
    fact = {
        "relation": rng.integers(len(_LINK), size=_BLOCK),
        "agent": people[:, 0],
        "patient": people[:, 1],
        "speaker": people[:, 2],
        "verb": rng.integers(len(_VERB), size=_BLOCK),
        "denied": rng.integers(2, size=_BLOCK),
        "thing": rng.integers(len(words.things), size=_BLOCK),
        "number": rng.integers(len(_NUMBER), size=_BLOCK),
        "place": rng.integers(len(words.places), size=_BLOCK),
        "time": rng.integers(len(_TIME), size=_BLOCK),
        "event": rng.integers(len(words.events), size=_BLOCK),
        **said,
    }
    fact["denied"] &= ~_in_time(fact)
    return fact


def _in_time(fact: _Columns) -> _Column:
    """Select facts before or after an event. They are not negated: "after he did not" is odd."""
    return fact["has event"] & (fact["relation"] > 1)


def _draw_wording(rng: np.random.Generator) -> _Columns:
    choices = {"verb": 2, "time": 2, "event": 2, "order": 3, "link": 4, "claim": 4}
    drawn = {name: rng.integers(count, size=_BLOCK) for name, count in choices.items()}
    return drawn | {"passive": rng.random(_BLOCK) < 0.35}


def _alter(rng: np.random.Generator, words: _Words, fact: _Columns) -> _Columns:
    """Change one part of each fact; each change is as likely as its reverse."""
    of_people = fact["verb"] < len(_TO_PERSON)
    # Rates of the changes; small models learn the most frequent changes first.
    possible = {
        "denied": 4 * ~_in_time(fact),
        "verb": np.full(_BLOCK, 2),
        "roles": 1.5 * of_people,
        "number": 3 * ~of_people,
        "place": 1.5 * fact["has place"],
        "time": fact["has time"],
        "relation": fact["has event"],
        "event": fact["has event"],
    }
    # The largest ratio of rate to an exponential draw selects a change in proportion to its rate.
    chances = np.stack([rate / rng.exponential(size=_BLOCK) for rate in possible.values()])
    changes = dict(zip(possible, chances == chances.max(0), strict=True))
    other = dict(fact)
    for name in ("denied", "verb", "relation", "event"):
        other[name] = fact[name] ^ changes[name]
    for name, table in {"number": _NUMBER, "place": words.places, "time": _TIME}.items():
        shift = rng.integers(1, len(table), size=_BLOCK) * changes[name]
        other[name] = (fact[name] + shift) % len(table)
    other["agent"] = np.where(changes["roles"], fact["patient"], fact["agent"])
    other["patient"] = np.where(changes["roles"], fact["agent"], fact["patient"])
    return other


def _write(words: _Words, fact: _Columns, wording: _Columns) -> list[str]:
    def said(part: str, phrase: _Column) -> _Column:
        return np.where(fact[f"has {part}"], phrase, "")

    agent = words.people[fact["agent"]]
    things = _NUMBER[fact["number"]] + " " + words.things[fact["thing"]]
    patient = np.where(fact["verb"] < len(_TO_PERSON), words.people[fact["patient"]], things)
    passive, early_claim = wording["passive"], wording["claim"] < 2
    verb = _VERB[fact["verb"], wording["verb"], fact["denied"], passive.astype(int)]
    place = said("place", words.places[fact["place"]])
    time = said("time", _TIME[fact["time"], wording["time"]])
    event = said("event", words.events[fact["event"], wording["event"]])
    claim = said("claim", words.claims[fact["speaker"], wording["claim"]])
    before, between, event_first = _LINK[fact["relation"], wording["link"]].T
    between, event_first = said("event", between), event_first.astype(bool)
    in_front = np.where(fact["has event"], 0, wording["order"])  # "after in Rome ..." is odd
    parts = [
        np.where(early_claim, claim, ""),
        said("event", before),
        np.where(event_first, event, ""),
        np.where(event_first, between, ""),
        np.choose(in_front, ["", time, place]),
        np.where(passive, patient, agent),
        verb,
        np.where(passive, agent, patient),
        np.where(in_front == 2, "", place),
        np.where(in_front == 1, "", time),
        np.where(event_first, "", between),
        np.where(event_first, "", event),
        np.where(early_claim, "", claim),
    ]
    sentences = (" ".join(filter(None, row)).replace(" ,", ",") for row in zip(*parts, strict=True))
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences]
