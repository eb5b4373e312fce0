"""Files as people have them: they are read right, or refused with file, line and remedy."""

import csv
import json
import shutil
import tracemalloc
from base64 import b64encode
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.config import TrainConfig
from trainyard.data.columns import TextFormat
from trainyard.data.files import read_rows
from trainyard.data.labels import discover_labels
from trainyard.data.parquet_files import _base64_spellings
from trainyard.data.splits import find_splits, split_rows
from trainyard.errors import UserError
from trainyard.tasks import ProblemType

Row = tuple[Any, ...]
SINGLE: ProblemType = "single_label_classification"


def rows_of(path: Path, texts: Any = ("text",), problem: ProblemType = SINGLE) -> list[Row]:
    """(texts…, label) of every row."""
    return [
        (*(column[i].as_py() for column in batch.texts), label)
        for batch in read_rows(path, texts, "label", problem)
        for i, label in enumerate(batch.labels or [])
    ]


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("quotes.csv", 'text,label\n"a ""b"", c",x\n', [('a "b", c', "x")]),
        ("breaks.csv", 'text,label\n"two\nlines",x\nb,y\n', [("two\nlines", "x"), ("b", "y")]),
        ("crlf.csv", "text,label\r\na,x\r\nb,y\r\n", [("a", "x"), ("b", "y")]),
        ("bom.csv", "\ufefftext,label\na,x\n", [("a", "x")]),
        ("emoji.csv", "text,label\nüß 🎉,x\n", [("üß 🎉", "x")]),
        ("empty-text.csv", "text,label\n,x\n", [("", "x")]),
        ("blank-line.csv", "text,label\na,x\n\nb,y\n", [("a", "x"), ("b", "y")]),
        ("no-last-break.csv", "text,label\na,x", [("a", "x")]),
        ("long.csv", f"text,label\n{'w ' * 200_000},x\n", [("w " * 200_000, "x")]),
        ("numbers.csv", "text,label\na,1\nb,2.0\n", [("a", "1"), ("b", "2")]),
        ("stray.tsv", 'text\tlabel\n"the "big one\tx\n', [('"the "big one', "x")]),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "", "label": true}', [("a", "1"), ("", "True")]),
        ("unicode.jsonl", '{"text": "\\ud83c\\udf89", "label": "x"}\n', [("🎉", "x")]),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[:20] else "",
)  # fmt: skip
def test_awkward_files_that_work(tmp_path: Path, name: str, content: str, expected: Any) -> None:
    assert rows_of(write(tmp_path, name, content)) == expected


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("utf16.csv", "text,label\na,x\n".encode("utf-16"), r"utf16\.csv.*UTF-16"),
        ("nul.csv", b"text,label\na\x00b,x\n", r"nul\.csv line 2"),
        ("semicolon.csv", b"text;label\na;x\n", r"semicolon\.csv.*commas"),
        ("no-header.csv", b"a,x\nb,y\n", r"no column 'text'.*first line"),
        ("twice.csv", b"text,text,label\na,b,x\n", r"2 columns called 'text'"),
        ("long-row.csv", b"text,label\na,b,x\n", r"long-row\.csv line 2: 3 fields, expected 2"),
        ("open-quote.csv", b'text,label\na,x\n"never closed,x\n', r"open-quote\.csv line 3: the quo"),
        ("after-break.csv", b'text,label\n"two\nlines",x\nb\n', r"after-break\.csv line 4"),
        ("empty.csv", b"", r"empty\.csv is empty"),
        ("header.csv", b"text,label\n", r"header\.csv has no rows"),
        ("no-label.csv", b"text,label\na,x\nb,\n", r"no-label\.csv line 3: the label is empty"),
        ("bad.jsonl", b'{"text": "a", "label": "x"}\n{"text"\n', r"bad\.jsonl line 2"),
        ("text.jsonl", b'"text"\n', r"text\.jsonl line 1: expected a JSON object, found a string"),
        ("key.jsonl", b'{"text": "a"}\n', r"key\.jsonl line 1.*'label'"),
        ("null.jsonl", b'{"text": null, "label": "x"}\n', r"null\.jsonl line 1"),
        ("number.jsonl", b'{"text": 5, "label": "x"}\n', r"number\.jsonl line 1"),
        ("fake.parquet", b"\0" * 12, r"fake\.parquet is not a Parquet file"),
        ("words.txt", b"a", r"words\.txt ends in '\.txt'"),
        ("words.xlsx", b"PK\x03\x04", r"words\.xlsx is a workbook, .* save its sheet as CSV UTF-8"),
        ("be.tsv", b"\xfe\xff\0t\0e", r"be\.tsv.*UTF-16.*iconv -f UTF-16"),
        ("le.csv", b"\xff\xfe\0\0t\0\0\0", r"le\.csv.*UTF-32.*add --encoding utf-32"),
        ("be.csv", b"\0\0\xfe\xff\0\0\0t", r"be\.csv.*UTF-32.*iconv -f UTF-32"),
        ("byte.csv", b"text,label\nd\xc3\xa9j\xe0,x\n", r"line 2: byte 0xe0 \(number 5 of .*iconv"),
        ("late.jsonl", b'{"text": "", "label": 1}\n' * 5_000 + b"\xff", r"line 5001: byte 0xff"),
        ("near.csv", b"text,Lable\na,x\n", r"'Lable' \(did you mean 'Lable'\?\); .* --label-column"),
        ("commas.tsv", b"text,label\na,x\n", r"commas\.tsv.*separated by tabs.*seems to be ','"),
        ("tab.tsv", b"text\tlabel\na\tb\tx\n", r"tab\.tsv line 2: 3 fields.*use CSV"),
        ("inner.csv", b'text,label\n"a" b,x\n', r"inner\.csv line 2: the quotes.*double a quote"),
        ("deep.jsonl", b'{"a":' + b"[" * 99_999, r"deep\.jsonl line 1: not valid JSON"),
        ("half.jsonl", b'{"text": "\\ud83d", "label": 1}', r"line 1: half of a .*remove it"),
        ("none.jsonl", b'{"text": "", "label": null}', r"line 1: the label is missing"),
        ("nan.jsonl", b'{"text": "", "label": NaN}', r"line 1: the label is missing"),
        ("many.jsonl", b'{"text": "", "label": ["a"]}', r"line 1: .*multi_label_classification"),
        ("twice.jsonl", b'{"text": "a", "label": "x"}\n{"text": "b", "label": "x", "label": "y"}\n',
         r"twice\.jsonl line 2 has 2 columns called 'label', .* rename all but one"),
        ("twice.json", b'[{"text": "b", "text": "c", "label": "x"}]', r"json row 1 has 2 .* 'text'"),
        ("cut.parquet", b"PAR1\xff\xff\xff\x7fPAR1", r"cut\.parquet is not .*cut short.*write it"),
        ("footer.parquet", b"PAR1\xff\xff\x02\0\0\0PAR1", r"footer\.parquet cannot be read .*whole"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\\" not in value else "",
)  # fmt: skip
def test_refused_files(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        rows_of(write(tmp_path, name, content))
    assert "\n" not in str(raised.value)
    assert csv.field_size_limit() == 1 << 17, "the process keeps its own limit"


def test_a_file_that_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "train.csv", "text,label\n")
    fault = r"trian\.csv does not exist \(did you mean '{}/train\.csv'\?\); give the path of a file"
    with pytest.raises(UserError, match=fault.format(tmp_path)):
        rows_of(tmp_path / "trian.csv")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(UserError, match=f"^{tmp_path.name}/{fault.format(tmp_path.name)}"):
        rows_of(Path(tmp_path.name, "trian.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder\.csv is a folder, .* name one file inside"):
        rows_of(tmp_path / "folder.csv")
    with pytest.raises(UserError, match=r"named twice \(text, text, label\)"):
        rows_of(path, ("text", "text"))
    table = write(tmp_path, "a.parquet", "PAR1")
    denied = Mock(side_effect=PermissionError(13, "Permission denied"))  # root may read everything
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"train\.csv cannot be read \(Permission denied\); check"):
        rows_of(path)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read \(Permission denied\); check"):
        find_splits(TrainConfig(train_file=str(table)))


def test_a_quote_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainyard.data.text_files._FIELD_CHARACTERS", 10_000)
    path = write(tmp_path, "a.csv", 'text,label\n"' + "a,b\n" * 10_000)
    with pytest.raises(UserError, match=r"a\.csv line 2: the quotes .*field larger"):
        rows_of(path)


@pytest.mark.parametrize("target", ["nan", "inf", "-inf", "1e400", "high", ""])
def test_a_target_that_is_no_number_is_refused_with_its_line(tmp_path: Path, target: str) -> None:
    path = write(tmp_path, "scores.csv", f"text,label\na,1.5\nb,{target}\n")
    with pytest.raises(UserError, match=r"scores\.csv line 3: "):
        rows_of(path, problem="regression")
    path = write(tmp_path, "scores.jsonl", '{"text": "", "label": true}')
    with pytest.raises(UserError, match=r"scores\.jsonl line 1: label True .* finite number"):
        rows_of(path, problem="regression")


def test_parquet_of_every_string_type_and_none_that_runs_code(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for type_ in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        texts = pa.array(["a", "b"]).cast(type_)
        pq.write_table(pa.table({"text": texts, "label": [1, 0]}), path)
        assert rows_of(path) == [("a", "1"), ("b", "0")]
        (batch,) = read_rows(path, ["text"], None, "regression")
        assert batch.texts[0].type == pa.string()
    buffers = pa.array([b"a"] * 14_999 + [b"caf\xe9"]).buffers()
    for texts, sentence in (
        (pa.array(["a"] * 14_999 + [None]), r"rows\.parquet row 15000: 'text' is null"),
        (pa.StringArray.from_buffers(15_000, *buffers[1:]), r"row 15000: 'text' is not UTF-8"),
        (pa.array([5] * 15_000), "column 'text' holds int64, expected strings; convert"),
    ):
        pq.write_table(pa.table({"text": texts, "label": [1] * 15_000}), path)
        with pytest.raises(UserError, match=sentence):
            rows_of(path)


def test_a_damaged_footer_is_told_wherever_it_is_read_first(tmp_path: Path) -> None:
    footer = b"PAR1\xff\xff\x02\0\0\0PAR1"
    path = write(tmp_path, "a.parquet", footer)
    damaged = r"parquet cannot be read \(.*\); check that the file is whole"
    with pytest.raises(UserError, match=rf"a\.{damaged}"):
        find_splits(TrainConfig(train_file=str(path)))
    (tmp_path / "cola").mkdir()
    write(tmp_path / "cola", "train.parquet", footer)
    config = TrainConfig(task="cola", data_dir=str(tmp_path))
    for read in (find_splits, lambda config: split_rows(config, "train")):
        with pytest.raises(UserError, match=rf"train\.{damaged}"):
            read(config)


def test_labels_in_parquet_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    buffers = pa.array([b"x"] * 11_000 + [b"caf\xe9"]).buffers()
    names = pa.StringArray.from_buffers(11_001, *buffers[1:])
    lists = pa.ListArray.from_arrays(pa.array(range(11_002), pa.int32()), names)
    for labels, problem in ((names, SINGLE), (lists, MULTI)):
        pq.write_table(pa.table({"text": ["a"] * 11_001, "label": labels}), path)
        with pytest.raises(UserError, match=r"rows\.parquet row 11001: 'label' is not UTF-8; deco"):
            rows_of(path, problem=problem)


def test_long_documents_make_small_batches(tmp_path: Path) -> None:
    text = write(tmp_path, "a.csv", "text\n" + ("x" * 1_000_000 + "\n") * 70)
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{i}" * 500_000 for i in range(70)]}), table)
    for path in (text, table):
        assert max(map(len, read_rows(path, ["text"], None, "regression"))) < 40


def test_parquet_that_would_run_code_is_refused_unopened(tmp_path: Path) -> None:
    built = []

    class Hostile(pa.ExtensionType):
        @classmethod
        def __arrow_ext_deserialize__(cls, *_: object) -> "Hostile":
            built.append(cls)
            return cls(pa.string(), "hostile")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

    path = tmp_path / "hostile.parquet"
    marks = {"ARROW:extension:name": "hostile", "ARROW:extension:metadata": "m"}
    field = pa.field("text", pa.string(), metadata=marks)
    pq.write_table(pa.table([["a"]], schema=pa.schema([field])), path)
    pa.register_extension_type(Hostile(pa.string(), "hostile"))
    try:
        refused = r"(hostile|train)\.parquet .* extension type.*write it again"
        with pytest.raises(UserError, match=refused):
            rows_of(path)
        (tmp_path / "cola").mkdir()
        shutil.copy(path, tmp_path / "cola/train.parquet")
        config = TrainConfig(task="cola", data_dir=str(tmp_path))
        with pytest.raises(UserError, match=refused):
            split_rows(config, "train")
        with pytest.raises(UserError, match=refused):
            find_splits(config)
        assert not built
        pq.read_schema(path)
        assert built, "any other way of opening the file builds it"
    finally:
        pa.unregister_extension_type("hostile")
    for before in range(6):  # the schema is in base64, so a name in it has three spellings
        text = b64encode(b"\xff" * before + b"ARROW:extension:name" + b"\xff" * (before // 2))
        assert any(spelling in text for spelling in _base64_spellings(b"ARROW:extension:name"))


safe_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
label_names = st.from_regex(r"[a-z]{1,5}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(safe_text, safe_text, label_names), min_size=1, max_size=12))
def test_what_was_written_is_read(tmp_path_factory: Any, rows: list[Row]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "other", "label"), *rows])
    lines = [json.dumps(dict(zip(("text", "other", "label"), row, strict=True))) for row in rows]
    write(folder, "rows.jsonl", "\n".join(lines))
    assert rows_of(folder / "rows.jsonl", ("text", "other")) == rows
    assert rows_of(folder / "rows.csv", ("text", "other")) == rows


def encoder_of(path: Path, problem: ProblemType = SINGLE) -> Any:
    return discover_labels(read_rows(path, ["text"], "label", problem), problem)


def test_labels_are_sorted_as_what_they_are(tmp_path: Path) -> None:
    integers = write(tmp_path, "a.csv", "text,label\n" + "".join(f"t,{i}\n" for i in (10, 9, 0, 2)))
    assert encoder_of(integers).names == ("0", "2", "9", "10")
    many = write(tmp_path, "b.csv", "text,label\n" + "".join(f"t,c{i % 77}\n" for i in range(200)))
    assert len(encoder_of(many).names) == 77
    scores = write(tmp_path, "d.csv", "text,label\nt,3.8\nt, 5 \n")
    (batch,) = read_rows(scores, ["text"], "label", "regression")
    assert encoder_of(scores, "regression").encode(batch).equals(pa.array([3.8, 5], pa.float32()))
    topics = write(tmp_path, "c.csv", "text,label\nt,b|a\nt,\nt,c\n")
    encoder = encoder_of(topics, "multi_label_classification")
    (batch,) = read_rows(topics, ["text"], "label", "multi_label_classification")
    assert encoder.names == ("a", "b", "c")
    assert encoder.encode(batch).to_pylist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,1\nb,2\nc,2.5\n", r"line 4: label 2\.5 is a number with a fraction"),
        ("a,x\nb,x\n", "only one label 'x' in 2 rows"),
        ("a,0.5\nb,0.7\n", "add --problem-type regression"),
        ("".join(f"t,id-{i}\n" for i in range(1500)), "look like texts or ids"),
        ("".join(f"t,id-{i}\n" for i in range(20_001)), "10000 different labels in 10000 rows"),
    ],
)
def test_no_labels(tmp_path: Path, monkeypatch: Any, content: str, sentence: str) -> None:
    monkeypatch.setattr("trainyard.data.labels._ENOUGH_ROWS", 5_000)  # ids must not pile up
    with pytest.raises(UserError, match=sentence):
        encoder_of(write(tmp_path, "a.csv", f"text,label\n{content}"))


NO_LISTS = {"[0, 1, 0]": "not a vector", '"a||b"': "label is empty", "3": "a list of names"}


@pytest.mark.parametrize("label", NO_LISTS)
def test_lists_of_labels_that_are_none(tmp_path: Path, label: str) -> None:
    path = write(tmp_path, "a.jsonl", f'{{"text": "", "label": {label}}}')
    with pytest.raises(UserError, match=rf"a\.jsonl line 1: .*{NO_LISTS[label]}"):
        rows_of(path, problem="multi_label_classification")


def test_a_label_that_training_lacks_and_rows_that_keep_their_place(tmp_path: Path) -> None:
    encoder = encoder_of(write(tmp_path, "train.csv", "text,label\na,negative\nb,positive\n"))
    content = 'text,label\n"a\nb",positive\n' + ",negative\n" * 14_998 + "b,neutral\n"
    path = write(tmp_path, "validation.csv", content)
    first, second = read_rows(path, ["text"], "label", SINGLE)
    assert encoder.encode(first).type == pa.int64()
    assert first.empty_texts == 9_999
    assert first.to_arrow(encoder.encode(first))["row"].to_pylist() == list(range(10_000))
    assert (second.first_row, second.places[0]) == (10_000, 10_003)
    with pytest.raises(UserError, match=r"'Positive' .* \(did you mean 'positive'\?\); the labels"):
        encoder.encode(replace(second, labels=["Positive"]))
    with pytest.raises(UserError) as raised:
        encoder.encode(second)
    assert str(raised.value) == (
        "validation.csv line 15002: label 'neutral' does not occur in train.csv; the labels there "
        "are negative, positive: add training rows with it or remove the row"
    )


MULTI: ProblemType = "multi_label_classification"


def test_vectors_of_zeros_and_ones_are_not_read_as_names(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a", "label": [i % 2, 1 - i % 2]}) for i in range(4)]
    path = write(tmp_path, "onehot.jsonl", "\n".join(lines))
    with pytest.raises(
        UserError, match="every row names both labels 0 and 1, which is how vectors"
    ):
        discover_labels(read_rows(path, ["text"], "label", MULTI), MULTI)
    lines.append(json.dumps({"text": "b", "label": [1]}))  # now they are names
    write(tmp_path, "onehot.jsonl", "\n".join(lines))
    assert discover_labels(read_rows(path, ["text"], "label", MULTI), MULTI).names == ("0", "1")


def test_a_list_written_as_text_is_a_list_and_no_name(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", """text,label\na,"['x', 'y z']"\nb,[]\nc,x|w\n""")
    (batch,) = read_rows(path, ["text"], "label", MULTI)
    assert batch.labels == [["x", "y z"], [], ["x", "w"]]
    with pytest.raises(
        UserError, match=r"line 2: label .* is a list written as text, expected one"
    ):
        rows_of(path)
    assert rows_of(write(tmp_path, "b.csv", "text,label\na,[spam]\n")) == [("a", "[spam]")]


def test_a_delimiter_and_an_encoding_are_read(tmp_path: Path) -> None:
    text = "text;label\nGr\u00fc\u00dfe, ihr;x\nna;y\n"
    expected = [("Gr\u00fc\u00dfe, ihr", "x"), ("na", "y")]
    for encoding in ("cp1252", "utf-16", "utf-8"):
        path = tmp_path / "a.csv"
        path.write_bytes(text.encode(encoding))
        text_format = TextFormat(";", encoding)
        batches = read_rows(path, ["text"], "label", SINGLE, text_format=text_format)
        assert [
            (value.as_py(), label)
            for batch in batches
            for value, label in zip(batch.texts[0], batch.labels or [], strict=True)
        ] == expected
    path.write_bytes(text.encode("cp1252"))
    with pytest.raises(UserError, match=r"line 2: byte 0xfc .*such as --encoding cp1252"):
        rows_of(path, ("text;label",))
    with pytest.raises(UserError, match=r"separator seems to be ';': add --delimiter ';'"):
        rows_of(write(tmp_path, "b.csv", "text;label\na;b\n"))
    with pytest.raises(UserError, match=r"^delimiter is '::'; it must be one character"):
        TrainConfig(train_file="a.csv", delimiter="::")
    for encoding in ("klingon", "hex", "undefined", "utf-8\0"):
        with pytest.raises(UserError, match=rf"^encoding {encoding} is not a text encoding; use"):
            TrainConfig(train_file="a.csv", encoding=encoding)
    for encoding, sentence in (
        ("UTF_16", r"a\.csv is not UTF_16 \(.*\); give --encoding utf-16-le or utf-16-be"),
        ("punycode", r"a\.csv is not punycode \(.*\); give its encoding with --encoding"),
    ):
        text_format = TextFormat(";", encoding)
        with pytest.raises(UserError, match=sentence):
            list(read_rows(path, ["text"], "label", SINGLE, text_format=text_format))


def test_keys_that_occur_twice_in_other_columns(tmp_path: Path) -> None:
    row = '{"text": "a", "label": "x", "id": 1, "id": 2, "more": {"b": 1, "b": 2}}'
    for content in (row, f"[{row}]"):
        path = write(tmp_path, "a.json", content)
        (batch,) = read_rows(path, ["text"], "label", SINGLE, others=None)
        assert batch.labels == ["x"]
        assert batch.others is not None
        assert batch.others.to_pylist() == [{"id": "2", "more": '{"b": 2}'}], "the last one"


@pytest.mark.parametrize("label", ["{{1}}", "{['a']}", "{[1]: 2}", "[" + "-" * 10_000 + "1]"])
def test_a_label_that_looks_like_python_and_is_none_is_a_name(tmp_path: Path, label: str) -> None:
    path = write(tmp_path, "a.csv", f"text,label\na,{label}\n")
    assert rows_of(path) == [("a", label)]
    if label.startswith("["):
        with pytest.raises(UserError, match="is not a list of quoted names; write lists as"):
            rows_of(path, problem=MULTI)


def test_json_is_read_by_its_content(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    array, lines = json.dumps(rows, indent=1), "\n".join(map(json.dumps, rows))
    for name in ("a.json", "a.jsonl"):
        for content in (array, lines, "\n" + lines):
            assert rows_of(write(tmp_path, name, content)) == [("a", "x"), ("b", "y")]
    with pytest.raises(UserError, match=r"a\.json row 2: 'text' is null, expected a string"):
        rows_of(write(tmp_path, "a.json", json.dumps([*rows[:1], {"text": None, "label": "y"}])))
    with pytest.raises(UserError, match=r"a\.json starts with '\[' but is not a valid JSON array"):
        rows_of(write(tmp_path, "a.json", "[1,\n2"))
    with pytest.raises(
        UserError, match=r"a\.json row 1: expected a JSON object, found the number 1"
    ):
        rows_of(write(tmp_path, "a.json", "[1, 2]"))


def test_decimals_of_a_database_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    labels = pa.array([Decimal("1.50"), Decimal("2.00")], pa.decimal128(6, 2))
    pq.write_table(pa.table({"text": ["a", "b"], "label": labels}), path)
    assert rows_of(path, problem="regression") == [("a", 1.5), ("b", 2.0)]
    assert [label for _, label in rows_of(path)] == ["1.50", "2"]


def test_reading_streams_in_flat_memory(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = write(tmp_path, "a.csv", "text,label\n" + "some words here,x\n" * rows)
        tracemalloc.start()
        for _ in read_rows(path, ["text"], "label", SINGLE):
            pass
        _, high = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return high

    assert peak(120_000) < 1.5 * peak(30_000)
