"""An SVG that plays a recording of commands in a terminal once, and then shows its last lines.

Readers who prefer reduced motion see the last lines at once, as do viewers without CSS animations.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import escape

from pseudo_terminal import Screen

ROWS = 22
"""Lines in sight."""
SECONDS = 20
"""Length of the animation; commands that take longer are shown faster."""
FRAMES_A_SECOND = 8
WIDTH, HEIGHT, EDGE = 7.8, 18, 14
"""Pixels of a character, of a line, and around the text."""

STYLE = f"""\
rect{{fill:#10151c}}
text{{fill:#e3e9ef;font:13px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;white-space:pre}}
.prompt{{fill:#7fd1b9}}.gone{{visibility:hidden}}
g,text{{animation-duration:{SECONDS}s;animation-timing-function:step-end}}
@media (prefers-reduced-motion:reduce){{g,text{{animation:none!important}}}}
"""

Frame = tuple[float, list[str]]
"""Seconds, and all lines since the start."""


def frames(commands: Sequence[Mapping[str, Any]], columns: int) -> list[Frame]:
    """Return the states of the screen in the time of the animation, the first at 0.

    Args:
        commands: Commands in turn, each with its `command` and `recording`: pairs of seconds since
            its start and text.
        columns: Width; longer lines are wrapped.
    """
    screen = Screen()
    states: list[Frame] = []
    began = 0.0
    for command in commands:
        screen.write(f"$ {command['command']}\r\n")
        states.append((began, _wrapped(screen.lines(), columns)))
        for seconds, text in command["recording"]:
            screen.write(text)
            states.append((began + seconds, _wrapped(screen.lines(), columns)))
        began = states[-1][0] + 1
    scale = SECONDS / max(began, SECONDS)
    # Of the states within a frame's time, the last is shown.
    last = {int(seconds * scale * FRAMES_A_SECOND): lines for seconds, lines in states}
    return [(number / FRAMES_A_SECOND, lines) for number, lines in sorted(last.items())]


def _wrapped(lines: Sequence[str], columns: int) -> list[str]:
    return [
        line[start : start + columns]
        for line in lines
        for start in range(0, max(len(line), 1), columns)
    ]


def draw(commands: Sequence[Mapping[str, Any]], columns: int) -> str:
    """Draw an animated terminal as SVG; see `frames` for the arguments."""
    shown = frames(commands, columns)
    rules: list[str] = []
    texts: list[str] = []
    for number, (row, line, begin, end) in enumerate(_pieces(shown)):
        if begin > 0 or end is not None:
            rules.append(_keyframes(f"t{number}", begin, end))
        names = [name for name, is_one in
                 (("prompt", line.startswith("$ ")), ("gone", end is not None)) if is_one]  # fmt: skip
        kind = f' class="{" ".join(names)}"' if names else ""
        texts.append(
            f'<text id="t{number}"{kind} y="{(row + 1) * HEIGHT - 5}" xml:space="preserve">'
            f"{escape(line)}</text>"
        )
    rules.append(_scrolling(shown))
    width, height = columns * WIDTH + 2 * EDGE, ROWS * HEIGHT + 2 * EDGE
    titles = ", ".join(command["command"] for command in commands)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">\n'
        f"<title>A terminal that runs {escape(titles)}</title>\n"
        f"<style>\n{STYLE}{''.join(rules)}</style>\n"
        f'<rect width="100%" height="100%" rx="8"/>\n'
        f'<svg x="{EDGE}" y="{EDGE}" width="{columns * WIDTH:g}" height="{ROWS * HEIGHT}">\n'
        f'<g id="lines" transform="translate(0 {-_scroll(shown[-1])})">\n'
        + "\n".join(texts)
        + "\n</g>\n</svg>\n</svg>\n"
    )


def _pieces(shown: Sequence[Frame]) -> Iterator[tuple[int, str, float, float | None]]:
    """Yield (row, text, begin, end) of all that is seen; the end is None for what stays."""
    for row in range(max(len(lines) for _, lines in shown)):
        begin, text = 0.0, ""
        for seconds, lines in shown:
            now = lines[row] if row < len(lines) else ""
            if now != text:
                if text:
                    yield row, text, begin, seconds
                begin, text = seconds, now
        if text:
            yield row, text, begin, None


def _keyframes(name: str, begin: float, end: float | None) -> str:
    steps = [(0.0, "hidden")] if begin > 0 else []
    steps.append((begin, "visible"))
    if end is not None:
        steps.append((end, "hidden"))
    body = "".join(f"{100 * at / SECONDS:.5g}%{{visibility:{state}}}" for at, state in steps)
    return f"#{name}{{animation-name:{name}}}@keyframes {name}{{{body}}}\n"


def _scroll(frame: Frame) -> int:
    """Return the pixels by which the lines of a frame are moved up."""
    return max(len(frame[1]) - ROWS, 0) * HEIGHT


def _scrolling(shown: Sequence[Frame]) -> str:
    steps = [shown[0], *(new for old, new in pairwise(shown) if _scroll(new) != _scroll(old))]
    body = "".join(
        f"{100 * frame[0] / SECONDS:.5g}%{{transform:translate(0,-{_scroll(frame)}px)}}"
        for frame in steps
    )
    return f"#lines{{animation-name:lines}}@keyframes lines{{{body}}}\n"
