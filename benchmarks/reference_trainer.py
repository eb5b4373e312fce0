"""Reference for GLUE fine-tuning, like Hugging Face's `run_glue.py` and course, with `Trainer`.

Padding is dynamic, as in the course (`run_glue.py` pads all rows to 128 tokens by default). Prints
one JSON line: metrics on the validation split, seconds and samples per second of training.

    python benchmarks/reference_trainer.py --task mrpc --data-dir DIR --model MODEL_DIR --seed 0
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TEXT_COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
}
"""Text columns by task, as in `task_to_keys` of transformers' run_glue.py."""


def score(task: str, logits: Any, labels: Any) -> dict[str, float]:
    """Compute the task's GLUE metrics with scikit-learn and SciPy."""
    from scipy import stats
    from sklearn import metrics

    if task == "stsb":
        values = logits.reshape(-1)
        return {
            "pearson": float(stats.pearsonr(values, labels)[0]),
            "spearmanr": float(stats.spearmanr(values, labels)[0]),
        }
    predicted = np.argmax(logits, axis=1)
    found = {"accuracy": float(metrics.accuracy_score(labels, predicted))}
    if task in ("mrpc", "qqp"):
        found["f1"] = float(metrics.f1_score(labels, predicted))
    if task == "cola":
        found["matthews_correlation"] = float(metrics.matthews_corrcoef(labels, predicted))
    return found


def main(*callbacks: Any) -> None:
    """Train, evaluate and print the result; `callbacks` are passed to `Trainer`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="mrpc", choices=sorted(TEXT_COLUMNS))
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--group-by-length", action="store_true")
    args = parser.parse_args()

    import datasets
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.set_seed(args.seed)
    keys = TEXT_COLUMNS[args.task]
    files = {s: str(args.data_dir / args.task / f"{s}.parquet") for s in ("train", "validation")}
    raw = datasets.load_dataset("parquet", data_files=files)
    num_labels = 1 if args.task == "stsb" else len(set(raw["train"]["label"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=num_labels, dtype=torch.float32
    )

    def tokenize(rows: dict[str, list[str]]) -> Any:
        return tokenizer(*(rows[key] for key in keys), truncation=True, max_length=args.max_length)

    tokenized = raw.map(tokenize, batched=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=folder,
                learning_rate=args.learning_rate,
                num_train_epochs=args.epochs,
                max_steps=args.max_steps,
                per_device_train_batch_size=args.batch_size,
                per_device_eval_batch_size=64,
                seed=args.seed,
                bf16=args.bf16,
                train_sampling_strategy="group_by_length" if args.group_by_length else "random",
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                report_to=[],
            ),
            train_dataset=tokenized["train"],
            eval_dataset=tokenized["validation"],
            processing_class=tokenizer,
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            callbacks=list(callbacks),
        )
        result = trainer.train()
        output = trainer.predict(tokenized["validation"])
    print(
        json.dumps(
            {
                "peer": "transformers.Trainer",
                "task": args.task,
                "seed": args.seed,
                "epochs": args.epochs,
                "max_steps": args.max_steps,
                "batch_size": args.batch_size,
                "metrics": score(args.task, output.predictions, output.label_ids),
                "train_seconds": result.metrics["train_runtime"],
                "train_samples_per_second": result.metrics["train_samples_per_second"],
                "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            }
        )
    )


if __name__ == "__main__":
    main()
