"""The method in one picture: a frozen block of an image Transformer and the three adapters that make it see video.

``python -m docs.figures.method`` writes ``docs/figures/method-light.svg`` and ``method-dark.svg``. Drawn is the way of
a clip through AIM on a CLIP ViT, and a block with one temporal adapter as in ``kernels/aim_kernels/adaptation.py``,
droppath left out. Units are pixels, y grows downward. Source: Yang et al., AIM, ICLR 2023.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from docs.figures.palette import Palette, write_both

WIDTH, HEIGHT = 900, 440
STREAM, BRANCH, JOINT = 382, 312, 246  # y of the residual stream, of its branches, and of the joint adapter
COLUMNS = (30, 314, 598)  # x at which the three adaptations begin


class Pen:
    """Draws the parts that the picture is made of, in one palette."""

    def __init__(self, axes: Axes, palette: Palette) -> None:
        self.axes, self.palette = axes, palette

    def text(self, x: float, y: float, words: str, size: float = 9, quiet: bool = False, **style: Any) -> None:
        colour = self.palette.quiet if quiet else self.palette.text
        aligned = {"ha": "center", "va": "center", **style}
        self.axes.text(x, y, words, fontsize=size, color=colour, zorder=5, linespacing=1.25, **aligned)

    def box(self, x: float, y: float, width: float, height: float, words: str = "", trained: bool = False) -> None:
        """A box around its centre."""
        corner = (x - width / 2, y - height / 2)
        rounded = "round,pad=0,rounding_size=5"
        self.axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=rounded, zorder=3, **self._fill(trained)))
        self.text(x, y, words)

    def adapter(self, x: float, y: float, name: str, width: float = 58, height: float = 44) -> None:
        """Two layers with few channels between them."""
        left, right, top, low, waist = x - width / 2, x + width / 2, y - height / 2, y + height / 2, height * 0.2
        outline = [(left, top), (x, y - waist), (right, top), (right, low), (x, y + waist), (left, low)]
        self.axes.add_patch(Polygon(outline, joinstyle="round", zorder=3, **self._fill(True)))
        self.text(x, y, name, size=10)

    def line(self, *points: tuple[float, float], arrow: bool = True, dotted: bool = False) -> None:
        """Along the points, with an arrow's head at the last."""
        xs, ys = zip(*points)
        style = (0, (2, 2)) if dotted else "-"
        self.axes.plot(xs, ys, color=self.palette.line, lw=1.3, ls=style, zorder=2, solid_joinstyle="round")
        if arrow:
            (x, y), (to_x, to_y) = points[-2:]
            length = max(abs(to_x - x), abs(to_y - y))
            dx, dy = (to_x - x) / length, (to_y - y) / length
            head = [(to_x, to_y), (to_x - 7 * dx - 3.5 * dy, to_y - 7 * dy - 3.5 * dx)]
            head.append((to_x - 7 * dx + 3.5 * dy, to_y - 7 * dy + 3.5 * dx))
            self.axes.add_patch(Polygon(head, facecolor=self.palette.line, lw=0, zorder=2))

    def plus(self, x: float, y: float) -> None:
        ring = Circle((x, y), 9, zorder=4, facecolor=self.palette.panel, edgecolor=self.palette.line, lw=1.3)
        self.axes.add_patch(ring)
        for dx, dy in ((4.5, 0), (0, 4.5)):
            self.axes.plot([x - dx, x + dx], [y - dy, y + dy], color=self.palette.text, lw=1.3, zorder=5)

    def frames(self, x: float, y: float, chosen: str, cell: float = 8) -> None:
        """Three frames of 3 × 3 tokens; filled are those that see each other: a ``position`` in all frames, all of a
        ``frame``, or one ``token``."""
        for number, row, column in product(range(3), repeat=3):
            middle, first = row == column == 1, number == 1
            filled = {"position": middle, "frame": first, "token": middle and first}[chosen]
            corner = (x + number * (3 * cell + 4) + column * cell, y + row * cell)
            colour = self.palette.text if filled else "none"
            edge = self.palette.frozen_edge
            self.axes.add_patch(Rectangle(corner, cell, cell, facecolor=colour, edgecolor=edge, lw=0.7, zorder=3))

    def panel(self, *corners: tuple[float, float]) -> None:
        self.axes.add_patch(Polygon(corners, facecolor=self.palette.panel, lw=0, zorder=1))

    def _fill(self, trained: bool) -> dict[str, Any]:
        look = self.palette
        if trained:
            return {"facecolor": look.trained, "edgecolor": look.trained_edge, "linewidth": 1.5}
        return {"facecolor": look.frozen, "edgecolor": look.frozen_edge, "linewidth": 1.1}


def draw(palette: Palette) -> Figure:
    """The whole picture."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(HEIGHT, 0)
    axes.axis("off")
    pen = Pen(axes, palette)
    _model(pen)
    _legend(pen)
    _block(pen)
    return figure


def _model(pen: Pen) -> None:
    """The upper row: from frames to a class."""
    y = 58
    for number in reversed(range(4)):
        _frame(pen, 22 + 9 * number, y - 20 - 6 * number, moving=number == 0)
    pen.text(60, y + 44, "frames of a clip", quiet=True)
    pen.line((104, y), (126, y))
    pen.box(197, y - 15, 142, 34, "patch embedding")
    pen.box(197, y + 18, 142, 26, "temporal embedding", trained=True)
    pen.text(197, y + 44, "tokens [B, T, N, D]", quiet=True)
    pen.line((268, y), (300, y))
    for number in reversed(range(4)):
        pen.box(350 + 6 * number, y + 5 - 5 * number, 100, 46)
    pen.text(350, y + 5, "block")
    pen.text(412, y + 32, "× 12", ha="left")
    pen.line((418, y), (468, y))
    pen.box(506, y, 76, 34, "ln_post", trained=True)
    pen.line((544, y), (568, y))
    pen.box(632, y, 128, 34, "mean over frames")
    pen.line((696, y), (720, y))
    pen.box(764, y, 88, 34, "classifier", trained=True)
    pen.line((808, y), (836, y))
    pen.text(842, y, "class", ha="left")


def _frame(pen: Pen, left: float, top: float, moving: bool) -> None:
    look = pen.palette
    pen.axes.add_patch(Rectangle((left, top), 48, 48, facecolor=look.panel, edgecolor=look.line, lw=1.1, zorder=3))
    for behind, strength in ((0, 0.75), (11, 0.35), (22, 0.15)) if moving else ():
        pen.axes.add_patch(Circle((left + 34 - behind, top + 24), 7, color=look.text, alpha=strength, zorder=4, lw=0))


def _legend(pen: Pen) -> None:
    y = 106
    pen.box(480, y, 24, 16)
    pen.text(498, y, "frozen", quiet=True, ha="left")
    pen.box(566, y, 24, 16, trained=True)
    pen.text(584, y, "trained", quiet=True, ha="left")
    pen.adapter(656, y, "", width=24, height=18)
    pen.text(674, y, "adapter: D → D/4, GELU, D/4 → D", quiet=True, ha="left")


def _block(pen: Pen) -> None:
    """The lower row: one block, its three branches beside the residual stream."""
    pen.panel((316, 88), (384, 88), (432, 132), (268, 132))
    background = FancyBboxPatch((12, 130), WIDTH - 24, HEIGHT - 140, boxstyle="round,pad=0,rounding_size=10")
    background.set(facecolor=pen.palette.panel, linewidth=0, zorder=1)
    pen.axes.add_patch(background)
    pen.line((28, STREAM), (WIDTH - 22, STREAM))
    for x, chosen, title, subtitle, formula in zip(
        COLUMNS,
        ("position", "frame", "token"),
        ("temporal adaptation", "spatial adaptation", "joint adaptation"),
        ("a position, over all frames", "a frame, over all positions", "every token by itself"),
        (
            r"$x + A_T(\mathrm{attn}(\mathrm{ln_1}(x)))$",
            r"$x + A_S(\mathrm{attn}(\mathrm{ln_1}(x)))$",
            r"$x + \mathrm{mlp}(y) + s\,A_J(y),\ \ y = \mathrm{ln_2}(x)$",
        ),
    ):
        pen.frames(x, 157, chosen)
        pen.text(x + 94, 161, title, size=10.5, ha="left", weight="bold")
        pen.text(x + 94, 178, subtitle, quiet=True, ha="left")
        pen.text(x + 138, STREAM + 28, formula, size=10)
        pen.line((x + 12, STREAM), (x + 12, BRANCH), (x + 34, BRANCH))
        pen.plus(x + 258, STREAM)
    _attention(pen, COLUMNS[0], "attention\nover time", "$A_T$")
    _attention(pen, COLUMNS[1], "attention\nover space", "$A_S$")
    ends, y = [x + 128 for x in COLUMNS[:2]], JOINT
    pen.line((ends[0], BRANCH - 22), (ends[0], y), (ends[1], y), (ends[1], BRANCH - 22), arrow=False, dotted=True)
    pen.text(sum(ends) / 2, y - 12, "one frozen attention, used twice", quiet=True)
    x = COLUMNS[1]
    pen.line((x + 178, BRANCH), (x + 178, BRANCH - 32), (x + 250, BRANCH - 32), (x + 250, BRANCH), arrow=False)
    pen.text(x + 214, BRANCH - 41, "skip", quiet=True)
    x = COLUMNS[2]
    pen.box(x + 54, BRANCH, 40, 30, "ln_2")
    pen.line((x + 74, BRANCH), (x + 98, BRANCH))
    pen.box(x + 162, BRANCH, 128, 44, "MLP")
    pen.line((x + 226, BRANCH), (x + 258, BRANCH), (x + 258, STREAM - 9))
    pen.line((x + 84, BRANCH), (x + 84, JOINT), (x + 133, JOINT))
    pen.adapter(x + 162, JOINT, "$A_J$")
    pen.line((x + 191, JOINT), (x + 258, JOINT), (x + 258, BRANCH), arrow=False)
    pen.text(x + 214, JOINT - 10, "× s", quiet=True)


def _attention(pen: Pen, x: float, words: str, name: str) -> None:
    """The branch of an attention and its adapter."""
    pen.box(x + 54, BRANCH, 40, 30, "ln_1")
    pen.line((x + 74, BRANCH), (x + 86, BRANCH))
    pen.box(x + 128, BRANCH, 84, 44, words)
    pen.line((x + 170, BRANCH), (x + 185, BRANCH))
    pen.adapter(x + 214, BRANCH, name)
    pen.line((x + 243, BRANCH), (x + 258, BRANCH), (x + 258, STREAM - 9))


if __name__ == "__main__":
    write_both(draw, Path(__file__).parent, "method")
