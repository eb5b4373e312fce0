"""The files that the GLUE leaderboard takes."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainyard.suite.submission import FILES, check_submission, lines_of, zip_submission
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
    "foreign": (lambda files: files.update({"dev.tsv": b""}), "dev.tsv is no file of a submission"),
    "in a folder": (
        lambda files: files.update({"out/RTE.tsv": files.pop("RTE.tsv")}),
        "out/RTE.tsv is no file",
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
        "'un_entailment' is none of entailment, not_entailment",
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


def test_no_zip(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("this is text")
    assert "cannot be read as a zip" in check_submission(tmp_path / "x.zip")[0]
