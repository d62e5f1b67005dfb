"""The supervisor: one thread that starts and buries children, moves frames, and looks after what is due."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from taskq.errors import WorkerError
from taskq_pool_prefork.crew import Crew
from taskq_pool_prefork.launcher import ForkServer
from taskq_pool_prefork.limits import TICK_S, Watch
from taskq_pool_prefork.member import Member, State
from taskq_pool_prefork.processes import describe_end
from taskq_pool_prefork.protocol import (
    ALIVE,
    BROKEN,
    BYE,
    DIED,
    DROPPED,
    ENDS,
    ENDS_HEAD,
    FAILED,
    FORK_FAILED,
    FORKED,
    NUMBERS,
    PONG,
    PRELOADED,
    READY,
    REPLY,
    REQUEST,
    STACKS,
    Channel,
    Control,
    Setup,
    decode_control,
    decode_ends,
    decode_report,
    encoded_frame,
)

log = logging.getLogger("taskq.pool.prefork")

LINGER_S: Final = 0.5
"""For this long after jobs came the thread looks by itself, so that the next ones need not wake it."""
LINGER_TICK_S: Final = 0.05
SOON_S: Final = TICK_S
"""How soon it must look once a child has jobs that wait behind another."""
SERVER_PATIENCE_S: Final = 5.0
"""Time for the fork server to answer, and for a killed child to end."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
_HEAD: Final = ENDS_HEAD.size - 5
Handler = Callable[[int, bytes], None]


class Supervisor(threading.Thread):
    """Runs until ``end``; everything but waiting happens under the pool's lock."""

    def __init__(self, crew: Crew, watch: Watch, setup: Setup, lock: threading.RLock, name: str, method: str) -> None:
        super().__init__(name=f"{name}-pool-supervisor", daemon=True)
        self._crew = crew
        self._watch = watch
        self._setup = setup
        self._lock = lock
        self._method = method
        self._selector = selectors.DefaultSelector()
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._ring, False)
        self._selector.register(self._bell, selectors.EVENT_READ, None)
        self._server: ForkServer | None = None
        self._number = 0
        self._pause = FIRST_PAUSE
        self._not_before = 0.0
        self._asked_at: float | None = None
        self._answered_at = 0.0
        self._stacks: dict[tuple[int, int], str] = {}
        self.changed = threading.Condition(lock)
        """Notified when children became ready or ended, and when a stack came."""
        self._planned = 0.0
        self._brought = 0.0
        self._writing: set[int] = set()
        self.failure: WorkerError | None = None
        """Why the pool cannot start."""
        self.started = False
        """Whether the first children were ready: from then on a failure is logged and tried again."""
        self.closing = False
        """Whether no child is to be replaced any more."""
        self.ended = False

    @property
    def asleep(self) -> bool:
        """Whether it waits for an event, without a time to look by itself."""
        return self._planned == float("inf")

    def bring(self) -> None:
        """Take note of new work: the thread must look soon, if it would not anyway. The caller holds the lock."""
        now = self._brought = monotonic()
        if self._planned > now + (SOON_S if self._crew.queued else LINGER_TICK_S):
            self._planned = 0.0
            self.wake()

    def wake(self) -> None:
        """Make the thread look at once."""
        if not self.ended:
            try:
                os.write(self._ring, b"\0")
            except BlockingIOError:
                pass

    def end(self) -> None:
        """Have the thread end with all processes; the caller holds the lock and joins it."""
        self.closing = True
        self.wake()
        self.ended = True

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self) -> None:
        try:
            while not self.ended:
                with self._lock:
                    now = monotonic()
                    due = min(self._watch.look(now), self._fit(now), self._look_at_server(now))
                    if self.closing:
                        self._return_ready()
                    else:
                        self._crew.hand_out()
                        due = min(due, self._crew.even_out(now))
                    self._watch_writes()
                    reports = self._crew.take_reports()
                    if now - self._brought < LINGER_S:
                        due = min(due, now + LINGER_TICK_S)
                    self._planned = due
                    self._crew.queued = any(len(m.jobs) > 1 for m in self._crew.members.values())
                if reports:
                    self._tell(reports)
                    now = monotonic()
                events = self._selector.select(None if due == float("inf") else max(0.0, due - now))
                with self._lock:
                    self._planned = 0.0
                    for key, mask in events:
                        self._attend(key, mask)
        except Exception:
            log.exception("the supervisor of the prefork pool met an unexpected error; its children are ended")
            self._give_up()
        finally:
            self._tell(self._crew.take_reports())
            with self._lock:
                self.ended = True
                self._close_all()
                self.changed.notify_all()

    def _give_up(self) -> None:
        """Report every job: nothing runs any more."""
        crew = self._crew
        with self._lock:
            self.ended = True
            self._return_ready()
            if crew.held:
                reason = "the prefork pool has failed, see the log above; its children were ended"
                crew.reports.append((crew.sink.crashed, (list(crew.held), [], reason)))
                crew.held.clear()

    def _return_ready(self) -> None:
        """Give back what turns out not to have started after all, now that the pool stops."""
        crew = self._crew
        if crew.ready:
            keys = [job.key for job in crew.ready]
            crew.ready.clear()
            crew.forget(keys)
            crew.reports.append((crew.sink.returned, (keys,)))
        self.changed.notify_all()

    def _attend(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.data is None:
            try:
                os.read(self._bell, 4096)
            except BlockingIOError:
                pass
            return
        channel, handler, lost = key.data
        if channel.socket.fileno() < 0:
            return  # closed by what came before in this round
        if mask & selectors.EVENT_WRITE:
            channel.flush()
        if mask & selectors.EVENT_READ:
            frames = channel.receive()
            if frames is None:
                self._selector.unregister(channel.socket)
                lost()
                return
            for kind, payload in frames:
                handler(kind, payload)

    def _register(self, channel: Channel, handler: Handler, lost: Callable[[], None]) -> None:
        self._selector.register(channel.socket, selectors.EVENT_READ, (channel, handler, lost))

    def _watch_writes(self) -> None:
        """Wait for room in a socket where something waits to be written, and nowhere else."""
        members = self._crew.members.values()
        wanted = {c.socket.fileno() for m in members for c in (m.data, m.control) if c.pending and not c.broken}
        if self._server is not None and self._server.channel.pending:
            wanted.add(self._server.channel.socket.fileno())
        if wanted != self._writing:
            for descriptor in wanted ^ self._writing:
                try:
                    key = self._selector.get_key(descriptor)
                except KeyError:
                    continue  # closed meanwhile
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if descriptor in wanted else 0)
                self._selector.modify(descriptor, events, key.data)
            self._writing = wanted

    def _tell(self, reports: list[Any]) -> None:
        for method, arguments in reports:
            try:
                method(*arguments)
            except Exception:
                log.exception("the worker failed to take a report of the prefork pool: %.500r", arguments)

    # ------------------------------------------------------------------------------------------ the fork server

    def _fit(self, now: float) -> float:
        """Have as many children as there are slots; return when to look again."""
        crew = self._crew
        if self.closing or self.failure is not None:
            return float("inf")
        active = [m for m in crew.members.values() if m.state is not State.LEAVING and not m.retiring and not m.killed]
        if len(active) > crew.slots:
            for member in sorted(active, key=lambda m: (len(m.jobs), -m.number))[: len(active) - crew.slots]:
                if member.state is State.STARTING:
                    member.retiring = True
                    member.kill("not needed")
                else:
                    if member.unstarted() and member.answered:
                        member.recall(now)
                    member.leave()
            return now + 0.01
        if len(active) == crew.slots:
            return float("inf")
        if now < self._not_before:
            return self._not_before
        try:
            if self._server is None:
                self._launch()
            elif self._server.loaded:
                for _ in range(crew.slots - len(active)):
                    self._fork()
        except OSError as error:
            self._trouble(f"cannot start a child process: {error}")
            return self._not_before
        return float("inf")

    def _launch(self) -> None:
        server = self._server = ForkServer(self._setup)
        self._register(server.channel, self._from_server, self._server_lost)

    def _fork(self) -> None:
        assert self._server is not None
        self._number += 1
        data, control, board = self._server.fork(self._number)
        member = Member(self._number, data, control, board, self._setup.max_tasks)
        self._crew.members[member.number] = member
        self._register(data, lambda kind, load: self._from_data(member, kind, load), lambda: self._cut_off(member))
        self._register(
            control, lambda kind, load: self._from_control(member, kind, load), lambda: self._cut_off(member)
        )

    def _from_server(self, kind: int, payload: bytes) -> None:
        report = decode_report(payload)
        assert self._server is not None
        if kind == PRELOADED:
            self._preloaded(report.names)
        elif kind == ALIVE:
            self._asked_at, self._answered_at = None, monotonic()
        elif kind == BROKEN:
            self._trouble(report.text, advice="The application cannot be imported by a child process: ")
        member = self._crew.members.get(report.number)
        if kind == DIED:
            self._server.bury(report.pid)
            if member is not None:
                # what it was killed for is the reason only if that is how it ended
                by_us = member.reason and report.status == -signal.SIGKILL
                self._bury(member, member.reason if by_us else describe_end(report.status))
        elif kind == FORKED and member is not None:
            member.pid = report.pid
            if member.reason or self.closing:
                member.kill()
        elif kind == FORK_FAILED:
            if member is not None:
                self._forget(member)
            self._trouble(f"cannot start a child process: {report.text}")

    def _preloaded(self, threads: list[str]) -> None:
        assert self._server is not None
        if not threads or self._setup.spawn:
            self._server.loaded = True
            return
        found = (
            f"importing the application leaves {len(threads)} thread(s) running: {', '.join(threads)}. "
            "A fork would copy their locks but not them"
        )
        if self._method == "forkserver":
            self._trouble(f"{found}. Start them in a start hook, or use start_method=spawn")
            return
        log.warning("%s; each child imports the application itself (spawn), which takes longer and more memory", found)
        self._setup.spawn = True
        self._close_server()
        self._launch()

    def _server_lost(self) -> None:
        """The fork server is gone, and with it, by its or the system's hand, all children."""
        server = self._server
        assert server is not None
        server.close(patience=1.0)
        self._server = self._asked_at = None
        if self.failure is not None:
            return
        status = describe_end(server.process.returncode)
        for member in list(self._crew.members.values()):
            member.kill()
            self._bury(member, f"had to end, because the fork server {status},")
        if not self.closing:
            self._trouble(f"the fork server {status}")

    def _look_at_server(self, now: float) -> float:
        """See that ends of children are reported; return when to look again."""
        server = self._server
        if server is not None and not server.loaded and self.started:
            end = server.born + self._watch.start_timeout
            if now >= end:
                log.error("the fork server has not imported the application in time (start_timeout); it is replaced")
                server.process.kill()
            return max(end, now + 1.0)
        waiting = [m for m in self._crew.members.values() if (now - m.killed_at > 1.0 if m.killed else not m.pid)]
        if server is None or not waiting:
            return float("inf") if not any(m.killed for m in self._crew.members.values()) else now + 1.0
        if self._asked_at is None:
            self._asked_at = now
            server.ask()
        if now - self._asked_at >= SERVER_PATIENCE_S:
            log.error("the fork server does not answer; it is killed, and with it its children")
            server.process.kill()
            self._asked_at = now
        for member in waiting:
            if member.killed and self._answered_at > member.killed_at + SERVER_PATIENCE_S:
                # it runs no code any more, but the system does not let it go
                self._bury(member, "was killed and does not end")
        return now + 1.0

    def _close_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            if server.channel.socket in self._selector.get_map():
                self._selector.unregister(server.channel.socket)
            server.close(patience=2.0)

    def _trouble(self, text: str, *, advice: str = "") -> None:
        """A child could not be started: fatal at the start, later tried again and again."""
        if not self.started:
            self.failure = WorkerError(advice + text)
            self.changed.notify_all()
            return
        log.error("%s%s; trying again in %.1f s", advice, text, self._pause)
        self._not_before = monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    # ------------------------------------------------------------------------------------------------ children

    def _from_data(self, member: Member, kind: int, payload: bytes) -> None:
        crew = self._crew
        if member.abandoned:
            return
        if kind == ENDS:
            base = int.from_bytes(payload[:_HEAD])
            ends = decode_ends(memoryview(payload)[_HEAD:])[member.received - base :]
            if ends:
                crew.ended(member, ends)
        elif kind == DROPPED:
            epoch, started = NUMBERS.unpack(payload)
            if epoch == member.epoch:
                crew.back(member.settle_recall(started))
                member.answered = True
                member.asked_at = None
        elif kind == BYE:
            _, started = NUMBERS.unpack(payload)
            crew.back(member.settle_recall(started))
            member.state = State.LEAVING
            member.left_at = monotonic()

    def _from_control(self, member: Member, kind: int, payload: bytes) -> None:
        message = decode_control(payload)
        if kind == REQUEST:
            self._crew.reports.append((self._pass_on, (member, message)))
        elif kind == PONG:
            # of an older one: it lives, and owes the answer to a younger one
            member.asked_at = None if message.number == member.asked else monotonic()
            member.reported = False
        elif kind == STACKS:
            self._stacks[member.number, message.number] = message.data.decode(errors="replace")
            self.changed.notify_all()
        elif kind == READY:
            member.state = State.READY
            self._pause = FIRST_PAUSE
            self.started = self.started or self._crew.all_ready()
            self.changed.notify_all()
        elif kind == FAILED:
            text = message.data.decode(errors="replace")
            member.reason = "could not start"
            self._trouble(text, advice="A child process could not start: ")

    def _pass_on(self, member: Member, message: Control) -> None:
        def reply(data: bytes) -> None:
            with self._lock:
                member.control.send(encoded_frame(REPLY, Control(message.number, data)))
                if member.control.pending:
                    self.wake()

        try:
            self._crew.sink.request(message.data, reply)
        except Exception:
            reply(b"")  # no answer is of this form: the child's call fails, and does not wait for ever
            raise

    def _cut_off(self, member: Member) -> None:
        """A child has closed a socket: it has ended, or a task has closed what is not its own; the watch waits."""
        if member.lost_at is None:
            member.lost_at = monotonic()

    def _bury(self, member: Member, end: str) -> None:
        """Take note of a child's end, with all it has left behind."""
        crew = self._crew
        for kind, payload in member.data.drain():
            self._from_data(member, kind, payload)
        expected = member.state is State.LEAVING or member.retiring
        reason = f"child process {member.pid} {end}"
        busy = bool(member.jobs)
        starting = member.state is State.STARTING
        crew.died(member, reason)
        self._forget(member)
        if starting and not member.retiring and member.reason != "could not start":
            self._trouble(f"{reason} before it was ready")
        elif not expected and not busy and member.verdict is None and not self.closing:
            log.warning("%s while it ran no task; it is replaced", reason)
        self.changed.notify_all()

    def _forget(self, member: Member) -> None:
        for channel in (member.data, member.control):
            descriptor = channel.socket.fileno()
            self._writing.discard(descriptor)
            if descriptor >= 0 and descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
        self._crew.members.pop(member.number, None)
        member.close()

    def stacks(self, members: list[Member], seconds: float) -> dict[int, str]:
        """Return where children are, by their numbers, as far as they answer in time."""
        with self._lock:
            self._number += 1
            number = self._number
            for member in members:
                member.ask_stack(number)
            wanted = {(member.number, number) for member in members}
            self.wake()
            self.changed.wait_for(lambda: wanted <= self._stacks.keys() or self.ended, seconds)
            return {key[0]: self._stacks.pop(key) for key in wanted if key in self._stacks}

    def _close_all(self) -> None:
        for member in list(self._crew.members.values()):
            member.kill()
        self._close_server()
        for member in list(self._crew.members.values()):
            self._forget(member)
        self._selector.close()
        os.close(self._bell)
        os.close(self._ring)
