"""The files that the GLUE leaderboard takes."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.tiny import WORDS

from trainyard.errors import UserError
from trainyard.glue.config import SuiteConfig
from trainyard.glue.submission import (  # fmt: skip
    FILES,
    check_submission,
    lines_of,
    row_order,
    write_submission,
    zip_submission,
)
from trainyard.tasks import get_task

# `wc -l` of a complete submission, with header lines, as users of jiant report them.
LINES = {
    "AX.tsv": 1105, "CoLA.tsv": 1064, "MNLI-mm.tsv": 9848, "MNLI-m.tsv": 9797, "MRPC.tsv": 1726,
    "QNLI.tsv": 5464, "QQP.tsv": 390966, "RTE.tsv": 3001, "SST-2.tsv": 1822, "STS-B.tsv": 1380,
    "WNLI.tsv": 147,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submission")
    rng = np.random.default_rng(0)
    for name, file in FILES.items():
        task = get_task(file.task)
        logits = rng.normal(2, 3, (task.rows[file.split], task.num_labels))
        text = "\n".join(["index\tprediction", *lines_of(task, file, logits)]) + "\n"
        (folder / name).write_text(text)
    return zip_submission(folder)


def test_a_whole_submission_passes(whole: Path) -> None:
    assert check_submission(whole) == []
    with zipfile.ZipFile(whole) as archive:
        assert {name: archive.read(name).count(b"\n") for name in archive.namelist()} == LINES


def test_label_strings() -> None:
    def second(name: str, logits: list[float]) -> str:
        file = FILES[name]
        return lines_of(get_task(file.task), file, np.array([logits]))[0]

    assert second("CoLA.tsv", [0, 1]) == "0\t1"
    assert second("MNLI-mm.tsv", [0, 0, 1]) == "0\tcontradiction"
    assert second("AX.tsv", [0, 1, 0]) == "0\tneutral"
    assert second("QNLI.tsv", [0, 1]) == "0\tnot_entailment"
    assert second("RTE.tsv", [1, 0]) == "0\tentailment"
    assert second("WNLI.tsv", [1, 0]) == "0\t0"
    assert second("STS-B.tsv", [5.7]) == "0\t5.000"
    assert second("STS-B.tsv", [3.14159]) == "0\t3.142"


Edit = Callable[[dict[str, bytes]], object]

FAULTS: dict[str, tuple[Edit, str]] = {
    "missing": (lambda files: files.pop("AX.tsv"), "AX.tsv is missing"),
    "foreign": (
        lambda files: files.update({"dev.tsv": b""}),
        "dev.tsv is not a file of a submission",
    ),
    "in a folder": (
        lambda files: files.update({"out/RTE.tsv": files.pop("RTE.tsv")}),
        "out/RTE.tsv is not a file",
    ),
    "header": (
        lambda files: files.update({"RTE.tsv": files["RTE.tsv"].replace(b"index", b"id", 1)}),
        "RTE.tsv starts with 'id\\tprediction', expected 'index\\tprediction'",
    ),
    "rows": (
        lambda files: files.update({"WNLI.tsv": files["WNLI.tsv"] + b"146\t1\n"}),
        "WNLI.tsv has 147 rows, the test split 146",
    ),
    "order": (
        lambda files: files.update({"WNLI.tsv": files["WNLI.tsv"].replace(b"\n0\t", b"\n7\t", 1)}),
        "WNLI.tsv line 2: ",
    ),
    "label": (
        lambda files: files.update({"RTE.tsv": files["RTE.tsv"].replace(b"not_ent", b"un_ent", 1)}),
        "'un_entailment' is not one of entailment, not_entailment",
    ),
    "number": (
        lambda files: files.update(
            {"STS-B.tsv": b"\n".join([*files["STS-B.tsv"].split(b"\n")[:-2], b"1378\t6.1", b""])}
        ),
        "STS-B.tsv line 1380: 6.1 is not between 0 and 5",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_leaderboard_refuses_is_named(fault: str, whole: Path, tmp_path: Path) -> None:
    edit, sentence = FAULTS[fault]
    with zipfile.ZipFile(whole) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    edit(files)
    path = tmp_path / "edited.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert any(sentence in found for found in check_submission(path))


def test_no_zip(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "x.zip").write_text("this is text")
    assert "cannot be read as a zip" in check_submission(tmp_path / "x.zip")[0]
    damaged = bytearray(whole.read_bytes())
    damaged[2000:2100] = bytes(100)
    (tmp_path / "x.zip").write_bytes(damaged)
    assert "cannot be read as a zip" in check_submission(tmp_path / "x.zip")[0]


def test_an_encrypted_zip(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    with zipfile.ZipFile(path) as archive:
        flags = archive.start_dir + 8
    content = bytearray(path.read_bytes())
    content[flags] |= 1
    path.write_bytes(content)
    assert "is encrypted" in check_submission(path)[0]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("RTE.tsv", archive.read("RTE.tsv"))
    assert check_submission(path) == ["RTE.tsv occurs 2 times"]


def write_test_split(folder: Path, task: str, split: str, rows: int) -> list[tuple[str, str]]:
    """Rows in another order than that of their `idx`, labels withheld; returns them in order."""
    spec = get_task(task)
    rng = np.random.default_rng(rows)
    texts = [[" ".join(rng.choice(WORDS, size=int(rng.integers(2, 24)))) for _ in range(rows)]
             for _ in spec.text_columns]  # fmt: skip
    order = rng.permutation(rows)
    (folder / task).mkdir(parents=True, exist_ok=True)
    columns = {name: [column[i] for i in order]
               for name, column in zip(spec.text_columns, texts, strict=True)}  # fmt: skip
    label = pa.array([-1] * rows, pa.int64() if spec.labels else pa.float32())
    pq.write_table(
        pa.table({**columns, "label": label, "idx": pa.array(order, pa.int32())}),
        folder / task / f"{split}.parquet",
    )
    return list(zip(*texts, strict=True))


@pytest.mark.long
def test_each_line_is_what_its_model_answers(
    cluster: Any,  # noqa: ARG001
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """AX by MNLI's model, of two seeds the better, every row under its own index."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    config = SuiteConfig(
        tasks=("mnli", "stsb"), seeds=(1, 2), data_dir=str(tmp_path / "data"),
        model_name_or_path=str(tiny_model), max_length=64, storage_path=str(tmp_path / "runs"),
    )  # fmt: skip
    config.folder.mkdir(parents=True)
    finished = {}
    for task in config.tasks:
        for seed in config.seeds:
            torch.manual_seed(10 * seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                tiny_model, num_labels=get_task(task).num_labels
            )
            torch.nn.init.normal_(model.classifier.weight)  # so that answers differ
            folder = tmp_path / f"{task}-{seed}"
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
            finished[f"{task}-seed-{seed}"] = {"model": str(folder), "score": seed / 10}
    rows = {
        name: write_test_split(tmp_path / "data", FILES[name].task, FILES[name].split, count)
        for name, count in {"MNLI-m.tsv": 9, "AX.tsv": 12, "STS-B.tsv": 7}.items()
    }
    found = write_submission(config, finished)
    assert found["files"] == {name: len(texts) for name, texts in rows.items()}
    assert "MNLI-m.tsv has 9 rows, the test split 9796" in found["faults"]
    assert "MNLI-mm.tsv is missing" in found["faults"]
    for name, texts in rows.items():
        spec = get_task(FILES[name].task)
        answer = pipeline(
            "text-classification", model=str(tmp_path / f"{FILES[name].trained_on}-2")
        )
        lines = (config.folder / "submission" / name).read_text().splitlines()[1:]
        for index, ((first, second), line) in enumerate(zip(texts, lines, strict=True)):
            best = answer({"text": first, "text_pair": second}, function_to_apply="none")
            if spec.labels:
                expected = spec.labels[int(best["label"].removeprefix("LABEL_"))]
                assert line == f"{index}\t{expected}"
            else:
                value = min(max(best["score"], 0.0), 5.0)
                assert float(line.removeprefix(f"{index}\t")) == pytest.approx(value, abs=6e-4)


def test_rows_without_their_index_are_refused(tmp_path: Path) -> None:
    write_test_split(tmp_path, "rte", "test", 3)
    path = tmp_path / "rte/test.parquet"
    table = pq.read_table(path)
    assert np.array_equal(row_order(path), np.argsort(table["idx"].to_numpy()))
    pq.write_table(table.drop_columns(["idx"]), path)
    with pytest.raises(UserError, match=r"rte/test.parquet has no column 'idx'"):
        row_order(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(
        UserError, match=r"has other numbers than 0, 1, 2, \.\.\. in its column 'idx'"
    ):
        row_order(path)
