"""`--reload`: notices that the application's files have changed, and tells the master.

It is done in a worker, the first one: the master has no threads, and only who has imported the
application knows its files. What the worker says is `Changed`; the master answers as it answers
HUP, so the last good generation goes on serving until the new one does.

What the files look like decides (time, size, inode), not what the kernel tells of them. Events
only say when to look, so that it does not matter how an editor saves: in place, or by a new file
that takes the name of the old one. And a look once a second finds what no event tells of: modules
imported since, changes on network file systems, changes in the moment before the watch began.

Which changes count:

* A file that was imported is different or gone: modules of the application, not the standard
  library, nor what lies in site-packages. An editable install does not, so it counts.
* A Python file is new in a directory that something was imported from.
* A file that a pattern of `reload_include` matches is new, different or gone.
* Once a change has been told, what this worker has imported says nothing any more of what the new
  code imports, and fails at. From then on every Python file counts, in and below those directories.

Imported only when the setting `reload` is on: it needs the package watchfiles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import importlib.util
import logging
import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import prefork
from prefork.ipc import Changed, ExitCode


class WatchfilesMissingError(ImportError):
    """watchfiles is not installed. `str()` is for the user; exit_code is what the process exits with."""

    exit_code = ExitCode.USAGE


try:
    import watchfiles
except ImportError as exc:
    raise WatchfilesMissingError(
        "--reload needs the package watchfiles: pip install 'prefork[reload]'"
    ) from exc

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping
    from collections.abc import Set as AbstractSet
    from types import ModuleType

    from prefork.settings import Settings

log = logging.getLogger("prefork")

GRACEFUL_TIMEOUT: Final = 2.0
"""Seconds for the requests in flight at a reload, so that an open event stream does not hold it up."""

LOOK_EVERY: Final = 1.0
"""Seconds between two looks when no event comes; more where a look takes more than a hundredth of it."""

SETTLED: Final = 0.05
"""Seconds that all files must stay as they are before a change is told: many are saved one after another."""

SETTLE_WITHIN: Final = 1.0
"""Seconds. What changes all the time is told all the same."""

MOST_DIRECTORIES: Final = 1000
"""How many directories are watched at most when everything below some of them counts; the nearest first."""

_STEP_MS: Final = 25  # how often watchfiles looks whether the kernel has told it anything
_BEFORE: Final = frozenset(sys.modules)  # this one is imported by the master, before any fork
_OUTSIDE: Final = tuple(
    os.path.join(os.path.dirname(os.path.abspath(module.__file__ or "")), "") for module in (prefork, os)
)
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_PASSED_OVER: Final = _INSTALLED | {"__pycache__", "node_modules"}

Stamp: TypeAlias = tuple[int, int, int]
"""What a file looks like: time of change in ns, size, inode."""


def for_development(settings: Settings) -> Settings:
    """`settings` as they suit who edits the code: what a flag does not say is made for one person's use.

    One worker, at most 2 s for requests in flight at a reload, and no `worker_timeout`, which would
    kill who stands at a breakpoint.
    """
    changes: dict[str, Any] = {
        "workers": 1,
        "graceful_timeout": min(settings.graceful_timeout, GRACEFUL_TIMEOUT),
        "worker_timeout": None,
    }
    by_flag = {name for name in changes if settings.origin(name).startswith("-")}
    return dataclasses.replace(
        settings, **{name: value for name, value in changes.items() if name not in by_flag}
    )


# --------------------------------------------------------------------------- what is watched


class Watched:
    """The files of the application as this process has imported it, and how they looked last.

    directory: the one it works in, watched whatever was imported. include: patterns of other files,
    as `glob` has them, relative to it; a directory stands for everything below it.

        watched = Watched(os.getcwd(), ["templates"])
        ...
        if changed := watched.changes():     # {"/home/me/site/app.py": (...)}
            watched.accept()                 # they are known now
    """

    def __init__(self, directory: str, include: Iterable[str] = ()) -> None:
        self.directory = os.path.abspath(directory)
        self._inside = os.path.join(self.directory, "")
        self._include = [os.path.expanduser(pattern) for pattern in include]
        self._modules: AbstractSet[str] = frozenset()
        self._imported: set[str] = set()
        self._included: set[str] = set()
        self._roots: set[str] = set()  # what something was imported from, and the working directory
        self._directories: set[str] = set()  # the roots, and what is below them once a change was told
        self._include_directories: set[str] = set()
        self._told = False
        self._known: dict[str, Stamp] = {}
        self._take_up()
        self._known = self._seen = self._scan()

    def __repr__(self) -> str:
        files = len(self._imported | self._included)
        return f"<Watched {files} files in {len(self._directories)} directories>"

    @property
    def directories(self) -> frozenset[tuple[str, int]]:
        """Where to wait for events, with inodes: a directory that was made anew is not waited for yet."""
        found = set()
        for path in self._directories | self._include_directories:
            with contextlib.suppress(OSError):
                found.add((path, os.stat(path).st_ino))
        return frozenset(found)

    def concerns(self, path: str) -> bool:
        """Whether an event at `path` is a reason to look. A line in some log file is none."""
        return (
            path.endswith(".py")
            or path in self._imported
            or path in self._directories
            or os.path.dirname(path) in self._include_directories
            or (self._told and os.path.isdir(path))
        )

    def changes(self) -> dict[str, Stamp | None]:
        """What looks different from what is known, and counts. None for a file that is gone."""
        self._take_up()
        self._seen = seen = self._scan()
        changed: dict[str, Stamp | None] = {}
        for path in seen.keys() | self._known.keys():
            stamp, known = seen.get(path), self._known.get(path)
            if stamp != known and (
                self._told or known is None or path in self._imported or path in self._included
            ):
                changed[path] = stamp
        return changed

    def accept(self) -> None:
        """What `changes` saw last is known from now on, and about to be told: every Python file counts."""
        self._known = self._seen
        if not self._told:
            self._told = True
            self._add(self._below(self._roots))

    def name(self, path: str) -> str:
        """`path` for people: relative to the working directory if it is inside."""
        return path.removeprefix(self._inside)

    def _is_theirs(self, path: str) -> bool:
        # A working directory that lies in some site-packages itself is meant to be watched.
        parts = path.removeprefix(self._inside).split(os.sep)
        return not path.startswith(_OUTSIDE) and _INSTALLED.isdisjoint(parts)

    def _take_up(self) -> None:
        """Note what has been imported since, and what is there to be watched now."""
        modules = sys.modules.copy()
        if modules.keys() != self._modules:
            self._modules = modules.keys()
            files = {os.path.abspath(file) for file in _files(modules)}
            self._imported = {file for file in files if self._is_theirs(file)}
            # A link is changed in its own directory, what it points to in another one.
            links = filter(os.path.islink, self._imported)
            places = self._imported.union(os.path.realpath(link) for link in links)
            self._roots = {self.directory} | {os.path.dirname(file) for file in places}
            self._add(self._roots)
        if self._told:
            # What is in a directory that was made since is news.
            self._directories |= self._below(self._roots)
        if self._include:
            files, self._include_directories = _match(self._include, self.directory)
            # Those that are known and gone still count, once.
            self._included = files | (self._included & self._known.keys())

    def _add(self, directories: AbstractSet[str]) -> None:
        """Watch these directories as well; what is in them is no news."""
        for directory in directories - self._directories:
            self._list(directory, self._known)
        for path in self._imported - self._known.keys():
            _note(path, self._known)
        self._directories |= directories

    def _below(self, roots: Iterable[str]) -> set[str]:
        """The roots, and the directories below them that may hold modules: the nearest first."""
        found = dict.fromkeys(sorted(roots))
        todo = deque(found)
        while todo:
            for directory in _subdirectories(todo.popleft()):
                if len(found) >= MOST_DIRECTORIES:
                    return set(found)
                if directory not in found:
                    found[directory] = None
                    todo.append(directory)
        return set(found)

    def _scan(self) -> dict[str, Stamp]:
        """How everything looks now that may count."""
        seen: dict[str, Stamp] = {}
        for directory in self._directories:
            self._list(directory, seen)
        for path in self._imported | self._included:
            if path not in seen:
                _note(path, seen)
        return seen

    def _list(self, directory: str, seen: dict[str, Stamp]) -> None:
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):
                if _is_module(name):
                    _note(os.path.join(directory, name), seen)


def _note(path: str, seen: dict[str, Stamp]) -> None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # gone, or a name that no file can have
        return
    seen[path] = (status.st_mtime_ns, status.st_size, status.st_ino)


def _files(modules: Mapping[str, ModuleType]) -> Iterable[str]:
    """The files of modules, but for those that the master has imported: no reload loads them afresh."""
    for name, module in modules.items():
        if name in _BEFORE:
            continue
        try:
            # Not getattr: modules that load themselves when they are first used would do so now.
            file = object.__getattribute__(module, "__dict__").get("__file__")
        except AttributeError:
            continue  # sys.modules may hold anything
        if isinstance(file, str):
            yield file


def _is_module(name: str) -> bool:
    """Whether a file of this name can be imported, and is none that an editor has put there for a moment."""
    return name.endswith(".py") and name[:-3].isidentifier() and not name.startswith("flycheck_")


def _subdirectories(directory: str) -> list[str]:
    """Those that may hold modules of the application."""
    found = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _PASSED_OVER:
                continue
            if entry.is_dir(follow_symlinks=False):
                if os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                    continue  # a virtual environment
                found.append(entry.path)
    return sorted(found)


def _match(patterns: Iterable[str], root: str) -> tuple[set[str], set[str]]:
    """The files that the patterns match, and the directories in which others may appear."""
    files: set[str] = set()
    directories: set[str] = set()
    for pattern in patterns:
        if os.path.isdir(os.path.join(root, pattern)):
            pattern = os.path.join(pattern, "**")
        parents = glob.iglob(os.path.dirname(pattern) or os.curdir, root_dir=root, recursive=True)
        for found in (*glob.iglob(pattern, root_dir=root, recursive=True), *parents):
            path = os.path.normpath(os.path.join(root, found))
            if os.path.isdir(path):
                directories.add(path)
            elif os.path.isfile(path):
                files.add(path)
                directories.add(os.path.dirname(path))
    return files, directories


# --------------------------------------------------------------------------- the watch


class Watch:
    """Looks at the files from a thread of its own, and says so when some have changed.

    tell: called in that thread with the message; False if it could not be told, which is then
    tried again. It works on when the event loop hangs, so that fixing the loop is enough.

    *Resource handling*: `start` begins a daemon thread; `stop` ends it and waits for it.

        watch = Watch(Watched(os.getcwd()), control.send)
        watch.start()
        ...
        watch.stop()
    """

    def __init__(self, watched: Watched, tell: Callable[[Changed], bool]) -> None:
        self._watched = watched
        self._tell = tell
        self._stopping = threading.Event()
        self._next_look = 0.0
        self._untold: set[str] = set()
        self._deaf = False
        self._thread = threading.Thread(target=self._run, name="prefork-watch", daemon=True)

    def __repr__(self) -> str:
        return f"<Watch {'stopped' if self._stopping.is_set() else 'of'} {self._watched!r}>"

    def start(self) -> None:
        """Begin. Not before READY was said: the master does not listen to who is not ready."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._stopping.set()
        self._thread.join(SETTLE_WITHIN)

    def _run(self) -> None:
        # It tells of each event at the level INFO, also of those that writing this into a log file makes.
        logger = logging.getLogger("watchfiles")
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
        try:
            while not self._stopping.is_set():
                self._wait_for_events()
        except Exception:
            log.exception("--reload has ended: changes are not noticed any more")

    def _wait_for_events(self) -> None:
        """Look whenever there is a reason, until there are other directories to wait for."""
        directories = self._watched.directories
        with contextlib.closing(self._events(sorted(path for path, _ in directories))) as events:
            for paths in events:
                concerned = any(self._watched.concerns(path) for path in paths)
                if concerned or time.monotonic() >= self._next_look:
                    self._look()
                    if self._watched.directories != directories:
                        return

    def _events(self, directories: Iterable[str]) -> Generator[list[str], None, None]:
        """What changes in these directories, as the kernel tells it; nothing when it is time to look."""
        try:
            for changes in watchfiles.watch(
                *directories,
                watch_filter=None,
                step=_STEP_MS,
                rust_timeout=int(LOOK_EVERY * 1000),
                yield_on_timeout=True,
                stop_event=self._stopping,
                raise_interrupt=False,
                recursive=False,
                ignore_permission_denied=True,
            ):
                yield [path for _, path in changes]
        except FileNotFoundError:
            self._stopping.wait(SETTLED)  # a directory that has just gone
        except (OSError, RuntimeError) as exc:
            # The limits of inotify, for example. Then the looks must do.
            if not self._deaf:
                self._deaf = True
                log.warning("--reload: the kernel tells of no changes (%s); looking for them instead", exc)
            self._stopping.wait(max(SETTLED, self._next_look - time.monotonic()))
            yield []

    def _look(self) -> None:
        began = time.monotonic()
        changed = self._watched.changes()
        now = time.monotonic()
        self._next_look = now + max(LOOK_EVERY, 100 * (now - began))
        deadline = now + SETTLE_WITHIN
        while changed:
            if self._stopping.wait(SETTLED):
                return
            before, changed = changed, self._watched.changes()
            if changed == before or time.monotonic() > deadline:
                break
        if changed:
            # Before it is told: what comes after that may be too late for the reload, and is news again.
            self._watched.accept()
            self._untold |= {self._watched.name(path) for path in changed}
        for path in changed:
            _forget_bytecode(path)
        if self._untold and self._tell(Changed(_listed(sorted(self._untold)))):
            self._untold.clear()


def _listed(names: list[str]) -> str:
    """ "app.py", "app.py, views.py", "app.py, views.py and 7 more"."""
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:2])} and {len(names) - 2} more"


def _forget_bytecode(path: str) -> None:
    # Python takes a .pyc for that of a source with the same size and the same second of change. Who
    # saves twice within a second would get the code of the first time.
    if path.endswith(".py"):
        with contextlib.suppress(OSError, NotImplementedError):
            os.unlink(importlib.util.cache_from_source(path))
