"""Snippets of the docs, run as they stand: Python, curl and JavaScript; the notebooks page of examples/.

Commands are run by test_printed_commands.py. A server of the pages, on port 8000, is one of tiny
models here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import BROWSER, chromium, files_of, page_at
from support.job_scripts import ROOT
from support.serving_locally import LocalModels, load, serving
from support.small_models import LABELS, classifier, gpt2

from trainyard.serving.options import GatewayOptions

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SERVER = "http://localhost:8000"


def snippets(pattern: str) -> Iterator[Any]:
    """Yield the snippets of the pages, each named after its page and line."""
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
            line = text[: found.start()].count("\n") + 1
            yield pytest.param(found[1], id=f"{page.stem}-{line}")


PYTHON = [*snippets(r"^```python\n(.*?)^```")]
CURL = [*snippets(r"^(curl [^\n]*)")]
JAVASCRIPT = [*snippets(r"^```javascript\n(.*?)^```")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the runs that the pages name."""
    path = tmp_path_factory.mktemp("reader")
    for name in ("mail", "mnli"):
        classifier(path / "runs" / name / "model")
    shutil.copy(ROOT / "examples" / "mail.csv", path)
    return path


@pytest.fixture(scope="module")
def pages(folder: Path) -> Iterator[str]:
    """Origin of a server of `folder`, as `python -m http.server` is one."""
    with files_of(folder) as origin:
        yield origin


@pytest.fixture(scope="module")
def server(folder: Path, pages: str) -> Iterator[str]:
    hosts = {
        "mail": load(folder / "runs" / "mail"),
        "distilgpt2": load(gpt2(folder / "distilgpt2")),
    }
    with serving(LocalModels(hosts), GatewayOptions(cors_origins=(pages,))) as url:
        yield url
    for host in hosts.values():
        host.close()


def test_there_are_snippets_of_every_kind() -> None:
    assert len(PYTHON) >= 6
    assert CURL
    assert JAVASCRIPT
    assert len(NOTEBOOKS) == 3


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(
    cluster: Any, code: str, folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    del cluster  # snippets that train use its Ray
    monkeypatch.chdir(folder)
    # The client refuses any request while it is set, also to this machine.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    code = code.replace(SERVER, server)
    exec(compile(code, "a snippet of the docs", "exec"), {})


@pytest.mark.parametrize("command", CURL)
def test_curl_gets_an_answer(command: str, server: str) -> None:
    done = subprocess.run(
        ["bash", "-c", command.replace(SERVER, server)], capture_output=True, check=True
    )
    if '"stream": true' not in command:
        assert {"label", "score"} == json.loads(done.stdout)[0][0].keys()
        return
    *events, end = done.stdout.decode().strip().split("\n\n")
    assert end == "data: [DONE]"
    shown = [json.loads(event.removeprefix("data:")) for event in events]
    assert [event["index"] for event in shown] == [1, 2, 3]
    assert shown[-1]["details"]["finish_reason"] == "length"
    assert shown[-1]["generated_text"]


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("code", JAVASCRIPT)
def test_javascript_gets_an_answer(code: str, server: str) -> None:
    assert code.endswith("console.log(await answer.json());\n")
    code = code.replace(SERVER, server).replace("console.log(", "return (")
    with chromium() as browser, page_at(browser, f"{server}/playground#mail") as page:
        page.locator("#f-text").wait_for()
        answer = page.evaluate(f"async () => {{ {code} }}")
    assert {"label", "score"} == answer[0][0].keys()


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_page_of_the_examples_shows_every_label(folder: Path, pages: str, server: str) -> None:
    text = (ROOT / "examples" / "client.html").read_text()
    assert SERVER in text
    (folder / "client.html").write_text(text.replace(SERVER, server))
    with chromium() as browser, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{pages}/client.html")
        page.get_by_role("button", name="Sort").click()
        page.locator("#answer td").first.wait_for()
        cells = page.locator("#answer td").all_text_contents()
    assert set(cells[::2]) == set(LABELS), cells
    assert sum(map(float, cells[1::2])) == pytest.approx(1, abs=0.01)


def environment(url: str) -> dict[str, str]:
    """Environment of a reader whose model is at `url`, with the commands of this environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "MODEL_URL": url, "HF_HUB_OFFLINE": "0"}


def test_the_requests_of_the_examples_get_answers(server: str) -> None:
    script = ROOT / "examples" / "requests.sh"
    done = subprocess.run(
        ["sh", script], env=environment(f"{server}/models/mail"), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    *answers, mistake = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == script.read_text().count("\nask ") - 1
    assert not [answer for answer in answers if isinstance(answer, dict) and "error" in answer]
    assert mistake["error_type"] == "validation"
    assert "topk" in mistake["error"]


def test_the_client_of_the_examples_sorts_texts(server: str) -> None:
    texts = ["Where is my parcel?", "I was charged twice."]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "client.py", *texts],
        env=environment(f"{server}/models/mail"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == texts
    assert {line.split()[0] for line in lines} <= set(LABELS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs"), cell["source"]
        assert cell.get("execution_count") is None


EXPECTED = {
    "classification": ("delivery", "billing", "accuracy", "95 % interval"),
    "sweep": ("trial-000", "learning_rate"),
    "serving": ("/models/notebook-served", "delivery"),
}
"""Words that the outputs of a notebook must have."""


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # as on a reader's machine, whose server is asked
    shutil.copy(ROOT / "examples" / "mail.csv", tmp_path)
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.write(book, tmp_path / path.name)
    outputs = json.dumps([cell.get("outputs") for cell in book.cells])
    for words in EXPECTED[path.stem]:
        assert words in outputs
