"""Between parent and child: what is sent, what is only noted on the board, and who gets what waits."""

from __future__ import annotations

import os
import socket
import time

import pytest

from taskq.message import FINISHED
from taskq.spi import Job, Outcome, TaskLimits
from taskq_pool_prefork.child import EARLY_S, ChildProcess
from taskq_pool_prefork.crew import Crew
from taskq_pool_prefork.limits import Watch
from taskq_pool_prefork.member import Member, State
from taskq_pool_prefork.protocol import (
    ACTED,
    CANCEL,
    ENDS,
    ENDS_HEAD,
    EXIT,
    REQUESTED,
    REVOKED,
    SINCE,
    SOFT_LIMIT,
    STARTED,
    TAKEN,
    TARGET,
    WHY,
    Board,
    Channel,
    Frames,
    Setup,
    decode_ends,
    frame,
    jobs_frame,
)


class Runtime:
    """Each job takes longer than what a child calls short; ``then`` is what happens in one."""

    def __init__(self):
        self.ran = []
        self.then = {}
        self.outcomes = {}

    def execute(self, job):
        self.ran.append(job.key)
        self.then.get(job.key, lambda: None)()
        time.sleep(2 * EARLY_S)
        return self.outcomes.get(job.key, FINISHED)

    def limits(self, task):
        return TaskLimits()


class Sink:
    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *arguments: self.told.append((name, *arguments))


def jobs(*keys):
    return [Job(key, b"", "t", "q", 1) for key in keys]


@pytest.fixture
def lines():
    """Sockets and boards, closed afterwards."""
    made = []

    class Lines:
        def board(self):
            descriptor = Board.create()
            made.append(Board(descriptor))
            os.close(descriptor)
            return made[-1]

        def pair(self):
            made.extend(pair := socket.socketpair())
            return pair

        def member(self, number):
            """Return a child as its parent knows it, without any process."""
            member = Member(number, Channel(self.pair()[0]), Channel(self.pair()[0]), self.board(), None)
            member.state = State.READY
            return member

    yield Lines()
    for thing in made:
        thing.close()


@pytest.fixture
def child(lines):
    """A child's work on this thread; ``run`` gives it jobs and the word to end, and says what it sent."""

    class Child:
        def __init__(self):
            self.runtime = Runtime()
            self.board = lines.board()
            self.ours, theirs = lines.pair()
            setup = Setup(os.getpid(), b"", None, [], False, False, None, None)
            self.process = ChildProcess(self.runtime, theirs, lines.pair()[0], self.board, setup)

        def run(self, *keys):
            """Return the frames: index of the first end, and keys."""
            return [(base, [end.key for end in ends]) for base, ends in self.frames(*keys)]

        def ended(self, *keys):
            return [end for _, ends in self.frames(*keys) for end in ends]

        def frames(self, *keys):
            self.ours.sendall(jobs_frame(jobs(*keys)))
            self.runtime.then.setdefault(keys[-1], lambda: self.ours.sendall(frame(EXIT)))
            self.process._work()
            self.ours.setblocking(False)
            found = Frames().feed(self.ours.recv(1 << 16))
            assert {kind for kind, _ in found} == {ENDS}
            head = ENDS_HEAD.size - 5
            return [(int.from_bytes(load[:head]), decode_ends(load[head:])) for _, load in found]

    made = Child()
    yield made
    for descriptor in (made.process._control._bell, made.process._control._ring):
        os.close(descriptor)


def test_ends_of_jobs_behind_each_other_are_sent_before_the_last_one_starts(child):
    child.runtime.outcomes[3] = Outcome(0, "SUCCESS", b"r")
    assert child.run(*range(10)) == [(0, list(range(9))), (9, [9])]
    assert child.runtime.ran == list(range(10))


def test_what_the_parent_has_taken_from_the_board_is_not_sent(child):
    slots = child.board.slots
    child.runtime.then[5] = lambda: slots.__setitem__(TAKEN, 5)
    assert child.run(*range(10)) == [(5, [5, 6, 7, 8]), (9, [9])]


def test_the_stage_begins_anew_when_the_parent_has_all(child):
    """However many jobs follow each other, nothing is sent as long as the parent keeps up."""
    slots = child.board.slots
    for key in range(1, 149):
        child.runtime.then[key] = lambda key=key: slots.__setitem__(TAKEN, key)
    assert child.run(*range(150)) == [(148, [148]), (149, [149])]


def test_the_parent_takes_what_stands_on_the_board(child, lines):
    member = lines.member(1)
    member.board = child.board
    crew = Crew(1)
    crew.sink, crew.members[1] = Sink(), member
    accepted = jobs(*range(4))
    crew.accept(accepted)
    crew.ready.clear()
    member.jobs.extend(accepted)
    watch = Watch(crew, child.runtime, None, 60.0)
    child.runtime.outcomes[1] = Outcome(0, "SUCCESS", b"r")

    def look():
        assert member.running().key == 2
        due = watch.look(time.monotonic())
        assert due < time.monotonic() + 1.0, "another one waits there"
        for method, arguments in crew.take_reports():
            method(*arguments)

    child.runtime.then[2] = look
    assert child.run(*range(4)) == [(2, [2]), (3, [3])]
    (_, begun), (_, done) = crew.sink.told
    assert begun == [0, 1]
    assert [(f.key, f.outcome.result) for f in done] == [(0, None), (1, b"r")]
    assert (member.received, member.board.slots[TAKEN], len(crew.held)) == (2, 2, 2)


def test_a_child_with_nothing_to_do_gets_of_what_waits_in_another(lines):
    crew = Crew(2)
    busy, idle = crew.members[1], crew.members[2] = lines.member(1), lines.member(2)
    crew.typical = 0.01
    crew.accept(jobs(*range(4)))
    crew.ready.clear()
    busy.give(list(crew.held.values()), time.monotonic())
    busy.board.times[SINCE] = time.monotonic() + 60.0  # it has just begun, however slow this test is
    busy.board.slots[STARTED] = 1
    crew.queued = True
    assert crew.even_out(time.monotonic()) < float("inf")
    crew.back(busy.settle_recall())
    assert [job.key for job in crew.ready] == [1, 2, 3]
    crew.hand_out()
    assert [job.key for job in idle.jobs] == [1, 2], "the first one will be free soon, too"
    assert crew.even_out(time.monotonic()) == float("inf")


@pytest.mark.parametrize("typical", [0.00001, 0.0], ids=["it is little", "nothing is known"])
def test_little_that_waits_stays_where_it_is(lines, typical):
    crew = Crew(2)
    busy, _ = crew.members[1], crew.members[2] = lines.member(1), lines.member(2)
    crew.typical = typical
    crew.accept(jobs(*range(4)))
    crew.ready.clear()
    busy.give(list(crew.held.values()), time.monotonic())
    crew.queued = True
    assert crew.even_out(time.monotonic()) == float("inf")
    assert busy.recalled_at is None


# ------------------------------------------------------------------------------------------------------ interrupting


@pytest.mark.parametrize("why", ["cancelled", "soft limit"])
def test_what_strikes_while_an_event_loop_is_made_strikes_again(child, monkeypatch, why):
    """The runtime says "not now"; the signal comes again, and only what has struck counts as carried out."""
    process, slots = child.process, child.board.slots
    monkeypatch.setattr("taskq_pool_prefork.child.signal.setitimer", lambda *arguments: None)
    tried, acted = [], []

    def interrupt(error, thread=None):
        tried.append(error)
        if len(tried) < 3:
            return False
        raise error

    def alarm():
        if why == "cancelled":
            slots[TARGET], slots[WHY], slots[REQUESTED] = slots[STARTED], CANCEL, 1
        else:
            process._soft = 1e-9
        for _ in range(5):
            process._on_alarm(0, None)
            acted.append((slots[ACTED], process._soft))

    child.runtime.interrupt = interrupt
    child.runtime.then[0] = alarm
    ends = child.ended(0, 1)
    assert len(tried) == 3
    assert acted == [(0, process._soft if why == "cancelled" else 1e-9)] * 2
    assert ends[0].fault[0] == (REVOKED if why == "cancelled" else SOFT_LIMIT)
    assert ends[1].fault is None
    assert (slots[ACTED], process._soft) == (slots[REQUESTED], None)
