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

What else may live in this loop, a control socket say, is a `Service` (see service.py).

Signals to the master:

    TERM, INT      drain all workers, then exit; a second one: at once; a third one: SIGKILL
    QUIT           at once, with the stacks of all workers in the log
    HUP            reload: a new generation of workers, one after the other; if it was the terminal
                   that hung up: as INT
    TTIN, TTOU     one worker more, one less
    USR1           open the log files anew, after they have been renamed

A worker is forked with all signals blocked. Before it unblocks them it has given back the
master's handlers: TERM has its default action until the worker installs its own, and INT,
QUIT, HUP and their like do nothing, because a terminal sends some of them to the whole
process group, where it is the master's business to order the drain.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import errno
import gc
import heapq
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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeAlias

from prefork import __version__
from prefork import log as logs
from prefork.ipc import DUMP_SIGNAL, Control, ExitCode, Failed, MessageError, Place, Reopen, Scoreboard, Word
from prefork.master.events import (
    Action,
    Closing,
    Event,
    Exit,
    Exited,
    Explain,
    Fork,
    Forked,
    ForkFailed,
    Hangs,
    Kill,
    Log,
    Prepare,
    Prepared,
    Reload,
    Reloaded,
    Report,
    Said,
    Scale,
    Send,
    Serving,
    Start,
    Status,
    Stop,
    Stopping,
    Tick,
)
from prefork.master.exposition import Facts, render
from prefork.master.kernel import OutOfMemory, is_stopped, terminal_is_gone
from prefork.master.metrics import Metrics
from prefork.master.notify import Notifier
from prefork.master.readiness import Witness
from prefork.master.supervisor import Phase, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prefork.master.service import ReloadDone, Service, StacksDone

log = logging.getLogger("prefork")

_MASTER_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)
_NO_END: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
_WORKER_DEFAULTS: Final = (signal.SIGTERM, signal.SIGCHLD)

_WORDS_AT_ONCE: Final = 64
"""Messages taken from one worker before anybody else has a turn."""

_STACKS_WITHIN: Final = 0.3
"""Seconds for workers to write their stacks."""

_MAX_STACKS: Final = 256 * 1024
"""Bytes of stacks kept of one worker."""

Entry: TypeAlias = "Callable[[Place], int]"


class Master(Protocol):
    """What the makers of services may ask of the master, besides what its `Loop` offers."""

    def readiness(self) -> tuple[bool, str]: ...

    def exposition(self, openmetrics: bool, queues: Mapping[str, int | None]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the master does its work. Seconds.

    graceful_timeout: for a worker to leave when told to go. boot_timeout: from the fork to Ready.
    worker_timeout: a worker whose loop does not turn for so long hangs: it is explained, killed
    and replaced; None: nobody looks. drain_delay: to go on serving after the order to stop.
    crash_budget: unexpected deaths within a minute that end the service; None for any number.
    """

    graceful_timeout: float = 30.0
    boot_timeout: float = 60.0
    worker_timeout: float | None = None
    drain_delay: float = 0.0
    crash_budget: int | None = None


def run(
    slots: int,
    entry: Entry,
    *,
    name: str = "",
    options: Options | None = None,
    prepare: Callable[[int], tuple[Entry, int | None]] | None = None,
    set_title: Callable[[str], None] | None = None,
    notifier: Notifier | None = None,
    on_serving: Callable[[], None] | None = None,
    on_closing: Callable[[], None] | None = None,
    on_reopen: Callable[[], None] | None = None,
    services: Callable[[Master], Sequence[Service]] | None = None,
    about: Callable[[], dict[str, Any]] | None = None,
    last: bool = False,
) -> int:
    """Keep `slots` forked children running `entry` until a signal ends it; returns an `ExitCode`.

    entry: called in each child with its `Place`; must send `Ready` within `boot_timeout` and leave
    within `graceful_timeout` when told `Drain` or when its control socket ends. What it returns is
    the child's exit code; what it raises before it is ready is a failed start.
    name: of the application, for the titles. set_title: how to set a process title (setproctitle);
    None leaves it alone.
    prepare: called at a reload with the number of the new generation; returns its entry and how many
    workers it shall have (None: as many as now), or raises, with a text for people, and nothing
    changes. None: the same entry in new processes.
    notifier: who to tell of READY, STATUS and STOPPING; None: nobody.
    on_serving: called once, when the service is up. on_closing: called once, when no connections
    shall be taken any more; the place to close the master's copies of the listening sockets, so that
    the kernel refuses newcomers as soon as the last worker has closed its own. on_reopen: called at
    USR1, before the workers are told.
    services: makes the guests of the loop, given what they may ask of the master. about: what they
    may tell of the application ("app", "bind").
    last: the program does nothing else afterwards. Signals that do not ask for its end (HUP, USR1, ...)
    are ignored from then on: with its exit under way, they would only change its exit code.

    It must run in the main thread, because Python delivers signals there, and no other thread
    should exist, because threads do not survive a fork. Every child of this process is reaped,
    also one that somebody else started. Handlers are put back at the end (see `last`).

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
    options = options or Options()
    supervisor = Supervisor(
        slots=slots,
        graceful_timeout=options.graceful_timeout,
        boot_timeout=options.boot_timeout,
        drain_delay=options.drain_delay,
        crash_budget=options.crash_budget,
    )
    arbiter = _Arbiter(
        supervisor, Scoreboard(Supervisor.seats(slots)), entry, notifier or Notifier(None), options
    )
    arbiter.on_serving = on_serving or _nothing
    arbiter.on_closing = on_closing or _nothing
    arbiter.on_reopen = on_reopen or _nothing
    arbiter.prepare = prepare
    arbiter.services = services(arbiter) if services is not None else ()
    arbiter.about = about or dict
    arbiter.last = last
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
    stacks: where it writes its threads' stacks; dump: what it has written.
    """

    pid: int
    seat: int
    control: Control
    pidfd: int | None
    stacks: int
    listening: bool = True
    dump: bytearray = field(default_factory=bytearray)

    def close(self) -> None:
        self.control.close()
        os.close(self.stacks)
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
        options: Options,
    ) -> None:
        self.on_serving: Callable[[], None] = _nothing
        self.on_closing: Callable[[], None] = _nothing
        self.on_reopen: Callable[[], None] = _nothing
        self.prepare: Callable[[int], tuple[Entry, int | None]] | None = None
        self.about: Callable[[], dict[str, Any]] = dict
        self.last = False
        self.services: Sequence[Service] = ()
        self._options = options
        self._timers: list[_Timer] = []
        self._began = time.monotonic()
        self._last_look = 0.0
        self._began_at = time.time()
        self._metrics = Metrics(board)
        self._out_of_memory = OutOfMemory()
        self._witness = Witness(
            boot_timeout=options.boot_timeout,
            graceful_timeout=options.graceful_timeout,
            drain_delay=options.drain_delay,
            watchdog_interval=notifier.watchdog_interval,
        )
        self._reload_waiters: list[ReloadDone] = []  # of the reload under way
        self._reload_next: list[ReloadDone] = []  # of the one that will come after it
        self._last_reload: dict[str, Any] | None = None
        self._supervisor = supervisor
        self._board = board
        self._entries = {1: entry}
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
        self._log_waits = False  # a reader of the log is slow: lines wait in memory

    def __repr__(self) -> str:
        return f"<Arbiter {self._supervisor!r}>"

    # ---------------------------------------------------------------- the loop

    def loop(self) -> int:
        with self._signal_handlers(), self._descriptors():
            for service in self.services:
                service.attach(self)
            self._reap()  # who died before we listened for SIGCHLD
            self._tell(Start())
            self._tell_manager()
            if self._options.worker_timeout is not None:
                self._look_for_hanging()
            while self._code is None:
                for key, ready in self._selector.select(self._timeout()):
                    key.data(ready)
                while self._signals:
                    self._signal(self._signals.popleft())
                self._run_timers()
                self._tell(Tick())
                self._metrics.observe(time.monotonic())
                self._tell_manager()
                self._log_waits = not logs.flush()
            return self._code

    def _timeout(self) -> float | None:
        if self._signals:
            return 0.0
        deadline = self._supervisor.next_deadline()
        others = [self._timers[0].when] if self._timers else []
        if self._notifier.on and (due := self._witness.next_deadline()) is not None:
            others.append(due)
        deadline = min([*others, *([deadline] if deadline is not None else [])], default=None)
        wait = None if deadline is None or math.isinf(deadline) else max(0.0, deadline - time.monotonic())
        if self._log_waits:
            return 0.1 if wait is None else min(0.1, wait)
        return wait

    def _tell_manager(self) -> None:
        """More time, or a sign of life, for systemd: what can be said in good faith."""
        if self._notifier.on:
            say = self._witness.tick(self._notifier.stage, self._board.rows(), time.monotonic())
            if say.extend is not None:
                self._notifier.extend(say.extend)
            if say.alive:
                self._notifier.alive()

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            heapq.heappop(self._timers).callback()

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
            case Explain(pid=pid, name=name, seconds=seconds):
                self._explain(pid, name, seconds)
            case Prepare(generation=generation):
                return self._supervisor.handle(self._prepare(generation), time.monotonic())
            case Reloaded(ok=ok, text=text):
                self._reloaded(ok, text)
            case Serving():
                self._notifier.ready()
                self.on_serving()
            case Status(text=text):
                self._notifier.status(text)
            case Stopping():
                self._notifier.stopping()
            case Closing():
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
                if self.last and signum in _NO_END:
                    handler = signal.SIG_IGN
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
        for service in self.services:
            service.close()

    # ---------------------------------------------------------------- what services may ask (Loop)

    @property
    def board(self) -> Scoreboard:
        return self._board

    def register(self, sock: socket.socket, events: int, callback: Callable[[int], object]) -> None:
        self._selector.register(sock, events, callback)

    def modify(self, sock: socket.socket, events: int) -> None:
        self._selector.modify(sock, events, self._selector.get_key(sock).data)

    def unregister(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def call_at(self, when: float, callback: Callable[[], object]) -> Callable[[], None]:
        timer = _Timer(when, callback)
        heapq.heappush(self._timers, timer)
        return timer.cancel

    def reload(self, done: ReloadDone | None, why: str) -> None:
        if done is not None:
            self._reload_next.append(done)
        self._tell(Reload(why))

    def scale(self, workers: int) -> str:
        if workers < 1:
            raise ValueError("at least one worker is needed")
        most = self._supervisor.most
        if workers > most:
            raise ValueError(f"this service can have at most {most} workers: restart it with more")
        before = self._supervisor.wanted
        self._tell(Scale(workers, "scale"))
        return f"from {before} to {self._supervisor.wanted} workers"

    def stop(self, why: str, at_once: bool = False) -> None:
        self._tell(Stop(why, now=at_once))

    def stacks(self, worker: int | None, done: StacksDone) -> None:
        chosen: dict[int, int] = {}
        for pid in self._children:
            process = self._supervisor.process(pid)
            if process is not None and worker in (None, process.slot + 1):
                chosen[pid] = process.slot + 1
        if not chosen:
            raise ValueError(f"there is no worker {worker}" if worker is not None else "there are no workers")
        self._dump(list(chosen), lambda texts: done({chosen[pid]: text for pid, text in texts.items()}))

    def status(self) -> dict[str, Any]:
        supervisor = self._supervisor
        return {
            "version": __version__,
            "pid": os.getpid(),
            **self.about(),
            "phase": "reloading" if supervisor.reloading else supervisor.phase.value,
            "uptime": time.monotonic() - self._began,
            "generation": supervisor.generation,
            "workers_wanted": supervisor.wanted,
            "workers_ready": supervisor.ready,
            "last_reload": self._last_reload,
            "restarts": dict(supervisor.restarts),
            "totals": self._metrics.totals(),
            "workers": self._metrics.worker_rows(time.monotonic(), self._seats_taken()),
        }

    def _seats_taken(self) -> dict[int, tuple[int, str]]:
        """By seat: the process that sits there, and its state as the supervisor sees it."""
        found = {}
        for child in self._children.values():
            process = self._supervisor.process(child.pid)
            if process is not None:
                found[child.seat] = (child.pid, process.state.value)
        return found

    def readiness(self) -> tuple[bool, str]:
        """Whether new connections are welcome, and why or why not."""
        supervisor = self._supervisor
        ready = supervisor.phase is Phase.SERVING and supervisor.ready > 0
        return ready, f"{supervisor.phase.value}, {supervisor.ready}/{supervisor.wanted} workers ready"

    def exposition(self, openmetrics: bool, queues: Mapping[str, int | None]) -> str:
        """All metrics, in the text format of Prometheus. queues: see `Facts`."""
        supervisor = self._supervisor
        facts = Facts(
            generation=supervisor.generation,
            wanted=supervisor.wanted,
            started=self._began_at,
            restarts=supervisor.restarts,
            queues=queues,
        )
        return render(self._metrics, facts, openmetrics=openmetrics)

    # ---------------------------------------------------------------- reload

    def _prepare(self, generation: int) -> Prepared:
        """Make the entry of a new generation; nothing changes if that fails."""
        self._notifier.reloading()
        self._reload_waiters, self._reload_next = self._reload_next, []
        try:
            entry, slots = self.prepare(generation) if self.prepare is not None else (None, None)
        except Exception as exc:
            text = str(exc) if hasattr(exc, "exit_code") else traceback.format_exc()
            return Prepared(problem=text)
        self._entries[generation] = entry or self._entries[self._supervisor.generation]
        return Prepared(slots)

    def _reloaded(self, ok: bool, text: str) -> None:
        self._last_reload = {"ok": ok, "text": text, "at": time.time()}
        if not self._supervisor.reloading:
            alive = {row.generation for row in self._board.rows()} | {self._supervisor.generation}
            self._entries = {number: entry for number, entry in self._entries.items() if number in alive}
            self._notifier.reloaded(text.partition("\n")[0])
        waiters, self._reload_waiters = self._reload_waiters, []
        if self._supervisor.phase in (Phase.DRAINING, Phase.STOPPING):
            waiters += self._reload_next
            self._reload_next = []
        for done in waiters:
            done(ok, text)

    # ---------------------------------------------------------------- workers that hang

    def _look_for_hanging(self) -> None:
        """Compare the heartbeats with the clock, and come back."""
        timeout = self._options.worker_timeout
        assert timeout is not None
        now = time.monotonic()
        every = min(1.0, timeout / 4)
        # If we ourselves have not come round, everybody was stopped, or the machine was asleep.
        if now - self._last_look < 2 * every + 0.5:
            for child in list(self._children.values()):
                seconds = now - self._board.words[self._board.base(child.seat) + Word.TICK] / 1e9
                if seconds > timeout and not is_stopped(child.pid):
                    self._tell(Hangs(child.pid, seconds))
        self._last_look = now
        self.call_at(now + every, self._look_for_hanging)

    def _explain(self, pid: int, name: str, seconds: float) -> None:
        flight = self._flight(pid)

        def told(texts: dict[int, str]) -> None:
            in_hand = f", in hand: {', '.join(flight)}" if flight else ""
            self._perform(
                Log(logging.ERROR, f"{name} hangs for {seconds:.1f} s{in_hand}; its threads:", texts[pid])
            )

        self._dump([pid], told)

    def _flight(self, pid: int) -> tuple[str, ...]:
        """What a worker has in hand, as the scoreboard tells, also when it hangs or is dead."""
        child = self._children.get(pid)
        return self._board.in_hand(child.seat) if child is not None else ()

    def _dump(self, pids: list[int], done: Callable[[dict[int, str]], object]) -> None:
        """Have workers write their stacks; `done` gets them by pid, in a moment."""
        children = [self._children[pid] for pid in pids if pid in self._children]
        for child in children:
            child.dump.clear()
            self._kill(child.pid, DUMP_SIGNAL)

        def collect() -> None:
            texts = {}
            for child in children:
                self._take_stacks(child)
                text = child.dump.decode("utf-8", "backslashreplace").rstrip()
                texts[child.pid] = text or "it did not write its stacks in time"
            done(texts)

        self.call_at(time.monotonic() + _STACKS_WITHIN, collect)

    def _take_stacks(self, child: _Child) -> None:
        with contextlib.suppress(OSError):  # it is closed: the worker is gone
            while data := os.read(child.stacks, 65536):
                child.dump += data[: _MAX_STACKS - len(child.dump)]

    # ---------------------------------------------------------------- signals

    def _on_signal(self, signum: int, frame: object) -> None:
        # Append and wake, no more. The wake-up is the byte that the C handler has written
        # already. It may be lost when the buffer is full; then the buffer itself wakes us.
        self._signals.append(signum)

    def _drain_wakeups(self, ready: int = 0) -> None:
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
                self._quit(name)
            case signal.SIGHUP if self._has_terminal and terminal_is_gone():
                # The kernel sends it twice, to the session's leader and to the foreground group:
                # only the first one counts, or the second would mean "at once".
                if not self._hung_up:
                    self._hung_up = True
                    self._tell(Stop(f"{name} (the terminal is gone)"))
            case signal.SIGHUP:
                self.reload(None, name)
            case signal.SIGTTIN | signal.SIGTTOU:
                wanted = self._supervisor.wanted + (1 if signum == signal.SIGTTIN else -1)
                self._tell(Scale(wanted, name))
            case signal.SIGUSR1:
                self.on_reopen()
                for child in self._children.values():
                    child.control.send(Reopen())
            case _:
                log.warning("%s does nothing here", name)

    def _quit(self, name: str) -> None:
        """Stop at once, but let everybody say first what it is doing."""

        def told(texts: dict[int, str]) -> None:
            for pid, text in texts.items():
                self._perform(Log(logging.WARNING, f"{name}: the threads of pid {pid}:", text))
            self._tell(Stop(name, now=True))

        if self._children and self._supervisor.phase is not Phase.STOPPING:
            self._dump(list(self._children), told)
        else:
            self._tell(Stop(name, now=True))

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
        try:
            # Not blocking: a dump that is too long shall be cut, and not stop the worker.
            stacks, stacks_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            ours.close()
            theirs.close()
            return ForkFailed(number, exc.strerror or str(exc))
        self._board.assign(seat, slot=number, generation=action.generation, started=time.monotonic_ns())
        place = Place(number, seat, action.generation, theirs, self._board, stacks_in)
        entry = self._entries[action.generation]
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
                os.close(stacks)
                self._become_worker(entry, place, mask)
        except OSError as exc:
            ours.close()
            theirs.close()
            os.close(stacks)
            os.close(stacks_in)
            self._board.clear(seat)
            return ForkFailed(number, _why_no_fork(exc))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        os.close(stacks_in)
        child = _Child(pid, seat, ours, _open_pidfd(pid), stacks)
        self._children[pid] = child
        self._selector.register(ours, selectors.EVENT_READ, lambda ready: self._hear(child))
        if child.pidfd is not None:
            self._selector.register(child.pidfd, selectors.EVENT_READ, self._reap)
        return Forked(number, pid)

    def _become_worker(self, entry: Entry, place: Place, mask: Iterable[int]) -> NoReturn:
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
            code = entry(place)
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

    def _reap(self, ready: int = 0) -> None:
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
            flight = self._flight(child.pid)
            del self._children[child.pid]
            self._stop_hearing(child)
            if child.pidfd is not None:
                self._selector.unregister(child.pidfd)
            child.close()
            self._metrics.retire(child.seat)
            self._board.clear(child.seat)
            self._tell(Exited(child.pid, status, flight, self._out_of_memory.happened()))


@dataclass(slots=True, order=True)
class _Timer:
    when: float
    callback: Callable[[], object] = field(compare=False)

    def cancel(self) -> None:
        self.callback = _nothing


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
