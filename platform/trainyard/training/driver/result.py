"""Result of a run, and checks that a recorded run is the one that a config requests."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.batch_plan import PLAN_VERSION
from trainyard.config import TrainConfig
from trainyard.data import PreparedData, find_splits
from trainyard.errors import UserError
from trainyard.inference import PREDICTORS, Predictor
from trainyard.models import base_digests, load_config
from trainyard.storage import RunFolder, storage_folder
from trainyard.summary import Readable
from trainyard.training.outcome import STATE_FILE, Outcome, TrainState

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class FitResult(Readable):
    """Result of a finished run.

    `score` is the value of `score_metric` for the best checkpoint, averaged over evaluation splits.
    Errors such as rmse are lower for better models. `metrics` is {split: {metric: value}} of the
    best checkpoint, and `intervals` holds 95 % intervals over rows. `model` is the model's folder
    or URL. `seconds` is the time of all attempts. `padding_efficiency` is the share of tokens in
    the batches of the first epoch that are not padding. `truncated_rows` counts rows longer than
    --max-length, by split.
    """

    run: str
    task: str
    score: float
    metrics: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, list[float]]]
    model: str
    seconds: float
    best_step: int
    steps: int
    train_samples_per_second: float | None
    padding_efficiency: float
    truncated_rows: Mapping[str, int]
    rows: Mapping[str, int] = field(default_factory=dict)
    """Number of rows by split."""
    score_metric: str = ""
    """Name of the metric of `score`."""
    time_ledger: Mapping[str, float] = field(default_factory=dict)
    """Seconds of all attempts by account; their sum is `seconds`."""
    mfu: float | None = None
    """Model FLOPs utilization (Chowdhery et al. 2022) of the last attempt, from 0 to 1."""
    peak_flops: float | None = None
    """Peak rate of matrix products on one device, in FLOP/s: measured, or a GPU's data sheet."""
    warnings: Sequence[str] = ()
    """Sentences about the data and the result that the run printed."""
    label_thresholds: Mapping[str, float] = field(default_factory=dict)
    """Minimum probability by label (--label-thresholds fitted); empty where all are 0.5."""
    data_name: str = ""
    """Display name of the data: Hub data set, stem of the training file, or task."""
    chosen_on: Sequence[str] = ()
    """Splits that chose the checkpoint, so that their scores are optimistic; empty if the run had one
    evaluation."""

    def as_json(self) -> dict[str, Any]:
        """Return the mapping that the job prints as JSON."""
        return {"job": "train", **asdict(self)}

    @property
    def history(self) -> "pd.DataFrame":
        """Losses and metrics of the run by step, read from metrics.jsonl.

        Columns are `epoch`, `loss`, `learning_rate`, and for each split SPLIT_loss and SPLIT_METRIC
        for each metric. Steps without a value have NaN.

        Raises:
            UserError: The run is in a bucket, or its metrics.jsonl is damaged.
        """
        import pandas as pd

        by_step: dict[int, dict[str, Any]] = {}
        for line in RunFolder(self._model_folder().parent).metrics():
            row = by_step.setdefault(line["step"], {})
            if "split" in line:
                values = dict(line["metrics"])
                if "eval_loss" in line:  # not in runs of older versions
                    values["loss"] = line["eval_loss"]
                row |= {f"{line['split']}_{name}": x for name, x in values.items()}
            else:
                row |= {name: value for name, value in line.items() if name != "step"}
        return pd.DataFrame.from_dict(by_step, orient="index").rename_axis("step").sort_index()

    def predict(self, texts: Sequence[str | tuple[str, str]]) -> list[dict[str, Any]]:
        """Classify texts, or pairs of texts, with the trained model in this process.

        Long texts are truncated.

        Returns:
            For each input, {"label": …, "score": …} of the label with the highest score.

        Raises:
            UserError: An input is invalid, or the run is in a bucket.
        """
        inputs = [
            text if isinstance(text, str) else dict(zip(("text", "text_pair"), text, strict=True))
            for text in texts
        ]
        answers = _predictor(str(self._model_folder()))(inputs, truncation=True) if inputs else []
        return [best for best, *_ in answers]

    def _model_folder(self) -> Path:
        if "://" in self.model:
            raise UserError(f"{self.model} is in a bucket; copy the run to a folder first")
        return Path(self.model)


@lru_cache(1)
def _predictor(model: str) -> Predictor:
    return PREDICTORS["text-classification"].load(model)


class AnotherRun(UserError):  # noqa: N818 (a sentence for the user, like its parent)
    """The folder of a run holds a run of another config or other data."""

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "choose another --run-name, or --fresh to start it anew",
    ) -> None:
        super().__init__(problem, remedy=remedy)


class OtherBaseModel(AnotherRun):
    """The base weights or the tokenizer of a run changed after its start."""


NUMERICS_VERSION = 2
"""Version of tokenization and arithmetic. Each increase needs a row in `COMPUTED_OTHERWISE`."""

COMPUTED_OTHERWISE: Mapping[int, Collection[str]] = {
    2: ("encoder-decoder", "big_bird", "canine", "convbert", "fnet", "mobilebert", "xlnet", "yoso")
}
"""Numerics version -> model types that older versions computed differently.

Version 2 treats special tokens in texts as text (encoder-decoders). It pads XLNet on the left, and
batches only rows of equal length for models that padding affects. BigBird uses full attention from
the first step.
"""


def computed_otherwise(record: Mapping[str, Any], model: str) -> str | None:
    """Return why this version would compute a recorded run or sweep differently, or None.

    Args:
        record: Content of run.json or sweep.json; empty for a new job.
        model: Base model, see `load_config`.

    Returns:
        End of the sentence "the run was started with another …"; None if results would be the same.
    """
    before = record.get("numerics_version", 1)
    if not record or before == NUMERICS_VERSION:
        return None
    config = load_config(model)
    kinds = {config.model_type, "encoder-decoder" if config.is_encoder_decoder else ""}
    changed = [v for v, types in COMPUTED_OTHERWISE.items() if v > before and kinds & {*types}]
    if not changed:
        return None
    return (
        f"version of Trainyard, which computed {config.model_type} models differently (numerics "
        f"{before}, now {NUMERICS_VERSION})"
    )


def planned_otherwise(record: Mapping[str, Any]) -> str | None:
    """Return why this version would plan other batches for a recorded run or sweep, or None.

    The text is the end of the sentence "the run was started with another …".
    """
    before = record.get("plan_version", 1)
    if before == PLAN_VERSION:
        return None
    return (
        f"version of Trainyard, which planned its batches differently (plan {before}, now "
        f"{PLAN_VERSION})"
    )


def earlier_result(
    config: TrainConfig, folder: RunFolder, data: PreparedData | None = None
) -> FitResult | None:
    """Return the result of the finished run in `folder`, or None if it is not finished.

    Nothing is written. Without `data`, the rows and the base weights are read to detect changed
    files, because a run's name depends only on its config.

    Raises:
        AnotherRun: The folder holds a run of another config, other data or another base model.
        UserError: The record is damaged, or the data cannot be read.
    """
    record = folder.read()
    if "config" not in record:  # no run, or it failed before recording its first attempt
        return None
    another = f"run '{folder.path.name}' was started with another"
    if changed := config.changed_since(record["config"]):
        raise AnotherRun(f"{another} config ({', '.join(changed)})")
    if (reason := planned_otherwise(record)) is not None:
        raise AnotherRun(f"{another} {reason}")
    if record.get("status") != "finished" or not folder.has_model():
        return None
    # The Hub is not queried for data that may have changed there.
    sources = data.sources if data else None
    local = (
        config.train_file
        or config.data_dir
        or (config.dataset_name and Path(config.dataset_name).exists())
    )
    if sources is None and local:
        begun = config.as_begun(record["config"])
        sources = {split.name: split.digest for split in find_splits(begun).splits}
    before = record.get("data_sources")
    if sources is not None and before is not None and dict(sources) != before:
        raise AnotherRun(f"the data of run '{folder.path.name}' has changed since it was trained")
    try:
        digests = data.base_digests if data else base_digests(config.model_name_or_path)
    except UserError:  # without the base model there is nothing to compare
        digests = {}
    if any(digests.values()):  # a folder that is gone looks like a model of the Hub
        check_base_model(record, digests)
    known = {"data_name": config.data_name, **record["result"]}  # older runs have no name
    return FitResult(**{**known, "model": folder.address("model")})


def outcome_of_finished(folder: RunFolder) -> Outcome | None:
    """Return the outcome of a finished run without its optimizer's state; None for all others.

    Such a run is concluded again if its `model/` is gone: there is nothing left to train.

    Raises:
        UserError: The bucket does not answer, or the record is damaged.
    """
    record = folder.read()
    if (known := record.get("result")) is None:  # so an interrupted run is not read twice
        return None
    if (last := folder.store().last_of_finished()) is None:
        return None
    return Outcome(
        status="finished",
        state=TrainState(**json.loads((last / STATE_FILE).read_text())["train"]),
        padding_note=record.get("padding"),
        **{name: known[name] for name in _MEASURED if name in known},
    )


_MEASURED = ("train_samples_per_second", "padding_efficiency", "peak_flops", "mfu")
"""Figures of an outcome that only workers can measure; the result stores them."""


def check_base_model(record: Mapping[str, Any], digests: Mapping[str, str | None]) -> None:
    """Refuse a base model or tokenizer that changed after the recorded run started.

    Raises:
        OtherBaseModel: A digest differs from the recorded one.
    """
    words = {
        "base_model_digest": ("base weights", "have"),
        "tokenizer_digest": ("tokenizer", "has"),
    }
    for key, (what, verb) in words.items():
        before = record.get(key)
        if before is not None and digests.get(key) != before:
            raise OtherBaseModel(
                f"the {what} of run '{record['name']}' "
                f"({record['config']['model_name_or_path']}) {verb} changed since it was started"
            )


def finished_run(config: TrainConfig) -> FitResult | None:
    """Return the result of the run of `config` if it is finished, else None.

    Raises:
        UserError: --storage-path is a URL, or a condition of `earlier_result` applies.
    """
    folder = RunFolder(storage_folder(config.storage_path) / config.resolved_run_name)
    return earlier_result(config, folder)
