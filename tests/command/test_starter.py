"""`trainyard init`: the columns that it guesses, and the config that it writes."""

from pathlib import Path
from typing import Any

import pytest

from trainyard.command import parse
from trainyard.command.starter import InitConfig, write_starter
from trainyard.config import TrainConfig
from trainyard.errors import UserError


def rows(pattern: str, count: int) -> str:
    return "".join(pattern.format(row) for row in range(count))


FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "usual names": ("mail.csv", "text,label\n" + rows("ba {0},x\nco {0},y\n", 20), {}),
    "semicolons and cp1252": (
        "de.csv", "Id;Kommentar;Kategorie\n" + rows("1;schön war es {0};gut\n2;na ja {0};schlecht\n", 20),
        {"text_column": "Kommentar", "label_column": "Kategorie", "delimiter": ";",
         "encoding": "cp1252"},
    ),
    "pairs": (
        "pairs.tsv", "sentence1\tsentence2\tlabel\n" + rows("ba {0}\tco\t0\nda {0}\tfo\t1\n", 20),
        {"text_column": "sentence1", "text_pair_column": "sentence2"},
    ),
    "a quantity": (
        "stars.jsonl", rows('{{"review": "so {0}", "rating": {0}.5}}\n', 40),
        {"text_column": "review", "label_column": "rating", "problem_type": "regression"},
    ),
    "several labels": (
        "tags.jsonl",
        rows('{{"body": "so {0}", "tags": ["a"]}}\n{{"body": "na {0}", "tags": ["a", "b"]}}\n', 20),
        {"text_column": "body", "label_column": "tags",
         "problem_type": "multi_label_classification"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_starter_config_trains_its_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, fields = FILES[kind]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content.encode(fields.get("encoding", "utf-8")))
    written = write_starter(InitConfig(train_file=name))
    config = parse(TrainConfig, ["--config", written["config"]])
    wanted = TrainConfig(train_file=name, **fields)
    for field in ("text_column", "text_pair_column", "label_column", "problem_type", "delimiter",
                  "encoding"):  # fmt: skip
        found, expected = getattr(config, field), getattr(wanted, field)
        assert found == expected, field
    assert config.train_batch_size == 32
    assert config.run_name == Path(name).stem
    assert written["rows"]["train"] + written["rows"]["validation"] == 40
    with pytest.raises(UserError, match=r"exists; give another --output, or --force"):
        write_starter(InitConfig(train_file=name))


@pytest.mark.parametrize(
    "content",
    [
        ("text,label\n" + rows("ba {0},x\nco {0},y\n", 20)).encode("utf-16"),
        (f"text,label\n{'ba ' * 100_000},x\n" + rows("ba {0},x\nco {0},y\n", 20)).encode(),
    ],
    ids=["utf-16", "a field of 300,000 characters"],
)
def test_what_train_reads_is_looked_into(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_bytes(content)
    write_starter(InitConfig(train_file="a.csv"))
    config = parse(TrainConfig, ["--config", "a.yaml"])
    assert (config.text_column or "text", config.label_column) == ("text", "label")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.csv", None, "absent.csv does not exist"),
        ("a.txt", b"x", "ends in '.txt'"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"text\nba\n", "expected one of texts and one of labels"),
        ("a.jsonl", b"{", "line 1: not valid JSON"),
        ("a.csv", b"text,label\nba,x\nco,x\n", "only one label"),
    ],
)
def test_a_file_that_cannot_be_trained_writes_nothing(
    name: str, content: bytes | None, sentence: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        write_starter(InitConfig(train_file=name))
    assert sentence in str(refused.value)
    assert not list(tmp_path.glob("*.yaml"))


@pytest.mark.parametrize(
    ("output", "reason"), [("absent/a.yaml", "No such file"), ("folder", "Is a directory")]
)
def test_a_config_that_cannot_be_written_is_a_sentence(
    output: str, reason: str, tmp_path: Path
) -> None:
    source = tmp_path / "a.csv"
    source.write_text("text,label\n" + rows("ba {0},x\nco {0},y\n", 20))
    (tmp_path / "folder").mkdir()
    path = tmp_path / output
    with pytest.raises(UserError, match=rf"--output {path} cannot be written \({reason}.*another"):
        write_starter(InitConfig(train_file=str(source), output=str(path), force=True))
