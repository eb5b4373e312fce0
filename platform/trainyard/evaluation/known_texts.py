"""Recognize rows that trained or chose a model by their texts, also in a file that was saved again."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from trainyard.data import Overlap, Split, TextSketch, stored_sketch
from trainyard.storage import RunFolder

UNKNOWN_CHANCE = 0.8
"""Share of texts that occur in another split by chance, where the run's own splits do not tell it."""


@dataclass(frozen=True, kw_only=True)
class KnownTexts:
    """Use of the texts of a split in a run."""

    role: Literal["trained", "selection", "partly", "other"]
    """The split is most likely the one that trained the model, or chose it; "partly" is for any other
    overlap, "other" for none."""
    overlap: Overlap
    """Overlap with the texts that trained the model or chose it, whichever the role is by."""
    splits: frozenset[str] = frozenset()
    """Splits of the run that chose the model, if the role is "selection"."""


def known_texts(
    run: RunFolder, record: Mapping[str, Any], split: Split, cache: Path
) -> KnownTexts | None:
    """Compare the texts of `split` with the sketches in `record`, the content of run.json.

    `cache` is the folder of tokenized splits. If it has no sketch of `split`, all rows are read.

    A split counts as one of the run's if each has most texts of the other, and clearly more than the
    run's own splits share. Short common texts occur in any two samples of one source.

    Returns None if the run has no sketches, or if too few texts can be compared. The latter is so if
    the run trained on over a hundred times as many texts as `split` has.

    Raises:
        DamagedRun: A sketch in run.json is damaged.
        UserError: A row of `split` cannot be used.
    """
    if not (encoded := record.get("text_sketches")):
        return None
    try:
        sketches = {name: TextSketch.decoded(text) for name, text in encoded.items()}
        train = sketches.pop("train")
    except (KeyError, ValueError) as error:
        raise run.damaged("run.json") from error
    several = (sketch.hashes for sketch in sketches.values())
    chosen_by = reduce(TextSketch.with_hashes, several, TextSketch())
    needed = (1 + _chance(train, chosen_by)) / 2
    texts = stored_sketch(split, cache)
    trained, chose = texts.overlap(train), texts.overlap(chosen_by)
    if trained.is_reliable and min(trained.share, train.overlap(texts).share) > needed:
        return KnownTexts(role="trained", overlap=trained)
    # In the whole split from which rows were set aside, only this share of the rows chose.
    part = 1 - float(record["config"].get("test_share") or 0.0)
    if chose.is_reliable and min(chose.share / part, chosen_by.overlap(texts).share) > needed:
        return KnownTexts(role="selection", overlap=chose, splits=frozenset(sketches))
    larger = max(trained, chose, key=lambda o: (o.is_reliable and o.shared > 0, o.share))
    if larger.shared:
        return KnownTexts(role="partly", overlap=larger)
    if trained.is_reliable and chose.is_reliable:
        return KnownTexts(role="other", overlap=larger)
    return None


def _chance(train: TextSketch, chosen_by: TextSketch) -> float:
    """Return the share of texts that the run's splits have in common, as any fresh rows may."""
    overlaps = train.overlap(chosen_by), chosen_by.overlap(train)
    if not all(overlap.compared and overlap.is_reliable for overlap in overlaps):
        return UNKNOWN_CHANCE
    return max(overlap.share for overlap in overlaps)
