"""Curves as SVG that follows the reader's light or dark: a panel for each, over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from .figures import shown

__all__ = ["PANEL", "Panel", "grid", "svg"]

_WIDTH, _COLUMNS, _GAP = 1080, 3, 28
PANEL = (_WIDTH - _GAP * (_COLUMNS + 1)) // _COLUMNS
"""How wide a panel is."""

_HEAD, _PLOT, _FOOT, _LEFT = 40, 150, 34, 52
_COLORS = ("a", "b", "c")

_STYLE = """
text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #57606a }
.title { font-size: 13px; font-weight: 600; fill: #1f2328 }
.axis { stroke: #c4ccd4; stroke-width: 1; fill: none }
path { fill: none; stroke-width: 2 }
path.a { stroke: #0969da } path.b { stroke: #bf8700 } path.c { stroke: #8c959f }
circle.a, text.a { fill: #0969da } circle.b, text.b { fill: #9a6700 } circle.c, text.c { fill: #6e7781 }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 } .title { fill: #f0f6fc } .axis { stroke: #4a525c }
  path.a { stroke: #4493f8 } path.b { stroke: #d29922 } path.c { stroke: #6e7681 }
  circle.a, text.a { fill: #4493f8 } circle.b, text.b { fill: #d29922 } circle.c, text.c { fill: #9198a1 }
}
"""


@dataclass(frozen=True)
class Panel:
    """Curves by what they show; each of them y by x, with x above 0. With ``log_y`` the other axis is logarithmic too,
    else it begins at 0."""

    title: str
    x: str
    curves: Mapping[str, Mapping[int, float]]
    log_y: bool = False


def svg(panels: Sequence[Panel]) -> str:
    drawn = [_draw(panel) for panel in panels if any(panel.curves.values())]
    return grid(drawn, _STYLE, "how mpms grows")


def grid(drawn: Sequence[tuple[str, int]], style: str, label: str) -> str:
    """Panels, each as its drawing and how high it is, in columns."""
    rows = [drawn[at : at + _COLUMNS] for at in range(0, len(drawn), _COLUMNS)]
    y, parts = _GAP, []
    for row in rows:
        for column, (body, _) in enumerate(row):
            parts.append(f'<g transform="translate({_GAP + column * (PANEL + _GAP)} {y})">{body}</g>')
        y += max(height for _, height in row) + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" role="img" '
        f'aria-label="{label}">\n<style>{style}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _draw(panel: Panel) -> tuple[str, int]:
    """Its drawing, and how high it is."""
    legend = _HEAD + 15 * (len(panel.curves) - 1)
    xs = sorted({x for curve in panel.curves.values() for x in curve})
    ys = [y for curve in panel.curves.values() for y in curve.values()]
    low, high = (math.log(min(ys)), math.log(max(ys))) if panel.log_y else (0.0, max(ys) * 1.08)
    first, last = math.log(xs[0]), math.log(xs[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - first) / ((last - first) or 1)
        up = ((math.log(y) if panel.log_y else y) - low) / ((high - low) or 1)
        return _LEFT + across * (PANEL - _LEFT - 8), legend + _PLOT * (1 - up)

    base = legend + _PLOT
    drawn = [f'<text class="title" x="0" y="12">{escape(panel.title)}</text>']
    drawn.append(f'<path class="axis" d="M{_LEFT} {legend - 4}V{base}H{PANEL}"/>')
    for y in {min(ys), max(ys)}:
        drawn.append(f'<text x="{_LEFT - 6}" y="{at(xs[0], y)[1] + 4:.1f}" text-anchor="end">{_brief(y)}</text>')
    taken = -math.inf
    for x in xs:
        place = at(x, ys[0])[0]
        if place - taken > 26:
            drawn.append(f'<text x="{place:.1f}" y="{base + 14}" text-anchor="middle">{_brief(x)}</text>')
            taken = place
    drawn.append(f'<text x="{PANEL}" y="{base + 28}" text-anchor="end">{escape(panel.x)}</text>')
    for number, (what, curve) in enumerate(panel.curves.items()):
        color = _COLORS[number]
        points = [at(x, curve[x]) for x in sorted(curve)]
        drawn.append(f'<text class="{color}" x="0" y="{28 + 15 * number}">{escape(what)}</text>')
        drawn.append(f'<path class="{color}" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + '"/>')
        drawn += [f'<circle class="{color}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]
    return "".join(drawn), base + _FOOT


def _brief(value: float) -> str:
    for size, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{shown(value / size).removesuffix('.0').removesuffix('.00')}{word}"
    return shown(value).removesuffix(".00").removesuffix(".0")
