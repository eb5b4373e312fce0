"""Export of the best checkpoint to `model/`, which plain transformers loads, with a model card."""

import json
import math
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainyard.config import DEFAULT_MODEL, TrainConfig
from trainyard.data import is_test
from trainyard.errors import UserError, one_line
from trainyard.inference import PREDICTORS
from trainyard.metrics import THRESHOLDS_KEY
from trainyard.models import TRAINED_LENGTH_KEY
from trainyard.storage import RunFolder, sync_folder, sync_tree
from trainyard.summary import span_words
from trainyard.tasks import Task
from trainyard.terminal import say, stage

PACKAGED = {DEFAULT_MODEL: "sentence-transformers/all-MiniLM-L6-v2"}
"""Base model in a Python package -> its Hub id."""
MANY_LABELS = 30


def export_model(
    folder: RunFolder,
    checkpoint: Path,
    tokenizer: Any,
    card: str,
    metrics: Mapping[str, Any],
    max_length: int,
    labels: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
) -> None:
    """Export `checkpoint` as the run's `model/`, completely or not at all.

    Before the export replaces `model/`, the exported model must load and answer an example with
    finite scores. After a crash, the same command exports again.

    Args:
        folder: Folder of the run.
        checkpoint: Folder of the best checkpoint.
        tokenizer: Tokenizer of transformers to save with the model.
        card: Text of README.md.
        metrics: Content of metrics.json.
        max_length: Tokens per row in training, to which predictions and serving truncate.
        labels: Names of the labels by index; empty for regression.
        thresholds: Fitted minimum probability by label; None or empty for 0.5.

    Raises:
        UserError: The model cannot be loaded, or its scores are not finite.
        SupersededError: Another driver has taken over the run.
    """
    from trainyard.training.worker.weights import copy_weights  # imports torch, so late

    scratch = folder.path / f".model-{uuid.uuid4().hex[:8]}"
    scratch.mkdir()
    shutil.copyfile(checkpoint / "config.json", scratch / "config.json")
    copy_weights(checkpoint, scratch)
    _complete_config(scratch / "config.json", max_length, labels, thresholds or {})
    tokenizer.save_pretrained(scratch)
    (scratch / "README.md").write_text(card, encoding="utf-8")
    (scratch / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    try:
        _check_answer(scratch)
    except UserError:
        shutil.rmtree(scratch)
        raise
    sync_tree(scratch)
    folder.check()
    if folder.model.exists():
        shutil.rmtree(folder.model)
    scratch.rename(folder.model)
    sync_folder(folder.path)
    for leftover in folder.path.glob(".model-*"):
        shutil.rmtree(leftover)


def push_model(model: str, repository: str) -> None:
    """Upload the folder `model` to a Hub repository, which is created as private if it is missing.

    Raises:
        UserError: `model` is not a local folder, or the Hub rejects it or cannot be reached.
    """
    from huggingface_hub import HfApi

    stage(f"uploading {model} to {repository}")
    try:
        if not Path(model).is_dir():
            raise FileNotFoundError(f"{model} is not a local folder")
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=model, commit_message="Upload")
    except Exception as error:  # errors of huggingface_hub have no common base
        reason = one_line(error, 200)
        raise UserError(
            f"{model} is finished, but could not be pushed to {repository} ({reason}); check the name "
            "and `hf auth login`; the same command tries again"
        ) from error
    say(f"pushed to {commit.commit_url}")


def _complete_config(
    path: Path, max_length: int, labels: Sequence[str], thresholds: Mapping[str, float]
) -> None:
    """Add the labels that transformers omits from config.json, the length and the thresholds.

    transformers omits LABEL_0 and LABEL_1 as defaults. Architectures with another default, such as
    BART, then load with a wrong number of labels. Length and thresholds of the base model are
    replaced or removed.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    before = dict(config)
    if labels and "id2label" not in config:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    config[TRAINED_LENGTH_KEY] = max_length
    config.pop(THRESHOLDS_KEY, None)
    if thresholds:
        config[THRESHOLDS_KEY] = dict(thresholds)
    if config != before:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_answer(model: Path) -> None:
    """Load the model as inference does, and classify its example.

    Raises:
        UserError: The model cannot be loaded, or a score is NaN or infinite.
    """
    predictor = PREDICTORS["text-classification"].load(str(model))
    (scores,) = predictor(predictor.example["inputs"])
    if not all(math.isfinite(label["score"]) for label in scores):
        raise UserError(
            "the exported model answers its example with NaN or infinity; lower --learning-rate, or "
            "use --mixed-precision no"
        )


def _selection(splits: Collection[str], run: Mapping[str, Any]) -> str:
    """Build the card's sentences on the splits that selected the checkpoint and the recipe.

    Metrics on the selecting splits are optimistic.
    """
    chose = " and ".join(split for split in splits if not is_test(split))
    tests = " and ".join(split for split in splits if is_test(split))
    apart = f"; {tests} took no part in it" if tests else ""
    sweep = (
        f" Sweep `{run['sweep']}` compared its recipe with others on rows of {chose}."
        if run.get("sweep")
        else ""
    )
    return f"{chose} also chose this checkpoint among those of the run{apart}.{sweep}"


def _base(config: TrainConfig, run: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the base model's Hub id (None if unknown) and its description for the card."""
    name = config.model_name_or_path
    if commit := run.get("model_revision"):
        return name, f"`{name}`, commit `{commit}`"
    packaged = PACKAGED.get(name)
    label = f"`{packaged}` (`{name}`)" if packaged else f"`{name}`"
    return packaged, f"{label}, digest of its weights `{run.get('base_model_digest')}`"


def _limits(config: TrainConfig, task: Task, thresholds: bool) -> list[str]:
    """List the card's sentences on the limits of the training, the evaluation and the scores."""
    return [
        f"Only the first {config.max_length} tokens of a text were read in training and evaluation. "
        f"Trainyard's predictions and server read as many (`{TRAINED_LENGTH_KEY}` in `config.json`); plain "
        "transformers does not use it.",
        "The intervals hold for other rows like these, not for other seeds. Rows from another source, time "
        "or language were not evaluated.",
        *(
            ["The model was trained to give one of the labels above to every text, also where none fits."]
            if task.problem_type == "single_label_classification"
            else []
        ),
        *(
            [f"Labels apply at the fitted thresholds in `config.json` (`{THRESHOLDS_KEY}`); plain "
             "transformers does not use them."]
            if thresholds
            else []
        ),
        *(
            ["Scores are not calibrated probabilities unless `calibration.json` exists here."]
            if task.problem_type != "regression"
            else []
        ),
    ]  # fmt: skip


def model_card(
    config: TrainConfig,
    task: Task,
    run: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    counts: Mapping[str, int],
) -> str:
    """Build the model card (README.md): results with intervals, warnings, limits and training.

    Args:
        config: Config of the run.
        task: Task of the run.
        run: Content of run.json.
        evaluation: `metrics` and `intervals` of the best checkpoint, by split.
        counts: Number of rows by split.
    """
    rows = [
        f"| {split} | {name} | {value:.4f} | {span_words(ends, '{:.4f}'.format)} |"
        for split, found in evaluation.items()
        for name, value in found["metrics"].items()
        for ends in [found["intervals"][name]]
    ]
    recipe = [
        f"| {name} | {getattr(config, name)} |"
        for name in (
            "learning_rate", "num_train_epochs", "max_steps", "train_batch_size", "weight_decay",
            "lr_scheduler_type", "warmup_steps", "max_length", "mixed_precision", "seed",
            "class_weights", "dropout", "label_smoothing_factor", "label_thresholds",
        )
    ]  # fmt: skip
    hub_id, base = _base(config, run)
    labels = ", ".join(f"`{name}`" for name in task.labels[:MANY_LABELS])
    more = len(task.labels) - MANY_LABELS
    fitted = config.label_thresholds == "fitted"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-classification",
            *([f"base_model: {json.dumps(hub_id)}"] if hub_id else []),
            "---",
            f"# {run['name']}",
            "",
            f"{base}, fine-tuned on `{config.data_name}` ({task.problem_type}) by Trainyard.",
            "",
            f"Rows: {', '.join(f'{count} of {name}' for name, count in counts.items())}."
            + (f" Labels: {labels}{f' and {more} more' if more > 0 else ''}." if labels else ""),
            "",
            "## Results",
            "",
            "| split | metric | value | 95 % interval over rows |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            _selection(evaluation, run),
            *(
                ["Each of its rows is decided by thresholds that were fitted on other rows of it."]
                if fitted
                else []
            ),
            "",
            *_section("Warnings", [w.removeprefix("warning: ") for w in run.get("warnings", [])]),
            *_section("Limits", _limits(config, task, fitted)),
            "## Training",
            "",
            "| setting | value |",
            "| --- | --- |",
            *recipe,
            "",
            f"Data fingerprint `{run['data_fingerprint']}`, config `{run['identity'][:16]}`, code "
            f"`{run['versions']['commit'] or 'unknown'}`, "
            + ", ".join(f"{k} {v}" for k, v in run["versions"].items() if k != "commit")
            + ".",
            "",
            "## Use",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            'classify = pipeline("text-classification", model="path/to/this/folder")',
            "```",
            "",
        ]
    )


def _section(title: str, sentences: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {each}" for each in sentences), ""] if sentences else []
