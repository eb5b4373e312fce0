"""`trainyard init`: the columns that it guesses, and the config that it writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainyard.cli import parse
from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.starter import InitConfig, write_starter

FILES: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "usual names": ("mail.csv", b"text,label\n" + b"ba,x\nco,y\n" * 20, {}),
    "semicolons and cp1252": (
        "de.csv",
        b"Id;Kommentar;Kategorie\n" + "1;schön war es;gut\n2;na ja;schlecht\n".encode("cp1252") * 20,
        {"text_column": "Kommentar", "label_column": "Kategorie", "delimiter": ";",
         "encoding": "cp1252"},
    ),
    "pairs": (
        "pairs.tsv", b"sentence1\tsentence2\tlabel\n" + b"ba\tco\t0\nda\tfo\t1\n" * 20,
        {"text_column": "sentence1", "text_pair_column": "sentence2"},
    ),
    "a quantity": (
        "stars.jsonl",
        b"".join(json.dumps({"review": f"so {i}", "rating": i / 7}).encode() + b"\n"
                 for i in range(40)),
        {"text_column": "review", "label_column": "rating", "problem_type": "regression"},
    ),
    "several labels": (
        "tags.jsonl",
        b"".join(json.dumps({"body": f"so {i}", "tags": ["a", "b"][: 1 + i % 2]}).encode() + b"\n"
                 for i in range(40)),
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
    Path(name).write_bytes(content)
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
    ("name", "content", "sentence"),
    [
        ("absent.csv", None, "absent.csv does not exist"),
        ("a.txt", b"x", "ends in '.txt'"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"text\nba\n", "expected one of texts and one of labels"),
        ("a.jsonl", b"{", "is no valid JSON"),
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
