"""Tiny classifiers with random weights of many architectures, with byte-level BPE tokenizers."""

import csv
import random
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig

TEXT_WORDS = [
    "the", "train", "was", "late", "good", "bad", "signal", "station", "platform", "arrived",
    "left", "track", "red", "green", "slow", "fast", "never", "always", "ticket", "seat",
]  # fmt: skip

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
}  # fmt: skip
XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", SIZES),
    "roberta": ("roberta", {**SIZES, "max_position_embeddings": 130}),
    "roformer": ("roformer", SIZES),
    "xlnet": ("xlnet", XLNET),
    "fnet": ("fnet", {k: v for k, v in SIZES.items() if k != "num_attention_heads"}),
    "convbert": ("convbert", {**SIZES, "embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3}),
    "mobilebert": ("mobilebert", {**SIZES, "embedding_size": 16, "intra_bottleneck_size": 16,
                                  "num_feedforward_networks": 1}),
    "canine": ("canine", SIZES),
    "big_bird": ("big_bird", {**SIZES, "attention_type": "block_sparse", "block_size": 4,
                              "num_random_blocks": 1}),
    "t5": ("t5", {"d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": 4, "d_ff": 64}),
    "bart": ("bart", BART),
    "gpt2": ("gpt2", GPT2),
    "gpt2-left": ("gpt2", GPT2),
    "gpt2-no-pad-in-config": ("gpt2", GPT2),
    "gpt2-pad-not-resized": ("gpt2", GPT2),
    "gpt2-pad-mismatch": ("gpt2", GPT2),
}  # fmt: skip

DECODER = {**SIZES, "num_key_value_heads": 4}
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "llama": ("llama", DECODER),
    "qwen2": ("qwen2", DECODER),
    "qwen2-left": ("qwen2", DECODER),
    "electra": ("electra", {**SIZES, "embedding_size": 16}),
    "albert": ("albert", {**SIZES, "embedding_size": 16}),
    "distilbert": ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "modernbert": ("modernbert", SIZES),
    "deberta": ("deberta-v2", {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "xlm-roberta": ("xlm-roberta", {**SIZES, "max_position_embeddings": 130}),
    "longformer": ("longformer", {**SIZES, "attention_window": 8, "max_position_embeddings": 140}),
    "funnel": ("funnel", {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1]}),
    "nystromformer": ("nystromformer", {**SIZES, "num_landmarks": 4, "segment_means_seq_len": 16,
                                        "max_position_embeddings": 130}),
    "gpt_neox": ("gpt_neox", SIZES),
    "gpt_neo": ("gpt_neo", {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
                            "attention_types": [[["global", "local"], 1]],
                            "max_position_embeddings": 130}),
    "mbart": ("mbart", BART),
    "mt5": ("mt5", {"d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": 4, "d_ff": 64}),
    "reformer": ("reformer", {"hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16,
                              "feed_forward_size": 64, "attn_layers": ["local", "lsh"],
                              "axial_pos_embds": False, "is_decoder": False, "num_buckets": 2,
                              "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
                              "max_position_embeddings": 130}),
}  # fmt: skip
"""More architectures, for benchmarks/bug_reports.py and benchmarks/strategy_architectures.py."""


def _tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names: dict[str, str] = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    template = "<s> $A </s>"
    if kind == "t5":
        template = "$A </s>"
    elif kind == "xlnet":
        template = "$A <sep> <cls>"
        names |= {"bos_token": "<s>", "cls_token": "<cls>", "sep_token": "<sep>"}
    elif kind.startswith("gpt2"):
        template, names = "", {"eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    else:
        names |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}
    special = list(dict.fromkeys(names.values()))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    draw = random.Random(0)
    backend.train_from_iterator(
        [" ".join(draw.choices(TEXT_WORDS, k=draw.randint(3, 25))) for _ in range(100)],
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    if template:
        parts = [(name, backend.token_to_id(name)) for name in special if name in template]
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=parts
        )
    side = "left" if kind in ("xlnet", "gpt2-left", "qwen2-left", "bloom") else "right"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side=side, model_max_length=128, **names
    )


def architecture(folder: Path, kind: str) -> Path:
    """Write a two-class model and tokenizer of a kind of KINDS or FURTHER; return `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    model_type, sizes = (KINDS | FURTHER)[kind]
    tokenizer = _tokenizer(kind)
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1}, **sizes,
    )  # fmt: skip
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    if model_type in ("t5", "bart"):
        config.decoder_start_token_id = tokenizer.pad_token_id
    if kind in ("gpt2-no-pad-in-config", "gpt2-pad-not-resized"):
        config.pad_token_id = None
    if kind == "gpt2-pad-mismatch":
        config.pad_token_id = 0
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.15)
    if kind == "gpt2-pad-not-resized":
        tokenizer.add_special_tokens({"pad_token": "[PAD_NEW]"})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_for(
    folder: Path,
    kind: str,
    texts: list[str] | None = None,
    labels: tuple[str, str] = ("no", "yes"),
    **more: Any,
) -> TrainConfig:
    """Build the config of a run of two steps; by default on 24 rows of different lengths."""
    file = folder / "rows.csv"
    rows = texts or [" ".join(TEXT_WORDS[i % 7 : i % 7 + 6 + i % 11]) for i in range(24)]
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("text", "label"), *((text, labels[i % 2]) for i, text in enumerate(rows))]
        )
    return TrainConfig(
        train_file=str(file), model_name_or_path=str(architecture(folder / "model", kind)),
        max_length=64, max_steps=2, train_batch_size=8, per_device_train_batch_size=4,
        storage_path=str(folder / "runs"), run_name=kind, **more,
    )  # fmt: skip
