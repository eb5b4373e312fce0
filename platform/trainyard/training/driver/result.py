"""The result of a run, and the check that the run in a folder is the requested one."""

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

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class FitResult(Readable):
    """The result of a finished run; `score` is the task's headline metric, higher is better.

    `metrics` holds {split: {metric: value}} of the best checkpoint, and `intervals` the 95 % intervals
    over rows. `model` is the folder for transformers, and `seconds` the time of all attempts.
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
    """Number of rows of each split, as it was trained or evaluated on."""
    score_metric: str = ""
    """Name of the metric that `score` is."""
    time_ledger: Mapping[str, float] = field(default_factory=dict)
    """Seconds of all attempts by account; their sum is `seconds`."""
    mfu: float | None = None
    """Model FLOPs utilization: FLOPs that training on the text needs, over what the devices can compute."""
    peak_flops: float | None = None
    """Peak of matrix products of a worker's device in FLOP/s: measured, or a GPU's data sheet."""
    warnings: Sequence[str] = ()
    """Sentences about the data and the result that the run has printed."""
    label_thresholds: Mapping[str, float] = field(default_factory=dict)
    """Fitted minimum probability of each label (--label-thresholds fitted); empty for 0.5."""

    def as_json(self) -> dict[str, Any]:
        """Return the job's JSON."""
        return {"job": "train", **asdict(self)}

    @property
    def history(self) -> "pd.DataFrame":
        """Losses and metrics of the run by step, from its metrics.jsonl.

        Columns are `epoch`, `loss`, `learning_rate` and SPLIT_METRIC; a step without a value has NaN.

        Raises:
            UserError: The run lies in a bucket, or its metrics.jsonl is damaged.
        """
        import pandas as pd

        by_step: dict[int, dict[str, Any]] = {}
        for line in RunFolder(self._model_folder().parent).metrics():
            row = by_step.setdefault(line["step"], {})
            if "split" in line:
                row |= {f"{line['split']}_{name}": x for name, x in line["metrics"].items()}
            else:
                row |= {name: value for name, value in line.items() if name != "step"}
        return pd.DataFrame.from_dict(by_step, orient="index").rename_axis("step").sort_index()

    def predict(self, texts: Sequence[str | tuple[str, str]]) -> list[dict[str, Any]]:
        """Predict texts, or pairs of them, with the trained model in this process.

        Returns:
            {"label": …, "score": …} of each text: the likeliest label.

        Raises:
            UserError: A text cannot be used.
        """
        inputs = [
            text if isinstance(text, str) else dict(zip(("text", "text_pair"), text, strict=True))
            for text in texts
        ]
        answers = _predictor(str(self._model_folder()))(inputs, truncation=True) if inputs else []
        return [best for best, *_ in answers]

    def _model_folder(self) -> Path:
        if "://" in self.model:
            raise UserError(f"{self.model} lies in a bucket; copy the run to a folder first")
        return Path(self.model)


@lru_cache(1)
def _predictor(model: str) -> Predictor:
    return PREDICTORS["text-classification"].load(model)


class AnotherRun(UserError):  # noqa: N818 (a sentence for the user, like its parent)
    """The folder of a run was made from another config or other data."""

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "choose another --run-name, or --fresh to start it anew",
    ) -> None:
        super().__init__(problem, remedy=remedy)


class OtherBaseModel(AnotherRun):
    """The base weights, or the tokenizer next to them, changed since a run started from them."""


NUMERICS_VERSION = 2
"""Version of tokens and arithmetic; raise it with a row in `COMPUTED_OTHERWISE` when they change."""

COMPUTED_OTHERWISE: Mapping[int, Collection[str]] = {
    2: ("encoder-decoder", "big_bird", "canine", "convbert", "fnet", "mobilebert", "xlnet", "yoso")
}
"""By numerics version: the model types that the version before computed otherwise.

2: special tokens in texts are text (encoder-decoders), padding on the left or rows of equal length
only, full attention from the first step (BigBird).
"""


def computed_otherwise(record: Mapping[str, Any], model: str) -> str | None:
    """Return why an unfinished run or sweep would be computed otherwise from now on, or None."""
    before = record.get("numerics_version", 1)
    if not record or before == NUMERICS_VERSION:
        return None
    config = load_config(model)
    kinds = {config.model_type, "encoder-decoder" if config.is_encoder_decoder else ""}
    changed = [v for v, types in COMPUTED_OTHERWISE.items() if v > before and kinds & {*types}]
    if not changed:
        return None
    return (
        f"version of Trainyard, which computed {config.model_type} models otherwise (numerics "
        f"{before}, now {NUMERICS_VERSION})"
    )


def planned_otherwise(record: Mapping[str, Any]) -> str | None:
    """Return why a recorded run or sweep has other steps than it would have now, or None."""
    before = record.get("plan_version", 1)
    if before == PLAN_VERSION:
        return None
    return f"version of Trainyard, which planned its batches otherwise (plan {before}, now {PLAN_VERSION})"


def earlier_result(
    config: TrainConfig, folder: RunFolder, data: PreparedData | None = None
) -> FitResult | None:
    """Return the result of `config`'s run, if it lies in `folder` finished; touches nothing.

    Without `data` the rows and the base weights are read: the name of a run is a function of its
    config, not of the content of its files.

    Raises:
        AnotherRun: when what lies there is not this run.
        UserError: when it is damaged, or the data is gone.
    """
    record = folder.read()
    if "config" not in record:  # none, or it failed before its first attempt was recorded
        return None
    another = f"run '{folder.path.name}' was started with another"
    if changed := config.changed_since(record["config"]):
        raise AnotherRun(f"{another} config ({', '.join(changed)})")
    if (reason := planned_otherwise(record)) is not None:
        raise AnotherRun(f"{another} {reason}")
    if record.get("status") != "finished" or not folder.has_model():
        return None
    # Data from the Hub is pinned by its revision, so that it need not be asked.
    sources = data.sources if data else None
    if sources is None and (config.train_file or config.data_dir):
        begun = config.as_begun(record["config"])
        sources = {split.name: split.digest for split in find_splits(begun).splits}
    before = record.get("data_sources")
    if sources is not None and before is not None and dict(sources) != before:
        raise AnotherRun(f"the data of run '{folder.path.name}' has changed since it was trained")
    try:
        digests = data.base_digests if data else base_digests(config.model_name_or_path)
    except UserError:  # without its base model the result stays as it is
        digests = {}
    if any(digests.values()):  # a folder that is gone looks like a model of the Hub
        check_base_model(record, digests)
    return FitResult(**{**record["result"], "model": folder.address("model")})


def check_base_model(record: Mapping[str, Any], digests: Mapping[str, str | None]) -> None:
    """Refuse a base model other than the one that a recorded run started from."""
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
    """`earlier_result` where the run of `config` lies."""
    folder = RunFolder(storage_folder(config.storage_path) / config.resolved_run_name)
    return earlier_result(config, folder)
