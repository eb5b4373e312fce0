"""Measure the seconds from a command to the first answer, for models of several sizes and tasks.

    python benchmarks/ready.py --rounds 2

Each model has a new server (`benchmarks/serving_process.py`). Python starts Ray and Serve; a
replica imports modules, reads and checks the weights, compares its engine, warms up, and answers.
MiniLM is pretrained. The other models have their published sizes and random weights, which load
equally fast. Writes benchmarks/results/ready.json.
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from load import classifier
from provenance import provenance
from serving_process import running

HERE = Path(__file__).parent
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "MiniLM, classifier": ("", {}),
    "BERT base, classifier": ("BertForSequenceClassification", {}),
    "RoBERTa large, classifier": (
        "RobertaForSequenceClassification",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": 4096},
    ),
    "T5 small, generates": ("T5ForConditionalGeneration", {"decoder_start_token_id": 0}),
    "GPT-2, generates": ("GPT2LMHeadModel", {"eos_token_id": 102, "bos_token_id": 101}),
}  # fmt: skip
"""Model -> its class in transformers, and the changed fields of its config."""


def make(name: str, folder: str) -> tuple[str, int]:
    """Write a model and MiniLM's tokenizer to `folder`; return it and the number of parameters."""
    import torch
    import transformers

    classifier(folder)
    kind, changed = SIZES[name]
    if not kind:
        found = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        tokens = len(transformers.AutoTokenizer.from_pretrained(folder))
        torch.manual_seed(0)
        model_class = getattr(transformers, kind)
        config = model_class.config_class(vocab_size=tokens, pad_token_id=0, **changed)
        found = model_class(config)
        found.save_pretrained(folder)
    return folder, sum(weights.numel() for weights in found.parameters())


def first_answer(model: str, engine: str) -> dict[str, float]:
    """Return the seconds until a server answers, and those that it took to load the model."""
    began = time.perf_counter()
    with running("ours", model, engine=engine) as server:
        seconds = time.perf_counter() - began
        with urllib.request.urlopen(server.url, timeout=30) as response:
            about = json.load(response)
    return {"seconds": round(seconds, 1), "load_seconds": about["load_seconds"]}


def main() -> None:
    """Start a server for each model, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    found = provenance()
    for name in SIZES:
        for engine in ("torch", "openvino") if "classifier" in name else ("torch",):
            with tempfile.TemporaryDirectory() as folder:
                model, parameters = make(name, folder)
                runs = [first_answer(model, engine) for _ in range(args.rounds)]
            middle = statistics.median(run["seconds"] for run in runs)
            row = {"parameters": parameters, "median_seconds": middle, "runs": runs}
            found[f"{name}, {engine}"] = row
            print(name, engine, json.dumps(row))
    (HERE / "results/ready.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
