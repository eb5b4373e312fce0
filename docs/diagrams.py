"""Diagrams of the docs: docs/assets/pipeline.svg, plan.svg, serving.svg and loss-curves.svg.

`docs/generate.py` writes them. The rows, steps and micro-batches of plan.svg are those that
`batch_plan` computes, the curves of loss-curves.svg those that `benchmarks/loss_curves.py` stored. The
colors follow the reader's light or dark scheme.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from trainyard.batch_plan import WINDOW_STEPS, Plan, Rows, share

ASSETS = Path(__file__).parent / "assets"
LOSSES = Path(__file__).parents[1] / "benchmarks" / "results" / "loss-curves.json"

STYLE = """
text{font:14px system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#1c2733}
.small{font-size:12px;fill:#4a5763}.name{font-weight:600}.middle{text-anchor:middle}
.page{fill:#fff}.box{fill:#e8f1f3;stroke:#0f6577}.group{fill:none;stroke:#7b8894;stroke-dasharray:4 3}
.line{fill:none;stroke:#4a5763;stroke-width:1.5}.head{fill:#4a5763}
.row{fill:#0f6577}.pad{fill:#c9d3d9}.light{fill:#6fb3c1}
.end{text-anchor:end}.rule{stroke:#7b8894;stroke-dasharray:4 3}.grid{stroke:#dde3e7}
.curve{fill:none;stroke-linejoin:round;stroke-linecap:round}.c0{stroke:#c3dfe6;stroke-width:10}
.c1{stroke:#6fb3c1;stroke-width:6}.c2{stroke:#0f6577;stroke-width:3}.c3{stroke:#e8590c;stroke-width:1.6}
@media (prefers-color-scheme:dark){
text{fill:#e6ebf0}.small{fill:#b4c0ca}.page{fill:#161c23}.box{fill:#1d313a;stroke:#6fb3c1}
.group{stroke:#7b8894}.line{stroke:#b4c0ca}.head{fill:#b4c0ca}.row{fill:#6fb3c1}.pad{fill:#3a4652}.light{fill:#3c8797}
.grid{stroke:#2b3640}.c0{stroke:#24505c}.c1{stroke:#3c8797}.c2{stroke:#a9dbe5}.c3{stroke:#ff8f4d}}
"""

Point = tuple[float, float]


class Drawing:
    """An SVG of boxes, arrows, bars and texts.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        title: Sentence for readers who do not see the picture.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">\n<title>{escape(title)}</title>\n'
            f"<style>{STYLE}</style>\n"
        )
        self._parts: list[str] = []
        self.bar(0, 0, width, height, "page", corner=8)

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Write one line of text; `y` is its baseline."""
        self._parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>')

    def bar(
        self, x: float, y: float, width: float, height: float, kind: str, corner: float = 0
    ) -> None:
        """Draw a rectangle of the class `kind`."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{corner:g}" '
            f'class="{kind}"/>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, name: str, lines: Iterable[str]
    ) -> None:
        """Draw a box with a name and lines below it, all centered."""
        self.bar(x, y, width, height, "box", corner=6)
        self.text(x + width / 2, y + 24, name, "name middle")
        for i, line in enumerate(lines):
            self.text(x + width / 2, y + 44 + 17 * i, line, "small middle")

    def line(self, points: Sequence[Point], kind: str) -> None:
        """Draw a line of the class `kind` through `points`."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(f'<polyline points="{path}" class="{kind}"/>')

    def arrow(self, points: Sequence[Point], words: str = "", at: Point | None = None) -> None:
        """Draw a line through `points` with a head at its end, and `words` at the point `at`."""
        self.line(points, "line")
        (x0, y0), (x, y) = points[-2:]
        dx, dy = float(np.sign(x - x0)), float(np.sign(y - y0))
        left = (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx)
        right = (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx)
        head = " ".join(f"{a:g},{b:g}" for a, b in (left, (x, y), right))
        self._parts.append(f'<polygon points="{head}" class="head"/>')
        if at is not None:
            self.text(*at, words, "small middle")

    def svg(self) -> str:
        """Return the file."""
        return self._head + "\n".join(self._parts) + "\n</svg>\n"


def pipeline() -> str:
    """Draw the way from a data set to a model."""
    drawing = Drawing(
        860, 390,
        "From a data set to model/: raw Parquet, token arrays, plan, loop, evaluation, checkpoints, "
        "from which a run resumes",
    )  # fmt: skip
    wide, high, top, low, last = 162, 84, 24, 160, 286
    columns = [24 + i * 214 for i in range(4)]
    upper = [
        ("data set", ["a file, a task, or the Hub"]),
        ("raw Parquet", ["rows with checked labels"]),
        ("tokenize", ["once for each split"]),
        ("token arrays", ["mapped into the memory", "of every worker"]),
    ]
    lower = [
        ("model/", ["config, safetensors,", "tokenizer, model card"]),
        ("checkpoints", ["hashed; complete", "or absent"]),
        ("loop", ["in each worker: forward,", "backward, sum, update"]),
        ("plan", ["the rows of every", "forward pass"]),
    ]
    for y, boxes in ((top, upper), (low, lower)):
        for x, (name, lines) in zip(columns, boxes, strict=True):
            drawing.box(x, y, wide, high, name, lines)
    checkpoints, loop, arrays = columns[1] + wide / 2, columns[2] + wide / 2, columns[3]
    drawing.box(
        columns[2], last, wide, high, "evaluation", ["every row once;", "finds the best step"]
    )
    for x in columns[:3]:
        drawing.arrow([(x + wide, top + high / 2), (x + 214, top + high / 2)])
    for x, words in zip(columns[:3], ("best", "save", ""), strict=True):
        drawing.arrow([(x + 214, low + 32), (x + wide, low + 32)], words, (x + 188, low + 24))
    drawing.arrow([(columns[1] + wide, low + 56), (columns[2], low + 56)],
                  "resume", (columns[1] + 188, low + 72))  # fmt: skip
    drawing.arrow([(loop, low + high), (loop, last)])
    drawing.arrow([(columns[2], last + high / 2), (checkpoints, last + high / 2),
                   (checkpoints, low + high)])  # fmt: skip
    drawing.arrow([(arrays + wide / 2, last + 6), (arrays + wide / 2, low + high)])
    drawing.text(arrays + wide / 2, last + 22, "seed, batch sizes,", "small middle")
    drawing.text(arrays + wide / 2, last + 38, "token budget", "small middle")
    drawing.arrow([(arrays + 120, top + high), (arrays + 120, low)], "lengths", (arrays + 146, 138))
    drawing.arrow([(arrays + 30, top + high), (arrays + 30, 132), (loop, 132), (loop, low)],
                  "tokens", ((arrays + loop) / 2 + 18, 126))  # fmt: skip
    return drawing.svg()


def plan() -> str:
    """Draw how the rows of an epoch become steps and micro-batches."""
    drawing = Drawing(
        860, 600,
        "The plan: rows are shuffled, sorted by length inside windows of eight steps, cut into steps; "
        "the steps are shuffled, and each is cut into micro-batches, which the workers share",
    )  # fmt: skip
    count, size, micro = 125, 8, 2
    rng = np.random.default_rng(7)
    lengths = np.clip(rng.lognormal(3.0, 0.6, count), 4, 64).astype(np.int32)
    made = Plan(lengths, batch_size=size, micro_batch_size=micro, seed=1000)
    epoch = made.epoch(0)
    steps = [np.concatenate(epoch.micro_batches(i)) for i in range(made.steps_per_epoch)]
    left, pitch = 26, 6.3

    def strip(base: float, groups: Sequence[Rows], words: str) -> None:
        drawing.text(left, base - 76, words)
        kinds = [("row", "light")[i % 2] for i, group in enumerate(groups) for _ in group]
        for i, (row, kind) in enumerate(zip(np.concatenate(groups), kinds, strict=True)):
            high = float(lengths[row])
            drawing.bar(left + i * pitch, base - high, pitch - 1.5, high, kind)

    window = size * WINDOW_STEPS
    shuffled = np.random.Generator(np.random.PCG64([made.seed, 0])).permutation(count)
    strip(104, [shuffled], f"1. The {count} rows of an epoch, shuffled by seed and epoch. A bar is "
          "a row, its height the row's tokens.")  # fmt: skip
    in_steps = np.split(epoch.order, range(size, count, size))
    strip(226, in_steps, f"2. Sorted by length inside windows of {WINDOW_STEPS} steps. A run of {size} "
          f"rows, in one color, is a step; the last one has {len(in_steps[-1])}.")  # fmt: skip
    for i, start in enumerate(range(0, count, window)):
        x, width = left + start * pitch, min(window, count - start) * pitch - 3
        drawing.bar(x, 232, width, 3, "head")
        drawing.text(x + width / 2, 250, f"window {i}", "small middle")
    strip(346, steps, "3. The steps are shuffled. This is the order of training.")
    at = [len(step) for step in steps].index(count % size)
    drawing.text(left + (at * size + count % size / 2) * pitch, 364, "incomplete", "small middle")
    drawing.bar(left - 4, 278, size * pitch + 5, 74, "group", corner=4)

    batches = epoch.micro_batches(0)
    drawing.text(left, 390, f"4. Step 0 is cut into {len(batches)} micro-batches of {micro} rows. Gray "
                 "is padding, up to the longest row of the micro-batch.")  # fmt: skip
    scale, across = 2.9, 200
    for i, rows in enumerate(batches):
        longest = int(lengths[rows].max())
        for j, row in enumerate(rows):
            x, y = left + i * across, 406 + j * 20
            drawing.bar(x, y, longest * scale, 15, "pad")
            drawing.bar(x, y, float(lengths[row]) * scale, 15, "row")
        drawing.text(left + i * across, 462, f"micro-batch {i}", "small")
    for k, world in enumerate((1, 2, 4)):
        y = 478 + k * 36
        for rank in range(world):
            mine = share(len(batches), rank, world)
            x, width = left + mine[0] * across, len(mine) * across - 14
            drawing.bar(x, y, width, 28, "box", corner=4)
            words = "one worker" if world == 1 else f"worker {rank} of {world}"
            drawing.text(x + width / 2, y + 19, words, "small middle")
    return drawing.svg()


def serving() -> str:
    """Draw the way of a request through gateway and replica."""
    drawing = Drawing(
        860, 330,
        "A request: client, ingress, gateway, and one of the replicas, which tokenizes it, queues it "
        "and runs forward passes",
    )  # fmt: skip
    middle = 165
    drawing.box(20, middle - 34, 84, 68, "client", ["HTTP"])
    drawing.box(136, middle - 42, 96, 84, "ingress", ["Ray's proxy", "or HAProxy"])
    drawing.box(264, middle - 62, 146, 124, "gateway",
                ["no model", "whole body, limits", "key, quota", "chooses a replica"])  # fmt: skip
    drawing.arrow([(104, middle), (136, middle)])
    drawing.arrow([(232, middle), (264, middle)])
    for i, y in enumerate((24, 178)):
        drawing.bar(466, y, 374, 128, "group", corner=8)
        drawing.text(480, y + 22, f"replica {i + 1} of a model", "small")
        drawing.box(478, y + 34, 100, 78, "tokenize", ["one thread"])
        drawing.box(606, y + 34, 96, 78, "queue", ["rows, oldest", "and similar"])
        drawing.box(730, y + 34, 100, 78, "forward", ["one thread", "for each core"])
        drawing.arrow([(578, y + 73), (606, y + 73)])
        drawing.arrow([(702, y + 73), (730, y + 73)])
        drawing.arrow([(410, middle + (i - 0.5) * 30), (440, middle + (i - 0.5) * 30), (440, y + 73),
                       (478, y + 73)])  # fmt: skip
    drawing.text(337, middle + 84, "a direct connection", "small middle")
    drawing.text(337, middle + 101, "to each replica", "small middle")
    return drawing.svg()


def loss_curves() -> str:
    """Draw the stored curves over each other, the widest first, so that all of them show."""
    result: dict[str, Any] = json.loads(LOSSES.read_text())
    drawing = Drawing(860, 330, f"Loss by step of {', '.join(result['runs'])}: the curves are one")
    curves = {
        name: [(point["step"], point["loss"]) for point in run["losses"]]
        for name, run in result["runs"].items()
    }
    points = [point for curve in curves.values() for point in curve]
    last = max(step for step, _ in points)
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    unit = 10 ** math.floor(math.log10((high - low) / 3))
    unit *= max(m for m in (1, 2, 5) if (high - low) / (unit * m) >= 2)
    first, top = math.floor(low / unit), math.ceil(high / unit)

    def at(step: float, loss: float) -> Point:
        x = 70 + 765 * step / last
        return round(x, 1), round(280 - 210 * (loss / unit - first) / (top - first), 1)

    for tick in range(first, top + 1):
        (x0, y), (x1, _) = at(0, tick * unit), at(last, tick * unit)
        drawing.line([(x0, y), (x1, y)], "grid")
        digits = max(0, -math.floor(math.log10(unit)))
        drawing.text(x0 - 8, y + 4, f"{tick * unit:.{digits}f}", "small end")
    for step in range(0, last + 1, 10):
        x, y = at(step, first * unit)
        drawing.text(x, y + 18, f"{step}", "small middle")
    drawing.text(450, 318, "step", "small middle")
    drawing.text(62, 52, "loss", "small end")
    for step in result["kills"]:
        x, _ = at(step, 0)
        drawing.line([(x, 52), (x, 280)], "rule")
        drawing.text(x + 5, 62, "killed", "small")
    for i, (name, curve) in enumerate(curves.items()):
        drawing.line([at(*point) for point in curve], f"curve c{i}")
        left = (70, 200, 340, 480)[i]
        drawing.line([(left, 26), (left + 26, 26)], f"curve c{i}")
        drawing.text(left + 38, 31, name, "small")
    return drawing.svg()


DIAGRAMS = {
    "pipeline": pipeline, "plan": plan, "serving": serving, "loss-curves": loss_curves,
}  # fmt: skip
