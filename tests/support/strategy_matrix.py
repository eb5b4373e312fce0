"""Architectures by strategy: train, cut off, resume, export, and load with plain transformers."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.architectures import config_for
from support.lifted import lift_guards
from support.ranks import Attempt, run_ranks
from support.runs_locally import weights_hash
from support.strategy_runs import KINDS

from trainyard.config import TrainConfig
from trainyard.models.build import build_tokenizer
from trainyard.storage.folder import RunFolder, open_run
from trainyard.training.driver.export import export_model

ARCHITECTURES = ("bert", "roberta", "distilbert", "albert", "electra", "modernbert", "deberta",
                 "xlm-roberta", "gpt2", "t5", "bart")  # fmt: skip
STRATEGIES = {name: KINDS[name] for name in ("ddp", "fsdp", "zero2", "zero3")}
LAST_STEP = 4
LABELS = ("no", "yes")


def try_strategies(kind: str, root: Path) -> dict[str, dict[str, Any]]:
    """Train an architecture with every strategy, on two processes; return the results by strategy.

    `loss_difference` and `logit_difference` are the largest differences from ddp. `resumed` is True
    if a resumed run ends with the same bits as an uninterrupted one. A strategy that fails has
    `error` instead.
    """
    with pytest.MonkeyPatch.context() as patch:
        lift_guards(patch)
        whole = replace(
            config_for(root, kind), max_steps=LAST_STEP, save_steps=2, eval_steps=LAST_STEP,
            per_device_train_batch_size=2, num_workers=2, logging_steps=1, weight_decay=0.1,
        )  # fmt: skip
        errors = _run(whole, list(STRATEGIES), root)
        found: dict[str, dict[str, Any]] = {}
        expected: tuple[list[float], torch.Tensor] | None = None
        for name, error in errors.items():
            folder = open_run(whole.storage_path, name)
            told = error or json.loads((folder.path / "outcome.json").read_text())["error"]
            if told:
                found[name] = {"error": told}
                continue
            losses = [line["loss"] for line in folder.metrics() if "loss" in line]
            logits = _exported_logits(whole, folder)
            expected = expected or (losses, logits)
            cut = open_run(whole.storage_path, f"{name}-cut")
            found[name] = {
                "loss_difference": max(
                    abs(a - b) for a, b in zip(losses, expected[0], strict=True)
                ),
                "logit_difference": float((logits - expected[1]).abs().max()),
                "resumed": weights_hash(cut, LAST_STEP) == weights_hash(folder, LAST_STEP),
            }
    return found


def _run(whole: TrainConfig, names: Sequence[str], root: Path) -> dict[str, str | None]:
    """Run strategies in the same two processes; if one ends these, run each in two new ones.

    Returns the error of each strategy, or None.
    """
    attempts = []
    for name in names:
        config = replace(whole, run_name=name, **STRATEGIES[name])
        cut = replace(config, run_name=f"{name}-cut")
        attempts += [Attempt(config), Attempt(cut, cut_at=2), Attempt(cut)]
    try:
        run_ranks(2, attempts, root / "-".join(names))
    except AssertionError as error:
        if len(names) == 1:
            return {names[0]: str(error).strip().splitlines()[-1]}
        shutil.rmtree(root / "runs")
        alone = [_run(whole, [name], root) for name in names]
        return {name: error for one in alone for name, error in one.items()}
    return dict.fromkeys(names)


def _exported_logits(config: TrainConfig, folder: RunFolder) -> torch.Tensor:
    """Export a run's last checkpoint, and compute logits of a text with plain transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    checkpoint = folder.checkpoints / f"step-{LAST_STEP:08d}"
    export_model(folder, checkpoint, build_tokenizer(config), "card", {}, config.max_length, LABELS)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder.model, output_loading_info=True
    )
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    tokens = AutoTokenizer.from_pretrained(folder.model)("the train was late", return_tensors="pt")
    tokens.pop("token_type_ids", None)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**tokens).logits
    return logits
