"""Files as people have them: they are read right, or refused with file, line and remedy."""

import csv
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import UserError
from trainyard.sources import ProblemType, discover_labels, hold_out, read_rows

Row = tuple[str, ...]


def rows_of(
    path: Path,
    texts: Sequence[str] = ("text",),
    problem: ProblemType = "single_label_classification",
) -> list[tuple[Any, ...]]:
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
        ("stray.tsv", 'text\tlabel\nthe "big one\tx\n', [('the "big one', "x")]),
        ("lines.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": true}\n',
         [("a", "1"), ("b", "True")]),
        ("unicode.jsonl", '{"text": "\\ud83c\\udf89", "label": "x"}\n', [("🎉", "x")]),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[:20] else "",
)  # fmt: skip
def test_awkward_files_that_work(
    tmp_path: Path, name: str, content: str, expected: list[tuple[Any, ...]]
) -> None:
    assert rows_of(write(tmp_path, name, content)) == expected


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("latin.csv", "text,label\nok,x\ncaf\u00e9,x\n".encode("latin-1"), r"latin\.csv line 3"),
        ("utf16.csv", "text,label\na,x\n".encode("utf-16"), r"utf16\.csv.*UTF-16"),
        ("nul.csv", b"text,label\na\x00b,x\n", r"nul\.csv line 2"),
        ("semicolon.csv", b"text;label\na;x\n", r"semicolon\.csv.*commas"),
        ("no-header.csv", b"a,x\nb,y\n", r"no column 'text'.*first line"),
        ("twice.csv", b"text,text,label\na,b,x\n", r"2 columns called 'text'"),
        ("short.csv", b"text,label\na,x\nb\n", r"short\.csv line 3: 1 fields, expected 2"),
        ("long-row.csv", b"text,label\na,b,x\n", r"long-row\.csv line 2: 3 fields, expected 2"),
        ("open-quote.csv", b'text,label\na,x\n"never closed,x\n', r"open-quote\.csv line 3: the quo"),
        ("after-break.csv", b'text,label\n"two\nlines",x\nb\n', r"after-break\.csv line 4"),
        ("empty.csv", b"", r"empty\.csv is empty"),
        ("header.csv", b"text,label\n", r"header\.csv has no rows"),
        ("no-label.csv", b"text,label\na,x\nb,\n", r"no-label\.csv line 3: the label is empty"),
        ("bad.jsonl", b'{"text": "a", "label": "x"}\n{"text"\n', r"bad\.jsonl line 2"),
        ("array.jsonl", b'[\n{"text": "a"}\n]\n', r"array\.jsonl line 1.*object"),
        ("list.jsonl", b'["a", "x"]\n', r"list\.jsonl line 1"),
        ("key.jsonl", b'{"text": "a"}\n', r"key\.jsonl line 1.*'label'"),
        ("null.jsonl", b'{"text": null, "label": "x"}\n', r"null\.jsonl line 1"),
        ("number.jsonl", b'{"text": 5, "label": "x"}\n', r"number\.jsonl line 1"),
        ("fake.parquet", b"PAR?", r"fake\.parquet"),
        ("words.txt", b"a", r"words\.txt ends in '\.txt'"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\\" not in value else "",
)  # fmt: skip
def test_awkward_files_that_are_refused(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        rows_of(write(tmp_path, name, content))


@pytest.mark.parametrize("target", ["nan", "inf", "-inf", "1e400", "high", ""])
def test_a_target_that_is_no_number_is_refused_with_its_line(tmp_path: Path, target: str) -> None:
    path = write(tmp_path, "scores.csv", f"text,label\na,1.5\nb,{target}\n")
    with pytest.raises(UserError, match=r"scores\.csv line 3: "):
        rows_of(path, problem="regression")


def test_parquet_of_every_string_type_and_none_that_runs_code(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    for type_ in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        texts = pa.array(["a", "b"]).cast(type_)
        pq.write_table(pa.table({"text": texts, "label": [1, 0]}), path)
        assert rows_of(path) == [("a", "1"), ("b", "0")]
    pq.write_table(pa.table({"text": pa.array(["a", None]), "label": [1, 0]}), path)
    with pytest.raises(UserError, match=r"rows\.parquet row 2"):
        rows_of(path)


def test_a_parquet_file_that_would_run_code_is_refused_unread(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "hostile.parquet"
    field = pa.field(
        "text", pa.binary(), metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"}
    )
    pq.write_table(pa.table([pa.array([b"code"])], schema=pa.schema([field])), path)
    with pytest.raises(UserError, match=r"hostile\.parquet.*extension"):
        rows_of(path)


safe_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30
)
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


def encoder_of(path: Path, problem: ProblemType = "single_label_classification") -> Any:
    return discover_labels(read_rows(path, ["text"], "label", problem), problem)


def test_labels_are_sorted_as_what_they_are(tmp_path: Path) -> None:
    integers = write(tmp_path, "a.csv", "text,label\n" + "".join(f"t,{i}\n" for i in (10, 9, 0, 2)))
    assert encoder_of(integers).names == ("0", "2", "9", "10")
    many = write(tmp_path, "b.csv", "text,label\n" + "".join(f"t,c{i % 77}\n" for i in range(200)))
    assert len(encoder_of(many).names) == 77
    topics = write(tmp_path, "c.csv", "text,label\nt,b|a\nt,\nt,c\n")
    encoder = encoder_of(topics, "multi_label_classification")
    (batch,) = read_rows(topics, ["text"], "label", "multi_label_classification")
    assert encoder.names == ("a", "b", "c")
    assert encoder.encode(batch).to_pylist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,x\nb,x\n", "only one label 'x' in 2 rows"),
        ("a,0.5\nb,0.7\n", "add --problem-type regression"),
        ("".join(f"t,id-{i}\n" for i in range(1500)), "look like texts or ids"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        encoder_of(write(tmp_path, "a.csv", f"text,label\n{content}"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=200), st.integers(0, 5))
def test_the_held_out_part_is_stratified_and_complete(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    if np.bincount(array).max() < 2:
        return
    train, validation = hold_out(array, 0.1, seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    for label in set(labels):
        count = labels.count(label)
        assert (array[train] == label).sum() >= 1
        expected = min(max(round(count * 0.1), 1), count - 1)
        assert (array[validation] == label).sum() == expected
    again = hold_out(array, 0.1, seed)
    assert np.array_equal(train, again[0])


def test_reading_streams_in_flat_memory(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = write(tmp_path, "a.csv", "text,label\n" + "some words here,x\n" * rows)
        tracemalloc.start()
        for _ in read_rows(path, ["text"], "label", "single_label_classification"):
            pass
        _, high = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return high

    assert peak(120_000) < 1.5 * peak(30_000)
