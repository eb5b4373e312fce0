"""From the best checkpoint to `model/`: what plain transformers loads, with a card that says how."""

import json
import math
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig
from trainyard.data import is_test
from trainyard.errors import UserError
from trainyard.inference import PREDICTORS
from trainyard.storage import RunFolder, sync_folder, sync_tree
from trainyard.tasks import Task
from trainyard.terminal import say, stage

MODEL_FILES = ("config.json", "model.safetensors")


def export_model(
    folder: RunFolder,
    checkpoint: Path,
    tokenizer: Any,
    card: str,
    metrics: Mapping[str, Any],
    labels: Sequence[str] = (),
) -> None:
    """Make `checkpoint` the run's `model/`, complete or not at all.

    The model is loaded and answers one request before it gets its place. After a crash at any
    point the same command exports again, as the export is a function of the run.

    Raises:
        UserError: when the model cannot be loaded, or answers no numbers.
    """
    scratch = folder.path / f".model-{uuid.uuid4().hex[:8]}"
    scratch.mkdir()
    for name in MODEL_FILES:
        shutil.copyfile(checkpoint / name, scratch / name)
    _name_labels(scratch / "config.json", labels)
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
    """Upload `model/` to a repository of the Hub; one that does not exist is made, and private.

    Raises:
        UserError: when the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    stage(f"uploading {model} to {repository}")
    try:
        if not Path(model).is_dir():
            raise FileNotFoundError(f"{model} is no folder here")
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=model, commit_message="Upload")
    except Exception as error:  # its errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{model} is finished, but could not be pushed to {repository} ({reason}); check the name "
            "and `hf auth login`; the same command tries again"
        ) from error
    say(f"pushed to {commit.commit_url}")


def _name_labels(path: Path, labels: Sequence[str]) -> None:
    """Write labels that transformers left out of config.json.

    It omits LABEL_0 and LABEL_1 as defaults; architectures with another default, such as BART, then
    expect another number of labels.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    if labels and "id2label" not in config:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_answer(model: Path) -> None:
    """Load the model as inference does, and compute one answer."""
    predictor = PREDICTORS["text-classification"].load(str(model))
    (scores,) = predictor(predictor.example["inputs"])
    if not all(math.isfinite(label["score"]) for label in scores):
        raise UserError(
            "the exported model answers its example with NaN or infinity; lower --learning-rate, or "
            "use --mixed-precision no"
        )


def _selection(splits: Collection[str]) -> str:
    """Say which splits chose the checkpoint: their figures flatter it."""
    chose = " and ".join(split for split in splits if not is_test(split))
    tests = " and ".join(split for split in splits if is_test(split))
    apart = f"; {tests} took no part in it" if tests else ""
    return f"{chose} also chose this checkpoint among those of the run{apart}."


def model_card(
    config: TrainConfig, task: Task, run: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> str:
    """README.md of the model: results with intervals, how it was trained, how to use it."""
    rows = [
        f"| {split} | {name} | {value:.4f} | {low:.4f} to {high:.4f} |"
        for split, found in evaluation.items()
        for name, value in found["metrics"].items()
        for low, high in [found["intervals"][name]]
    ]
    recipe = [
        f"| {name} | {getattr(config, name)} |"
        for name in (
            "learning_rate", "num_train_epochs", "max_steps", "train_batch_size", "weight_decay",
            "lr_scheduler_type", "warmup_steps", "max_length", "mixed_precision", "seed",
        )
    ]  # fmt: skip
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-classification",
            f"base_model: {json.dumps(config.model_name_or_path)}",
            "---",
            f"# {run['name']}",
            "",
            f"`{config.model_name_or_path}` fine-tuned on `{config.data_name}` ({task.problem_type}) by "
            "Trainyard.",
            "",
            "## Results",
            "",
            "| split | metric | value | 95 % interval over rows |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            _selection(evaluation),
            "",
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
