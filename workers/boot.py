"""From the fork to the last answer: what runs in each worker, and how the master is given it.

    code = run("app:mux", None, settings)      # prefork run
    listen_and_serve(":8091", mux, workers=4)  # http.listen_and_serve(workers=4)

Both bind, then hand the master a function. This module is imported before the fork, so that
uvloop, httptools and the http package are loaded once and shared by all workers; the master's
modules are imported only where it is started, because no worker has any use for them. The law
of the other side: before the fork there is no event loop, no thread and no application.

In the child, in this order: title, limits, malloc, privileges (from here on it may be the
application's code that runs), the loop, the application, the server, and READY when it
accepts. Then the loop ticks the heartbeat until one of three things ends it: the master says
so, the master is gone, or somebody sends this one process a SIGTERM. The last makes it drain
as well, and the master replaces it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import math
import os
import platform
import signal
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httptools
import setproctitle
import uvloop

from prefork import __version__, log
from prefork.http import Server
from prefork.http.server.blocked import BlockedLoopWatch
from prefork.ipc import Drain as DrainOrder
from prefork.ipc import Draining, ExitCode, Failed, MessageError, Place, Ready, Reopen, Retiring
from prefork.settings import TABLE, Settings, control_address
from prefork.workers import loader, process, stacks
from prefork.workers.acceptor import AcceptGate, Descriptors, LoneGate
from prefork.workers.board import TICK_EVERY, Recorder, Seat
from prefork.workers.drain import IDLE_GRACE, Drain
from prefork.workers.retirement import Retirement

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from prefork.http.handler import HandlerLike
    from prefork.master.service import Service
    from prefork.workers.watch import Watch

logger = logging.getLogger("prefork")

SERVER_OPTIONS: Final = (
    "read_header_timeout",
    "read_timeout",
    "body_idle_timeout",
    "write_timeout",
    "write_idle_timeout",
    "idle_timeout",
    "max_header_bytes",
    "max_header_values",
    "max_body_bytes",
    "max_conns",
    "blocking_threads",
)
"""The settings that are options of `http.Server` under the same name."""

NEEDS_RESTART: Final = (
    *("bind", "backlog", "user", "group", "chdir", "log_level", "log_format", "log_file"),
    *("graceful_timeout", "boot_timeout", "worker_timeout", "drain_delay", "crash_budget", "reload"),
    *("control", "admin"),
)
"""The settings that are the master's, or bound to what it has opened: a reload leaves them alone."""

_OUTLIVES_MASTER: Final = 1.0
"""Seconds after the graceful timeout until a worker without a master is ended, if it hangs."""

_FINISH_WITHIN: Final = 0.4
"""Seconds for the application's own tasks to end when they are cancelled at the exit."""


# --------------------------------------------------------------------------- in the parent


def run(
    app: str | None,
    handler: HandlerLike | None,
    settings: Settings,
    *,
    reread: Callable[[], Settings] | None = None,
    **server_options: Any,
) -> int:
    """Bind, fork the workers, supervise them until the end; returns an `ExitCode`.

    app: `module:attribute`, loaded by each worker for itself. None serves `handler`, an object
    that the workers inherit; if that is None as well, `http.default_serve_mux`.
    reread: gives the settings of a reload; None keeps those there are.
    server_options: for `http.Server`, besides those that the settings have (`conn_state`, ...).

    Raises, with the exit code as their `exit_code`: BindError if an address cannot be listened
    on, PrivilegeError if the user or group cannot be taken on, LogFileError if a log file cannot be
    opened by the user that the workers run as, WatchfilesMissingError if the setting `reload` is on without
    what it needs. ValueError: an address is none.
    """
    from prefork.master import admin, arbiter, control, metrics, notify, sockets

    if settings.reload:
        from prefork.workers.watch import for_development  # or an error: before anything is bound

        settings = for_development(settings)
    who = process.identity(settings.user, settings.group)
    with _umask(settings.umask):
        if settings.logs_requests:
            log.check_file(settings.access_log_file, who)  # to be told once, and not by every worker
        if settings.log_file != "-":
            log.setup(settings.log_level, settings.log_format, path=settings.log_file, owner=who)
    notifier = notify.Notifier.from_environ()
    listeners = sockets.bind(
        settings.bind,
        backlog=settings.backlog,
        umask=settings.umask,
        owner=(who.uid, who.gid) if who is not None else (-1, -1),
        forget=notifier.forget,
    )
    for listener in listeners:
        if listener.kept_as is not None:
            notifier.store(listener.kept_as, listener.sock)
    job = Job(
        name=app or _program(),
        app=app,
        handler=handler,
        settings=settings,
        socks=[listener.sock for listener in listeners],
        identity=who,
        server_options=server_options,
    )

    def prepare(generation: int) -> tuple[Job, int | None]:
        new = reread() if reread is not None else settings
        if settings.reload:
            new = for_development(new)
        kept = [name for name in NEEDS_RESTART if getattr(new, name) != getattr(settings, name)]
        if kept:
            logger.warning("reload: %s changed, which takes a restart to come into force", ", ".join(kept))
            new = dataclasses.replace(new, **{name: getattr(settings, name) for name in kept})
        # A number that TTIN or `prefork scale` has set stays, unless the settings ask for another one now.
        changed = new.workers != latest[-1].workers
        latest.append(new)
        return dataclasses.replace(job, settings=new), new.workers if changed else None

    latest = [settings]

    def services(master: arbiter.Master) -> list[Service]:
        guests: list[Service] = []
        if settings.admin is not None:

            def page(openmetrics: bool) -> str:
                queues = {each.url: metrics.accept_queue(each.sock) for each in listeners}
                return master.exposition(openmetrics, queues)

            guests.append(
                admin.AdminService(settings.admin, ready=master.readiness, metrics=page, umask=settings.umask)
            )
        address = control_address(settings.control)
        if address is not None:
            guests.append(control.ControlService(address))
        return guests

    def reopen_logs() -> None:
        with _umask(settings.umask):
            log.reopen()

    def announce() -> None:
        urls = ", ".join(listener.url for listener in listeners)
        count = f"{settings.workers} worker{'s' if settings.workers != 1 else ''}"
        logger.info("serving %s on %s with %s (%s)", job.name, urls, count, _versions())

    try:
        return arbiter.run(
            settings.workers,
            job,
            name=job.name,
            options=arbiter.Options(
                graceful_timeout=settings.graceful_timeout,
                boot_timeout=settings.boot_timeout,
                worker_timeout=settings.worker_timeout,
                drain_delay=settings.drain_delay,
                crash_budget=settings.crash_budget,
            ),
            prepare=prepare,
            about=lambda: {"app": job.name, "bind": [listener.url for listener in listeners]},
            set_title=setproctitle.setproctitle,
            notifier=notifier,
            on_serving=announce,
            on_closing=lambda: sockets.retire_all(listeners),
            services=services,
            on_reopen=reopen_logs,
            last=app is not None,
        )
    finally:
        sockets.retire_all(listeners)


def listen_and_serve(addr: str, handler: HandlerLike | None = None, *, workers: int, **options: Any) -> None:
    """`http.listen_and_serve(addr, handler, workers=N)`: returns after a clean stop.

    options: those of `http.Server`, and of the settings `backlog`, `graceful_timeout`,
    `boot_timeout`, `user`, `group`, `umask` and those of logging. The console log is set up unless the
    program has done so; a `log_file` always.

    Raises what `run` raises, TypeError for an unknown option, and SystemExit with an `ExitCode`
    if the stop was not clean or no worker could start; why has been printed by then.
    """
    known = {name: options.pop(name) for name in list(options) if _is_setting(name, options[name])}
    settings = Settings(bind=(addr or ":80",), workers=workers, **known)
    # A wrong option or handler is the caller's mistake: told here, with the caller's traceback.
    Server(addr, handler, **_server_options(settings), **options)
    if not logger.hasHandlers():
        log.setup(settings.log_level, settings.log_format)
    code = run(None, handler, settings, **options)
    if code != ExitCode.CLEAN:
        raise SystemExit(code)


def _is_setting(name: str, value: object) -> bool:
    # Server's access_log is a function; the setting of this name is a switch. A handler object is
    # loaded already: nothing can load it afresh.
    others = ("app", "bind", "workers", "reload", "reload_include")
    return name in TABLE and name not in others and not callable(value)


def _server_options(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in SERVER_OPTIONS}


@contextlib.contextmanager
def _umask(mask: int | None) -> Iterator[None]:
    """Make files with the mask that the workers have."""
    before = os.umask(mask) if mask is not None else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)


def _program() -> str:
    """What serves a handler object: the user's own program."""
    return os.path.basename(sys.argv[0]) or "python"


def _versions() -> str:
    return (
        f"prefork {__version__}, Python {platform.python_version()}, "
        f"uvloop {uvloop.__version__}, "  # type: ignore[attr-defined]  # it is there, not in the stub
        f"httptools {httptools.__version__}"
    )


# --------------------------------------------------------------------------- in the child


@dataclass(frozen=True, slots=True)
class Job:
    """What the workers do. Made in the parent; called in each child with its place."""

    name: str
    app: str | None
    handler: HandlerLike | None
    settings: Settings
    socks: Sequence[socket.socket]
    identity: process.Identity | None = None
    server_options: dict[str, Any] = field(default_factory=dict)
    master: int = field(default_factory=os.getpid)

    def __call__(self, place: Place) -> int:
        """Serve until the end. The result is the process' exit code."""
        setproctitle.setproctitle(f"prefork: worker {place.slot + 1} [{self.name}]")
        log.set_worker(place.slot + 1)
        process.raise_file_limit()
        process.tune_malloc()
        stacks.answer(place.stacks)
        try:
            if self.identity is not None:
                process.become(self.identity)
        except process.PrivilegeError as exc:
            return _fail(place, exc.exit_code, str(exc))
        if self.settings.umask is not None:
            os.umask(self.settings.umask)
        if not process.die_with(self.master):
            return ExitCode.CLEAN  # it died before it could be asked to tell us
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            return self._serve(place, loop)
        finally:
            _finish(loop)

    def _serve(self, place: Place, loop: asyncio.AbstractEventLoop) -> int:
        try:
            handler = self.handler
            if self.app is not None:
                handler = loader.load(self.app, self.settings.chdir, wait=loop.run_until_complete)
            elif self.settings.chdir is not None:
                os.chdir(self.settings.chdir)
            options = _server_options(self.settings) | self.server_options
            if self.settings.logs_requests and "access_log" not in options:
                options["access_log"] = log.access_logger(
                    format=self.settings.access_log_format, path=self.settings.access_log_file
                )
            server = Server(",".join(self.settings.bind), handler, **options)
        except (loader.LoadError, log.LogFileError) as exc:
            return _fail(place, ExitCode(exc.exit_code), str(exc))
        except Exception:
            return _fail(place, ExitCode.BOOT, traceback.format_exc())
        # The application's own objects are here to stay: no collection needs to look at them.
        gc.collect()
        gc.freeze()
        worker = _Worker(
            place,
            server,
            self.socks,
            self.settings,
            self.master,
        )
        return loop.run_until_complete(worker.serve())


def _fail(place: Place, code: ExitCode, text: str) -> int:
    """The master tells it: once, although all workers may fail in the same way."""
    place.control.send(Failed(code, text))
    return code


class _Worker:
    """A worker whose loop runs: from READY to the end of the drain."""

    def __init__(
        self,
        place: Place,
        server: Server,
        socks: Sequence[socket.socket],
        settings: Settings,
        master: int,
    ) -> None:
        self._settings = settings
        self._place = place
        self._control = place.control
        self._server = server
        self._socks = socks
        self._graceful_timeout = settings.graceful_timeout
        self._master = master
        self._told = False
        self._seat = Seat(place)
        self._recorder = Recorder(self._seat, server, place.board)
        self._ticker: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Worker {self._place.slot + 1} {self._seat!r} {self._server!r}>"

    async def serve(self) -> int:
        """Accept, say READY, and stay until the drain is over."""
        loop = self._loop = asyncio.get_running_loop()
        # Who develops wants the new answer at the next click, on an old connection too.
        grace = 0.0 if self._settings.reload else IDLE_GRACE
        self._drain = Drain(self._server, self._seat, self._socks, idle_grace=grace)
        descriptors = Descriptors(self._control.fileno())
        # One worker may become several (TTIN, a reload, a successor), but it pays for the gate then only
        # if it is not the only one from the start.
        gate = (
            AcceptGate(self._seat, self._place.board, self._socks, descriptors, call_soon=loop.call_soon)
            if self._settings.workers > 1 or self._place.slot > 0
            else LoneGate(descriptors)
        )
        self._retirement = Retirement(self._settings, loop.time())
        # Before the first accept: from now on a SIGTERM must not cost a request.
        signal.signal(signal.SIGTERM, self._on_term)
        self._control.setblocking(False)
        loop.add_reader(self._control.fileno(), self._hear)
        self._server.on_open_connections = self._seat.open_changed
        self._server.start(self._socks, gate=gate.ask)
        watch = BlockedLoopWatch(loop, logger)
        watch.start()
        files = self._watch_files() if self._settings.reload and self._place.slot == 0 else None
        self._seat.ready()
        self._control.send(Ready())
        self._tick()  # after it, because it may ask for a successor, which only a ready worker can have
        if files is not None:
            files.start()
        try:
            cut = await self._drain.wait()
        finally:
            watch.stop()
            if files is not None:
                files.stop()
        self._ticker_stop()
        self._recorder.tick()  # what it has answered since the last one
        loop.remove_reader(self._control.fileno())
        return ExitCode.CUT if cut else ExitCode.CLEAN

    def _watch_files(self) -> Watch:
        from prefork.workers.watch import Watch, Watched

        directory = self._settings.chdir or os.getcwd()
        return Watch(Watched(directory, self._settings.reload_include), self._control.send)

    def _tick(self) -> None:
        self._recorder.tick()
        log.flush()
        reason = self._retirement.reason(self._server.requests, self._loop.time())
        if reason and not self._drain.begun:
            self._control.send(Retiring(reason))
        self._ticker = self._loop.call_later(TICK_EVERY, self._tick)

    def _ticker_stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()

    def _hear(self) -> None:
        """The master says something, or is gone."""
        while True:
            try:
                message = self._control.receive()
            except BlockingIOError:
                return
            except MessageError as exc:
                logger.warning("the master sent no message of ours: %s", exc)
                continue
            if message is None:
                self._loop.remove_reader(self._control.fileno())
                logger.warning("the master is gone: draining")
                self._drain.begin(self._graceful_timeout)
                return
            if isinstance(message, DrainOrder):
                self._drain.begin(message.timeout)
            elif isinstance(message, Reopen):
                log.reopen()

    def _on_term(self, signum: int, frame: object) -> None:
        """A handler of Python's own and not of the loop: it comes to a loop that hangs as well."""
        if os.getppid() != self._master and not math.isinf(self._graceful_timeout):
            # Nobody is left who would end a loop that hangs: the default action of this signal does.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self._graceful_timeout + _OUTLIVES_MASTER)
        self._loop.call_soon_threadsafe(self._told_to_leave)

    def _told_to_leave(self) -> None:
        """SIGTERM to this one process. A second one means at once, as it does to the master."""
        if os.getppid() != self._master:
            # Sent by the kernel, because the master has died: `process.die_with`.
            self._drain.begin(self._graceful_timeout)
        elif self._told:
            self._drain.begin(0.0)
        else:
            # The first one never cuts anything, also when the master has ordered the drain
            # before: somebody may have sent it to the whole process group.
            self._told = True
            if not self._drain.begun:
                self._control.send(Draining("SIGTERM"))
            self._drain.begin(self._graceful_timeout)


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """End what the application left running, as asyncio.run does, but not for longer than a moment."""
    try:
        loop.run_until_complete(_cancel_all())
    except Exception:
        logger.exception("a task failed at the exit")
    finally:
        asyncio.set_event_loop(None)
        with contextlib.suppress(RuntimeError):
            loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_FINISH_WITHIN)
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_asyncgens(), _FINISH_WITHIN)
