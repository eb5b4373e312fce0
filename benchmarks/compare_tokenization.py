"""Compare tokenization by Ray Data's tasks with `datasets.map(num_proc=2)`, in turn.

    python benchmarks/compare_tokenization.py --data-dir DIR --task sst2 --pairs 3

Both start from the task's Parquet file, without running workers, and end with token ids on disk
(ours: the flat table that training maps; the peer's: its Arrow cache). Ray itself is started before
the clock, as in a run.
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

from trainyard.cluster.session import ray_session
from trainyard.config import TrainConfig

HERE = Path(__file__).parent


def ours(config: TrainConfig, tokenizer: Any, folder: Path) -> tuple[float, int]:
    """Tokenize the training split with our code; return seconds and number of tokens."""
    from trainyard.data.splits import find_splits
    from trainyard.data.tokenize import prepare

    splits = find_splits(config, ["train"])
    started = time.perf_counter()
    table = prepare(splits, tokenizer, config, folder).table("train")
    return time.perf_counter() - started, int(table.lengths.sum())


def peer(config: TrainConfig, tokenizer: Any, folder: Path) -> tuple[float, int]:
    """Tokenize the training split as in the Hugging Face course; return seconds and tokens."""
    import datasets

    from trainyard.tasks import get_task

    datasets.disable_progress_bars()
    columns = get_task(config.task).text_columns
    file = Path(config.data_dir or "") / config.task / "train.parquet"
    started = time.perf_counter()
    raw = datasets.load_dataset(
        "parquet", data_files=str(file), split="train", cache_dir=str(folder)
    )
    done = raw.map(
        lambda rows: tokenizer(
            *(rows[name] for name in columns), truncation=True, max_length=config.max_length
        ),
        batched=True,
        num_proc=2,
    )
    seconds = time.perf_counter() - started
    return seconds, sum(len(ids) for ids in done["input_ids"])


def main() -> None:
    """Run the pairs and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()

    from trainyard.models.build import build_tokenizer

    config = TrainConfig(task=args.task, data_dir=args.data_dir)
    tokenizer = build_tokenizer(config)
    runs: list[dict[str, float]] = []
    with ray_session(config):
        for _ in range(args.pairs):
            run: dict[str, float] = {}
            for name, function in (("ours", ours), ("peer", peer)):
                with tempfile.TemporaryDirectory() as folder:
                    run[name], run[f"{name}_tokens"] = function(config, tokenizer, Path(folder))
            assert run["ours_tokens"] == run["peer_tokens"]
            runs.append(run)
            print(json.dumps(run), file=sys.stderr)
    medians = {side: statistics.median(run[side] for run in runs) for side in ("ours", "peer")}
    result = {
        **provenance(args.data_dir),
        "speed_ratio": medians["peer"] / medians["ours"],
        "median_seconds": medians,
        "runs": runs,
    }
    (HERE / "results" / f"tokenize-{args.task}.json").write_text(
        json.dumps(result, indent=2) + "\n"
    )
    print(json.dumps({"speed_ratio": result["speed_ratio"], "median_seconds": medians}))


if __name__ == "__main__":
    main()
