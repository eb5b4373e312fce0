"""Errors about a file's format and columns name all the settings that the file needs."""

import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.small_models import classifier

from trainyard.command import parse
from trainyard.config import TrainConfig
from trainyard.data import find_splits
from trainyard.data.detect import shell_word
from trainyard.errors import UserError
from trainyard.evaluation import EvalConfig
from trainyard.evaluation.inputs import describe, labeled_splits
from trainyard.inference import PredictConfig
from trainyard.inference.batch.parts import Parts


def rows(pattern: str, count: int = 20) -> str:
    return "".join(pattern.format(row) for row in range(count))


MOODS = rows("{0};schön {0}, ja;gut\n{0};na {0};schlecht\n")

REFUSED: dict[str, tuple[str, str, str, str]] = {
    "delimiter and columns": (
        "mail.csv", "id;comment;mood\n" + MOODS, "utf-8",
        "their separator seems to be ';': add "
        "--delimiter ';' --text-column comment --label-column mood",
    ),
    "encoding, too": (
        "mail.csv", "id;comment;mood\n" + MOODS, "cp1252",
        "line 2: byte 0xf6 (number 6 of the line) is not UTF-8; give its encoding, such as "
        "--encoding cp1252 --delimiter ';' --text-column comment --label-column mood, or convert it",
    ),
    "a marked encoding": (
        "mail.csv", "id;comment;mood\n" + MOODS, "utf-16",
        "expected UTF-8; add --encoding utf-16 --delimiter ';' --text-column comment "
        "--label-column mood, or convert it",
    ),
    "columns": (
        "mail.csv", "Comment text,Mood\n" + rows("ba {0},x\nco {0},y\n"), "utf-8",
        "has no column 'text': its first line names 'Comment text', 'Mood'; the first line of the file "
        "must name the columns: if it does, add --text-column 'Comment text' --label-column Mood",
    ),
    "the label only": (
        "mail.csv", "text,mood\n" + rows("ba {0},x\nco {0},y\n"), "utf-8", "add --label-column mood",
    ),
    "tabs": (
        "mail.csv", "text\tmood\n" + rows("ba {0}\tx\nco {0}\ty\n"), "utf-8",
        r"add --delimiter $'\t' --label-column mood",
    ),
    "a pair and numbers": (
        "pairs.csv", "premise|hypothesis|score\n" + rows("ba {0}|co|{0}.5\n"), "utf-8",
        "add --delimiter '|' --text-column premise --text-pair-column hypothesis --label-column score "
        "--problem-type regression",
    ),
    "lists in JSON": (
        "tags.jsonl",
        rows('{{"body": "so {0}", "tags": ["a"]}}\n{{"body": "na {0}", "tags": ["a", "b"]}}\n'),
        "utf-8", "its keys are 'body', 'tags'; add --text-column body --label-column tags "
        "--problem-type multi_label_classification",
    ),
    "names that a shell would split": (
        "odd.csv", "it's a text,mo\to d\n" + rows("ba {0},x\nco {0},y\n"), "utf-8",
        r"""add --text-column 'it'"'"'s a text' --label-column $'mo\to d'""",
    ),
}  # fmt: skip


def refused(config: TrainConfig) -> str:
    with pytest.raises(UserError) as error:
        find_splits(config)
    return str(error.value)


@pytest.mark.parametrize("kind", REFUSED)
def test_one_sentence_names_all_settings(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, encoding, expected = REFUSED[kind]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content.encode(encoding))
    sentence = refused(TrainConfig(train_file=name))
    assert expected in sentence
    assert "\n" not in sentence
    if "$" in expected:  # only a shell reads it
        return
    flags = sentence[sentence.index("--") :].partition(", or convert")[0]
    config = parse(TrainConfig, ["--train-file", name, *shlex.split(flags)])
    assert len(find_splits(config).splits) == 2


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({"delimiter": ";"}, "--text-column comment --label-column mood"),
        ({"delimiter": ";", "text_column": "ID"}, "--text-column id --label-column mood"),
        ({"delimiter": ";", "text_column": "id"}, "--label-column mood"),
        ({"delimiter": ";", "text_column": "comment", "label_column": "modo"}, "--label-column mood"),
        ({"delimiter": "|", "text_column": "id"}, "--delimiter ';' --label-column mood"),
    ],
)  # fmt: skip
def test_settings_that_fit_are_not_named(given: dict[str, Any], flags: str, tmp_path: Path) -> None:
    path = tmp_path / "mail.csv"
    path.write_text("id;comment;mood\n" + MOODS)
    assert refused(TrainConfig(train_file=str(path), **given)).endswith(f"add {flags}")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "a,x\nb,y\n", "must name the columns, or name another column with --text-column"),
        ("a.csv", "UTF-8\nb\n", "must name the columns, or name another column with --text-column"),
        ("a.csv", "sep=;\nbody;mood\nba;x\nco;y\n", "remove this line, which only Excel reads"),
        (
            "a.jsonl",
            '{"text": "a", "text_pair": "b", "label": 0.5}\n{"text": "b"}\n',
            "line 2 has no column 'label': its keys are 'text'; every line must have the same keys",
        ),
    ],
)
def test_a_file_without_columns_to_name_gets_no_settings(
    name: str, content: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert sentence in refused(TrainConfig(train_file=str(path)))


def test_an_error_without_settings_crosses_processes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,x\nb,y\n")
    with pytest.raises(UserError) as refused:
        find_splits(TrainConfig(train_file=str(path)))
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


MAILS = "text,label\n" + rows("ba {0},x\nco {0},y\n")
UMLAUTS = "text,label\n" + rows("bä {0},x\ncö {0},y\n")
OF_SEVERAL: dict[str, tuple[dict[str, bytes], dict[str, str], str]] = {
    "delimiters": (
        {"a.csv": MAILS.encode(), "b.csv": MAILS.replace(",", ";").encode()}, {},
        "b.csv is separated by ';', but a.csv by ','; --delimiter holds for all files: save b.csv "
        "like a.csv",
    ),
    "a delimiter of the second file": (
        {"a.csv": MAILS.encode(), "b.csv": MAILS.replace(",", ";").encode()}, {"delimiter": ";"},
        "b.csv is separated by ';', but a.csv by ','; --delimiter holds for all files: save b.csv "
        "like a.csv",
    ),
    "delimiters and columns": (
        {"a.csv": MAILS.encode(), "b.csv": b"body;label\nba;x\nco;y\n"}, {},
        "--delimiter holds for all files: save b.csv like a.csv, with the columns 'text', 'label'",
    ),
    "delimiters that are usual": (
        {"a.csv": MAILS.encode(), "b.tsv": b"body\tlabel\nba\tx\nco\ty\n"}, {},
        "b.tsv has no column 'text': its first line names 'body', 'label'; all files need the columns "
        "'text', 'label' of a.csv: add or rename them in b.tsv",
    ),
    "encodings": (
        {"a.csv": UMLAUTS.encode(), "b.csv": UMLAUTS.encode("cp1252")}, {},
        "b.csv line 2: byte 0xe4 (number 2 of the line) is not UTF-8; --encoding holds for all "
        "files, and a.csv is utf-8: convert b.csv with iconv -f WINDOWS-1252 -t UTF-8 b.csv > "
        "utf8-b.csv",
    ),
    "encodings, the first in Latin-1": (
        {"a.csv": UMLAUTS.replace("ö", "\x81").encode("latin-1"), "b.csv": UMLAUTS.encode()}, {},
        "a.csv line 2: byte 0xe4 (number 2 of the line) is not UTF-8; --encoding holds for all "
        "files, and b.csv is utf-8: convert a.csv with iconv -f ISO-8859-1 -t UTF-8 a.csv > "
        "utf8-a.csv",
    ),
    "encodings with a mark": (
        {"a.csv": MAILS.encode(), "b.csv": MAILS.encode("utf-16")}, {},
        "(it starts with b'\\xff\\xfe'), expected UTF-8; --encoding holds for all files, and a.csv is "
        "utf-8: convert b.csv with iconv -f UTF-16 -t UTF-8 b.csv > utf8-b.csv",
    ),
    "an encoding that fits ASCII, too": (
        {"a.csv": MAILS.encode(), "b.csv": UMLAUTS.encode("cp1252")}, {},
        "give its encoding, such as --encoding cp1252, or convert it",
    ),
    "columns": (
        {"a.csv": MAILS.encode(), "b.csv": b"body,mood\nba,x\nco,y\n"}, {},
        "b.csv has no column 'text': its first line names 'body', 'mood'; all files need the columns "
        "'text', 'label' of a.csv: add or rename them in b.csv",
    ),
    "settings of both": (
        {"a.csv": b"id;body;mood\n1;ba;x\n2;co;y\n", "b.csv": b"id;body;mood\n1;ba;x\n2;co;y\n"}, {},
        "add --delimiter ';' --text-column body --label-column mood",
    ),
}  # fmt: skip


@pytest.mark.parametrize("further", ["train", "validation", "test"])
@pytest.mark.parametrize("kind", OF_SEVERAL)
def test_settings_hold_for_all_files(
    kind: str, further: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, given, sentence = OF_SEVERAL[kind]
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).write_bytes(content)
    first, other = files
    fields: dict[str, Any] = {"train_file": first, f"{further}_file": other, **given}
    if further == "train":
        fields["train_file"] = f"{first},{other}"
    assert sentence in refused(TrainConfig(**fields))
    if "such as --encoding" in sentence:
        assert find_splits(TrainConfig(**fields, encoding="cp1252")).splits


def test_a_prediction_names_no_label(tmp_path: Path) -> None:
    model = classifier(tmp_path / "run/model")
    source = tmp_path / "new.csv"
    source.write_text("id;comment\n" + rows("{0};so {0}\n"))
    config = PredictConfig(
        model_name_or_path=str(model), input_file=str(source), output_file=f"{tmp_path}/out.csv"
    )
    with pytest.raises(UserError, match=r"add --delimiter ';' --text-column comment$"):
        Parts(config.with_columns())


def test_files_of_a_prediction_with_two_delimiters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier(tmp_path / "run/model")
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("id,text\n" + rows("{0},so {0}\n"))
    Path("b.csv").write_text("id;text\n" + rows("{0};so {0}\n"))
    config = PredictConfig(
        model_name_or_path=str(model), input_file="a.csv,b.csv", output_file="out.csv"
    )
    with pytest.raises(UserError, match=r"^b\.csv is separated by ';', but a\.csv by ','; "):
        Parts(config.with_columns())


def test_an_evaluation_names_no_problem_type(tmp_path: Path) -> None:
    model = classifier(tmp_path / "run/model")
    source = tmp_path / "more.csv"
    source.write_text("comment;score\n" + rows("so {0};{0}.5\n"))
    config = EvalConfig(model_name_or_path=str(model), validation_file=str(source))
    with pytest.raises(
        UserError, match=r"add --delimiter ';' --text-column comment --label-column score$"
    ):
        labeled_splits(config, describe(str(model)))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Größe", "Größe"),
        (";", "';'"),
        (",", "','"),
        ("a b", "'a b'"),
        ("it's", """'it'"'"'s'"""),
        ("\t", r"$'\t'"),
        ("it's\n", r"$'it\'s\n'"),
    ],
)
def test_a_word_of_a_command_line_is_quoted(text: str, word: str) -> None:
    assert shell_word(text) == word
