"""The data doctor: what is planted is found, what is found is right."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import WORDS, write_task

from trainyard.command import parse
from trainyard.config import TrainConfig
from trainyard.data import normalize_text
from trainyard.data.quick_checks import warnings
from trainyard.data.splits import find_splits
from trainyard.data.tokenize import prepare
from trainyard.doctor.data.duplicates import contradictions, duplicates, near_pairs
from trainyard.doctor.data.labels import confident_errors, drift, suspicious_labels
from trainyard.doctor.data.rows import Rows, all_splits, faulty_texts, read
from trainyard.doctor.data.run import DataDoctorConfig, _write_cleaned, examine_data
from trainyard.errors import UserError
from trainyard.models.build import build_tokenizer
from trainyard.tasks import get_task

MRPC = get_task("mrpc")


def sentences(rows: int, seed: int, low: int = 8, high: int = 20) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(low, high))) for _ in range(rows)]


def split(name: str, texts: list[str], labels: Any = None) -> Rows:
    return Rows(name, (texts,), np.zeros(len(texts), np.int64) if labels is None else labels)


def jaccard(a: list[str], b: list[str]) -> float:
    """Of bags: the second occurrence of a word is another element than the first."""
    left = {(word, a[:i].count(word)) for i, word in enumerate(a)}
    right = {(word, b[:i].count(word)) for i, word in enumerate(b)}
    return len(left & right) / len(left | right) if left | right else 0.0


BAGS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=9), max_size=12)


@settings(max_examples=150, deadline=None)
@given(BAGS, BAGS, st.sampled_from([0.5, 0.6, 2 / 3, 0.75, 0.8, 0.9, 1.0]))
def test_the_join_is_exact(rows: list[list[str]], others: list[list[str]], t: float) -> None:
    """Every pair of at least the similarity, with its similarity, and no other."""
    for second in (others, None):
        found = near_pairs(rows, second, t)
        expected = {
            (i, j): jaccard(a, b)
            for i, a in enumerate(rows)
            for j, b in enumerate(rows if second is None else second)
            if jaccard(a, b) >= t - 1e-9 and (second is not None or j < i)
        }
        pairs = zip(found.first.tolist(), found.second.tolist(), strict=True)
        assert dict(zip(pairs, found.similarity, strict=True)) == pytest.approx(expected)
        assert len(found.first) == len(expected)


def test_many_candidates_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [text.split() for text in sentences(400, seed=1, low=3, high=6)]
    whole = near_pairs(rows, None, 0.5)
    monkeypatch.setattr("trainyard.doctor.data.duplicates._CANDIDATES_AT_ONCE", 50)
    parts = near_pairs(rows, None, 0.5)
    assert len(whole.first) > 10
    assert sorted(zip(parts.first, parts.second, strict=True)) == sorted(
        zip(whole.first, whole.second, strict=True)
    )


def test_an_examination_shows_its_stages_and_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{word} {WORDS[n]},{word}" for n in range(8) for word in ("ba", "co")]
    (tmp_path / "mail.csv").write_text("\n".join(["text,label", *rows]))
    monkeypatch.setattr("trainyard.doctor.data.run._truncation", lambda *_: {})
    examine_data(
        DataDoctorConfig(train_file=str(tmp_path / "mail.csv"), storage_path=str(tmp_path))
    )
    said = capsys.readouterr().err
    assert said.startswith("· reading mail\n")
    assert re.search(r"examine: 100%.* 5/5 ", said)


def test_all_planted_leaks_are_found() -> None:
    """Copies, copies in other case and spacing, and copies with one word in ten replaced."""
    train = sentences(3000, seed=2, low=10)
    validation = sentences(300, seed=3, low=10)
    rng = np.random.default_rng(4)
    for i in range(30):
        validation[i] = train[i]
        validation[100 + i] = "  " + train[100 + i].upper().replace(" ", "\t ")
        words = train[200 + i].split()
        words[int(rng.integers(len(words)))] = "other"
        validation[200 + i] = " ".join(words)
    (pair,) = duplicates([split("train", train), split("validation", validation)], 0.8, 100)[
        "between"
    ]
    assert (pair["exact"], pair["normalized"], pair["near"]) == (30, 60, 30)
    shown = {(e["first"]["row"], e["second"]["row"]) for e in pair["examples"]}
    assert shown == {(i, i) for start in (0, 100, 200) for i in range(start, start + 30)}


TEXTS = st.lists(
    st.sampled_from(["a b c d", "A b  c d", "a b c e", "b a c d"])
    | st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6).map(" ".join),
    max_size=14,
)


@settings(max_examples=80, deadline=None)
@given(TEXTS, TEXTS)
def test_near_duplicates_are_counted_over_all_rows(texts: list[str], others: list[str]) -> None:
    """By their definition, row by row, however often a text repeats."""
    first, second = split("first", texts), split("second", others)
    found = duplicates([first, second], 0.6, 0)

    def has_near(words: list[str], key: Any, rows: Rows) -> bool:
        return any(
            other != key and jaccard(words, theirs) >= 0.6 - 1e-9
            for theirs, other in zip(rows.words, rows.normalized, strict=True)
        )

    pairs = list(zip(second.words, second.normalized, strict=True))
    assert found["inside"]["second"]["near"] == sum(has_near(*pair, second) for pair in pairs)
    assert found["between"][0]["near"] == sum(
        has_near(*pair, first) for pair in pairs if pair[1] not in first.normalized
    )


def test_duplicates_inside_count_the_later_rows() -> None:
    texts = ["a b c", "a b c", "A b  c", "d e f g h i j k l", "d e f g h i j k m", "x"]
    found = duplicates([split("train", texts)], 0.8, 10)["inside"]["train"]
    assert (found["exact"], found["normalized"], found["near"]) == (1, 2, 2)


def test_normalization() -> None:
    assert normalize_text(" Stra\u00dfe \u00a0\ufb01n\n") == "strasse fin"


def test_texts_without_spaces_are_compared_by_characters() -> None:
    train = split("train", ["今日はとても天気がいいですね。", "วันนี้อากาศดีมาก", "Lo pasó."])
    assert train.words[2] == ["0lo", "0pasó", "0."]
    other = split("validation", ["今日はとても天気がいいですよ。", "วันนี้อากาศดีมากๆ", "Hoy."])
    assert duplicates([train, other], 0.8, 9)["between"][0]["near"] == 2


def test_contradictions() -> None:
    train = split("train", ["a", "b", "b ", "c"], np.array([0, 0, 1, 1]))
    validation = split("validation", ["c", "a"], np.array([0, 0]))
    unknown = split("test", ["a"], np.array([-1]))
    found = contradictions([train, validation, unknown], False, 10)
    assert (found["texts"], found["rows"]) == (2, 4)
    assert [[m["label"] for m in group] for group in found["examples"]] == [[0, 1], [1, 0]]
    near = split("train", ["a", "a", "b", "b"], np.array([1.0, 1.4, 0.0, 5.0]))
    assert contradictions([near], True, 10)["texts"] == 1


def test_faulty_texts() -> None:
    rows = Rows(
        "train", (["a", " ", "same", "b\x00"], ["b", "c", "same ", "\ufffd"]), np.zeros(4, np.int64)
    )
    found = faulty_texts([rows], 10)["train"]
    assert {name: [e["row"] for e in f["examples"]] for name, f in found.items()} == {
        "empty": [1], "same_text_twice": [2], "control_characters": [3], "undecodable": [3],
    }  # fmt: skip


def test_drift_is_seen_where_it_is_and_not_where_it_is_not() -> None:
    labels = np.arange(1500) % 2
    train = split("train", sentences(1500, seed=5), labels)
    same = drift(MRPC, train, split("validation", sentences(500, seed=6), labels[:500]), seed=0)
    assert same["labels"]["effect"] < 0.05
    assert same["told_apart"] == pytest.approx(0.5, abs=0.06)
    other = split(
        "validation", [f"{t} new word" for t in sentences(500, seed=7)], np.ones(500, int)
    )
    found = drift(MRPC, train, other, seed=0)
    assert found["labels"]["effect"] > 0.3
    assert found["told_apart"] > 0.95
    assert found["unseen_words"] > 0.1


def telling_rows(flipped: float, rows: int = 2400) -> tuple[Rows, set[int]]:
    """Sentences whose words tell the label, some labels flipped."""
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 2, rows)
    good, bad = WORDS[:40], WORDS[40:80]
    texts = [" ".join(rng.choice([*(good if y else bad), *WORDS[80:]], 14)) for y in labels]
    planted = rng.choice(rows, int(flipped * rows), replace=False)
    labels[planted] = 1 - labels[planted]
    return split("train", texts, labels), set(planted.tolist())


def test_planted_flips_are_ranked_first() -> None:
    rows, planted = telling_rows(0.05)
    found = suspicious_labels(MRPC, rows, seed=0, examples=5)
    ranking = found["ranking"]
    hits = np.cumsum([row in planted for row in ranking])
    enough = int(np.searchsorted(hits, 0.8 * len(planted))) + 1
    assert hits[-1] >= 0.8 * len(planted)
    assert hits[enough - 1] / enough > 0.8
    assert found["estimated_wrong"] == pytest.approx(len(planted), rel=0.35)
    assert found["trustworthy"]
    assert found["examples"][0]["doubt"] > 0.8


def test_labels_at_random_are_not_trusted() -> None:
    texts = sentences(800, seed=9)
    found = suspicious_labels(MRPC, split("train", texts, np.arange(800) % 2), seed=0, examples=5)
    assert not found["trustworthy"]
    assert suspicious_labels(MRPC, split("t", texts[:6], np.arange(6) % 2), seed=0, examples=5) == {
        "skipped": "a label has fewer than 5 rows"
    }


def test_confident_errors_by_hand() -> None:
    found = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.05, 0.95]])
    labels = np.array([0, 0, 1, 1, 0])
    # Thresholds: mean of 0.9, 0.8, 0.05 is 0.583 for label 0, of 0.9 and 0.7 is 0.8 for label 1.
    assert confident_errors(found, labels).tolist() == [False, False, False, False, True]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> TrainConfig:
    """`mrpc` with two leaked rows, one contradiction, one empty pair and one long row."""
    folder = write_task(tmp_path_factory.mktemp("spoilt"))
    path = folder / "mrpc"
    train, validation = (
        pq.read_table(path / f"{n}.parquet").to_pylist() for n in ("train", "validation")
    )
    validation[3:5] = [{**train[0], "idx": 3}, {**train[1], "idx": 4}]
    train[10] = {**train[11], "label": 1 - train[11]["label"], "idx": 10}
    train[20] = {"sentence1": "", "sentence2": "", "label": 0, "idx": 20}
    train[21]["sentence1"] = " ".join(WORDS[:60])
    schema = pq.read_schema(path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(train, schema), path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(validation, schema), path / "validation.parquet")
    return TrainConfig(
        task="mrpc", data_dir=str(folder), model_name_or_path=str(tiny_model), max_length=40,
    )  # fmt: skip


def test_train_warns_of_severe_faults(spoilt: TrainConfig, tmp_path: Path) -> None:
    data = prepare(find_splits(spoilt), build_tokenizer(spoilt), spoilt, tmp_path)
    found = warnings(data, MRPC, 40)
    assert [sentence.partition(" (")[0] for sentence in found] == [
        "train: 1 of 90 rows were cut to --max-length 40 tokens",
        "warning: 2 of 37 rows of validation occur in train too, so its score is too high",
        "warning: 1 text of train occurs with different labels",
        "warning: 1 of 90 rows of train holds no text at all",
        "`trainyard data-doctor` with the same data flags shows the rows",
    ]


def test_clean_data_is_passed_in_silence(tiny_model: Path, task_data: Path, tmp_path: Path) -> None:
    config = TrainConfig(task="mrpc", data_dir=str(task_data), model_name_or_path=str(tiny_model),
                         max_length=64)  # fmt: skip
    data = prepare(find_splits(config), build_tokenizer(config), config, tmp_path)
    assert warnings(data, MRPC, 64) == []


def test_row_hashes_are_those_of_the_tokens(spoilt: TrainConfig, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    table = prepare(find_splits(spoilt), build_tokenizer(spoilt), spoilt, tmp_path).table("train")
    rows = table.gather(np.arange(90), 40)["input_ids"]
    tokens = [tuple(ids[:n]) for ids, n in zip(rows, table.lengths, strict=True)]
    hashes = table.row_hashes()
    assert len(set(hashes.tolist())) == len(set(tokens)) == 89
    assert hashes[10] == hashes[11]
    monkeypatch.setattr("trainyard.data.token_table._HASHED_AT_ONCE", 7)
    assert table.row_hashes().tolist() == hashes.tolist()


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
@pytest.mark.parametrize("validated", [True, False])
def test_the_printed_command_reads_the_cleaned_and_the_validation_file(
    encoding: str, *, validated: bool, tmp_path: Path
) -> None:
    rows = ["schön {0};Spam", "größer {0};spam ", "naß {0};Ham", "öd {0};-1", "über {0};ham"]
    texts = [row.format(number) for number in range(10) for row in rows]
    for name, more in (("train", [";Spam"]), ("validation", [])):
        lines = ["text;label", *(f"{name} {text}" for text in texts), *more]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding)
    config = DataDoctorConfig(
        train_file=str(tmp_path / "train.csv"),
        validation_file=str(tmp_path / "validation.csv") if validated else None,
        delimiter=";", encoding=encoding, merge_similar_labels=True, drop_labels=("-1",),
        split_version=2,
    )  # fmt: skip
    splits, _ = all_splits(config)
    train, *others = (read(split, splits.task) for split in splits.splits)
    cleaned = _write_cleaned(tmp_path, config, splits.task, train, others)
    assert cleaned is not None
    command = shlex.split(cleaned["command"])[2:]
    again = find_splits(parse(TrainConfig, command))
    assert again.task.labels == ("ham", "spam")
    assert all(note.startswith("no --validation-file") for note in again.notes)
    found = {split.name: sum(len(batch) for batch in split.batches()) for split in again.splits}
    assert sum(found.values()) == cleaned["rows"] + 40 * validated
    assert ("--delimiter" in command, "--split-version" in command) == (validated, True)


def test_the_whole_examination(cluster: Any, spoilt: TrainConfig, tmp_path: Path) -> None:  # noqa: ARG001
    path = Path(str(spoilt.data_dir)) / "mrpc/test.parquet"
    rows = pq.read_table(path.with_name("validation.parquet")).to_pylist()
    schema = pq.read_schema(path.with_name("validation.parquet"))
    pq.write_table(pa.Table.from_pylist([{**row, "label": -1} for row in rows], schema), path)
    config = DataDoctorConfig(
        task="mrpc", data_dir=spoilt.data_dir, model_name_or_path=spoilt.model_name_or_path,
        max_length=40, storage_path=str(tmp_path),
    )  # fmt: skip
    found = examine_data(config)
    path.unlink()
    severe = " ".join(found.as_json()["severe"])
    assert found.as_json()["grave"] == found.as_json()["severe"]
    assert "2 of 37 rows of validation also occur in train (2 identical)" in severe
    assert "37 of 37 rows of test also occur in validation" in severe
    assert "1 text occurs with different labels (2 rows)" in severe
    assert "1 row of train has an empty text" in severe
    report = json.loads((found.folder / "doctor.json").read_text())
    assert {(f["level"], f["severity"]) for f in report["findings"]} == {
        ("severe", "grave"), ("notice", "notice"),
    }  # fmt: skip
    assert report["truncation"]["train"]["truncated_rows"] == 1
    assert report["cleaned"]["rows"] == 90 - 1 - 2 - 2  # empty, leaked, contradicting
    assert report["cleaned"]["removed"] == {
        "with an empty text": 1, "without a label": 0, "that occur in another split": 2,
        "with contradicting labels": 2, "that repeat an earlier row": 0,
    }  # fmt: skip
    command = shlex.split(report["cleaned"]["command"])[2:]
    again = examine_data(
        DataDoctorConfig(
            train_file=command[command.index("--train-file") + 1], max_length=40,
            text_column="sentence1", text_pair_column="sentence2",
            model_name_or_path=spoilt.model_name_or_path, storage_path=str(tmp_path),
        )
    )  # fmt: skip
    assert again.as_json()["severe"] == []
    assert again.report["cleaned"] is None
    assert isinstance(parse(TrainConfig, command), TrainConfig)
    assert report["balance"]["train"] == {"not_equivalent": 45, "equivalent": 45}
    assert set(report["seconds_of"]) >= {"duplicates", "labels", "truncation"}


def test_flags_that_cannot_work() -> None:
    with pytest.raises(UserError, match=r"^near_duplicate_similarity is 0.2; it must lie between"):
        DataDoctorConfig(near_duplicate_similarity=0.2)
