"""The embedded demo: GLUE-shaped sentence pairs that need more than counting shared words.

A pair is equivalent (1) when both sentences state the same fact, in other words: synonyms, passive
for active, another order. Else (0) one thing about the fact differs: who did it to whom, whether it
happened, the opposite verb, the number, the place. Both kinds are written by the same rules, so
neither shared words nor one sentence alone gives the answer away. People, things and places of
validation and test never occur in training.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

DEFAULT_ROWS = {"train": 2400, "validation": 400, "test": 400}

EXAMPLES: tuple[tuple[str, str, int], ...] = (
    ("The librarian praised the sailor.", "The sailor received praise from the librarian.", 1),
    ("The librarian praised the sailor.", "The sailor praised the librarian.", 0),
    (
        "My cousin bought three bicycles in Oslo.",
        "Three bicycles were purchased by my cousin in Oslo.",
        1,
    ),
    (
        "My cousin bought three bicycles in Oslo.",
        "My cousin did not buy three bicycles in Oslo.",
        0,
    ),
)
"""Unseen pairs of other rules and words, with the right answer, to try a trained model on."""

_TRAIN = {
    "people": "nurse pilot teacher lawyer farmer painter doctor waiter singer baker judge student "
    "driver tailor plumber author guard chef dancer actor",
    "things": "lamps chairs apples books tickets carpets guitars candles bottles coats paintings "
    "radios baskets phones mirrors blankets pencils lemons",
    "places": "Paris Berlin Madrid Vienna Lisbon Dublin Prague Warsaw Athens Geneva Milan Oxford",
}
_HELD_OUT = {
    "people": "engineer butcher soldier gardener scientist journalist carpenter priest dentist "
    "coach mechanic musician",
    "things": "tables oranges cameras shoes clocks umbrellas drums cups hats bicycles knives melons",
    "places": "Rome London Helsinki Boston Tokyo Cairo Toronto Sydney Munich Lyon",
}
# A verb with its synonym | its opposite with a synonym; each as base, past and participle.
_TO_PEOPLE = """
praise praised praised, compliment complimented complimented | blame blamed blamed, criticise criticised criticised
help helped helped, assist assisted assisted | hinder hindered hindered, obstruct obstructed obstructed
hire hired hired, employ employed employed | dismiss dismissed dismissed, fire fired fired
trust trusted trusted, believe believed believed | doubt doubted doubted, distrust distrusted distrusted
admire admired admired, respect respected respected | despise despised despised, scorn scorned scorned
please pleased pleased, delight delighted delighted | insult insulted insulted, offend offended offended
"""  # noqa: E501
_TO_THINGS = """
buy bought bought, purchase purchased purchased | sell sold sold, auction auctioned auctioned
find found found, discover discovered discovered | lose lost lost, misplace misplaced misplaced
repair repaired repaired, fix fixed fixed | break broke broken, damage damaged damaged
bring brought brought, deliver delivered delivered | remove removed removed, take took taken
"""


def _verbs(table: str) -> list[list[list[list[str]]]]:
    """[verb][opposite or not][synonym] -> [base, past, participle]."""
    return [
        [[form.split() for form in sense.split(",")] for sense in line.split("|")]
        for line in table.strip().splitlines()
    ]


_PEOPLE_VERBS, _THING_VERBS = _verbs(_TO_PEOPLE), _verbs(_TO_THINGS)
_TIMES = (
    ("yesterday", "the day before today"), ("last week", "a week ago"), ("in the morning", "before noon"),
    ("on Monday", "at the start of the week"), ("in the evening", "after sunset"),
)  # fmt: skip
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class _Fact:
    """Who did what to whom or what: indices into the word lists; -1 where a part is not said."""

    agent: int
    verb: int
    opposite: bool
    patient: int
    number: int
    place: int
    time: int
    negated: bool


def generate(split: str, rows: int, seed: int = 0) -> Iterator[tuple[str, str, int]]:
    """Yield (sentence1, sentence2, label) pairs; row i is the same however many rows are asked for."""
    rng = random.Random(f"{seed} {split}")
    words = {k: v.split() for k, v in (_TRAIN if split == "train" else _HELD_OUT).items()}
    for _ in range(rows):
        fact = _draw(rng, words)
        label = int(rng.random() < 0.5)
        other = fact if label else _altered(rng, words, fact)
        first, second = _write(rng, words, fact), _write(rng, words, other)
        while label and first == second:  # not a copy: other words for the same fact
            second = _write(rng, words, other)
        yield first, second, label


def _draw(rng: random.Random, words: dict[str, list[str]]) -> _Fact:
    agent, patient = rng.sample(range(len(words["people"])), 2)
    things = rng.random() < 0.5
    return _Fact(
        agent=agent,
        verb=rng.randrange(len(_THING_VERBS if things else _PEOPLE_VERBS)),
        opposite=rng.random() < 0.5,
        patient=rng.randrange(len(words["things"])) if things else patient,
        number=rng.randrange(len(_NUMBERS)) if things else -1,
        place=rng.randrange(len(words["places"])) if rng.random() < 0.6 else -1,
        time=rng.randrange(len(_TIMES)) if rng.random() < 0.5 else -1,
        negated=rng.random() < 0.5,
    )


def _altered(rng: random.Random, words: dict[str, list[str]], fact: _Fact) -> _Fact:
    """The fact with one thing about it changed, each kind of change as likely as the others."""
    changes = [
        replace(fact, negated=not fact.negated),
        replace(fact, opposite=not fact.opposite),
    ]
    if fact.number < 0:
        changes.append(replace(fact, agent=fact.patient, patient=fact.agent))
    else:
        changes.append(replace(fact, number=_another(rng, len(_NUMBERS), fact.number)))
    if fact.place >= 0:
        changes.append(replace(fact, place=_another(rng, len(words["places"]), fact.place)))
    return rng.choice(changes)


def _another(rng: random.Random, count: int, index: int) -> int:
    return (index + rng.randrange(1, count)) % count


def _write(rng: random.Random, words: dict[str, list[str]], fact: _Fact) -> str:
    """One of the sentences that state the fact."""
    agent = f"the {words['people'][fact.agent]}"
    if fact.number < 0:
        patient, was = f"the {words['people'][fact.patient]}", "was"
        verbs = _PEOPLE_VERBS
    else:
        patient, was = f"{_NUMBERS[fact.number]} {words['things'][fact.patient]}", "were"
        verbs = _THING_VERBS
    base, past, participle = rng.choice(verbs[fact.verb][fact.opposite])
    if rng.random() < 0.3:
        denied = f"{was} {'not ' if fact.negated else ''}{participle}"
        clause = f"{patient} {denied} by {agent}"
    else:
        denied = f"did not {base}" if fact.negated else past
        clause = f"{agent} {denied} {patient}"
    place = f"in {words['places'][fact.place]}" if fact.place >= 0 else ""
    time = rng.choice(_TIMES[fact.time]) if fact.time >= 0 else ""
    in_front = time and rng.random() < 0.5
    parts = [f"{time},", clause, place] if in_front else [clause, place, time]
    sentence = " ".join(part for part in parts if part)
    return f"{sentence[0].upper()}{sentence[1:]}."
