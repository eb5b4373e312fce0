"""What people get wrong: one helpful sentence, status 2, within seconds; some by the real command."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.tiny import write_task

from trainyard.command import main
from trainyard.errors import one_line

ROOT = Path(__file__).parents[1]

MISTAKES = {
    "no data": ([], "no data is given; give --train-file FILE.csv with columns text and"),
    "empty file name": (["--train-file", ""], "--train-file is empty; give a value, or leave it out"),
    "empty folder name": (["--task", "mrpc", "--data-dir", ""], "--data-dir is empty; give a value, or"),
    "unknown task": (["--task", "sst"], "unknown task 'sst'; did you mean 'sst2'?"),
    "task without training split": (["--task", "ax"], "has no training split; train on mnli"),
    "flag typo": (["--learning-rat", "1"], "no flag --learning-rat; did you mean --learning-rate?"),
    "typo of --config": (["--confg", "mail.yaml"], "there is no flag --confg; did you mean --config?"),
    "abbreviated flag": (["--lr", "1e-4"], "there is no flag --lr; did you mean --learning-rate?"),
    "flag of another job": (["--num-trials", "3"], "there is no flag --num-trials; `trainyard train --he"),
    "file without a flag": (["good.csv"], "good.csv stands alone; write --train-file good.csv"),
    "key of a config": (["--config", "typo.yaml"], "no flag --train-fil; did you mean --train-file?"),
    "value of another type": (["--num-train-epochs", "many"], "num-train-epochs"),
    "choice that does not exist": (["--mixed-precision", "fp8"], "fp8"),
    "no such data folder": (["--task", "mrpc", "--data-dir", "absent"],
                            "absent/mrpc/train.parquet does not exist; --data-dir must hold"),
    "column missing": (["--train-file", "good.csv", "--text-column", "body"],
                       "good.csv has no column 'body'"),
    "file missing": (["--train-file", "god.csv"], "god.csv does not exist (did you mean 'good.csv'?)"),
    "file of unknown kind": (["--train-file", "notes.txt"], "ends in '.txt', expected"),
    "file not UTF-8": (["--train-file", "latin.csv"], "latin.csv line 2"),
    "file empty": (["--train-file", "empty.csv"], "empty.csv is empty (0 bytes)"),
    "header only": (["--train-file", "header.csv"], "has no rows"),
    "fields missing in a row": (["--train-file", "short.csv"], "short.csv line 3: 1 fields"),
    "one class": (["--train-file", "one.csv"], "only one label 'x' in 2 rows"),
    "label missing": (["--train-file", "nolabel.csv"], "nolabel.csv line 3: the label is empty"),
    "text as a number to learn": (["--train-file", "good.csv", "--problem-type", "regression"],
                                  "good.csv line 2: label 'x'"),
    "broken JSON": (["--train-file", "bad.jsonl"], "bad.jsonl line 2"),
    "not Parquet": (["--train-file", "fake.parquet"], "fake.parquet"),
    "damaged task data": (["--task", "mrpc", "--data-dir", "damaged"],
                          "damaged/mrpc/train.parquet is not a Parquet file, or is cut short"),
    "unknown model folder": (["--model-name-or-path", "./absent"], "holds no config.json"),
    "unknown model on the Hub": (["--model-name-or-path", "acme/absent"],
                                 "model 'acme/absent' could not be loaded"),
    "package not installed": (["--model-name-or-path", "package:absent/model"],
                              "the Python package 'absent' is not installed here"),
    "max length too long": (["--max-length", "4096", "--model-name-or-path", "MODEL"],
                            "--max-length 4096 is more than the 64 positions"),
    "max length too short": (["--max-length", "3", "--model-name-or-path", "MODEL"],
                             "--max-length 3 leaves no room for text next to 3 special tokens"),
    "a folder that nothing reads": (["--data-dir", "bare"],
                                    "--data-dir bare would not be read: the rows of task 'demo'"),
    "split without rows": (["--task", "mrpc", "--data-dir", "bare", "--max-length", "64",
                            "--model-name-or-path", "MODEL"], "split 'train' has no rows"),
    "a dashboard's address": (["--address", "http://127.0.0.1:8265", "--max-length", "64",
                               "--model-name-or-path", "MODEL"],
                              "`ray job submit` takes the dashboard's (http://HEAD:8265)"),
    "slots do not share out": (["--num-workers", "3"], "use a --train-batch-size that is a multiple"),
    "fp16 on a CPU": (["--mixed-precision", "fp16"], "fp16 needs a GPU"),
    "DeepSpeed on a CPU": (["--strategy", "deepspeed"], "--strategy deepspeed needs GPUs"),
    "storage is a file": (["--storage-path", "good.csv"], "cannot be written"),
    "storage is no bucket": (["--storage-path", "ftp://host/runs"], "a URL that starts with s3://"),
    "run name with a path": (["--run-name", "../x"], "--run-name is '../x'"),
    "no such preset": (["--config", "absent.yaml"], "--config absent.yaml cannot be read"),
    "config with another ending": (["--config", "mail.yml"],
                                   "mail.yml cannot be read (did you mean 'mail.yaml'?); give the path"),
    "validation file missing": (["--train-file", "good.csv", "--validation-file", "goods.csv"],
                                "goods.csv does not exist (did you mean 'good.csv'?); give"),
    "settings missing": (["--train-file", "mail.csv"],
                         "add --delimiter ';' --text-column comment --label-column mood"),
    "no cluster at the address": (["--address", "127.0.0.1:1", "--max-length", "64",
                                   "--model-name-or-path", "MODEL"],
                                  "no Ray cluster answers at 127.0.0.1:1"),
    "more workers than CPUs": (["--num-workers", "64", "--train-batch-size", "64",
                                "--per-device-train-batch-size", "1", "--resources-per-worker",
                                "CPU", "64", "--max-length", "64", "--model-name-or-path", "MODEL"],
                               "--num-workers 64 with 64 CPU each do not fit"),
}  # fmt: skip


BY_A_PROCESS = {
    "no data", "split without rows", "a dashboard's address", "no cluster at the address",
    "more workers than CPUs",
}  # fmt: skip
"""These start Ray or look for it; one is here for the command itself. The others share a process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    for name, content in {
        "good.csv": b"text,label\nba,x\nco,y\n",
        "notes.txt": b"text",
        "latin.csv": "text,label\ncaf\u00e9,x\n".encode("latin-1"),
        "empty.csv": b"",
        "header.csv": b"text,label\n",
        "short.csv": b"text,label\nba,x\nco\n",
        "one.csv": b"text,label\nba,x\nco,x\n",
        "nolabel.csv": b"text,label\nba,x\nco,\n",
        "bad.jsonl": b'{"text": "ba", "label": "x"}\n{"text": \n',
        "fake.parquet": b"this is text",
        "mail.csv": b"id;comment;mood\n1;ba;x\n2;co;y\n",
        "mail.yaml": b"task: demo\n",
        "typo.yaml": b"train_fil: good.csv\n",
    }.items():
        (folder / name).write_bytes(content)
    write_task(folder / "bare", train=0)
    write_task(folder / "damaged")
    train = folder / "damaged/mrpc/train.parquet"
    train.write_bytes(train.read_bytes()[:-20])
    return folder


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda name: name.replace(" ", "-"))
def test_a_mistake_is_answered_by_one_sentence(
    mistake: str,
    folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags, sentence = MISTAKES[mistake]
    flags = [str(tiny_model) if flag == "MODEL" else flag for flag in flags]
    if (
        flags[:1]
        and flags[0] != "good.csv"
        and not {"--task", "--train-file", "--data-dir"} & set(flags)
    ):
        flags = ["--task", "demo", *flags]
    if mistake in BY_A_PROCESS:
        assert sentence in refusal("train", flags, folder)
    else:
        assert sentence in refusal_here("train", flags, folder, monkeypatch, capfd)


OF_OTHER_JOBS = {
    ("tune", "--train-file", "good.csv", "--space", "huge"): "--space huge is unknown",
    ("tune", "--train-file", "god.csv"): "god.csv does not exist (did you mean 'good.csv'?); give",
    ("quickstart", "--model-name-or-path", "MODEL", "--max-length", "4096"):
        "--max-length 4096 is more than the 64 positions",
    ("eval", "--model-name-or-path", "absent"): "absent",
    ("serve", "runs/mail"): "runs/mail stands alone; write --model-name-or-path runs/mail",
    ("eval", "--validation-file", "good.csv"): "--model-name-or-path",
    ("predict", "--model-name-or-path", "MODEL", "--input-file", "absent.csv", "--output-file",
     "out.jsonl"): "absent.csv does not exist",
    ("predict", "--model-name-or-path", "MODEL", "--input-file", "god.csv", "--output-file",
     "out.jsonl"): "god.csv does not exist (did you mean 'good.csv'?); give",
    ("predict", "--model-name-or-path", "MODEL", "--input-file", "mail.csv", "--output-file",
     "out.jsonl"): "add --delimiter ';' --text-column comment",
    ("predict", "--model-name-or-path", "MODEL", "--input-file", "good.csv", "--output-file",
     "out.xls"): "--output-file out.xls must end in",
    ("tune", "--train-file", "None"): "no data is given; give --train-file FILE.csv",
    ("data-doctor",): "no data is given; give --train-file FILE.csv",
    ("serve", "--model-name-or-path", "./absent"): "holds no config.json",
    ("serve", "--model-name-or-path", "nope"): "error: model 'nope' could not be loaded",
    ("serve", "--model-name-or-path", "MODEL", "--name", "a b"): "error: --name: 'a b' is not a model",
    ("engine", "--model-name-or-path", "./absent"): "absent",
    ("data-doctor", "--train-file", "absent.csv"): "absent.csv does not exist",
    ("data-doctor", "--train-file", "good.csv", "--validation-file", "good.csv",
     "--model-name-or-path", "./absent"): "holds no config.json",
    ("data-doctor", "--train-file", "good.csv", "--validation-file", "good.csv",
     "--model-name-or-path", "MODEL", "--max-length", "4096"): "is more than the 64 positions",
    ("dashboard", "--storage-path", "absent"): "absent is not a folder",
    ("glue", "--data-dir", "bare", "--tasks", "rte"):
        "bare/rte/train.parquet does not exist, so no run was started; put it there",
    ("glue", "--data-dir", "absent", "--tasks", "rt"): "rt",
    ("trian",): "trainyard has no command 'trian'; did you mean 'train'?",
}  # fmt: skip


@pytest.mark.parametrize("words", OF_OTHER_JOBS, ids=lambda words: "-".join(words[:1]))
def test_a_mistake_with_another_job(
    words: tuple[str, ...],
    folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    job, *flags = (str(tiny_model) if word == "MODEL" else word for word in words)
    if "nope" in words:  # else the Ray that another test has started may know the model
        assert OF_OTHER_JOBS[words] in refusal(job, flags, folder)
    else:
        assert OF_OTHER_JOBS[words] in refusal_here(job, flags, folder, monkeypatch, capfd)


@pytest.mark.parametrize("job", ["train", "tune"])
def test_data_are_read_before_ray_starts(
    job: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    sentence = "add --delimiter ';' --text-column comment --label-column mood"
    assert sentence in refusal_here(job, ["--train-file", "mail.csv"], folder, monkeypatch, capfd)


def refusal(job: str, flags: Sequence[str], folder: Path) -> str:
    """What the command says of a mistake in `folder`: one sentence, nothing else, status 2."""
    code = "from trainyard.command import main; main()"
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", code, job, *flags],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "platform")},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert sorted(folder.rglob("*")) == before
    return sentence_of(job, done.stdout, done.stderr)


def refusal_here(
    job: str,
    flags: Sequence[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> str:
    """What `main` says of a mistake in `folder`, like `refusal`."""
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(argv=[job, *flags])
    assert ended.value.code == 2
    assert sorted(folder.rglob("*")) == before
    return sentence_of(job, *capfd.readouterr())


def sentence_of(job: str, stdout: str, stderr: str) -> str:
    """The sentence on `stderr`, without the lines that say what is being done."""
    lines = stderr.strip().splitlines()
    lines = [line for line in lines if not line.startswith((f"trainyard {job}: ", "· "))]
    said = " ".join(" ".join(lines).split())
    assert "Traceback" not in said
    assert stdout == ""
    if said.startswith("error: "):  # our own; the rest is tyro's box with its hint
        assert len(lines) == 1, stderr
    else:
        assert "─" in said
    return said


def test_the_table_is_long_enough() -> None:
    assert len(MISTAKES) >= 25


def test_a_long_reason_is_cut_before_a_word() -> None:
    assert one_line("see\nthe  help", 12) == "see the help"
    assert one_line("see the help", 11) == "see the …"
    assert one_line("see the help", 9) == "see the …"
    assert one_line("see the help", 8) == "see …"
    assert one_line("x" * 12, 11) == "xxxxxxxxx …"
