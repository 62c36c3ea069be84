"""What came out: kept by scenario, contender and round; as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .figures import Figure, Goal, median, ratios, shown
from .floors import FLOORS
from .runner import Measurement, Status
from .scenarios import SCENARIOS, Scenario
from .systems import SYSTEMS

__all__ = ["Results", "as_json", "from_json", "markdown", "title_of"]


def title_of(contender: str) -> str:
    return FLOORS[contender].title if contender in FLOORS else SYSTEMS[contender].title


def _kind(contender: str) -> str:
    return "floor" if contender in FLOORS else SYSTEMS[contender].kind


@dataclass
class Results:
    about: dict[str, Any] = field(default_factory=dict)
    rounds: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)
    """By scenario and contender."""

    def add(self, scenario: str, contender: str, measurement: Measurement) -> None:
        self.rounds.setdefault(scenario, {}).setdefault(contender, []).append(measurement)

    def scenarios(self) -> Iterator[Scenario]:
        return (SCENARIOS[name] for name in self.rounds)

    def series(self, scenario: str, contender: str, key: str) -> list[float | None]:
        """The figure in each round; of one that failed as far as it came."""
        measurements = self.rounds.get(scenario, {}).get(contender, [])
        return [measurement.figures.get(key) for measurement in measurements]

    def value(self, scenario: str, contender: str, key: str) -> float | None:
        """The median over the rounds."""
        values = [value for value in self.series(scenario, contender, key) if value is not None]
        return median(values) if values else None

    def ratio(self, scenario: str, one: str, other: str, key: str) -> float | None:
        """The median over the rounds of the ratio in each."""
        pairs = ratios(self.series(scenario, one, key), self.series(scenario, other, key))
        return median(pairs) if pairs else None

    def failed(self, scenario: str, contender: str) -> bool:
        return any(measurement.status.failed for measurement in self.rounds[scenario].get(contender, []))

    def remark(self, scenario: str, contender: str) -> str:
        """What went otherwise than well, and in how many of the rounds."""
        measurements = self.rounds[scenario].get(contender, [])
        remarks = []
        for status in Status:
            those = [m for m in measurements if m.status is status]
            if status is Status.OK or not those:
                continue
            text = f"**{status.value}**" if status.failed else status.value
            detail = those[0].detail if status is not Status.NOT_INSTALLED else ""
            if detail:
                text += f": {detail}"
            if len(those) < len(measurements):
                text += f" ({len(those)} of {len(measurements)} rounds)"
            remarks.append(text)
        return "; ".join(remarks)

    def ranked(self, scenario: Scenario) -> list[str]:
        """The contenders, the best first; then those that failed, those that have no figure, and the floors."""
        figure = scenario.figures[0]

        def place(contender: str) -> tuple[int, float]:
            value = self.value(scenario.name, contender, figure.key)
            if contender in FLOORS:
                return 3, 0.0
            if value is None:
                return 2, 0.0
            return int(self.failed(scenario.name, contender)), value if figure.better == "less" else -value

        return sorted(self.rounds[scenario.name], key=place)

    def ours(self, scenario: str) -> str | None:
        """The contender of ours that is compared: the first that has come."""
        for contender in self.rounds[scenario]:
            if _kind(contender) == "ours" and any(m.figures for m in self.rounds[scenario][contender]):
                return contender
        return None

    def best_peer(self, scenario: Scenario) -> str | None:
        """The best of the pools of processes that never failed."""
        for contender in self.ranked(scenario):
            value = self.value(scenario.name, contender, scenario.figures[0].key)
            if _kind(contender) == "peer" and value is not None and not self.failed(scenario.name, contender):
                return contender
        return None

    def floor(self, scenario: Scenario) -> str | None:
        return next((floor for floor in scenario.floors if floor in self.rounds[scenario.name]), None)

    def concerned(self, scenario: Scenario, goal: Goal) -> tuple[str | None, str | None]:
        """Whose figure is to reach the goal, and with whose it is compared."""
        ours = goal.ours or self.ours(scenario.name)
        match goal.versus:
            case "peers":
                return ours, self.best_peer(scenario)
            case "floor":
                return ours, self.floor(scenario)
            case name:
                return ours, name

    def toward(self, scenario: Scenario, goal: Goal) -> list[float]:
        """What is to reach the goal, in each round."""
        ours, other = self.concerned(scenario, goal)
        if ours is None or (other is None and goal.versus is not None):
            return []
        figures = self.series(scenario.name, ours, goal.key)
        if other is None:
            return [figure for figure in figures if figure is not None]
        return ratios(figures, self.series(scenario.name, other, goal.key))

    def unsettled(self, scenario: Scenario) -> list[str]:
        """Those whose figures reach a goal in one round and miss it in another, and those they are compared with."""
        concerned = set[str | None]()
        for goal in scenario.goals:
            if len({goal.reached(value) for value in self.toward(scenario, goal)}) > 1:
                concerned.update(self.concerned(scenario, goal))
        return [contender for contender in self.rounds[scenario.name] if contender in concerned]


# JSON


def as_json(results: Results) -> dict[str, Any]:
    """Without logs, which are long and tell of the machine's paths."""
    return {
        "about": results.about,
        "scenarios": {
            name: {
                "title": SCENARIOS[name].title,
                "figures": {f.key: {"unit": f.unit, "better": f.better} for f in SCENARIOS[name].figures},
                "contenders": {
                    contender: [
                        {
                            "status": m.status.value,
                            **({"detail": m.detail} if m.detail else {}),
                            "figures": {key: float(f"{value:.4g}") for key, value in m.figures.items()},
                        }
                        for m in measurements
                    ]
                    for contender, measurements in contenders.items()
                },
            }
            for name, contenders in results.rounds.items()
        },
    }


def from_json(data: Mapping[str, Any]) -> Results:
    """For a report or a picture of older results. What is not known any more is left out."""
    results = Results(dict(data["about"]))
    for name, scenario in data["scenarios"].items():
        for contender, measurements in scenario["contenders"].items():
            if name in SCENARIOS and (contender in SYSTEMS or contender in FLOORS):
                for m in measurements:
                    results.add(name, contender, Measurement(Status(m["status"]), m["figures"], m.get("detail", "")))
    return results


# Markdown


def markdown(results: Results) -> str:
    parts = ["# Benchmarks", _about(results), _summary(results)]
    parts += [_scenario(results, scenario) for scenario in results.scenarios()]
    return "\n\n".join(parts) + "\n"


def _about(results: Results) -> str:
    about = results.about
    versions = [f"mpms {about['revision']}", *(f"{title_of(name)} {text}" for name, text in about["versions"].items())]
    return f"""{about["date"]}, {about["python"]}, {about["system"]}, {about["processors"]} processors, load \
{about["load_before"]} before and {about["load_after"]} after. {", ".join(versions)}.

Two processes, with four threads each where a system has threads, if nothing else is said. Rounds: {about["rounds"]}; \
more where a goal was reached in one and missed in another, for those concerned. Figures are medians; ratios are the \
medians of the rounds' own. ↑: more is better; ↓: less is. The best peer is the best pool of processes that did not \
fail. `benchmarks/README.md` says what is measured."""


def _summary(results: Results) -> str:
    rows = []
    for scenario in results.scenarios():
        figure = scenario.figures[0]
        ours, peer, floor = results.ours(scenario.name), results.best_peer(scenario), results.floor(scenario)
        rows.append(
            [
                f"{scenario.title}, {_header(figure)}",
                _number(results.value(scenario.name, ours, figure.key)) if ours else _missing(results, scenario),
                f"{_number(results.value(scenario.name, peer, figure.key))} ({title_of(peer)})" if peer else "–",
                _times(results.ratio(scenario.name, ours, peer, figure.key)) if ours and peer else "–",
                _times(results.ratio(scenario.name, ours, floor, figure.key)) if ours and floor else "–",
                "<br>".join(_goal(results, scenario, goal) for goal in scenario.goals) or "–",
            ]
        )
    return _table(["scenario", "mpms", "best peer", "mpms ÷ best peer", "mpms ÷ floor", "goals"], rows, "lrrrrl")


def _missing(results: Results, scenario: Scenario) -> str:
    ours = [c for c in results.rounds[scenario.name] if _kind(c) == "ours"]
    return results.remark(scenario.name, ours[0]) if ours else "–"


def _goal(results: Results, scenario: Scenario, goal: Goal) -> str:
    figure = next(figure for figure in scenario.figures if figure.key == goal.key)
    text = f"≥ {goal.at_least:g}" if goal.at_least is not None else f"≤ {goal.at_most:g}"
    match goal.versus:
        case None:
            text = f"{text} {figure.unit}"
        case "peers":
            text = f"{text} × the best peer"
        case "floor":
            text = f"{text} × the floor"
        case name:
            text = f"{text} × {title_of(name)}"
    if goal.versus is not None and figure is not scenario.figures[0]:
        text = f"{figure.unit}: {text}"
    if goal.ours:
        text = f"{title_of(goal.ours)}: {text}"
    ours, _ = results.concerned(scenario, goal)
    values = results.toward(scenario, goal)
    if ours is None or not values:
        return f"{text}: not measured"
    value = median(values)
    reached = goal.reached(value) and not results.failed(scenario.name, ours)
    more = f" ({len(values)} rounds)" if len(values) > results.about["rounds"] else ""
    return f"{text}: {shown(value)} {'✓' if reached else '✗'}{more}"


def _scenario(results: Results, scenario: Scenario) -> str:
    first, *others = scenario.figures
    ours = results.ours(scenario.name)
    floor = results.floor(scenario)
    heads = ["system", _header(first), "lowest – highest", "÷ mpms", "÷ floor", *map(_header, others), "remarks"]
    rows = []
    for contender in results.ranked(scenario):
        values = [value for value in results.series(scenario.name, contender, first.key) if value is not None]
        row = [
            f"**{title_of(contender)}**" if _kind(contender) == "ours" else title_of(contender),
            _number(median(values) if values else None),
            f"{shown(min(values))} – {shown(max(values))}" if len(values) > 1 else "–",
            _number(results.ratio(scenario.name, contender, ours, first.key)) if ours else "–",
            _number(results.ratio(scenario.name, contender, floor, first.key)) if floor else "–",
            *(_number(results.value(scenario.name, contender, figure.key)) for figure in others),
            results.remark(scenario.name, contender),
        ]
        rows.append(row)
    if floor is None:
        heads, rows = heads[:4] + heads[5:], [row[:4] + row[5:] for row in rows]
    return f"## {scenario.title}\n\n" + _table(heads, rows, "l" + "r" * (len(heads) - 2) + "l")


def _header(figure: Figure) -> str:
    return f"{figure.unit} {'↑' if figure.better == 'more' else '↓'}"


def _number(value: float | None) -> str:
    return "–" if value is None else shown(value)


def _times(value: float | None) -> str:
    return "–" if value is None else f"{shown(value)} ×"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    rule = ["---:" if side == "r" else "---" for side in sides]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))
