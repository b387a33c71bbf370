"""What does a block with AIM's three adapters look like? ``python -m benchmarks.drawing`` draws ``results/block.svg``.

The figure has no background, and its colors have contrast with white and with near-black, so it reads on light and on
dark pages.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.reporting.record import RESULTS

FROZEN, TRAINED, INK = "#4a6fa5", "#c2571a", "#7d8590"
WIDTH, HEIGHT = 900, 232
STREAM, BRANCH, ADAPTER = 172, 102, 44  # heights of the residual stream, of the branches and of the adapters above
BOX = 34  # height of a module

Point = tuple[float, float]


class Figure:
    """An SVG figure of modules, connected by lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.texts: list[str] = []

    def line(self, *points: Point) -> None:
        """Draw an arrow through points."""
        joined = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.lines.append(f'<polyline points="{joined}" marker-end="url(#arrow)"/>')

    def plus(self, x: float, y: float) -> None:
        """Draw the sum of two branches."""
        self.lines.append(f'<circle cx="{x:g}" cy="{y:g}" r="9"/><path d="M{x - 5:g} {y:g}h10M{x:g} {y - 5:g}v10"/>')

    def module(self, x: float, y: float, width: float, text: str, color: str) -> None:
        """Draw a module by the middle of its left edge."""
        self.texts.append(
            f'<rect x="{x:g}" y="{y - BOX / 2:g}" width="{width:g}" height="{BOX}" rx="6" fill="{color}"/>'
        )
        self.text(x + width / 2, y + 5, text, "#fff")

    def text(self, x: float, y: float, text: str, color: str = INK, anchor: str = "middle") -> None:
        """Write a text."""
        self.texts.append(f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}">{text}</text>')

    def svg(self, title: str) -> str:
        """Return the figure as SVG."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
                f"<title>{title}</title>",
                '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" orient="auto" markerWidth="6">'
                f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker>',
                f'<g fill="none" stroke="{INK}" stroke-width="1.6">',
                *self.lines,
                '</g>\n<g font-family="Helvetica, Arial, sans-serif" font-size="14">',
                *self.texts,
                "</g>\n</svg>\n",
            ]
        )


def temporal(figure: Figure, x: float) -> float:
    """Draw ``x + T(attn_T(norm1(x)))``; return where it ends."""
    branch(figure, x, "norm1", "attention", 84, "over T frames")
    figure.line((x + 170, BRANCH), (x + 190, BRANCH))
    figure.module(x + 190, BRANCH, 82, "temporal", TRAINED)
    figure.line((x + 272, BRANCH), (x + 292, BRANCH), (x + 292, STREAM - 10))
    return x + 292


def spatial(figure: Figure, x: float) -> float:
    """Draw ``x + a + S(a)`` with ``a = attn(norm1(x))``; return where it ends."""
    branch(figure, x, "norm1", "attention", 84, "over N tokens")
    return beside(figure, x + 170, x + 184, x + 198, 66, "spatial")


def joint(figure: Figure, x: float) -> float:
    """Draw ``x + mlp(h) + s J(h)`` with ``h = norm2(x)``; return where it ends."""
    branch(figure, x, "norm2", "MLP", 74)
    return beside(figure, x + 160, x + 76, x + 88, 70, "joint")


def branch(figure: Figure, x: float, norm: str, part: str, width: float, over: str = "") -> None:
    """Draw a norm and what follows it."""
    figure.line((x, STREAM), (x, BRANCH), (x + 12, BRANCH))
    figure.module(x + 12, BRANCH, 58, norm, FROZEN)
    figure.line((x + 70, BRANCH), (x + 86, BRANCH))
    figure.module(x + 86, BRANCH, width, part, FROZEN)
    figure.text(x + 86 + width / 2, BRANCH - BOX / 2 - 8, over)


def beside(figure: Figure, end: float, start: float, x: float, width: float, name: str) -> float:
    """Draw an adapter above a branch, from a point of it to its sum with it; return where the branch ends."""
    add = max(end, x + width) + 22
    figure.line((end, BRANCH), (add - 10, BRANCH))
    figure.line((start, BRANCH), (start, ADAPTER), (x, ADAPTER))
    figure.module(x, ADAPTER, width, name, TRAINED)
    figure.line((x + width, ADAPTER), (add, ADAPTER), (add, BRANCH - 10))
    figure.plus(add, BRANCH)
    figure.line((add, BRANCH + 9), (add, STREAM - 10))
    return add


def draw() -> str:
    """Draw the block."""
    figure, before = Figure(), 4.0
    for draw_branch, start in ((temporal, 22), (spatial, 342), (joint, 666)):
        end = draw_branch(figure, start)
        figure.line((before, STREAM), (end - 10, STREAM))
        figure.plus(end, STREAM)
        before = end + 9
    figure.line((before, STREAM), (WIDTH - 4, STREAM))
    for x, color, text in (
        (22, FROZEN, "frozen: the pretrained block, whose attention runs twice"),
        (400, TRAINED, "trained: adapters, up(GELU(down(x))), zero at initialization"),
    ):
        figure.texts.append(f'<rect x="{x}" y="207" width="14" height="14" rx="3" fill="{color}"/>')
        figure.text(x + 22, 219, text, anchor="start")
    return figure.svg("A block of a frozen image transformer with AIM's temporal, spatial and joint adapter")


def main(folder: Path = RESULTS) -> None:
    """Write ``block.svg``."""
    (folder / "block.svg").write_text(draw())


if __name__ == "__main__":
    main()
