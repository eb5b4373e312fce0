"""Public contracts, compared with the golden files in this folder.

A difference must be deliberate. Rewrite the files with `pytest tests/golden --update-golden`, and give
the reason in the commit message.
"""

import csv
import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.request import urlopen

import pytest
from provenance import processor
from support.job_scripts import JOBS, ROOT, config_of, run
from support.serving_locally import LocalModels, load, serving
from support.tiny import read_lines
from support.weights import weights_hash

from trainyard.config import TrainConfig
from trainyard.serving.gateway.http import RayGatewayMetrics
from trainyard.serving.replica.metrics import RayReplicaMetrics

HERE = Path(__file__).parent

Check = Callable[[str, Any], None]


@pytest.fixture
def check(pytestconfig: pytest.Config) -> Check:
    """Compare a value with its golden file; with --update-golden, rewrite the file first."""

    def compare(name: str, found: Any) -> None:
        path = HERE / f"{name}.json"
        text = json.dumps(found, indent=1, sort_keys=True) + "\n"
        if pytestconfig.getoption("--update-golden"):
            path.write_text(text)
        before, now = path.read_text().splitlines(), text.splitlines()
        changes = "\n".join(difflib.unified_diff(before, now, "golden", "now", n=1, lineterm=""))
        assert not changes, f"{name} has changed (see this module's docstring):\n{changes}"

    return compare


def test_flags(check: Check) -> None:
    check("flags", {job: flags_of(job) for job in JOBS})


def flags_of(job: str) -> dict[str, Any]:
    """Read the type and default of each flag from --help, without the prose."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--help"],
        env={**os.environ, "COLUMNS": "129", "PYTHONPATH": str(ROOT / "platform")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    boxed = [line for line in done.stdout.splitlines() if line.startswith("│")]
    lines = [line.strip("│ ") for line in boxed]
    starts = [i for i, line in enumerate(boxed) if line.startswith("│ -")]  # help is indented
    flags = {}
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        usage, _, first_words = lines[start].partition("  ")
        words = " ".join([first_words.strip(), *lines[start + 1 : end]])
        default = re.search(r".*\((?:default: (.*)|(required|repeatable))\)$", words)
        flags[usage] = default and (default[1] if default[2] is None else default[2])
    assert flags.pop("-h, --help") is None
    assert len(flags) >= 5
    return flags


IDENTITIES = {
    "demo": ("train",),
    "glue task": ("train", "--task", "mrpc", "--data-dir", "glue", "--seed", "1"),
    "own file": ("train", "--train-file", "mail.csv", "--text-column", "body", "--label-column",
                 "kind", "--data-seed", "7", "--max-train-samples", "1000"),
    "several labels": ("train", "--train-file", "tags.jsonl", "--problem-type",
                       "multi_label_classification", "--text-pair-column", "title"),
    "bf16": ("train", "--task", "rte", "--mixed-precision", "bf16", "--pad-to-multiple-of", "16",
             "--gradient-checkpointing"),
    "fsdp": ("train", "--task", "mnli", "--strategy", "fsdp", "--use-gpu", "--num-workers", "4",
             "--train-batch-size", "32", "--per-device-train-batch-size", "8"),
    "deepspeed": ("train", "--strategy", "deepspeed", "--zero-stage", "3", "--use-gpu"),
    "token budget": ("train", "--train-batch-size", "32", "--per-device-train-batch-size", "16",
                     "--per-device-train-tokens", "1024"),
    "max steps": ("train", "--max-steps", "100", "--eval-steps", "25", "--logging-steps", "5",
                  "--early-stopping-patience", "2", "--loop", "trainer", "--warmup-steps", "0.1",
                  "--lr-scheduler-type", "cosine", "--weight-decay", "0.01"),
    "sweep": ("tune", "--task", "mrpc", "--data-dir", "glue", "--searcher", "optuna",
              "--num-trials", "24"),
    "sweep of chosen domains": (
        "tune", "--space", "wide", "--set", "learning_rate=loguniform:1e-6:1e-3", "--set",
        "num_train_epochs=randint:2:5", "weight_decay=0.01", "--scheduler", "pbt", "--population",
        "8", "--grace-period", "2", "--reduction-factor", "4", "--train-file", "mail.csv"),
}  # fmt: skip
"""Command lines of runs and sweeps. The files they name do not exist."""


def test_identities(check: Check) -> None:
    """The same command finds the run or sweep that an earlier version started."""
    found = {name: config_of(*command).identity() for name, command in IDENTITIES.items()}
    suite = config_of("glue", "--seeds", "1", "--tasks", "rte", "--model-name-or-path", "bert")
    found["a suite's run"] = suite.run_config("rte", 1).identity()
    names = {name: config_of(*command).resolved_run_name for name, command in IDENTITIES.items()}
    names["evaluation"] = config_of("eval", "--model-name-or-path", "m").resolved_run_name("demo")
    check("identities", {"identities": found, "run names": names})


def test_prometheus(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}

    def metric(
        kind: str, name: str, description: str, tag_keys: tuple[str, ...], boundaries: Any = ()
    ) -> Any:
        assert description
        found[name] = {"kind": kind, "labels": tag_keys, "buckets": len(boundaries)}
        return Mock()

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"ray.util.metrics.{kind}", partial(metric, kind))
    RayReplicaMetrics("mail")
    RayGatewayMetrics()
    check("prometheus", found)


@pytest.fixture(scope="module")
def flags(small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a run of six steps on one thread."""
    return [
        "--task", "mrpc", "--data-dir", str(small_run.data_dir), "--storage-path",
        str(tmp_path_factory.mktemp("golden")), "--resources-per-worker", "CPU", "1",
        "--model-name-or-path", small_run.model_name_or_path, "--max-length", "32",
        "--train-batch-size", "16", "--per-device-train-batch-size", "4", "--num-train-epochs", "1",
        "--learning-rate", "1e-3", "--logging-steps", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(cluster: Any, flags: list[str]) -> Path:  # noqa: ARG001
    """The folder of that run, with the dropout masks of the first version, whose bits it must have."""
    command = ["train", *flags, "--dropout-version", "1", "--run-name", "run"]
    return Path(run(*command)["model"]).parent


def shape(value: Any) -> Any:
    """Replace JSON values by their types; a list holds the distinct shapes of its items."""
    match value:
        case dict():
            return {key: shape(item) for key, item in value.items()}
        case list():
            shapes = {json.dumps(shape(item), sort_keys=True) for item in value}
            return [json.loads(one) for one in sorted(shapes)]
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
    assert isinstance(value, str)
    return "string"


def record(path: Path) -> Any:
    """Read the shape of a record. Outside a git checkout it has no commit.

    The accounts of a time ledger are those that took a millisecond.
    """
    found = json.loads(path.read_text())
    if ledger := found.get("result", {}).get("time_ledger"):
        found["result"]["time_ledger"] = {"compute": ledger["compute"]}
    found["versions"]["commit"] = found["versions"]["commit"] or "none"
    return shape(found)


def test_records_of_a_run(check: Check, trained: Path) -> None:
    check("run", record(trained / "run.json"))
    check("metrics", shape(read_lines(trained / "metrics.jsonl")))


def test_weights(trained: Path, pytestconfig: pytest.Config) -> None:
    """Bits differ between processors, so each kind of machine has its own hash."""
    machine, found = this_machine(), weights_hash(trained / "model/model.safetensors")
    path = HERE / "weights.json"
    known = json.loads(path.read_text())
    if pytestconfig.getoption("--update-golden"):
        if known.get(machine, found) != found:
            known = {}  # hashes of other machines are out of date too
        known[machine] = found
        path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    if machine not in known:
        pytest.skip(f"no hash of the weights is stored for {machine}; --update-golden adds it")
    assert found == known[machine]


def this_machine() -> str:
    """Name what the bits depend on: the processor and the libraries that compute."""
    import torch

    parts = [processor(), torch.backends.cpu.get_cpu_capability()]
    return ", ".join([*parts, *(f"{name} {version(name)}" for name in ("torch", "transformers"))])


def test_records_of_an_evaluation(check: Check, trained: Path, flags: list[str]) -> None:
    data, storage, cpus = flags[2:4], flags[4:6], flags[6:9]
    run("eval", *data, *storage, *cpus, "--model-name-or-path", str(trained / "model"),
        "--run-name", "evaluation")  # fmt: skip
    check("evaluation", record(trained.parent / "evaluation/evaluation.json"))


def test_records_of_a_sweep(cluster: Any, check: Check, flags: list[str]) -> None:  # noqa: ARG001
    result = run("tune", *flags, "--num-trials", "2", "--confirm-top", "1", "--confirm-seeds", "2",
                 "--max-concurrent-trials", "1", "--scheduler", "fifo", "--run-name", "sweep")  # fmt: skip
    folder = Path(result["model"]).parent
    found = record(folder / "sweep.json")
    for name in ("data_fingerprint", "base_model_digest"):  # their keys hold a path
        found[name] = list(found[name].values())
    check("sweep", found)
    with (folder / "trials.csv").open(newline="") as file:
        check("trials", next(csv.reader(file)))


PROSE = {"description", "summary", "title"}


def test_http(check: Check, trained: Path) -> None:
    """The API schema without its prose, and the shape of model descriptions."""
    host = load(trained)
    try:
        with serving(LocalModels({"mail": host})) as url:
            api, models, model = (
                json.loads(urlopen(f"{url}/{path}", timeout=60).read())
                for path in ("openapi.json", "models", "models/mail")
            )
    finally:
        host.close()
    model["run"]["versions"]["commit"] = "none"
    assert model.pop("parameters")["properties"]  # a JSON schema, already part of /openapi.json
    check("openapi", without_prose(api))
    check("models", {"/models": shape(models), "/models/{name}": shape(model)})


def without_prose(schema: Any, *, names: bool = False) -> Any:
    """Remove descriptions and titles from a JSON schema. With `names`, the keys are not keywords."""
    if isinstance(schema, list):
        return [without_prose(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_prose(
            value, names=key in ("properties", "schemas", "parameters") and not names
        )
        for key, value in schema.items()
        if names or key not in PROSE
    }
