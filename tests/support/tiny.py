"""Tiny model and tiny data on disk, usable without the package."""

import json
from pathlib import Path
from typing import Any

WORDS = [
    f"{a}{b}" for a in ("ba", "co", "du", "fe", "gi", "lo", "mu", "na") for b in "aeioubdgklmn"
]


def write_tiny_model(folder: Path, **sizes: float) -> Path:
    """Write a two-layer BERT with dropout and a word-level tokenizer, without the Hub.

    `sizes` are fields of its config.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    small = {"vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}  # fmt: skip
    BertModel(BertConfig(**small | sizes)).save_pretrained(folder)
    return folder


def write_task(folder: Path, task: str = "mrpc", train: int = 90, validation: int = 37) -> Path:
    """Write a data folder like GLUE's: pairs that share their first word are equivalent."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / task).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, rows in (("train", train), ("validation", validation)):
        first, second, labels = [], [], []
        for i in range(rows):
            words = rng.choice(WORDS, size=int(rng.integers(2, 24)))
            other = rng.choice(WORDS, size=int(rng.integers(2, 12)))
            labels.append(i % 2)
            first.append(" ".join(words))
            second.append(" ".join([words[0] if i % 2 else other[0], *other[1:]]))
        pq.write_table(
            pa.table(
                {
                    "sentence1": first,
                    "sentence2": second,
                    "label": pa.array(labels, pa.int64()),
                    "idx": pa.array(range(rows), pa.int32()),
                }
            ),
            folder / task / f"{split}.parquet",
        )
    return folder


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
