"""Every command that a page prints is recorded, is run here, or is an exception with a reason.

The commands of a page run in its order, as a reader would type them. They keep all their flags; some
get further ones that make them short.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from support.job_cluster import job_cluster
from support.job_scripts import ROOT
from support.patched_package import patched
from support.readers_folder import forget_runs, write_clone, write_folder
from support.serving_locally import free_port

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*.md"))
STARTS = r"(?:trainyard|python|ray job submit) "
RECORDED = {
    command["command"]
    for command in json.loads((ROOT / "benchmarks/results/transcripts.json").read_text())[
        "commands"
    ].values()
}
EXCEPTIONS: Mapping[str, tuple[str, str]] = {
    r"--use-gpu": ("needs a GPU, or several", "tests/gpu/test_jobs.py"),
    r"^python benchmarks/gpu\.py ": ("needs a GPU", "tests/test_gpu_benchmark.py"),
    r"jobs/dashboard\.py": (
        "serves on the cluster until it is stopped",
        "tests/test_job_submit.py",
    ),
    r"--working-dir \.": ("uploads the clone to a cluster", "tests/test_job_submit.py"),
    r"--num-workers 8$": ("needs eight CPUs", "tests/inference/test_batch_inference.py"),
    r"--submission$": ("trains 27 models", "tests/glue/test_submission.py"),
    r"^trainyard init FILE$": ("FILE stands for a name", "tests/command/test_starter.py"),
    r"^python client\.py ": ("asks a server", "tests/test_snippets.py"),
    r"^python -m http\.server ": ("is Python's own", "tests/test_snippets.py"),
}
"""Pattern of commands that are not run here -> reason, and the test that runs the same."""

SHORTER: Mapping[str, Mapping[str, str]] = {
    "train": {"--max-steps": "2"},
    "tune": {"--max-train-samples": "32"},
    "glue": {"--max-steps": "2", "--data-dir": "glue", "--tasks": "mrpc"},
    "serve": {"--port": ""},
    "dashboard": {"--port": ""},
}
"""Job -> flags that its commands get unless they have them; a port is a free one. Jobs that train
also get a tiny model, and the GLUE tasks a local folder."""
VERBS = ("example", "check", "new-key")
"""Words of `trainyard serve` that end."""


def printed(path: Path) -> Iterator[str]:
    """Yield the commands of a page: lines of its blocks, cells of its tables, steps of its lists."""
    text = path.read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    typed = "\n".join(block for language, block in blocks if not language)
    lines = typed.replace("\\\n", " ").splitlines()
    cells = re.findall(rf"^\|(?:.*\|)? `({STARTS}[^`]+)` \|", text, re.MULTILINE)
    steps = re.findall(rf"^\d+\. .*`({STARTS}[^`]+)`", text, re.MULTILINE)
    for line in [*lines, *cells, *steps]:
        command = " ".join(re.sub(r"\s+# .*$", "", line).split())
        if re.match(STARTS, command):
            yield command


def exception(command: str) -> str | None:
    """Return the first pattern of `EXCEPTIONS` that a command fits."""
    return next((pattern for pattern in EXCEPTIONS if re.search(pattern, command)), None)


def to_run() -> dict[Path, list[str]]:
    """List the commands to run by page; one that several pages print belongs to the first."""
    seen = set(RECORDED)
    found: dict[Path, list[str]] = {}
    for path in PAGES:
        for command in printed(path):
            if command not in seen and exception(command) is None:
                found.setdefault(path, []).append(command)
            seen.add(command)
    return found


RUN = to_run()
EVERY = [command for path in PAGES for command in printed(path)]


def test_most_commands_are_run_and_exceptions_are_few() -> None:
    excepted = {command for command in EVERY if exception(command)}
    assert len({*EVERY}) > 70
    assert len(excepted) <= 24, excepted
    assert len([*RECORDED & {*EVERY}]) >= 10


@pytest.mark.parametrize("pattern", EXCEPTIONS)
def test_an_exception_is_printed_and_another_test_runs_the_same(pattern: str) -> None:
    assert [command for command in EVERY if exception(command) == pattern]
    assert (ROOT / EXCEPTIONS[pattern][1]).is_file()


def shorter(command: str, tiny: str, port: int) -> str:
    """Append the flags of `SHORTER`, before a redirection."""
    job, *words = re.sub(r"^.*?(?:trainyard |python jobs/)", "", command).split()
    job = job.removesuffix(".py")
    if {*words} & {*VERBS, "--export"}:
        return command
    flags = {**SHORTER.get(job, {})}
    if job in ("train", "tune", "glue", "doctor"):
        flags["--model-name-or-path"] = tiny
    if "--task" in words:
        flags["--data-dir"] = "glue"
    if "--port" in flags:
        flags["--port"] = str(port)
    return " ".join([command, *(f"{k} {v}" for k, v in flags.items() if k not in words)])


def answers(url: str) -> bool:
    """Return whether a server answers, be it that it wants a key."""
    try:
        urlopen(url, timeout=20).close()
    except HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


class Reader:
    """Types commands in a prepared folder, those of `ray job submit` in a clone next to a cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(folder / "hub"),
        }
        self.cluster = ""

    def patch(self, folder: Path) -> None:
        """Use the package with the diffs of docs/extend.md from now on."""
        self._environment["PYTHONPATH"] = str(patched(folder))

    def type(self, command: str) -> None:
        """Run a command to its end, or ask the server that it starts.

        Raises:
            AssertionError: It failed, or a file that it names as its output has no content.
        """
        port = free_port()
        typed = shorter(command, str(self.folder / "tiny"), port)
        if f"--port {port}" in typed:
            self._ask(typed, port)
            return
        folder, environment = self.folder, self._environment
        if command.startswith("ray "):
            folder, environment = folder / "clone", {**environment, "RAY_ADDRESS": self.cluster}
            typed = typed.replace("/shared", str(self.folder / "shared"))
        done = subprocess.run(
            ["bash", "-c", typed], cwd=folder, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{typed}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        for name in re.findall(r"(?:--output-file|--output|>>?) (\S+)", command):
            assert (folder / name).stat().st_size, name
        if not re.search(r" serve | --output | init ", command):
            assert re.search(r'^\{"job": "', done.stdout, re.MULTILINE), done.stdout[-3000:]

    def _ask(self, typed: str, port: int) -> None:
        """Start a server, wait until it answers, and end it by Ctrl-C."""
        path = "/ready" if " serve " in typed else "/"
        with (self.folder / "server.log").open("w+") as log:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {typed}"], cwd=self.folder, env=self._environment, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                deadline = time.monotonic() + 300
                while "Ctrl-C" not in (said := Path(log.name).read_text()):
                    assert server.poll() is None, f"{typed}\n{said}"
                    assert time.monotonic() < deadline, f"{typed}\n{said}"
                    time.sleep(0.5)
                assert answers(f"http://127.0.0.1:{port}{path}"), f"{typed}\n{said}"
            finally:
                if server.poll() is None:
                    server.send_signal(signal.SIGINT)
        assert server.wait(120) == 0, typed


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = write_folder(tmp_path_factory.mktemp("reader"))
    (folder / "clone").mkdir()
    write_clone(folder / "clone")
    (folder / "shared").mkdir()
    shutil.copy(folder / "mail.csv", folder / "shared")
    return Reader(folder)


@pytest.fixture(scope="module")
def jobs(reader: Reader) -> Iterator[None]:
    """Let the reader submit jobs, to a cluster that sees the reader's models."""
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(reader.folder / "hub")}
    with job_cluster(hub) as reader.cluster:
        yield


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_page_run(
    path: Path, reader: Reader, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if path.name == "extend.md":
        reader = Reader(reader.folder)
        reader.patch(tmp_path)
    if any(command.startswith("ray ") for command in RUN[path]):
        request.getfixturevalue("jobs")
        # Another package for each page: Ray may have deleted that of a page some minutes before.
        (reader.folder / "clone" / "page.txt").write_text(path.name)
    try:
        for command in RUN[path]:
            reader.type(command)
    finally:
        forget_runs(reader.folder / "runs")
        shutil.rmtree(reader.folder / "shared" / "runs", ignore_errors=True)
