"""Training over architectures: unused parameters, missing padding tokens, special tokens in texts."""

import csv
from pathlib import Path
from typing import Any

import pytest
from support.architectures import TEXT_WORDS, architecture
from support.runs_locally import run_locally, weights_hash

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.models.build import build_tokenizer


def config_for(folder: Path, kind: str, texts: list[str] | None = None, **more: Any) -> TrainConfig:
    """A run of two steps on 24 rows of many lengths."""
    file = folder / "rows.csv"
    rows = texts or [" ".join(TEXT_WORDS[i % 7 : i % 7 + 6 + i % 11]) for i in range(24)]
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("text", "label"), *((text, ("no", "yes")[i % 2]) for i, text in enumerate(rows))]
        )
    return TrainConfig(
        train_file=str(file), model_name_or_path=str(architecture(folder / "model", kind)),
        max_length=64, max_steps=2, train_batch_size=8, per_device_train_batch_size=4,
        storage_path=str(folder / "runs"), run_name=kind, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["xlnet", "big_bird", "canine", "roformer", "gpt2-no-pad-in-config"]
)
def test_what_ended_in_a_bare_error_trains(kind: str, tmp_path: Path) -> None:
    outcome, folder = run_locally(config_for(tmp_path, kind))
    assert (outcome.status, outcome.state.step) == ("finished", 2)
    assert (outcome.padding_note is not None) == (kind in ("xlnet", "canine"))
    assert weights_hash(folder, 2)


def test_a_vocabulary_larger_than_the_embedding(tmp_path: Path) -> None:
    config = config_for(tmp_path, "gpt2-pad-not-resized")
    with pytest.raises(UserError, match="train with --resize-embeddings, or give the tokenizer"):
        build_tokenizer(config)
    outcome, _ = run_locally(config_for(tmp_path, "gpt2-pad-not-resized", resize_embeddings=True))
    assert outcome.status == "finished"


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_special_tokens_in_texts_are_text(kind: str, tmp_path: Path) -> None:
    texts = [("good </s> train" if i % 3 else "late") + " signal" * (i % 5) for i in range(24)]
    config = config_for(tmp_path, kind, texts)
    tokenizer = build_tokenizer(config)
    assert tokenizer(texts[1])["input_ids"].count(tokenizer.eos_token_id) == 1
    tokenizer.save_pretrained(tmp_path / "saved")
    assert '"split_special_tokens": true' in (tmp_path / "saved/tokenizer_config.json").read_text()
    outcome, _ = run_locally(config)
    assert outcome.status == "finished"
