"""Compare our server with FastAPI plus `pipeline` and with `@serve.batch`, in turn, in one session.

    python benchmarks/compare_serving.py --data-dir DIR --rounds 2 --seconds 10

`--kinds ours ours-grpc ours-handle` compares transports between our gateway and its replica.
Requests have one sentence of SST-2 each, of all lengths; the model is MiniLM with a head of two
classes. Writes all figures, ratios and versions to benchmarks/results/NAME.json.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from load import Connection, bodies_of, classifier, closed_loop
from provenance import provenance
from serving_process import running

KINDS = ("ours", "batch", "pipeline")
TRANSPORTS = ("ours-grpc", "ours-handle")
"""Our server, with Serve's gRPC transport or its handle between gateway and replica."""


def sentences(data_dir: str, count: int = 400) -> list[str]:
    """Read up to `count` sentences of the validation split, evenly spaced."""
    import pyarrow.parquet as pq

    texts = pq.read_table(Path(data_dir) / "sst2/validation.parquet")["sentence"].to_pylist()
    return [str(text) for text in texts[:: max(1, len(texts) // count)]][:count]


OUR_PASS = """
from trainyard.inference import PREDICTORS
predictor = PREDICTORS['text-classification'].load(model, engine=engine, dtype=dtype)
rows = [predictor.preprocess(text, {'truncation': True}).rows for text in texts]
passes = [lambda row=row: predictor.forward(row) for row in rows]
"""
"""Code of a forward pass with our server's engine."""

THEIR_PASS = """
import transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
network = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
batches = [tokenizer(text, truncation=True, return_tensors='pt') for text in texts]
passes = [lambda batch=batch: network(**batch) for batch in batches]
"""
"""Code of a forward pass with transformers alone."""


def bare_forward(passes: str, *arguments: str, texts: list[str], threads: int) -> float:
    """Measure the median milliseconds of a forward pass of one tokenized text, in a new process."""
    import subprocess

    code = (
        "import sys, json, time, statistics, torch\n"
        f"torch.set_num_threads({threads})\n"
        "model, engine, dtype = sys.argv[1:]\n"
        f"texts = json.load(sys.stdin)\n{passes}\n"
        "times = []\n"
        "with torch.inference_mode():\n"
        "    for run in passes[:20] + passes:\n"
        "        t = time.perf_counter(); run(); times.append(time.perf_counter() - t)\n"
        "print(statistics.median(times[20:]) * 1000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=json.dumps(texts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return round(float(done.stdout.splitlines()[-1]), 2)


async def answers(url: str, bodies: list[bytes]) -> list[dict[str, float]]:
    """Return the scores by label of each body."""
    connection = Connection(url)
    found = [json.loads((await connection.post(body))[1]) for body in bodies]
    connection.close()
    return [{entry["label"]: entry["score"] for entry in answer[0]} for answer in found]


def largest_difference(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """Return the largest difference between the scores of two servers."""
    return max(abs(x[label] - y[label]) for x, y in zip(a, b, strict=True) for label in x)


def main() -> None:
    """Run the rounds and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32, 64])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS + TRANSPORTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-haproxy", action="store_true")
    parser.add_argument("--engine", default="torch", help="of our server; the others have torch")
    parser.add_argument("--dtype", default="float32", help="of our server's engine")
    parser.add_argument("--name", default="serving")
    args = parser.parse_args()

    texts = sentences(args.data_dir)
    bodies = bodies_of(texts)
    runs: list[dict[str, Any]] = []
    given: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = classifier(folder)
        bare: dict[str, list[float]] = {"engine": [], "transformers": []}
        for number in range(args.rounds):
            # In each round, since the speed of a machine drifts.
            for name, passes in (("engine", OUR_PASS), ("transformers", THEIR_PASS)):
                bare[name].append(
                    bare_forward(
                        passes, model, args.engine, args.dtype, texts=texts, threads=args.threads
                    )
                )
            for kind in args.kinds:
                with running(
                    kind,
                    model,
                    args.threads,
                    haproxy=not args.no_haproxy,
                    engine=args.engine,
                    dtype=args.dtype,
                ) as server:
                    given[kind] = asyncio.run(answers(server.url, bodies[:40]))
                    for clients in args.clients:
                        asyncio.run(closed_loop(server.url, bodies, clients, 2))  # warm
                        before = server.cpu_seconds()
                        outcome = asyncio.run(
                            closed_loop(server.url, bodies, clients, args.seconds)
                        )
                        used = 1000 * (server.cpu_seconds() - before)
                        run: dict[str, Any] = {"round": number, "server": kind, "clients": clients}
                        run["cpu_ms_per_request"] = round(used / outcome.statuses.total(), 2)
                        runs.append({**run, **outcome.as_json()})
                        print(json.dumps(runs[-1]), file=sys.stderr)

    def median(kind: str, clients: int, figure: str) -> float:
        found = [run for run in runs if run["server"] == kind and run["clients"] == clients]
        return float(statistics.median(run[figure] for run in found))

    summary: dict[str, Any] = {
        "bare_forward_p50_ms": {name: statistics.median(times) for name, times in bare.items()}
    }
    if "ours" in args.kinds:
        for clients in args.clients:
            summary[f"ours_{clients}"] = (
                {
                    figure: median("ours", clients, figure)
                    for figure in ("per_second", "p50_ms", "p99_ms", "cpu_ms_per_request")
                }
                | {
                    f"cpu_of_{kind}": round(
                        median(kind, clients, "cpu_ms_per_request")
                        / median("ours", clients, "cpu_ms_per_request"),
                        2,
                    )
                    for kind in args.kinds
                    if kind != "ours"
                }
                | {
                    f"times_{kind}": round(
                        median("ours", clients, "per_second") / median(kind, clients, "per_second"),
                        2,
                    )
                    for kind in args.kinds
                    if kind != "ours"
                }
            )
        summary["largest_difference_of_scores"] = max(
            (largest_difference(given["ours"], given[k]) for k in args.kinds if k != "ours"),
            default=0.0,
        )
    result = {
        **provenance(args.data_dir),
        "summary": summary,
        "bare_forward_p50_ms": bare,
        "runs": runs,
    }
    path = Path(__file__).parent / "results" / f"{args.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
