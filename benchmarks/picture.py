"""The picture for the README: a panel of bars for each scenario, as SVG that follows the reader's light or dark."""

from __future__ import annotations

from xml.sax.saxutils import escape

from .figures import shown
from .floors import FLOORS
from .lines import PANEL, grid
from .report import Results, title_of
from .scenarios import Scenario
from .systems import SYSTEMS

__all__ = ["svg"]

_LABEL = 122  # for the longest name of a system
_VALUE = 66  # right of the bars
_ROW, _HEAD = 17, 44

_STYLE = """
text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #57606a }
.title { font-size: 13px; font-weight: 600; fill: #1f2328 }
.ours { fill: #0969da } .peer { fill: #c4ccd4 } .floor { fill: #e7d9b5 }
text.ours { font-weight: 600 } text.failed { fill: #cf222e } text.peer, text.floor { fill: #57606a }
@media (prefers-color-scheme: dark) {
  text, text.peer, text.floor { fill: #9198a1 } .title { fill: #f0f6fc }
  .ours, text.ours { fill: #4493f8 } text.failed { fill: #f85149 }
  rect.peer { fill: #4a525c } rect.floor { fill: #6b5c33 }
}
"""


def svg(results: Results) -> str:
    """All scenarios that have a figure at all."""
    panels = [panel for scenario in results.scenarios() if (panel := _panel(results, scenario))]
    return grid(panels, _STYLE, "mpms beside other pools")


def _panel(results: Results, scenario: Scenario) -> tuple[str, int] | None:
    """Its drawing, and how high it is."""
    figure = scenario.figures[0]
    bars: list[tuple[str, str, float | None, str]] = []
    for contender in results.ranked(scenario):
        if contender in FLOORS and contender not in scenario.floors[:1]:
            continue
        value = results.value(scenario.name, contender, figure.key)
        failed = results.failed(scenario.name, contender)
        if value is None and not failed:
            continue  # it has not got it, or isn't installed: the table says so
        bars.append(
            (
                contender,
                "floor" if contender in FLOORS else title_of(contender),
                value,
                _word(results, scenario, contender),
            )
        )
    if all(value is None for _, _, value, _ in bars):
        return None
    # Not the floor, which may be far away from everybody and would leave no room for the others.
    most = max((value for name, _, value, word in bars if value and not word and name not in FLOORS), default=1.0)
    room = PANEL - _LABEL - _VALUE
    arrow = "more is better" if figure.better == "more" else "less is better"
    drawn = [
        f'<text class="title" x="0" y="12">{escape(_short(scenario.title))}</text>',
        f'<text x="0" y="29">{escape(figure.unit)}; {arrow}</text>',
    ]
    for line, (name, title, value, word) in enumerate(bars):
        kind = "floor" if name in FLOORS else "ours" if SYSTEMS[name].kind == "ours" else "peer"
        y = _HEAD + line * _ROW
        drawn.append(
            f'<text class="{kind}" x="{_LABEL - 6}" y="{y + 10}" text-anchor="end">{escape(_fit(title))}</text>'
        )
        width = 0.0
        if value is not None and not word:
            width = max(1.0, room * min(1.0, value / most))
            drawn.append(f'<rect class="{kind}" x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_ROW - 4}" rx="2"/>')
        text = " ".join(part for part in ("" if value is None else shown(value), word) if part)
        css = "failed" if word else kind
        drawn.append(f'<text class="{css}" x="{_LABEL + width + 5:.1f}" y="{y + 10}">{escape(text)}</text>')
    return "".join(drawn), _HEAD + len(bars) * _ROW


def _word(results: Results, scenario: Scenario, contender: str) -> str:
    """How it failed, if it did."""
    failed = [m.status.value for m in results.rounds[scenario.name][contender] if m.status.failed]
    return failed[0] if failed else ""


def _short(title: str) -> str:
    return title.partition(":")[0] if len(title) > 48 else title


def _fit(title: str) -> str:
    return title if len(title) <= 21 else title[:20] + "…"
