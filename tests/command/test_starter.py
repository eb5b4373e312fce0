"""`trainyard init`: the columns that it guesses, and the config that it writes."""

from pathlib import Path
from typing import Any

import pytest

from trainyard.command import parse
from trainyard.command.starter import InitConfig, write_starter
from trainyard.config import TrainConfig
from trainyard.data import find_splits
from trainyard.errors import UserError
from trainyard.summary import summary


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
    "names with spaces and capitals": (
        "Support Tickets.csv",
        "Ticket ID,Customer Message,Issue Type\n" + rows("{0},ba co {0},x\n1{0},co {0},y\n", 20),
        {"text_column": "Customer Message", "label_column": "Issue Type"},
    ),
    "usual names within spaces": (
        "export.csv", "lang, Text ,Label \n" + rows("en,ba {0},x\nde,co {0},y\nfr,fo {0},z \n", 20),
        {"text_column": " Text ", "label_column": "Label "},
    ),
    "a name with commas between semicolons": (
        "de2.csv", '\ufeff"Kommentar, frei, lang";Art\n' + rows('"ba; {0}";x\nco, {0};y\n', 20),
        {"text_column": "Kommentar, frei, lang", "label_column": "Art", "delimiter": ";"},
    ),
    "a constant column": (
        "kinds.csv", "text,lang,kind\n" + rows("ba {0},en,x\nco {0},en,y\n", 20),
        {"label_column": "kind"},
    ),
    "many class ids": (
        "intents.csv", "text,label\n" + "".join(f"ba {i},{i % 77}\n" for i in range(308)), {},
    ),
    "different numbers": (
        "prices.csv", "text,label\n" + rows("ba {0},{0}\n", 40), {"problem_type": "regression"},
    ),
    "a name in brackets": (
        "urgent.csv", "text,label\n" + rows("ba {0},[URGENT]\nco {0},later\n", 20), {},
    ),
    "lists written as text": (
        "lists.csv", "text,label\n" + rows("ba {0},\"['a', 'b']\"\nco {0},['a']\n", 20),
        {"problem_type": "multi_label_classification"},
    ),
    "columns beyond ASCII": (
        "odd.jsonl",
        rows('{{"😀 text": "so {0}", "ⓛ\\u007f": "a\\nb"}}\n'
             '{{"😀 text": "na {0}", "ⓛ\\u007f": "c"}}\n', 20),
        {"text_column": "😀 text", "label_column": "ⓛ\x7f"},
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
    assert config.run_name == Path(name).stem.replace(" ", "-")
    counts = {"many class ids": 308, "usual names within spaces": 60}
    assert sum(written["rows"].values()) == counts.get(kind, 40)
    assert all(label == label.strip() for label in written["labels"])
    assert written["problem_type"] == (config.problem_type or "single_label_classification")
    with pytest.raises(UserError, match=r"exists; give another --output, or --force"):
        write_starter(InitConfig(train_file=name))


def test_columns_are_named_by_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(
        "text,title,label,kind\n" + rows("ba {0},x{0},a,1\nco {0},y{0},b,2\n", 20)
    )
    written = write_starter(
        InitConfig(train_file="a.csv", text_column="title", label_column="kind")
    )
    config = parse(TrainConfig, ["--config", written["config"]])
    assert (config.text_column, config.label_column) == ("title", "kind")
    wrong = InitConfig(train_file="a.csv", label_column="kinds", force=True)
    with pytest.raises(
        UserError, match=r"--label-column is 'kinds', but .* \(did you mean 'kind'\?\); give"
    ):
        write_starter(wrong)


def test_the_summary_quotes_the_names_of_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("Text,Label \n" + rows("ba {0},x\nco {0},y\n", 20))
    first = summary(write_starter(InitConfig(train_file="a.csv")))[0]
    assert first == "wrote a.yaml: columns Text, 'Label '; 36 rows to train on"


def test_the_summary_names_the_kind_of_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("text,label\n" + rows("ba {0},a|b\nco {0},a\nda {0},A\n", 20))
    written = write_starter(InitConfig(train_file="a.csv"))
    assert summary(written)[1] == (
        "  each row has one of 3 labels (single_label_classification); to change it, set problem_type to "
        "multi_label_classification or regression"
    )
    said = capsys.readouterr().err
    assert "labels such as 'a|b' may be several labels of one row; to read them so, add" in said
    assert "differ only by case" in said  # a note of the splits
    assert len(written["notes"]) == 3


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
        (
            "a.xlsx",
            b"PK\x03\x04",
            "a.xlsx is a workbook, and only text files and Parquet are read; save",
        ),
        ("a.XLS", b"\xd0\xcf\x11\xe0", "a.XLS is a workbook"),
        (
            "a.csv",
            b"sep=;\ntext;label\nba;x\nco;y\n",
            "a.csv starts with the line sep=;, which only Excel",
        ),
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nohead.csv", rows("order {0} was slow,bad\norder {0} was quick,good\n", 20)),
        ("lists.csv", rows("order {0} was slow,bad\norder {0} was quick,good|bad\n", 20)),
        ("stars.tsv", "it was so,0.5\n".replace(",", "\t") + rows("so {0}\t{0}.25\n", 20)),
    ],
)
def test_a_file_without_a_header_is_refused(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    fault = (
        rf"^{name} seems to have no header line: .* in the first line .*; add a first line such as "
    )
    for attempt in (
        lambda: write_starter(InitConfig(train_file=name)),
        lambda: find_splits(TrainConfig(train_file=name)),
    ):
        with pytest.raises(UserError, match=fault):
            attempt()


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ("text,label\n" + rows("ba {0},label\nco {0},x\n", 20), "label"),
        ("0,1\n" + rows("ba {0},0\nco {0},1\n", 20), "1"),
        ("mail,spam\n" + rows("ba {0},spam\nco {0},ham\n", 20), "spam"),
        ("report,2024\n" + rows("ba {0},1\nco {0},2\n", 20), "2024"),
        ("text,urgent\n" + rows("ba {0},urgent\nco {0},later\n", 20), "urgent"),
        ("text,2024\n" + rows("ba {0},4.5\nco {0},3\n", 20), "2024"),
        ("text,2024\n" + rows("ba {0},x\nco {0},y\n", 20), "2024"),
        ("text,Is it urgent?\n" + rows("ba {0},yes\nco {0},no\n", 20), "Is it urgent?"),
    ],
)
def test_an_unusual_header_is_a_header(
    content: str, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(content)
    assert write_starter(InitConfig(train_file="a.csv"))["label_column"] == label


def test_a_label_column_named_by_a_flag_may_be_named_like_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(
        "subject of the mail,urgent\n" + rows("ba {0},urgent\nco {0},later\n", 20)
    )
    with pytest.raises(UserError, match=r"or name the columns with --text-column and --label-col"):
        write_starter(InitConfig(train_file="a.csv"))
    written = write_starter(InitConfig(train_file="a.csv", label_column="urgent"))
    assert written["label_column"] == "urgent"


def test_the_text_column_is_not_the_label_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("text,label\n" + rows("ba {0},x\nco {0},y\n", 20))
    with pytest.raises(
        UserError, match=r"^--text-column 'label' is the label column of a\.csv, too; name another"
    ):
        write_starter(InitConfig(train_file="a.csv", text_column="label"))
    with pytest.raises(UserError, match=r"named twice \(label, label\)"):
        write_starter(InitConfig(train_file="a.csv", text_column="label", label_column="label"))
    Path("a.csv").write_text("label,kind\n" + rows("ba {0},x\nco {0},y\n", 20))
    written = write_starter(
        InitConfig(train_file="a.csv", text_column="label", label_column="kind")
    )
    assert written["text_column"] == "label"
