"""Measure the seconds from `trainyard serve` to the first answer, for models of several tasks.

    python benchmarks/ready.py --rounds 2

Each round runs the command in an empty folder. It starts Ray and Serve; a replica imports modules,
reads and checks the weights, warms up, and answers. MiniLM is pretrained. The other models have
their published sizes and random weights, which load equally fast. Writes
benchmarks/results/ready.json.
"""

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from load import classifier
from provenance import provenance
from serving_process import free_port

HERE = Path(__file__).parent
NAME = "bench"
"""Name of the model's folder, and so of the model."""
POLL_SECONDS = 0.1
LONGEST_SECONDS = 180
"""Maximum seconds until the first answer."""
PROCESSES = {"ray": "gcs_server", "replica": "ServeReplica:trainyard:Model"}
"""Point in time -> part of the command line of the process that starts then."""
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
    """Run the command until its first answer and its banner, then end it as Ctrl-C does.

    Returns:
        Seconds from the command to each point: start of Ray's first process and of the replica's,
        first answer of the gateway to a probe (`gateway`), first prediction (`seconds`), and the
        banner. Also the seconds that the replica took to load the model.

    Raises:
        SystemExit: The command fails, or does not answer within LONGEST_SECONDS.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        str(Path(sys.executable).with_name("trainyard")), "serve", "--model-name-or-path", model,
        "--engine", engine, "--port", str(port),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as empty:
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=empty, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        banner = _Banner(process, began)
        try:
            gateway = _wait(f"{url}/health", None, banner) - began
            seconds = _wait(f"{url}/models/{NAME}", b'{"inputs": "hello"}', banner) - began
            printed = banner.wait()
            with urllib.request.urlopen(f"{url}/models/{NAME}", timeout=30) as response:
                load_seconds = json.load(response)["load_seconds"]
            started = _starts(process)
        finally:
            _end(process)
    points = {**started, "gateway": gateway, "seconds": seconds, "banner": printed}
    return {**{key: round(at, 1) for key, at in points.items()}, "load_seconds": load_seconds}


class _Banner:
    """Reader of a command's output, in a thread; it notes when the banner is printed."""

    def __init__(self, process: "subprocess.Popen[str]", began: float) -> None:
        self.process, self._began, self._seconds = process, began, 0.0
        self._lines: list[str] = []
        self._seen = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.append(line)
            if line.startswith("ready: "):
                self._seconds = time.monotonic() - self._began
                self._seen.set()

    def wait(self) -> float:
        """Return the seconds from the command to the banner."""
        if not self._seen.wait(30):
            raise SystemExit(f"the command prints no banner:\n{self.text()}")
        return self._seconds

    def text(self) -> str:
        """Return what the command has printed; all of it if the command has ended."""
        self._thread.join(5)
        return "".join(self._lines)


def _wait(url: str, body: bytes | None, banner: _Banner) -> float:
    """Ask `url` until it answers with 200; return the time of the answer on the monotonic clock."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline and banner.process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(request, timeout=30).read()
            return time.monotonic()
        time.sleep(POLL_SECONDS)
    raise SystemExit(f"{url} does not answer:\n{banner.text()}")


def _starts(process: "subprocess.Popen[str]") -> dict[str, float]:
    """Return the seconds from the start of the command to the start of each of PROCESSES."""
    root = psutil.Process(process.pid)
    found = {}
    for one in root.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(one.cmdline())
            for point, part in PROCESSES.items():
                if part in line:
                    found[point] = one.create_time() - root.create_time()
    return found


def _end(process: "subprocess.Popen[str]") -> None:
    """End the command as Ctrl-C does; wait until it and its processes have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs([*started, psutil.Process(process.pid)], timeout=60)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        if alive:
            raise SystemExit(f"{len(alive)} process(es) of the server did not end: {alive}")


def main() -> None:
    """Start a server for each model, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    # A command that inherits an ignored SIGINT, as from `nohup … &`, would not end by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found = provenance()
    for name in SIZES:
        for engine in ("torch", "openvino") if "classifier" in name else ("torch",):
            with tempfile.TemporaryDirectory() as folder:
                model, parameters = make(name, f"{folder}/{NAME}")
                runs = [first_answer(model, engine) for _ in range(args.rounds)]
            middle = statistics.median(run["seconds"] for run in runs)
            row = {"parameters": parameters, "median_seconds": middle, "runs": runs}
            found[f"{name}, {engine}"] = row
            print(name, engine, json.dumps(row))
    (HERE / "results/ready.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
