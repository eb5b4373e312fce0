"""The Hub's paths, by the real libraries, against a stand-in for its HTTP interface."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import hub_stand_in
from support.hub_stand_in import COMMIT, TOKEN, hub
from support.small_models import marian
from support.tiny import write_task

CODE = """
import json, sys
from pathlib import Path
from trainyard.config import TrainConfig
from trainyard.data import prepare
from trainyard.errors import UserError
from trainyard.models import build_model, build_tokenizer
from trainyard.data import find_splits

config = TrainConfig(task=sys.argv[1], model_name_or_path=sys.argv[2], max_length=32)
try:
    found = find_splits(config)
    rows = {split.name: sum(b.num_rows for b in split.batches()) for split in found.splits}
    data = prepare(found, build_tokenizer(config), config, Path(sys.argv[3]))
    model = build_model(sys.argv[2], found.task, data.model_revision, seed=42)
    print(json.dumps({"rows": rows, "labels": model.config.id2label, "commit": data.model_revision}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""


def ask(endpoint: str, home: Path, task: str, model: str, **extra: str) -> dict[str, object]:
    answer: dict[str, object] = json.loads(
        run(CODE, [task, model, str(home / "tables")], endpoint, home, **extra)
    )
    return answer


def run(code: str, arguments: list[str], endpoint: str, home: Path, **extra: str) -> str:
    """The last line that `code` prints in a process of its own."""
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": os.pathsep.join(sys.path), **extra,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def hub_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(tiny_model, root / "models/acme/tiny-bert")
    data = write_task(tmp_path_factory.mktemp("data"))
    glue = root / "datasets/nyu-mll/glue"
    (glue / "mrpc").mkdir(parents=True)
    for split in ("train", "validation"):
        shutil.copy(data / f"mrpc/{split}.parquet", glue / f"mrpc/{split}-00000-of-00001.parquet")
    (glue / "README.md").write_text(
        "---\nconfigs:\n- config_name: mrpc\n  data_files:\n"
        "  - split: train\n    path: mrpc/train-*\n"
        "  - split: validation\n    path: mrpc/validation-*\n---\n"
    )
    return root


def test_data_and_model_come_from_the_hub_and_then_from_its_cache(
    hub_folder: Path, tmp_path: Path
) -> None:
    expected = {
        "rows": {"train": 90, "validation": 37},
        "labels": {"0": "not_equivalent", "1": "equivalent"},
        "commit": COMMIT,
    }
    with hub(hub_folder) as (endpoint, requests):
        assert ask(endpoint, tmp_path, "mrpc", "acme/tiny-bert") == expected
        assert any("datasets/nyu-mll/glue/resolve/bcdcba79" in request for request in requests)
        weights = [
            r for r in requests if "acme/tiny-bert/resolve" in r and "model.safetensors" in r
        ]
        assert weights
        assert all(f"resolve/{COMMIT}/" in request for request in weights)
    # The Hub is gone: the libraries' caches answer.
    offline = ask(endpoint, tmp_path, "mrpc", "acme/tiny-bert", HF_HUB_OFFLINE="1")
    assert offline == expected


ROWS = """
import sys
from trainyard.config import TrainConfig
from trainyard.data import find_splits

name = "nyu-mll/glue@" + sys.argv[1]
config = TrainConfig(dataset_name=name, dataset_config_name="mrpc", text_column="sentence1")
print(sum(batch.num_rows for batch in find_splits(config).splits[0].batches()))
"""


def test_a_data_set_is_loaded_at_the_named_revision(hub_folder: Path, tmp_path: Path) -> None:
    with hub(hub_folder) as (endpoint, requests):
        assert run(ROWS, [COMMIT], endpoint, tmp_path) == "90"
    assert f"GET api/datasets/nyu-mll/glue/revision/{COMMIT}" in requests


@pytest.mark.long
def test_what_the_hub_does_not_have_is_one_sentence(hub_folder: Path, tmp_path: Path) -> None:
    with hub(hub_folder) as (endpoint, _):
        answer = ask(endpoint, tmp_path, "mrpc", "acme/absent")
        assert str(answer["error"]).startswith("model 'acme/absent' could not be loaded (")
        answer = ask(endpoint, tmp_path, "cola", "acme/tiny-bert")
        assert "task 'cola' could not be loaded from the Hub (nyu-mll/glue)" in str(answer["error"])
        assert "or give --data-dir with cola/train.parquet" in str(answer["error"])
    answer = ask("http://127.0.0.1:9", tmp_path / "new", "mrpc", "acme/tiny-bert")
    assert "task 'mrpc' could not be loaded from the Hub (nyu-mll/glue)" in str(answer["error"])


PREDICT = """
import sys
from trainyard.inference import PredictConfig

config = PredictConfig(
    model_name_or_path="acme/tiny-bert", input_file=sys.argv[1], output_file="scores.jsonl"
).pinned()
print(config.revision, config.identity())
"""


def test_another_commit_is_another_prediction(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "input.csv").write_text("text\nba\n")
    arguments = [str(tmp_path / "input.csv")]
    commits = ["a" * 40, "b" * 40]
    found = []
    with hub(hub_folder) as (endpoint, _):
        for commit in commits:
            monkeypatch.setattr(hub_stand_in, "COMMIT", commit)
            found.append(run(PREDICT, arguments, endpoint, tmp_path).split())
    assert [revision for revision, _ in found] == commits
    assert found[0][1] != found[1][1]
    # Without the Hub the cache's newest commit goes on where it stopped.
    assert run(PREDICT, arguments, endpoint, tmp_path, HF_HUB_OFFLINE="1").split() == found[1]


TRANSLATE = """
import sys
from trainyard.inference import PREDICTORS
from trainyard.serving.options import Version
from trainyard.serving.replica.model_source import locate, task_of

folder, _ = locate(Version(source="acme/opus-mt-fr-en"), 1e9)
assert task_of(folder) == "text2text-generation"
for source in (folder, "acme/opus-mt-fr-en"):
    translator = PREDICTORS["translation"].load(str(source))
    print(translator("Ce cours est produit par Hugging Face."))
"""


def test_a_marian_model_comes_with_its_sentencepiece_files(tmp_path: Path) -> None:
    marian(tmp_path / "hub/models/acme/opus-mt-fr-en")
    with hub(tmp_path / "hub") as (endpoint, requests):
        assert "translation_text" in run(TRANSLATE, [], endpoint, tmp_path / "home")
    assert any(request.endswith("target.spm") for request in requests)


PUSH = """
import sys
from trainyard.errors import UserError
from trainyard.training import push_model

try:
    push_model(sys.argv[1], sys.argv[2])
    print("pushed")
except UserError as error:
    print(error)
"""


def test_a_model_is_pushed_and_comes_back_the_same(tiny_model: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir() if path.is_file()}
    with hub(tmp_path / "hub") as (url, requests):
        arguments = [str(tiny_model), "acme/mail"]
        refused = run(PUSH, arguments, url, tmp_path, HF_TOKEN="hf_wrong")
        assert refused.startswith(
            f"{tiny_model} is finished, but could not be pushed to acme/mail ("
        )
        assert refused.endswith("check the name and `hf auth login`; the same command tries again")
        for _ in range(2):
            assert run(PUSH, arguments, url, tmp_path, HF_TOKEN=TOKEN) == "pushed"
        assert "POST api/repos/create private" in requests
        pushed = tmp_path / "hub/models/acme/mail"
        assert {path.name: path.read_bytes() for path in pushed.iterdir()} == files
        (pushed / "config.json").unlink()
    assert "could not be pushed" in run(PUSH, arguments, url, tmp_path, HF_TOKEN=TOKEN)


@pytest.mark.long
def test_a_run_is_pushed_when_it_is_finished(
    tiny_model: Path, task_data: Path, tmp_path: Path
) -> None:
    code = "import sys; from trainyard.command import main; sys.argv[0] = 'trainyard'; main()"
    flags = {
        "task": "mrpc", "data-dir": task_data, "model-name-or-path": tiny_model, "max-length": 32,
        "storage-path": tmp_path / "runs", "run-name": "mail", "max-steps": 4, "push-to-hub": "acme/mail",
    }  # fmt: skip
    arguments = [
        "train",
        *(str(word) for pair in flags.items() for word in (f"--{pair[0]}", pair[1])),
    ]
    with hub(tmp_path / "hub") as (url, _):
        with pytest.raises(AssertionError, match="could not be pushed to acme/mail"):
            run(code, arguments, url, tmp_path, HF_TOKEN="hf_wrong")
        line = run(code, arguments, url, tmp_path, HF_TOKEN=TOKEN)
    model = Path(json.loads(line)["model"])
    pushed = tmp_path / "hub/models/acme/mail"
    assert "| validation | f1 |" in (pushed / "README.md").read_text()
    assert (pushed / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
