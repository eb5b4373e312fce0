"""Submissions to gluebenchmark.com: a zip with a TSV of predictions per test split, and a checker.

File names, headers and label strings are those of the leaderboard's sample submission, as jiant's
formatter (nyu-mll/jiant, `jiant/scripts/benchmarks/benchmark_submission_formatter.py`) writes them.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.config import DataFlags, ScoringFlags, WorkerFlags
from trainyard.data import find_splits, open_parquet, prepare, split_file, split_rows
from trainyard.errors import UserError
from trainyard.evaluation import check_finite, predict_on_ray
from trainyard.glue.config import SuiteConfig
from trainyard.metrics import decode
from trainyard.models import build_tokenizer
from trainyard.tasks import Task, get_task
from trainyard.terminal import say

HEADER = "index\tprediction"
"""First line of every file."""


@dataclass(frozen=True)
class File:
    """File of a submission: the predictions of one test split."""

    task: str
    split: str
    trained_on: str
    """Task whose model predicts. AX has MNLI's labels and no training rows."""
    named: bool
    """True if classes are written by name, False if by number."""


FILES: dict[str, File] = {
    "CoLA.tsv": File("cola", "test", "cola", False),
    "SST-2.tsv": File("sst2", "test", "sst2", False),
    "MRPC.tsv": File("mrpc", "test", "mrpc", False),
    "STS-B.tsv": File("stsb", "test", "stsb", False),
    "QQP.tsv": File("qqp", "test", "qqp", False),
    "MNLI-m.tsv": File("mnli", "test_matched", "mnli", True),
    "MNLI-mm.tsv": File("mnli", "test_mismatched", "mnli", True),
    "QNLI.tsv": File("qnli", "test", "qnli", True),
    "RTE.tsv": File("rte", "test", "rte", True),
    "WNLI.tsv": File("wnli", "test", "wnli", False),
    "AX.tsv": File("ax", "test", "mnli", True),
}
"""File name in the zip -> task, split and labels of its predictions."""


def write_submission(
    config: SuiteConfig, finished: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Predict every test split with its task's best seed; write submission/ and submission.zip.

    A split is left out, with a message, if it is missing from the data folder or no run of its task
    has finished. The checker then lists its file as missing.

    Args:
        config: Flags of the suite.
        finished: Results of the finished runs, by run name.

    Returns:
        {"zip": path, "files": rows by file name, "faults": sentences from `check_submission`}.

    Raises:
        UserError: An output of a model is not finite, the workers failed, or a test file has an
            invalid `idx`.
    """
    folder = config.folder / "submission"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.tsv"):
        old.unlink()
    jobs = {}
    for name, file in FILES.items():
        best = _best_seed(config, file.trained_on, finished)
        if best is None:
            say(f"{name} is left out: no finished run of {file.trained_on}")
            continue
        run = config.run_config(file.trained_on, best)
        rows = DataFlags(task=file.task, data_dir=run.data_dir)
        scoring = ScoringFlags(
            model_name_or_path=finished[run.resolved_run_name]["model"],
            max_length=run.max_length,
            per_device_eval_batch_size=run.per_device_eval_batch_size,
            mixed_precision=run.mixed_precision,
        )
        if split_rows(rows, file.split) is None:
            say(f"{name} is left out: {file.task}/{file.split}.parquet is not in --data-dir")
            continue
        splits = find_splits(rows, (file.split,), labeled=False)
        data = prepare(splits, build_tokenizer(scoring), scoring, config.folder / ".cache")
        jobs[name] = (scoring.model_name_or_path, data, scoring)
    written = {}
    workers = WorkerFlags(use_gpu=config.use_gpu, resources_per_worker=config.resources_per_worker)
    found = predict_on_ray(list(jobs.values()), workers, config.folder) if jobs else []
    for name, logits in zip(jobs, found, strict=True):
        file = FILES[name]
        check_finite(logits, jobs[name][0])
        task, answers = get_task(file.task), logits[file.split]
        if config.data_dir:  # the Hub's rows are in order; a local file may be shuffled
            answers = answers[row_order(split_file(task, file.split, Path(config.data_dir)))]
        lines = lines_of(task, file, answers)
        (folder / name).write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
        written[name] = len(lines)
    path = zip_submission(folder)
    faults = check_submission(path)
    for fault in faults:
        say(f"{path.name}: {fault}")
    return {"zip": str(path), "files": written, "faults": faults}


def row_order(path: Path) -> NDArray[np.int64]:
    """Return the positions of a test split's rows in the order of their `idx`, shape [rows].

    The leaderboard identifies rows by `idx`.

    Raises:
        UserError: The column `idx` is missing, or does not have each number from 0 once.
    """
    with open_parquet(path) as file:
        has = "idx" in file.schema_arrow.names
        found = file.read(columns=["idx"])["idx"].to_numpy() if has else np.array([])
    order = np.argsort(found, kind="stable")
    if not has or not np.array_equal(found[order], np.arange(len(found))):
        raise UserError(
            f"{path} has {'other numbers than 0, 1, 2, ... in its' if has else 'no'} column 'idx', "
            "by which the leaderboard tells rows apart; fetch the file again"
        )
    return order


def _best_seed(
    config: SuiteConfig, task: str, finished: Mapping[str, Mapping[str, Any]]
) -> int | None:
    if task not in config.tasks:
        return None
    names = {seed: config.run_config(task, seed).resolved_run_name for seed in config.seeds}
    done = [seed for seed, name in names.items() if name in finished]
    return max(done, key=lambda seed: finished[names[seed]]["score"], default=None)


def lines_of(task: Task, file: File, logits: NDArray[Any]) -> list[str]:
    """Return the lines of a file in row order: index, tab and prediction.

    A regression is clipped to 0 to 5, the range of STS-B.

    Args:
        task: Task whose labels the file has.
        file: Format of the labels.
        logits: Outputs of the model, shape [rows, labels].
    """
    predictions = decode(task.problem_type, logits)
    if task.problem_type == "regression":
        shown = [f"{value:.3f}" for value in np.clip(predictions, 0.0, 5.0)]
    else:
        shown = [task.labels[i] if file.named else str(i) for i in predictions]
    return [f"{index}\t{prediction}" for index, prediction in enumerate(shown)]


def zip_submission(folder: Path) -> Path:
    """Zip the files of `folder`, without subfolders; return the path of the zip.

    Equal files give equal bytes.
    """
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            if (folder / name).is_file():
                archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(),
                                 zipfile.ZIP_DEFLATED)  # fmt: skip
    return path


def check_submission(path: Path) -> list[str]:
    """Return the faults for which the leaderboard would refuse a zip, one sentence each.

    File names, headers, the number and order of rows, and every prediction are checked. A file's
    check ends at its first wrong line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            contents = {name: archive.read(name) for name in FILES if name in names}
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError: encrypted, or compressed by a method that Python lacks
        return [f"{path} cannot be read as a zip ({error}); write it again"]
    faults = [f"{name} is not a file of a submission" for name in names if name not in FILES]
    faults += [f"{name} occurs {names.count(name)} times" for name in FILES
               if names.count(name) > 1]  # fmt: skip
    for name, file in FILES.items():
        faults += (
            _faults(name, file, contents[name]) if name in contents else [f"{name} is missing"]
        )
    return faults


def _faults(name: str, file: File, content: bytes) -> list[str]:
    task = get_task(file.task)
    try:
        header, *lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        return [f"{name} is not UTF-8"]
    faults = []
    if header != HEADER:
        faults.append(f"{name} starts with {header!r}, expected {HEADER!r}")
    if len(lines) != task.rows[file.split]:
        faults.append(f"{name} has {len(lines)} rows, the test split {task.rows[file.split]}")
    allowed = task.labels if file.named else [str(i) for i in range(task.num_labels)]
    for index, line in enumerate(lines):
        if (fault := _line_fault(index, line, task, allowed)) is not None:
            return [*faults, f"{name} line {index + 2}: {fault}"]
    return faults


def _line_fault(index: int, line: str, task: Task, allowed: Sequence[str]) -> str | None:
    found, tab, prediction = line.partition("\t")
    if not tab or found != str(index):
        return f"{line!r} does not start with index {index} and a tab"
    if task.labels:
        return (
            None if prediction in allowed else f"{prediction!r} is not one of {', '.join(allowed)}"
        )
    try:
        return None if 0 <= float(prediction) <= 5 else f"{prediction} is not between 0 and 5"
    except ValueError:
        return f"{prediction!r} is not a number"
