"""The benchmark suite (`make bench`): taskq, its peers and the bare client libraries, in turns, in one run.

    __main__.py     the command line
    groups.py       who is measured on which broker: the place where another broker, pool or peer is added
    cases.py        the measurements that every contender of a broker goes through
    taskq_cases.py  what only taskq is asked: start-up, memory transport, growing backlog, message size
    contender.py    one contender in its own interpreter: its processes, its private folder or database
    side.py         what runs in that interpreter; stopwatch.py: what its no-op task calls
    taskq_app.py, peers/*.py, floors/*.py   the contenders, each with the same three functions: worker, send, call
    measure.py      percentiles, process statistics; machine.py: what it was measured on
    venv.py         the peers' own environment; report.py: table, JSON, plots, docs/benchmarks.md

Rates and ratios are printed and never asserted. A contender's module is imported in its own interpreter only, so it may
import its library at the top; everything that such an interpreter imports from here uses the standard library alone.
"""
