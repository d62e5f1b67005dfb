"""A child process: takes jobs in batches, runs them one by one, and hands back what it must not start."""

from __future__ import annotations

import io
import os
import pickle  # noqa: TID251 - reads what this program's own parent process wrote
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from msgspec import structs

from taskq.errors import SoftTimeLimitExceeded, TaskCancelled, TaskInterrupted
from taskq.message import FINISHED, RELEASED
from taskq.spi import Job, Outcome, Runtime
from taskq_pool_prefork.control import ControlThread
from taskq_pool_prefork.processes import EXIT_ORPHAN, QUIET_SIGNALS, die_with_parent, do_nothing
from taskq_pool_prefork.protocol import (
    ACTED,
    ARRAY32,
    BROKE,
    BYE,
    CANCEL,
    DROP,
    DROPPED,
    ENDS,
    ENDS_HEAD,
    EXIT,
    FAILED,
    HEADER,
    JOBS,
    NUMBERS,
    PLAIN_END,
    READY,
    REQUESTED,
    REVOKED,
    SINCE,
    SIZE,
    SOFT_LIMIT,
    STAGE,
    STAGED,
    STARTED,
    STOP,
    TAKEN,
    TARGET,
    WHY,
    Board,
    Control,
    Ended,
    Frames,
    Setup,
    decode_jobs,
    decode_setup,
    encode,
    frame,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FLUSH_JOBS: Final = 128
"""Ends that are sent in one frame. Fewer stay staged while jobs follow each other: the parent looks for them."""
EARLY_S: Final = 0.001
"""Where jobs take longer than this, the last one that waits here is announced by the ends of those before it."""
_AGAIN_S: Final = 0.05
_STAGE_BYTES: Final = SIZE - STAGE


class ChildProcess:
    """One process's life: start hooks, jobs, stop hooks."""

    def __init__(
        self, runtime: Runtime, data: socket.socket, control: socket.socket, board: Board, setup: Setup
    ) -> None:
        self._runtime = runtime
        self._data = data
        self._board = board
        self._setup = setup
        self._control = ControlThread(control)
        self._inside: Job | None = None
        self._soft: float | None = None
        self._raised: BaseException | None = None
        self._striking = False
        self._softs: dict[str, float | None] = {}
        self._forked = False
        self._masks: dict[int, set[Any]] = {}
        stat = os.fstat(data.fileno())
        self._identity = stat.st_dev, stat.st_ino
        self._frames = Frames()
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._pending: deque[Any] = deque()
        self._epoch = 0
        self._started = 0
        self._base = 0
        self._word = 0
        self._staged = 0
        self._offset = 0
        self._memory = self._open_memory() if setup.max_memory else -1

    # --------------------------------------------------------------------------------------------------- its life

    def run(self) -> int:
        """Run hooks and jobs; return the exit code."""
        for number in QUIET_SIGNALS:
            signal.signal(number, do_nothing)
        signal.signal(signal.SIGALRM, self._on_alarm)
        os.register_at_fork(before=self._before_fork, after_in_parent=self._unblock, after_in_child=self._after_fork)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # what a task prints is seen at once, not lost with the process
        self._control.start()
        try:
            self._runtime.start(None if self._setup.own_connections else self._control.call)
        except BaseException:
            self._control.send(FAILED, Control(0, traceback.format_exc().encode(errors="replace")))
            self._control.finish()
            return 1
        self._control.send(READY, Control(0))
        self._work()
        self._send(BYE, NUMBERS.pack(self._epoch, self._started))
        try:
            self._runtime.stop()
        except BaseException:
            traceback.print_exc()
        self._control.finish()
        return 0

    def _work(self) -> None:
        """Run jobs until told to end, or until this process has run its share."""
        board, slots, times = self._board, self._board.slots, self._board.times
        execute, softs, pending = self._runtime.execute, self._softs, self._pending
        stage, pack_end = board.bytes, PLAIN_END.pack_into
        max_tasks, max_memory = self._setup.max_tasks or 0, self._setup.max_memory or 0
        plain = PLAIN_END.size
        now = took = 0.0
        while True:
            if not pending:
                if not self._next_frame(wait=False) and not pending:
                    self._flush()
                    if not self._next_frame(wait=True):
                        return
                now = monotonic()
                continue
            if took > EARLY_S and len(pending) == 1 and self._staged:
                if not self._next_frame(wait=False):
                    self._flush()  # before the last one starts, so that more can come while it runs
                    now = monotonic()
                if not pending:
                    continue  # it was taken back
            job = pending.popleft()
            times[SINCE] = now
            slots[STARTED] = self._started + 1
            if slots[STOP] != self._epoch:  # looked at after the announcement: see RECALL_S
                slots[STARTED] = self._started
                self._flush()
                pending.clear()
                if not self._await_drop():
                    return
                continue
            self._started += 1
            outcome: Outcome | None = None
            fault = None
            task = job.task
            soft = softs[task] if task in softs else self._soft_limit(task)
            if soft is not None:
                self._arm(soft)
            try:
                try:
                    self._inside = job
                    outcome = execute(job)
                    self._inside = None
                except BaseException as error:
                    self._inside = None
                    if outcome is None:
                        outcome, fault = self._no_outcome(error)
            except BaseException as error:  # struck again while the first was dealt with
                self._inside = None
                if outcome is None:
                    outcome, fault = self._no_outcome(error)
            if soft is not None:
                self._soft = None
                signal.setitimer(signal.ITIMER_REAL, 0)
            if self._forked:
                os._exit(0)  # this is the copy of a task that has forked: the original goes on
            end = monotonic()
            took = end - now
            if self._staged and slots[TAKEN] >= self._base + self._staged:
                self._restage()
            if outcome is FINISHED:
                pack_end(stage, STAGE + self._offset, 0x92, 0xCF, job.key, 0xCB, took)
                self._offset += plain
                self._staged += 1
                slots[STAGED] = self._word | self._offset << 16 | self._staged
            else:
                self._stage(Ended(job.key, took, outcome, fault))
            now = end
            if self._staged >= FLUSH_JOBS or self._offset > _STAGE_BYTES - plain:
                self._flush()
                now = monotonic()
            if (max_tasks and self._started >= max_tasks) or (max_memory and self._resident() > max_memory):
                self._flush()
                return

    # ---------------------------------------------------------------------------------------------- frames

    def _next_frame(self, *, wait: bool) -> bool:
        """Take frames until one changes what is to be done; False when there is none (or the end has come, if wait)."""
        while True:
            while self._arrived:
                kind, payload = self._arrived.popleft()
                if kind == JOBS:
                    self._pending.extend(decode_jobs(payload))
                    return True
                if kind == DROP:
                    self._drop()
                elif kind == EXIT:
                    if wait:
                        return False
                    self._arrived.appendleft((kind, payload))
                    return False
            if not self._receive(wait=wait):
                return False

    def _receive(self, *, wait: bool) -> bool:
        """Read what has come; False when nothing has."""
        try:
            data = self._data.recv(1 << 18, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            self._orphaned()
        if not data:
            self._orphaned()
        self._arrived.extend(self._frames.feed(data))
        return True

    def _await_drop(self) -> bool:
        """Wait for the word that takes back what was recalled; False when the end comes instead."""
        while self._board.slots[STOP] != self._epoch:
            while not self._arrived:
                self._receive(wait=True)
            kind, _ = self._arrived.popleft()
            if kind == DROP:
                self._drop()
            elif kind == EXIT:
                return False
        return True

    def _drop(self) -> None:
        self._epoch += 1
        self._pending.clear()
        self._send(DROPPED, NUMBERS.pack(self._epoch, self._started))

    def _send(self, kind: int, *parts: Any) -> None:
        """Send a frame; its parts stay in the stage until they are out, so that a kill in between loses nothing."""
        try:
            stat = os.fstat(self._data.fileno())
        except OSError:
            self._orphaned()
        if (stat.st_dev, stat.st_ino) != self._identity:
            self._orphaned()  # a task has closed it, and the number names a file of its own now
        try:
            self._data.sendall(b"".join((HEADER.pack(sum(map(len, parts)), kind), *parts)))
        except OSError:
            self._orphaned()

    def _orphaned(self) -> NoReturn:
        os._exit(EXIT_ORPHAN)

    # ------------------------------------------------------------------------------------------------ ends

    def _stage(self, ended: Ended) -> None:
        """Stage an end with a result; what is too large for the stage goes out at once."""
        try:
            data = encode(ended)
        except UnicodeEncodeError:  # lone surrogates: names of files have them
            data = encode(_readable(ended))
        except Exception as error:  # an outcome that is not plain data: the runtime's fault, not the task's
            reason = f"the runtime returned what cannot be sent: {type(error).__name__}: {error}"
            data = encode(_readable(Ended(ended.key, ended.elapsed, None, (BROKE, reason))))
        if self._offset + len(data) > _STAGE_BYTES:
            self._flush()
            if len(data) > _STAGE_BYTES:
                self._send(ENDS, ENDS_HEAD.pack(self._base, ARRAY32, 1), data)
                self._staged = 1
                self._restage()
                return
        at = STAGE + self._offset
        self._board.bytes[at : at + len(data)] = data
        self._offset += len(data)
        self._staged += 1
        self._board.slots[STAGED] = self._word | self._offset << 16 | self._staged

    def _flush(self) -> None:
        """Send what is staged, unless the parent has it."""
        if not self._staged:
            return
        if self._board.slots[TAKEN] < self._base + self._staged:
            head = ENDS_HEAD.pack(self._base, ARRAY32, self._staged)
            self._send(ENDS, head, self._board.bytes[STAGE : STAGE + self._offset])
        self._restage()

    def _restage(self) -> None:
        """Begin the stage anew: the parent has what is there, or will."""
        self._base += self._staged
        self._staged = self._offset = 0
        self._board.slots[STAGED] = self._word = (self._base & 0xFFFFFFFF) << 32

    def _no_outcome(self, error: BaseException) -> tuple[Outcome | None, tuple[str, str] | None]:
        """Return what an exception out of the runtime means."""
        if isinstance(error, TaskInterrupted):
            return Outcome(RELEASED, "QUEUED"), None
        if error is self._raised and isinstance(error, SoftTimeLimitExceeded):
            return None, (SOFT_LIMIT, str(error))
        if error is self._raised and isinstance(error, TaskCancelled):
            return None, (REVOKED, str(error))
        return None, (BROKE, f"the runtime raised {type(error).__name__}: {error}, which it never may")

    # ---------------------------------------------------------------------------------------- limits, interrupts

    def _soft_limit(self, task: str) -> float | None:
        soft = self._softs[task] = self._runtime.limits(task).soft
        return soft

    def _arm(self, soft: float) -> None:
        self._soft = soft
        # again and again until it has struck: the first may come before the task has begun
        signal.setitimer(signal.ITIMER_REAL, soft, _AGAIN_S)

    def _on_alarm(self, number: int, found: FrameType | None) -> None:
        """End the running task, for its soft limit or at the parent's request; what fails comes again."""
        job = self._inside
        if job is None or self._striking:
            return
        slots = self._board.slots
        requested = slots[REQUESTED]
        error: BaseException
        struck = self._striking = True
        try:
            if requested != slots[ACTED] and slots[TARGET] == slots[STARTED]:
                if slots[WHY] == CANCEL:
                    error = TaskCancelled(f"task {job.task} was cancelled while it ran")
                else:
                    error = TaskInterrupted("the worker stops")
                try:
                    struck = self._strike(error, found)
                finally:
                    if struck:
                        slots[ACTED] = requested
            elif self._soft is not None and monotonic() - self._board.times[SINCE] >= self._soft * 0.999:
                text = f"task {job.task} ran longer than its soft time limit of {self._soft:g} s"
                try:
                    struck = self._strike(SoftTimeLimitExceeded(text), found)
                finally:
                    if struck:
                        self._soft = None
                        signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            self._striking = False

    def _strike(self, error: BaseException, found: FrameType | None) -> bool:
        """Have the running task end by an error, which may be raised here; False where now is not the moment."""
        self._raised = error
        module = "" if found is None else found.f_globals.get("__name__", "")
        if module == "selectors" or module.startswith("asyncio"):
            # what is raised inside an event loop's own code may be swallowed, or break the loop: have it cancel instead
            if self._runtime.interrupt(error, threading.get_ident()):
                return True
            if module != "selectors":
                return (
                    False  # a loop that is made, or that the task runs itself; it will be in the task's code, or wait
                )
        return self._runtime.interrupt(error)

    # ------------------------------------------------------------------------------------------------ memory, forks

    def _open_memory(self) -> int:
        try:
            return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1

    def _resident(self) -> int:
        """Return the resident memory in bytes; its peak where the system does not tell the present one."""
        if self._memory >= 0:
            return int(os.pread(self._memory, 100, 0).split()[1]) * _PAGE
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def _before_fork(self) -> None:
        """Hold back signals, so that one for the new process waits until it is itself again."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, QUIET_SIGNALS)
        self._masks[threading.get_ident()] = blocked

    def _unblock(self) -> None:
        mask = self._masks.pop(threading.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _after_fork(self) -> None:
        """Give up, in a process that a task has forked, what is this one's alone."""
        self._forked = True
        self._control.forget()
        try:
            os.close(self._data.fileno())
        except OSError:
            pass
        for number in QUIET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self._unblock()


def _text(text: str | None) -> str | None:
    return None if text is None else text.encode(errors="backslashreplace").decode()


def _readable(ended: Ended) -> Ended:
    """Return an end whose texts can be encoded."""
    outcome, fault = ended.outcome, ended.fault
    if outcome is not None:
        outcome = structs.replace(outcome, reason=_text(outcome.reason), detail=_text(outcome.detail))
    if fault is not None:
        fault = fault[0], _text(fault[1]) or ""
    return Ended(ended.key, ended.elapsed, outcome, fault)


_PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096


def live(make: Callable[[], Runtime], descriptors: Sequence[int], setup: Setup, parent: int) -> NoReturn:
    """Be a child process, to its end; the descriptors are of data, control and board."""
    code = 1
    try:
        data, control, board = descriptors
        os.setpgid(0, 0)
        die_with_parent(parent)
        shared = Board(board)
        os.close(board)
        sockets = socket.socket(fileno=data), socket.socket(fileno=control)
        for sock in sockets:
            sock.set_inheritable(False)
        try:
            runtime = make()
        except BaseException:
            text = traceback.format_exc().encode(errors="replace")
            sockets[1].sendall(frame(FAILED, encode(Control(0, text))))
            raise SystemExit(1) from None
        code = ChildProcess(runtime, *sockets, shared, setup).run()
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass
        os._exit(code)


def restore(setup: Setup) -> Runtime:
    """Import the application, as the worker's process has it."""
    sys.argv[:] = setup.arguments
    if setup.main is not None:
        from multiprocessing.spawn import prepare

        prepare(setup.main)
    runtime: Runtime = pickle.loads(setup.runtime)  # noqa: S301 - as above
    return runtime


def spawned() -> NoReturn:
    """Be a child that was not forked: the setup comes on standard input, descriptors as arguments."""
    *descriptors, parent = map(int, sys.argv[1:5])
    setup = decode_setup(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    live(lambda: restore(setup), descriptors, setup, parent)
