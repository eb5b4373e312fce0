"""Small models of real architectures, with random weights and real subword tokenizers, on disk.

Random weights suffice to test wiring and decoding, since all outputs differ.
"""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import WORDS

LABELS = ("entailment", "neutral", "contradiction")


def wordpiece(positions: int = 64) -> Any:
    """Build a WordPiece tokenizer: known words are one token, others are split into characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
        *letters, *(f"##{letter}" for letter in letters), *WORDS,
    ]  # fmt: skip
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=positions,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def bert(folder: Path, head: str, positions: int = 64, **config: Any) -> Path:
    """Write a two-layer BERT with a head, such as `ForQuestionAnswering`."""
    import torch
    import transformers

    tokenizer = wordpiece(positions)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = getattr(transformers, f"Bert{head}")(
        transformers.BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=64, max_position_embeddings=positions,
            initializer_range=0.5, **config,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def classifier(folder: Path, labels: tuple[str, ...] = LABELS, **config: Any) -> Path:
    """Write a BERT that classifies sequences."""
    names = dict(enumerate(labels))
    numbers = {label: i for i, label in names.items()}
    return bert(folder, "ForSequenceClassification", id2label=names, label2id=numbers, **config)


def same(ours: Any, theirs: Any) -> None:
    """Assert equal structure and texts, and equal floats to 1e-5."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            same(ours[key], value)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for mine, yours in zip(ours, theirs, strict=True):
            same(mine, yours)
    elif isinstance(theirs, float | np.floating):
        assert type(ours) is float
        assert ours == pytest.approx(theirs, abs=1e-5)
    else:
        assert ours == theirs


def byte_level() -> Any:
    """Build a byte-level BPE tokenizer with a few merges, like GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("a", "b"), ("b", "ab")]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64,
        pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def gpt2(folder: Path, **generation: Any) -> Path:
    """Write a GPT-2 with 64 learned positions; `generation` sets its generation config."""
    import torch
    import transformers

    tokenizer = byte_level()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.4,
        )
    )  # fmt: skip
    _with_defaults(model, generation).save_pretrained(folder)
    return folder


def encoder_decoder(folder: Path, kind: str, **config: Any) -> Path:
    """Write a `T5` (relative positions) or a `Bart` (learned positions)."""
    import torch
    import transformers

    tokenizer = byte_level()
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "T5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
               "decoder_start_token_id": 0, "initializer_factor": 4.0},
        "Bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64,
                 "decoder_ffn_dim": 64, "encoder_attention_heads": 2, "init_std": 0.4,
                 "decoder_attention_heads": 2, "max_position_embeddings": 64,
                 "decoder_start_token_id": 2, "forced_eos_token_id": 2},
    }  # fmt: skip
    generation = config.pop("generation", {})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(
        getattr(transformers, f"{kind}Config")(
            vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2,
            **sizes[kind], **config,
        )
    )  # fmt: skip
    _with_defaults(model, generation).save_pretrained(folder)
    return folder


FRENCH_AND_ENGLISH = (
    "Ce cours est produit par Hugging Face.", "This course is produced by Hugging Face.",
    "Le train part à midi.", "The train leaves at noon.", "Nous avons mangé du pain.",
    "We ate bread.", "La réunion commence demain.", "The meeting starts tomorrow.",
)  # fmt: skip


def marian(folder: Path) -> Path:
    """Write a translation model with SentencePiece, in the format of Helsinki-NLP/opus-mt-fr-en."""
    import io

    import sentencepiece
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(FRENCH_AND_ENGLISH), model_writer=file, vocab_size=64,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(file.getvalue())
    spm = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    pieces = [spm.id_to_piece(i) for i in range(3, len(spm))]
    vocabulary = {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "fr", "target_lang": "en"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pad = vocabulary["<pad>"]
    torch.manual_seed(0)
    model = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=len(vocabulary), d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=2,
            decoder_attention_heads=2, max_position_embeddings=64, init_std=0.4, pad_token_id=pad,
            eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=0,
        )
    )  # fmt: skip
    defaults = {"num_beams": 2, "max_length": 16, "bad_words_ids": [[pad]]}
    _with_defaults(model, defaults).save_pretrained(folder)
    return folder


def _with_defaults(model: Any, generation: dict[str, Any]) -> Any:
    """Set fields of the model's generation config; return the model."""
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    return model


TAGS = {0: "O", 1: "B-PER", 2: "I-PER"}


def every_task(root: Path) -> dict[str, Path]:
    """Write a small model for each task of `PREDICTORS`; return the folders by task."""
    languages = {"translation_en_to_de": {"prefix": "bab: "}}
    t5 = encoder_decoder(
        root / "t5", "T5", generation={"max_new_tokens": 8}, task_specific_params=languages
    )
    return {
        "text-classification": classifier(root / "classifier"),
        "zero-shot-classification": root / "classifier",
        "token-classification": bert(root / "ner", "ForTokenClassification", id2label=TAGS),
        "question-answering": bert(root / "qa", "ForQuestionAnswering"),
        "fill-mask": bert(root / "mlm", "ForMaskedLM"),
        "feature-extraction": bert(root / "encoder", "Model"),
        "sentence-similarity": root / "encoder",
        "summarization": t5,
        "translation": t5,
        "text2text-generation": t5,
        "text-generation": gpt2(root / "gpt2"),
    }
