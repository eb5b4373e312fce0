"""From the best checkpoint to `model/`: what plain transformers loads, with a card that says how."""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig
from trainyard.storage import RunFolder, sync_folder, sync_tree
from trainyard.tasks import Task

MODEL_FILES = ("config.json", "model.safetensors")


def export_model(
    folder: RunFolder, checkpoint: Path, tokenizer: Any, card: str, metrics: Mapping[str, Any]
) -> None:
    """Make `checkpoint` the run's `model/`, whole or not at all.

    A crash can come at any point: what is exported is a function of the run, so the same command
    does it again.
    """
    scratch = folder.path / f".model-{uuid.uuid4().hex[:8]}"
    scratch.mkdir()
    for name in MODEL_FILES:
        shutil.copyfile(checkpoint / name, scratch / name)
    tokenizer.save_pretrained(scratch)
    (scratch / "README.md").write_text(card, encoding="utf-8")
    (scratch / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    sync_tree(scratch)
    folder.check()
    if folder.model.exists():
        shutil.rmtree(folder.model)
    scratch.rename(folder.model)
    sync_folder(folder.path)
    for leftover in folder.path.glob(".model-*"):
        shutil.rmtree(leftover)


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
            f"`{config.model_name_or_path}` fine-tuned on `{task.name}` ({task.problem_type}) by "
            "Trainyard.",
            "",
            "## Results",
            "",
            "| split | metric | value | 95 % interval over rows |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "The split also chose this checkpoint among those of the run.",
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
