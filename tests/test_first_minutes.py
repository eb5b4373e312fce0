"""The benchmark of the first minutes, tried with stand-ins for the compared tools, and its table."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
from first_minutes import (
    LABELS,
    Tool,
    answered,
    first_minutes_table,
    install,
    measure,
    readme_code,
    replaced,
    timed,
    tools,
)
from serving_process import free_port

README = """A tool

```python
print("first")
```

```
pip install tool
```

```python
print("second")
```
"""
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

class Handler(BaseHTTPRequestHandler):
    calls = 0

    def do_POST(self):
        Handler.calls += 1
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503 if Handler.calls == 1 else 200)
        self.end_headers()

server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
try:
    server.serve_forever()
except KeyboardInterrupt:
    Path("stopped").write_text(str(Handler.calls))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Write a wheel that has nothing but a README."""
    path = tmp_path / "tool-1.0-py3-none-any.whl"
    described = f"Metadata-Version: 2.1\nName: tool\nVersion: 1.0\n\n{README}"
    tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tool-1.0.dist-info/METADATA", described)
        wheel.writestr("tool-1.0.dist-info/WHEEL", tag)
        wheel.writestr("tool-1.0.dist-info/RECORD", "")
    return path


def test_a_tool_is_installed_and_the_code_of_its_readme_is_timed(
    package: Path, tmp_path: Path
) -> None:
    def results(environment: Path, folder: Path) -> dict[str, float]:
        (folder / "code.py").write_text(readme_code(environment, "tool")[1])
        return {"encoded": timed([environment / "bin/python", "code.py"], folder)}

    tool = Tool([["--no-index", str(package)]], results)
    found = measure({"Tool": tool}, tmp_path, rounds=2)
    assert found["installation"]["Tool"]["seconds"] > 0
    assert len(found["rounds"]["encoded"]) == 2
    assert len(found["load"]) == 3
    assert readme_code(tmp_path / "Tool", "tool") == ['print("first")\n', 'print("second")\n']


def test_an_installation_that_fails_ends_the_benchmark_with_the_words_of_pip(
    tmp_path: Path,
) -> None:
    tool = Tool([["--no-index", "no-such-tool"]], lambda *_: {})
    with pytest.raises(SystemExit, match=r"no-such-tool failed:\n(.|\n)*No matching distribution"):
        install(tool, tmp_path / "environment")


def test_an_example_that_changed_ends_the_benchmark() -> None:
    assert replaced("run(port=8000)", "port=8000", "port=1") == "run(port=1)"
    with pytest.raises(SystemExit, match="the README's example has no 'port=8000'"):
        replaced("run(port=9000)", "port=8000", "port=1")


def test_a_server_is_timed_until_its_first_200_and_then_stopped(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    port = free_port()
    command = [sys.executable, "server.py", str(port)]
    seconds = answered(command, tmp_path, f"http://127.0.0.1:{port}/predict", b"{}")
    assert 0 < seconds < 30
    assert (tmp_path / "stopped").read_text() == "2"


def test_a_server_that_ends_ends_the_benchmark_with_its_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    url = f"http://127.0.0.1:{free_port()}/predict"
    with pytest.raises(SystemExit, match=f"{url} does not answer:\nno such model"):
        answered(command, tmp_path, url, b"{}")


def test_the_page_names_the_versions_that_are_installed() -> None:
    page = (Path(__file__).parents[1] / "docs/compare.md").read_text()
    found = tools(Path("trainyard.whl"))
    assert [tool for tool, _ in LABELS.values() if tool not in found] == []
    for name in ("LitServe", "Sentence Transformers"):
        (words,) = found[name].installation
        assert f"{name} {words[0].partition('==')[2]}" in page


def test_the_table_has_a_row_for_each_result_measured_or_not(tmp_path: Path) -> None:
    empty = first_minutes_table(tmp_path)
    for tool, about in LABELS.values():
        assert f"| {tool} |  |  | {about} | not run yet |" in empty
    names = {tool for tool, _ in LABELS.values()}
    result = {
        "command": "python benchmarks/first_minutes.py",
        "installation": {name: {"seconds": 61.4, "gb": 1.26} for name in names},
        "rounds": {key: [9.25, 4.5] for key in LABELS},
        "load": [0.5, 1.25],
    }
    (tmp_path / "first-minutes.json").write_text(json.dumps(result))
    filled = first_minutes_table(tmp_path)
    for tool, about in LABELS.values():
        assert f"| {tool} | 61 | 1.3 | {about} | 9.2, 4.5 |" in filled
    assert "Load average before each step: 0.5, 1.25." in filled
    assert "not run yet" not in filled.lower()
