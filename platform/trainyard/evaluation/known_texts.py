"""Recognize rows that trained or chose a model by their texts, also in a file that was saved again."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from trainyard.data import Overlap, Split, TextSketch
from trainyard.storage import RunFolder

MOST = 0.5
"""Share of a split's texts above which the split counts as one of the run's splits."""


@dataclass(frozen=True, kw_only=True)
class KnownTexts:
    """Use of the texts of a split in a run."""

    role: Literal["trained", "selection", "partly", "other"]
    """Most of them trained the model, or chose it; "partly" is for fewer, "other" for none."""
    overlap: Overlap
    """Overlap with the texts that trained the model or chose it, whichever the role is by."""
    splits: frozenset[str] = frozenset()
    """Splits of the run that chose the model, if the role is "selection"."""


def known_texts(run: RunFolder, record: Mapping[str, Any], split: Split) -> KnownTexts | None:
    """Compare the texts of `split` with the sketches in `record`, the content of run.json.

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
    except ValueError as error:
        raise run.damaged("run.json") from error
    training, *choosing = sketches
    trained = split.texts.overlap(sketches[training])
    several = (sketches[name].hashes for name in choosing)
    chose = split.texts.overlap(reduce(TextSketch.with_hashes, several, TextSketch()))
    # In the whole split from which rows were set aside, only this share of the rows chose.
    share_that_chose = 1 - float(record["config"].get("test_share") or 0.0)
    if trained.is_reliable and trained.share > MOST:
        return KnownTexts(role="trained", overlap=trained)
    if chose.is_reliable and chose.share > MOST * share_that_chose:
        return KnownTexts(role="selection", overlap=chose, splits=frozenset(choosing))
    larger = max(trained, chose, key=lambda overlap: overlap.share)
    if larger.shared:
        return KnownTexts(role="partly", overlap=larger)
    if trained.is_reliable and chose.is_reliable:
        return KnownTexts(role="other", overlap=larger)
    return None
