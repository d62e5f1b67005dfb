"""The benchmark suite (`make bench`): taskq, its peers and the bare client libraries, in turns, in one run.

    __main__.py     the command line; the order of a run, and its end
    groups.py       who is measured on which broker: the place where another broker, pool or peer is added
    cases.py        the measurements that every contender of a broker goes through; pool_cases.py: of a pool
    taskq_cases.py  what only taskq is asked: start-up, memory transport, growing backlog, many queues, delayed tasks
    contender.py    one contender in its own interpreter: its processes, its surroundings
    brokers.py      an emptied database or virtual host on a server for each measurement; the servers' settings
    side.py         what runs in that interpreter; stopwatch.py: what its tasks call
    taskq_app.py, peers/*, floors/*.py   the contenders, each with the same three functions: worker, send, call
    measure.py      percentiles, process statistics; machine.py: what it was measured on
    peers.txt, venv.py   the peers' versions and their own environments; report.py: table, plot, docs/benchmarks.md

A run goes round by round through all groups. taskq, the bare libraries and the peers that a goal names take part in
every round, the other peers in the first; when the time is up (--minutes) no further peer and no further round begins.
A contender that cannot be installed, fails or hangs is a line that says why, and ends nothing else.

Rates and ratios are printed and never asserted. A contender's module is imported in its own interpreter only, so it may
import its library at the top; everything that such an interpreter imports from here uses the standard library alone.
"""
