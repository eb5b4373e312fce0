"""The recorded outputs of the docs: terminal, excerpts, picture, and their places in the pages."""

import json
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import excerpts
import pytest
import transcripts
from excerpts import EXCERPTS, LINES, excerpt
from pseudo_terminal import Screen, Terminal, lines_of
from result_tables import PLACE, rewrite
from support.job_scripts import ROOT
from terminal_picture import HEIGHT, ROWS, SECONDS, draw, frames

PAGES = {path: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (["one\r\ntwo\r\n"], ["one", "two"]),
        (["loss 0.5\rloss 0.25\r\n"], ["loss 0.25"]),
        (["longer\rab\r\n"], ["abnger"]),
        (["longer\r\x1b[Kab\r\n"], ["ab"]),
        (["longer\x1b[2K\rab\r\n"], ["ab"]),
        (["longer\x1b[4D\x1b[1K\r\n"], ["   ger"]),
        (["\x1b[1;32mgreen\x1b[0m and plain\r\n"], ["green and plain"]),
        (["first bar\r\nsecond bar\r\x1b[Afirst end"], ["first end", "second bar"]),
        (["a\r\nb\r\nc\x1b[2A\x1b[J"], ["a"]),
        (["a\r\nb\r\nc\x1b[2A\r\x1b[Jd\x1b[2Bx"], ["d", "", " x"]),
        (["abc\b\bX\x1b[6Gd"], ["aXc  d"]),
        (["ab\x1b[3Cc"], ["ab   c"]),
        (["\x1b]0;title\x07shown\x1b[?25l"], ["shown"]),
        (["gr\x1b", "[3", "2meen\x1b]0;ti", "tle\x1b", "\\!"], ["green!"]),
        (["text   \r\n\r\n"], ["text"]),
        ([], []),
    ],
)  # fmt: skip
def test_a_screen_shows_what_a_terminal_does(written: list[str], lines: list[str]) -> None:
    assert lines_of([(0.0, text) for text in written]) == lines


def test_a_message_above_a_progress_bar_leaves_the_bar_once() -> None:
    """As tqdm.write does: it clears the bar, prints the line, and draws the bar again."""
    screen = Screen()
    for step in range(3):
        screen.write(f"\rtrain {step}/3")
        screen.write(f"\r{' ' * 20}\rstep {step}\r\n\rtrain {step}/3")
    screen.write("\rtrain 3/3\r\n")
    assert screen.lines() == ["step 0", "step 1", "step 2", "train 3/3"]


ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def test_a_command_runs_in_a_terminal_and_its_times_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = "test -t 1 && stty size && ls; sleep 0.3; printf 'é 1/2\\ré 2/2\\n' >&2; exit 3"
    terminal = Terminal(command, tmp_path, ENVIRONMENT)
    assert terminal.wait(20) == 3
    assert terminal.lines() == ["40 120", "file", "é 2/2"]
    (first, *_), (last, _) = terminal.recording[0], terminal.recording[-1]
    assert last - first >= 0.2


def test_a_command_ends_by_ctrl_c_and_its_processes_may_go_on(tmp_path: Path) -> None:
    terminal = Terminal("sleep 6 & trap 'echo bye; exit 0' INT; echo up; sleep 20 & wait", tmp_path,
                        ENVIRONMENT)  # fmt: skip
    terminal.wait_for("up", 20)
    began = time.monotonic()
    terminal.interrupt()
    assert terminal.wait(20) == 0
    assert time.monotonic() - began < 5  # it does not wait for `sleep`
    assert terminal.lines()[-1] == "bye"


def test_a_command_that_hangs_or_dies_is_named_with_its_last_lines(tmp_path: Path) -> None:
    hanging = Terminal("echo here; exec sleep 20", tmp_path, ENVIRONMENT)
    hanging.wait_for("here", 20)
    with pytest.raises(TimeoutError, match=r"not ended after 0 s: \['here'\]"):
        hanging.wait(0.2)
    dying = Terminal("echo port in use; sleep 0.3", tmp_path, ENVIRONMENT)
    with pytest.raises(TimeoutError, match=r"no line has 'ready': \['port in use'\]"):
        dying.wait_for("ready", 20)


RECORDED: dict[str, Any] = {
    "command": "python docs/transcripts.py", "date": "2026-12-01", "columns": 60,
    "versions": {"commit": "0" * 40},
    "commands": {
        "init": {"command": "trainyard init mail.csv", "seconds": 2.0,
                 "output": ["wrote mail.yaml: columns text, label", "  train  more"],
                 "recording": [[1.0, "wrote mail.yaml: columns text, label\r\n"],
                               [1.1, "  train  more\r\n"]]},
        "train": {"command": "trainyard train", "seconds": 71.4,
                  "output": ["· starting", *(f"step {step} of 30: 0.5" for step in (6, 12, 18)),
                             "train 30/30", "trained mail <1>", "  model  runs/mail", "bye"],
                  "recording": [[5.0, "train 1/30"], [60.0, "\rtrain 30/30"],
                                [70.0, "\r\ntrained mail <1>\r\n" + 70 * "x" + "\r\n"]]},
        "tune": {"command": "trainyard tune", "seconds": 9.0,
                 "output": ["trial 1", "tuned mail-sweep", "  best of 6 trials: rate 3", "  model"]},
        "serve": {"command": "trainyard serve", "seconds": 1.0,
                  "output": ["loading", "ready: http://127.0.0.1:8000/models/mail", "  stop"]},
        "python": {"command": "python first.py", "seconds": 1.0, "code": "…",
                   "output": ["log", "[{'label': 'delivery', 'score': 0.78}]", "log", "billing 0.9"]},
    },
}  # fmt: skip


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "transcripts.json"
    path.write_text(json.dumps(RECORDED))
    monkeypatch.setattr(excerpts, "RECORDED", path)


def test_lines_that_are_left_out_are_one_gap() -> None:
    commands = RECORDED["commands"]
    assert excerpt("first-run", commands).splitlines() == [
        "```",
        "$ trainyard init mail.csv",
        "wrote mail.yaml: columns text, label",
        "$ trainyard train",
        "trained mail <1>",
        "$ trainyard tune",
        "tuned mail-sweep",
        "  best of 6 trials: rate 3",
        "$ trainyard serve",
        "ready: http://127.0.0.1:8000/models/mail",
        "```",
    ]
    assert excerpt("python", commands).splitlines()[1:-1] == [
        "[{'label': 'delivery', 'score': 0.78}]", "…", "billing 0.9",
    ]  # fmt: skip


def test_an_excerpt_that_shows_nothing_is_an_error() -> None:
    commands = {**RECORDED["commands"], "init": {"command": "ls", "output": ["read mail.csv"]}}
    with pytest.raises(ValueError, match="excerpt first-run: no line of init begins with wrote"):
        excerpt("first-run", commands)


PAGE = "a\n<!-- transcript: {} -->\nold\n<!-- end -->\nb"


@pytest.mark.usefixtures("recorded")
def test_a_place_gets_what_is_recorded() -> None:
    assert rewrite(PAGE.format("python-prediction")) == PAGE.format("python-prediction").replace(
        "old", "```\n[{'label': 'delivery', 'score': 0.78}]\n```"
    )
    assert "\n`python docs/transcripts.py`, 2026-12-01, commit 0000000000.\n" in rewrite(
        PAGE.format("recorded")
    )
    assert (
        "![A terminal, played faster: `trainyard init mail.csv` writes mail.yaml, and `trainyard "
        "train` trains in 71 seconds (step 18 of 30: 0.5)](assets/terminal.svg)\n"
    ) in rewrite(PAGE.format("terminal"))
    with pytest.raises(KeyError):
        rewrite(PAGE.format("nothing"))


def test_every_excerpt_has_a_place() -> None:
    places = [place for text in PAGES.values() for place in PLACE.findall(text)]
    assert {name for _, kind, name, *_ in places if kind == "transcript"} == set(EXCERPTS)
    assert {command for shown in LINES.values() for command in shown} == set(transcripts.COMMANDS)


def test_the_recorded_commands_are_those_of_the_pages() -> None:
    lines = {re.sub(r"  +#.*", "", line) for text in PAGES.values() for line in text.splitlines()}
    shown = {name for name, command in transcripts.COMMANDS.items() if command in lines}
    assert shown == set(transcripts.COMMANDS) - {"python"}
    compile(transcripts.snippet(), "the README", "exec")
    assert "serve(" in transcripts.snippet()


SERVER = (
    "trap 'rm running; exit 0' INT; touch running; echo stop Ctrl-C; while true; do sleep 0.1; done"
)


def test_the_server_runs_while_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {"init": "ls", "train": "echo 1; printf '\\r2'", "serve": SERVER, "ask": "ls running",
                "python": "ls running || cat first.py"}  # fmt: skip
    monkeypatch.setattr(transcripts, "COMMANDS", commands)
    found = transcripts.record(tmp_path)
    assert {name: each["command"] for name, each in found.items()} == commands
    assert found["init"]["output"][0].split() == ["first.py", "mail.csv", "more.csv"]
    assert lines_of(found["train"]["recording"]) == found["train"]["output"] == ["1", "2"]
    assert found["ask"]["output"] == ["running"]
    assert found["serve"]["output"][0] == "stop Ctrl-C"
    assert found["python"]["output"][1:] == transcripts.snippet().splitlines()
    monkeypatch.setattr(transcripts, "COMMANDS", {**commands, "ask": "echo refused; exit 7"})
    with pytest.raises(SystemExit, match=r"exit 7: status 7\nrefused"):
        transcripts.record(tmp_path)
    until_gone(tmp_path / "running")


def until_gone(path: Path) -> None:
    deadline = time.monotonic() + 20
    while path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_recording_and_the_picture_are_of_these_commands() -> None:
    found = json.loads(excerpts.RECORDED.read_text())
    commands = found["commands"]
    assert {name: command["command"] for name, command in commands.items()} == transcripts.COMMANDS
    assert commands["python"]["code"] == transcripts.snippet()
    for name in transcripts.SHOWN:
        assert lines_of(commands[name]["recording"]) == commands[name]["output"]
    picture = draw([commands[name] for name in transcripts.SHOWN], found["columns"])
    assert transcripts.PICTURE.read_text() == picture


def shown_commands() -> list[Any]:
    return [RECORDED["commands"][name] for name in transcripts.SHOWN]


def test_frames_keep_their_order_and_end_with_all_lines() -> None:
    states = frames(shown_commands(), columns=60)
    times = [seconds for seconds, _ in states]
    assert times[0] == 0
    assert times == sorted(set(times))
    assert times[-1] < SECONDS
    assert states[0][1] == ["$ trainyard init mail.csv"]
    assert states[-1][1] == [
        "$ trainyard init mail.csv", "wrote mail.yaml: columns text, label", "  train  more",
        "$ trainyard train", "train 30/30", "trained mail <1>", 60 * "x", 10 * "x",
    ]  # fmt: skip


def test_a_short_recording_is_played_at_its_own_speed() -> None:
    (command,) = [{"command": "ls", "recording": [[2.0, "file\r\n"]]}]
    assert frames([command], columns=60) == [(0.0, ["$ ls"]), (2.0, ["$ ls", "file"])]


def test_the_picture_shows_each_state_and_rests_on_the_last() -> None:
    drawn = draw(shown_commands(), columns=60)
    root = ET.fromstring(drawn)
    texts = {text.text: text for text in root.iter(f"{SVG}text")}
    assert texts["trained mail <1>"].get("class") is None
    assert texts["$ trainyard train"].get("class") == "prompt"
    bar, final = texts["train 1/30"], texts["train 30/30"]
    assert bar.get("class") == "gone"
    assert bar.get("y") == final.get("y")
    (style,) = root.iter(f"{SVG}style")
    rules = dict(re.findall(r"@keyframes (\w+)\{(.*)\}$", str(style.text), re.MULTILINE))
    found = re.fullmatch(
        r"0%\{visibility:hidden\}([\d.]+)%\{visibility:visible\}([\d.]+)%\{visibility:hidden\}",
        rules[str(bar.get("id"))],
    )
    assert found is not None
    begin, end = found.groups()
    assert 0 < float(begin) < float(end) < 100
    assert rules[str(final.get("id"))].split("}")[1].startswith(f"{end}%{{visibility:visible")
    assert "prefers-reduced-motion:reduce" in str(style.text)
    (title,) = root.iter(f"{SVG}title")
    assert title.text == "A terminal that runs trainyard init mail.csv, trainyard train"


def test_the_picture_scrolls_when_it_is_full() -> None:
    recording = [[float(i), f"line {i}\r\n"] for i in range(ROWS + 4)]
    drawn = draw([{"command": "seq", "recording": recording}], columns=60)
    assert f'transform="translate(0 {-5 * HEIGHT})"' in drawn
    (steps,) = re.findall(r"@keyframes lines\{(.*)\}", drawn)
    moved = [int(pixels) for pixels in re.findall(r"translate\(0,-(\d+)px\)", steps)]
    assert moved[0] == 0
    assert moved == sorted(set(moved))
    assert moved[-1] == 5 * HEIGHT
