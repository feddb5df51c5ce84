"""The master process: performs what `Supervisor` decides, and tells it what happens.

One thread, one loop, one epoll over four kinds of things:

* signals: the handlers only append to a list; a wake-up descriptor ends the wait;
* the death of a worker: its pidfd becomes readable (SIGCHLD does the same job for children
  we do not know, which a process with pid 1 inherits, and where pidfds are refused);
* the words of a worker: its control socket;
* time: the supervisor's next deadline is the timeout of the wait.

What a worker does is a function, `entry(place) -> exit code`. Nothing is known about it here:

    def entry(place: Place) -> int:
        place.control.send(Ready())
        place.control.receive()          # None: the master is gone; Drain: told to go
        return 0

    code = run(4, entry)

Signals to the master:

    TERM, INT      drain all workers, then exit; a second one: at once; a third one: SIGKILL
    QUIT           at once
    HUP            when started from a terminal: the terminal is gone, as INT; else nothing
    USR1, USR2     nothing

A worker is forked with all signals blocked. Before it unblocks them it has given back the
master's handlers: TERM has its default action until the worker installs its own, and INT,
QUIT, HUP, USR1 and USR2 do nothing, because a terminal sends some of them to the whole
process group, where it is the master's business to order the drain.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import errno
import gc
import logging
import math
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from prefork.ipc import Control, ExitCode, Failed, MessageError, Place, Scoreboard
from prefork.master.events import (
    Action,
    Closing,
    Event,
    Exit,
    Exited,
    Fork,
    Forked,
    ForkFailed,
    Kill,
    Log,
    Report,
    Said,
    Send,
    Serving,
    Start,
    Status,
    Stop,
    Tick,
)
from prefork.master.notify import Notifier
from prefork.master.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger("prefork")

_MASTER_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
_WORKER_DEFAULTS: Final = (signal.SIGTERM, signal.SIGCHLD)

_WORDS_AT_ONCE: Final = 64
"""Messages taken from one worker before anybody else has a turn."""


def run(
    slots: int,
    entry: Callable[[Place], int],
    *,
    name: str = "",
    graceful_timeout: float = 30.0,
    boot_timeout: float = 60.0,
    set_title: Callable[[str], None] | None = None,
    notifier: Notifier | None = None,
    on_serving: Callable[[], None] | None = None,
    on_closing: Callable[[], None] | None = None,
) -> int:
    """Keep `slots` forked children running `entry` until a signal ends it; returns an `ExitCode`.

    entry: called in each child with its `Place`; must send `Ready` within `boot_timeout` and leave
    within `graceful_timeout` when told `Drain` or when its control socket ends. What it returns is
    the child's exit code; what it raises before it is ready is a failed start.
    name: of the application, for the titles. set_title: how to set a process title (setproctitle);
    None leaves it alone.
    notifier: who to tell of READY, STATUS and STOPPING; None: nobody.
    on_serving: called once, when all workers are ready. on_closing: called once, when the end
    begins; the place to close the master's copies of the listening sockets, so that the kernel
    refuses newcomers as soon as the last worker has closed its own.

    It must run in the main thread, because Python delivers signals there, and no other thread
    should exist, because threads do not survive a fork. Every child of this process is reaped,
    also one that somebody else started. Handlers are put back at the end.

    Raises RuntimeError outside of the main thread, ValueError for slots < 1.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("workers can only be forked from the main thread: it is the one that gets signals")
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        log.warning(
            "threads do not survive a fork: workers have none of %s; start threads in the workers instead",
            ", ".join(others),
        )
    supervisor = Supervisor(slots=slots, graceful_timeout=graceful_timeout, boot_timeout=boot_timeout)
    arbiter = _Arbiter(supervisor, Scoreboard(Supervisor.seats(slots)), entry, notifier or Notifier(None))
    if on_serving is not None:
        arbiter.on_serving = on_serving
    if on_closing is not None:
        arbiter.on_closing = on_closing
    if set_title is not None:
        set_title(f"prefork: master [{name}]" if name else "prefork: master")
    # What exists now is shared with the workers for as long as nobody writes to it. The
    # collector writes to everything it looks at; frozen objects it leaves alone.
    gc.collect()
    gc.freeze()
    try:
        return arbiter.loop()
    finally:
        gc.unfreeze()


@dataclass(slots=True, eq=False)
class _Child:
    """A worker as the kernel knows it.

    pidfd: None where the kernel or a sandbox refuses them. listening: its words are still waited for.
    """

    pid: int
    seat: int
    control: Control
    pidfd: int | None
    listening: bool = True

    def close(self) -> None:
        self.control.close()
        if self.pidfd is not None:
            os.close(self.pidfd)


class _Arbiter:
    """The loop's state. Everything with a descriptor is closed at its end, and in each child."""

    def __init__(
        self,
        supervisor: Supervisor,
        board: Scoreboard,
        entry: Callable[[Place], int],
        notifier: Notifier,
    ) -> None:
        self.on_serving: Callable[[], None] = _nothing
        self.on_closing: Callable[[], None] = _nothing
        self._supervisor = supervisor
        self._board = board
        self._entry = entry
        self._notifier = notifier
        self._children: dict[int, _Child] = {}
        self._signals: collections.deque[int] = collections.deque()
        self._code: int | None = None
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        # A hang-up means something only to who was started from a terminal.
        self._has_terminal = os.isatty(0)
        self._hung_up = False

    def __repr__(self) -> str:
        return f"<Arbiter {self._supervisor!r}>"

    # ---------------------------------------------------------------- the loop

    def loop(self) -> int:
        with self._signal_handlers(), self._descriptors():
            self._reap()  # who died before we listened for SIGCHLD
            self._tell(Start())
            while self._code is None:
                for key, _ in self._selector.select(self._timeout()):
                    key.data()
                while self._signals:
                    self._signal(self._signals.popleft())
                self._tell(Tick())
            return self._code

    def _timeout(self) -> float | None:
        if self._signals:
            return 0.0
        deadline = self._supervisor.next_deadline()
        if deadline is None or math.isinf(deadline):
            return None
        return max(0.0, deadline - time.monotonic())

    def _tell(self, event: Event) -> None:
        """Hand an event to the supervisor and do what it says."""
        todo = collections.deque(self._supervisor.handle(event, time.monotonic()))
        while todo:
            todo.extend(self._perform(todo.popleft()))

    def _perform(self, action: Action) -> Iterable[Action]:
        """Do one thing; returns what the supervisor wants done because of its outcome."""
        match action:
            case Fork():
                return self._supervisor.handle(self._fork(action), time.monotonic())
            case Send(pid=pid, message=message):
                if pid in self._children:
                    self._children[pid].control.send(message)
            case Kill(pid=pid, signal=signum):
                self._kill(pid, signum)
            case Log(level=level, text=text, detail=detail):
                record = log.makeRecord(log.name, level, __file__, 0, "%s", (text,), None)
                # The place of tracebacks: formatters set it apart from the message, as it
                # may hold anything and has many lines.
                record.exc_text = detail or None
                if log.isEnabledFor(level):
                    log.handle(record)
            case Report(text=text):
                _print_error(text)
            case Serving():
                self._notifier.ready()
                self.on_serving()
            case Status(text=text):
                self._notifier.status(text)
            case Closing():
                self._notifier.stopping()
                self.on_closing()
            case Exit(code=code):
                self._code = code
        return ()

    @contextlib.contextmanager
    def _signal_handlers(self) -> Any:
        before = {signum: signal.getsignal(signum) for signum in _MASTER_SIGNALS}
        wakeup = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            for signum in _MASTER_SIGNALS:
                if signum == signal.SIGHUP and before[signum] == signal.SIG_IGN:
                    continue  # nohup(1): that is how one says "do not go when the terminal goes"
                signal.signal(signum, self._on_signal)
            yield
        finally:
            for signum, handler in before.items():
                # None: not installed by Python, and not known to it
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
            signal.set_wakeup_fd(wakeup)

    @contextlib.contextmanager
    def _descriptors(self) -> Any:
        try:
            self._selector.register(self._woken, selectors.EVENT_READ, self._drain_wakeups)
            yield
        finally:
            self._close()
            self._board.close()

    def _close(self) -> None:
        """Give up all descriptors of the loop: at its end, and in a child."""
        # Not unregistered one by one: in a child that would take them away from the master,
        # with which it shares the epoll instance.
        self._selector.close()
        self._woken.close()
        self._waker.close()
        for child in self._children.values():
            child.close()
        self._children.clear()

    # ---------------------------------------------------------------- signals

    def _on_signal(self, signum: int, frame: object) -> None:
        # Append and wake, no more. The wake-up is the byte that the C handler has written
        # already. It may be lost when the buffer is full; then the buffer itself wakes us.
        self._signals.append(signum)

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def _signal(self, signum: int) -> None:
        name = signal.Signals(signum).name
        match signum:
            case signal.SIGCHLD:
                self._reap()
            case signal.SIGTERM | signal.SIGINT:
                self._tell(Stop(name))
            case signal.SIGQUIT:
                self._tell(Stop(name, now=True))
            case signal.SIGHUP if self._has_terminal:
                # The kernel sends it twice, to the session's leader and to the foreground group:
                # only the first one counts, or the second would mean "at once".
                if not self._hung_up:
                    self._hung_up = True
                    self._tell(Stop(f"{name} (the terminal is gone)"))
            case _:
                log.warning("%s does nothing here", name)

    def _kill(self, pid: int, signum: signal.Signals) -> None:
        child = self._children.get(pid)
        if child is None:
            return
        try:
            if child.pidfd is not None:
                signal.pidfd_send_signal(child.pidfd, signum)
            else:
                # Safe as well: a child that is not reaped keeps its pid.
                os.kill(pid, signum)
        except ProcessLookupError:
            pass  # dead, and about to be reaped

    # ---------------------------------------------------------------- life and death of a child

    def _fork(self, action: Fork) -> Event:
        number, seat = action.slot, action.seat
        try:
            ours, theirs = Control.pair()
        except OSError as exc:
            return ForkFailed(number, exc.strerror or str(exc))
        self._board.assign(seat, slot=number, generation=action.generation, started=time.monotonic_ns())
        place = Place(number, seat, action.generation, theirs, self._board)
        # What is still in the buffers would be written twice.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # Blocked, because a signal between the fork and the child's own handlers would run
        # the master's handler in the child, and be lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with warnings.catch_warnings():
                # 3.12 and later warn of other threads here; run() has done so by name.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                ours.close()
                self._become_worker(place, mask)
        except OSError as exc:
            ours.close()
            theirs.close()
            self._board.clear(seat)
            return ForkFailed(number, _why_no_fork(exc))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        child = _Child(pid, seat, ours, _open_pidfd(pid))
        self._children[pid] = child
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(child))
        if child.pidfd is not None:
            self._selector.register(child.pidfd, selectors.EVENT_READ, self._reap)
        return Forked(number, pid)

    def _become_worker(self, place: Place, mask: Iterable[int]) -> NoReturn:
        """In the child: leave everything of the master behind, run the entry, never come back."""
        code: int = ExitCode.INTERNAL
        try:
            signal.set_wakeup_fd(-1)
            for signum in _MASTER_SIGNALS:
                # Not SIG_IGN, which programs started by the worker would inherit: a handler
                # is reset to the default action by exec.
                signal.signal(signum, signal.SIG_DFL if signum in _WORKER_DEFAULTS else _ignore)
            self._signals.clear()
            self._close()
            atexit._clear()  # the master's; the worker's own are run below
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = self._entry(place)
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        except BaseException:
            place.control.send(Failed(ExitCode.BOOT, traceback.format_exc()))
            code = ExitCode.BOOT
        finally:
            # Not sys.exit(): the frames above are the master's, with its `finally` blocks.
            try:
                atexit._run_exitfuncs()
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                # An exit hook of the application failed: Python itself goes on in this case.
                with contextlib.suppress(BaseException):
                    traceback.print_exc()
            finally:
                os._exit(code & 0xFF)

    def _hear(self, child: _Child) -> None:
        """Take what a worker says."""
        for _ in range(_WORDS_AT_ONCE):
            if not child.listening:
                return
            try:
                message = child.control.receive()
            except BlockingIOError:
                return
            except MessageError as exc:
                log.warning("pid %d sent no message of ours: %s", child.pid, exc)
                continue
            except OSError as exc:
                log.warning("control socket of pid %d: %s", child.pid, exc.strerror)
                message = None
            if message is None:
                # It has closed its end. Its death, which is all that counts, is told otherwise.
                self._stop_hearing(child)
                return
            self._tell(Said(child.pid, message))

    def _stop_hearing(self, child: _Child) -> None:
        if child.listening:
            self._selector.unregister(child.control)
            child.listening = False

    def _reap(self) -> None:
        """Bury every dead child, also those that are not ours."""
        while True:
            try:
                # Look first, without reaping: what it said before it died is heard while its
                # pid still belongs to it, so that no signal can go to a stranger.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            child = self._children.get(found.si_pid)
            if child is not None:
                self._hear(child)
            _, status = os.waitpid(found.si_pid, 0)
            if child is None:
                log.debug("reaped pid %d, a child that is not a worker", found.si_pid)
                continue
            del self._children[child.pid]
            self._stop_hearing(child)
            if child.pidfd is not None:
                self._selector.unregister(child.pidfd)
            child.close()
            self._board.clear(child.seat)
            self._tell(Exited(child.pid, status))


def _nothing() -> None: ...


def _ignore(signum: int, frame: object) -> None: ...


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        # ENOSYS, or EPERM of a sandbox: SIGCHLD tells of deaths as well. EMFILE: the same.
        return None


def _why_no_fork(exc: OSError) -> str:
    match exc.errno:
        case errno.EAGAIN:
            return "the limit of processes is reached (ulimit -u, or pids.max of the cgroup)"
        case errno.ENOMEM:
            return "out of memory"
    return exc.strerror or str(exc)


def _print_error(text: str) -> None:
    """To the person who started us. On standard error, not in the log: it may have many lines."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"prefork: {text.rstrip()}\n")
        sys.stderr.flush()
