"""Compare batch inference with transformers' `pipeline` over a data set, in turn, in one process.

    python benchmarks/compare_predict.py --input-file DIR/qnli/validation.parquet --text-column sentence

Both read the file, classify the same rows with the same fp32 weights, and write JSON lines. The
weights are the pretrained MiniLM's with a random head, which does not change the speed. The peer
follows transformers' documentation: `pipeline(KeyDataset(…), batch_size=64)`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import provenance

from trainyard.config import DEFAULT_MODEL, ModelFlags
from trainyard.inference.batch.config import PredictConfig
from trainyard.inference.batch.run import predict
from trainyard.models.build import build_model, build_tokenizer
from trainyard.tasks import get_task

HERE = Path(__file__).parent


def peer(model: str, source: Path, output: Path, column: str, batch_size: int) -> None:
    """Classify the rows with transformers' pipeline over a data set of `datasets`."""
    import datasets
    from transformers import pipeline
    from transformers.pipelines.pt_utils import KeyDataset

    rows = datasets.load_dataset(
        "parquet", data_files=str(source), split="train", cache_dir=str(output.parent / "cache")
    )
    classify = pipeline("text-classification", model=model, top_k=None)
    with output.open("w") as file:
        for text, answer in zip(
            rows[column],
            classify(KeyDataset(rows, column), batch_size=batch_size, truncation=True),
            strict=True,
        ):
            file.write(json.dumps({"text": text, "answer": answer}) + "\n")


def check_equal(ours: Path, theirs: Path) -> float:
    """Assert equal texts; return the largest difference between the best scores of a row."""
    worst = 0.0
    for left, right in zip(ours.open(), theirs.open(), strict=True):
        mine, yours = json.loads(left), json.loads(right)
        assert mine["text"] == yours["text"]
        best = max(yours["answer"], key=lambda found: found["score"])
        worst = max(worst, abs(best["score"] - max(mine["scores"])))
    return worst


def main() -> None:
    """Run the rounds and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input-file", type=Path, required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64, help="of the peer")
    parser.add_argument("--name", default="predict", help="of the result file")
    args = parser.parse_args()

    import pyarrow.parquet as pq
    import torch

    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "rows.parquet"
        table = pq.read_table(args.input_file, columns=[args.text_column])[: args.rows]
        pq.write_table(table, source)
        build_model(DEFAULT_MODEL, get_task("mnli"), seed=42).save_pretrained(folder / "model")
        build_tokenizer(ModelFlags()).save_pretrained(folder / "model")
        ours, theirs = folder / "ours.jsonl", folder / "theirs.jsonl"
        job = PredictConfig(
            model_name_or_path=str(folder / "model"), input_file=str(source),
            output_file=str(ours), text_column=args.text_column,
        )  # fmt: skip
        for number in range(args.rounds + 1):
            seconds: dict[str, Any] = {}
            for side, run in (
                ("ours", lambda: predict(job)),
                (
                    "peer",
                    lambda: peer(
                        str(folder / "model"), source, theirs, args.text_column, args.batch_size
                    ),
                ),
            ):
                started = time.perf_counter()
                run()
                seconds[side] = time.perf_counter() - started
            if number:  # the first round pays for imports
                rounds.append(seconds)
                print(json.dumps(seconds), file=sys.stderr)
        difference = check_equal(ours, theirs)

    result = {
        **provenance(str(args.input_file.parents[1])),
        "threads": torch.get_num_threads(),
        "rows": table.num_rows,
        "rows_per_second": {
            side: table.num_rows / statistics.median(found[side] for found in rounds)
            for side in ("ours", "peer")
        },
        "speed_ratio": statistics.median(found["peer"] / found["ours"] for found in rounds),
        "speed_ratios": [found["peer"] / found["ours"] for found in rounds],
        "largest_score_difference": difference,
        "rounds": rounds,
    }
    (HERE / "results" / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("speed_ratio", "largest_score_difference")}))


if __name__ == "__main__":
    main()
