"""A run's data as a table for the terminal, as docs/benchmarks.md, and as a plot where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
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


def ratio(row: dict[str, Any], base: dict[str, Any] | None) -> str:
    """Say how many times better the base is, round by round, as the median."""
    if base is None or row is base:
        return ""
    pairs = zip(base["values"], row["values"], strict=False)
    faster = row["unit"].endswith("/s")
    ratios = [(a / b if faster else b / a) for a, b in pairs if a > 0 and b > 0]
    return f"{number(median(ratios))} ×" if ratios else ""


def groups(result: Result) -> Iterator[tuple[str, str, list[tuple[str, str, Lines]]]]:
    """Yield each group: name, title, and its cases as (name, unit, lines)."""
    goals = {(group, case): goal for group, case, goal in result["goals"]}
    names = list(dict.fromkeys(row["group"] for row in result["rows"]))
    for name in names:
        rows = [row for row in result["rows"] if row["group"] == name]
        cases = []
        for case in dict.fromkeys(row["case"] for row in rows):
            lines = [row for row in rows if row["case"] == case]
            lines.sort(key=lambda row: not row["contender"].startswith("taskq"))
            base = lines[0] if lines[0]["contender"] == "taskq" else None
            goal = goals.get((name, case), "")
            cases.append((
                case, lines[0]["unit"],
                [
                    [
                        row["contender"], number(median(row["values"])),
                        f"{number(min(row['values']))}–{number(max(row['values']))}" if len(row["values"]) > 1 else "",
                        ratio(row, base), goal if row is base else "", row["note"],
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


def said(contender: dict[str, Any]) -> list[str]:
    """Return what a contender promises: versions, acknowledgement, durability, note."""
    versions = ", ".join(f"{name} {version}" for name, version in contender["versions"].items())
    return [versions, contender["ack"], contender["durability"], contender["note"]]


def text(result: Result) -> str:
    """Return the report for a terminal."""
    out = ["", *(f"{key:<12} {value}" for key, value in facts(result))]
    out += ["", "who acknowledges when, and what survives:"]
    for group, name, contender in result["contenders"]:
        out.append(f"  {group:<11} {name:<26} {'; '.join(filter(None, said(contender)))}")
    for _, title, cases in groups(result):
        out += ["", title, "=" * len(title)]
        for case, unit, lines in cases:
            out.append(f"{case}, {unit}")
            for line in lines:
                taskq_is = f"taskq {line[3]}" if line[3] else f"goal {line[4]}" if line[4] else ""
                out.append(f"  {line[0]:<26}{line[1]:>10}  {line[2]:<19} {taskq_is:<16} {line[5]}".rstrip())
    out += ["", *(f"NOT MEASURED  {name}: {why}" for name, why in result["missing"].items())]
    out += [f"FAILED  {group}, {case}, {name}: {why}" for group, case, name, why in result["failures"]]
    return "\n".join(out)


DOCUMENT = """\
# Benchmarks

Written by `make bench ARGS=--write-docs`; do not edit. Rates and ratios of one machine, for comparison within a run:
they say what to expect relative to each other, not what your machine reaches, and no test asserts them.

## The run of {began}

{facts}
- {rounds} round(s) of each measurement, contenders in turns within a round; medians, then the spread between rounds;
  {minutes:.0f} minutes in all{quick}

## To repeat it

    make bench                                 everything; sets up servers and the peers' environment by itself
    make bench ARGS='--only sqlite --quick'    one part, a tenth of the messages: does it work?
    make bench ARGS='--full --write-docs'      with the backlog of a million; writes this page

Each run leaves its data as JSON in `build/bench/`. The suite is `tests/bench/`; its docstring says where another
broker, pool or peer is added.

## Who takes part

Tasks do nothing but count. Every contender has one worker process and runs one task at a time, and is set as safe as it
can be set; the table says what that means. *Alone* is the bare client library moving the same rows.

{contenders}
{missing}
## Numbers

A drain's rate is taken between the first twentieth of the tasks and the last. *taskq is*: how many times faster than
this row (for sizes and times: how many times smaller), median over the rounds. *goal*: what the project set itself
before it was built.
{numbers}
"""


def document(result: Result) -> str:
    """Return docs/benchmarks.md."""
    absent = [f"- {name}: {why}" for name, why in result["missing"].items()]
    absent += [f"- {name}, {group}, {case}: {why}" for group, case, name, why in result["failures"]]
    everybody = [[name, group, *said(contender)] for group, name, contender in result["contenders"]]
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


def plot(result: Result, path: Path) -> bool:
    """Draw bars, one picture of all cases with several contenders, if matplotlib is installed; whether it was."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    several = [(title, c) for _, title, cases in groups(result) for c in cases if len(c[2]) > 1]
    if not several:
        return False
    medians = {(r["group"], r["case"], r["contender"]): median(r["values"]) for r in result["rows"]}
    figure = Figure(figsize=(10, 2.6 * len(several)), layout="constrained")
    titles = {title: name for name, title, _ in groups(result)}
    for axes, (title, (case, unit, lines)) in zip(
        figure.subplots(len(several), squeeze=False)[:, 0], several, strict=True
    ):
        names = [line[0] for line in lines][::-1]
        axes.barh(names, [medians[titles[title], case, name] for name in names])
        axes.set_xscale("log")
        axes.set_title(f"{title}: {case} ({unit})", fontsize=9)
    figure.savefig(path, dpi=100)
    return True
