"""A run's data as a table for the terminal, as docs/benchmarks.md, and as a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from statistics import median
from typing import Any

Result = dict[str, Any]
Lines = list[list[str]]
HEAD = ["", "median", "spread", "taskq is", "goal", ""]


def number(value: float) -> str:
    """Format to three digits, thousands separated."""
    if value >= 1000:
        digits = max(0, len(str(int(value))) - 3)
        return f"{round(value, -digits):,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def more_is_better(row: dict[str, Any]) -> bool:
    return row["unit"].endswith("/s")


def ratio(row: dict[str, Any], base: dict[str, Any] | None) -> float | None:
    """Return how many times better the base is: round by round, as the median, where both have the same rounds."""
    if base is None or row is base:
        return None
    ours, theirs = base["values"], row["values"]
    pairs = list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else [(median(ours), median(theirs))]
    ratios = [(a / b if more_is_better(row) else b / a) for a, b in pairs if a > 0 and b > 0]
    return median(ratios) if ratios else None


def times(value: float | None) -> str:
    return "" if value is None else f"{number(value)} ×"


def best(rows: list[dict[str, Any]], roles: dict[str, str], role: str) -> dict[str, Any] | None:
    """Return the best contender of a role."""
    found = [row for row in rows if roles.get(row["contender"]) == role]
    pick = max if found and more_is_better(found[0]) else min
    return pick(found, key=lambda row: median(row["values"]), default=None)


def summary(rows: list[dict[str, Any]], roles: dict[str, str], base: dict[str, Any]) -> str:
    """Say what the base's value is, divided by that of the best floor and of the best peer."""
    parts = []
    for role in ("floor", "peer"):
        other = best(rows, roles, role)
        if other is not None and (value := ratio(other, base)):
            parts.append(f"{number(value if more_is_better(base) else 1 / value)} × {other['contender']}")
    return ", ".join(parts)


def remark(row: dict[str, Any], early: set[str]) -> str:
    """Return a row's note; beside a drain's rate also whether a crash would lose tasks."""
    loses = row["contender"] in early and row["case"].startswith("drain")
    return "; ".join(filter(None, [row["note"], "acknowledges before the run" if loses else ""]))


def groups(result: Result) -> Iterator[tuple[str, str, list[tuple[str, str, Lines]]]]:
    """Yield each group: name, title, and its cases as (name, unit, lines)."""
    goals = {(group, case): goal for group, case, goal in result["goals"]}
    names = list(dict.fromkeys(row["group"] for row in result["rows"]))
    for name in names:
        roles = {label: role for group, label, role, _ in result["contenders"] if group == name}
        early = {c[1] for c in result["contenders"] if c[0] == name and c[3]["ack"].startswith("before")}
        rows = [row for row in result["rows"] if row["group"] == name]
        cases = []
        for case in dict.fromkeys(row["case"] for row in rows):
            lines = [row for row in rows if row["case"] == case]
            lines.sort(key=lambda row: not row["contender"].startswith("taskq"))
            alone = all(row["contender"].startswith("taskq, ") for row in lines)  # brokers beside each other
            base = lines[0] if lines[0]["contender"].startswith("taskq") and not (alone and not roles) else None
            goal = goals.get((name, case), "")
            cases.append((
                case, lines[0]["unit"],
                [
                    [
                        row["contender"], number(median(row["values"])),
                        f"{number(min(row['values']))}–{number(max(row['values']))}" if len(row["values"]) > 1 else "",
                        summary(lines, roles, row) if row is base else times(ratio(row, base)),
                        goal if row is base else "",
                        remark(row, early),
                    ]
                    for row in lines
                ],
            ))  # fmt: skip
        yield name, result["titles"].get(name, name), cases


def facts(result: Result) -> Lines:
    """Return the machine, the noise and the servers' settings as pairs."""
    noise = result["noise"]
    loop = noise["a fixed loop, ms"]
    pairs = [[key, str(value)] for key, value in result["machine"].items()]
    pairs.append(
        ["noise", f"load {noise['load before']} before; a fixed Python loop took {loop['best']}–{loop['worst']} ms"]
    )
    for name, settings in result["servers"].items():
        pairs.append([name, ", ".join(f"{key} {value}" for key, value in settings.items())])
    return pairs


def said(contender: dict[str, Any], python: str) -> list[str]:
    """Return what a contender promises: versions, acknowledgement, durability, note."""
    versions = dict(contender["versions"])
    if contender["python"] and contender["python"] != python:
        versions["CPython"] = contender["python"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [listed, contender["ack"], contender["durability"], contender["note"]]


def text(result: Result) -> str:
    """Return the report for a terminal."""
    python = result["machine"].get("python", "").split()[-1:]
    out = ["", *(f"{key:<12} {value}" for key, value in facts(result))]
    out += ["", "who acknowledges when, and what survives:"]
    for group, name, _, contender in result["contenders"]:
        out.append(f"  {group:<11} {name:<26} {'; '.join(filter(None, said(contender, ''.join(python))))}")
    for _, title, cases in groups(result):
        out += ["", title, "=" * len(title)]
        for case, unit, lines in cases:
            goal = f"   (goal {lines[0][4]})" if lines[0][4] else ""
            out.append(f"{case}, {unit}{goal}")
            for line in lines:
                taskq_is = f"taskq {line[3]}" if line[3] and not line[0].startswith("taskq") else line[3]
                out.append(f"  {line[0]:<26}{line[1]:>10}  {line[2]:<19} {taskq_is:<16} {line[5]}".rstrip())
    out += ["", *(f"NOT MEASURED  {name}: {why}" for name, why in result["missing"].items())]
    out += [f"FAILED  {group}, {case}, {name}: {why}" for group, case, name, why in result["failures"]]
    return "\n".join(out)


DOCUMENT = """\
# Benchmarks

Written by `make bench ARGS=--write-docs`; do not edit. Rates and ratios of one machine, for comparison within a run:
they say what to expect relative to each other, not what your machine reaches, and no test asserts them.

![Medians of drains and round trips, logarithmic; blue: taskq, grey: the bare library, orange: peers](benchmarks.svg)

## The run of {began}

{facts}
- {rounds} round(s) of each measurement, contenders in turns within a round, peers that no goal names in the first only;
  medians, then the spread between rounds; {minutes:.0f} minutes in all{quick}

## To repeat it

    make bench                                 everything; sets up servers and the peers' environments by itself
    make bench ARGS='--only redis --quick'     one part, a tenth of the messages: does it work?
    make bench ARGS='--full --write-docs'      with larger backlogs; writes this page

Each run leaves its data as JSON in `build/bench/`. The suite is `tests/bench/`; its docstring says where another
broker, pool or peer is added.

## Who takes part

Tasks do nothing but count, unless said. Every contender has one worker process, unless said, and is set as safe as it
can be set; the table says what that means, when it acknowledges, and which settings it has. What is not named is at its
default. *Alone* is the bare client library moving the same bytes, without a framework. Contenders of a broker use the
same server, one after the other, emptied in between.

{contenders}
{missing}
## Numbers

A drain's rate is taken between the first twentieth of the tasks and the last. *taskq is*: how many times faster than
this row (for sizes and times: how many times smaller), median over the rounds; in taskq's own row, its value divided by
that of the bare library and that of the best peer. *goal*: what the project set itself before it was built.
{numbers}
"""


def document(result: Result) -> str:
    """Return docs/benchmarks.md."""
    python = "".join(result["machine"].get("python", "").split()[-1:])
    absent = [f"- {name}: {why}" for name, why in result["missing"].items()]
    absent += [f"- {name}, {group}, {case}: failed: {why}" for group, case, name, why in result["failures"]]
    everybody = [[name, group, *said(contender, python)] for group, name, _, contender in result["contenders"]]
    numbers = []
    for _, title, cases in groups(result):
        numbers += ["", f"### {title}"]
        for case, unit, lines in cases:
            shown = [i for i in range(len(HEAD)) if i < 2 or any(line[i] for line in lines)]
            head = [f"{case}, {unit}", *HEAD[1:]]
            numbers += ["", *markdown([head[i] for i in shown], [[line[i] for i in shown] for line in lines])]
    return DOCUMENT.format(
        began=result["began"],
        facts="\n".join(f"- {key}: {value}" for key, value in facts(result)),
        rounds=result["settings"]["rounds"],
        minutes=result["seconds"] / 60,
        quick="\n- **`--quick`: too few messages for conclusions**" if result["settings"]["quick"] else "",
        contenders="\n".join(markdown(["", "on", "versions", "acknowledges", "durability", "settings"], everybody)),
        missing="\n".join(["", "Not measured:", "", *absent, ""]) if absent else "",
        numbers="\n".join(numbers),
    )


def markdown(head: list[str], lines: Lines) -> list[str]:
    """Return a table."""
    rows = [head, ["---", *("--:" if cell == "median" else "---" for cell in head[1:])], *lines]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows]


IN_DOCS = frozenset({"drain", "round trip p50", "tasks that wait 100 ms"})
ROW, LEFT, WIDE = 15, 210, 860
COLOURS = {"taskq": "#2a6fdb", "floor": "#9a9a9a", "peer": "#d98b2b"}


def plot(result: Result, only: frozenset[str] = frozenset()) -> str:
    """Return an SVG with bars, logarithmic, of all cases (or these) that several contenders went through."""
    out: list[str] = []
    y = 20
    medians = {(r["group"], r["case"], r["contender"]): median(r["values"]) for r in result["rows"]}
    for name, title, cases in groups(result):
        roles = {label: role for group, label, role, _ in result["contenders"] if group == name}
        several = [case for case in cases if len(case[2]) > 1 and (not only or case[0] in only)]
        if several:
            out.append(words(8, y, title, "font-weight='bold' font-size='13'"))
            y += 22
        for case, unit, lines in several:
            values = {line[0]: medians[name, case, line[0]] for line in lines}
            low = min((v for v in values.values() if v > 0), default=1.0) / 2
            span = math.log(max(*values.values(), 2 * low) / low)
            better = "more" if unit.endswith("/s") else "less"
            out.append(words(8, y, f"{case}, {unit}; {better} is better", "fill='#555'"))
            y += ROW
            for label, value in values.items():
                width = (WIDE - LEFT - 80) * math.log(max(value, low) / low) / span
                colour = COLOURS[roles.get(label, "taskq")]
                out.append(words(LEFT - 6, y, label, "text-anchor='end'"))
                out.append(f"<rect x='{LEFT}' y='{y - 10}' width='{width:.1f}' height='{ROW - 4}' fill='{colour}'/>")
                out.append(words(LEFT + width + 4, y, number(value)))
                y += ROW
            y += 8
    font = "font-family='sans-serif' font-size='11'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDE}' height='{y}' {font}>"
    return "\n".join([head, f"<rect width='{WIDE}' height='{y}' fill='white'/>", *out, "</svg>", ""])


def words(x: float, y: float, what: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y}' {more}>{escape(what)}</text>"
