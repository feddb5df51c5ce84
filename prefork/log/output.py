"""Output: a place that log lines go to, written without waiting, opened anew on request.

What a descriptor is decides how it can be written without waiting. A pipe is opened a second
time, non-blocking: O_NONBLOCK on the descriptor itself would hold for everyone who shares it,
the user's shell included. A socket (the journal's) is sent to with MSG_DONTWAIT. Where neither
can be (a terminal, another user's pipe), poll(2) is asked before each write, and no write is
larger than what poll(2) promises to fit. For a regular file there is no way: see `writer`.

A file is opened to append, so that whole lines of several processes follow one another. To open
it anew, after the old one has been renamed by logrotate, is one dup2(2): a write that is under
way in another thread ends in the old file, the next one goes to the new file, and none is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MODE = 0o644  # less the umask
_FILE_BLOCK = 256 * 1024

_files: weakref.WeakSet[Output] = weakref.WeakSet()


class HasFileno(Protocol):
    """An open file: sys.stdout, sys.stderr, a socket."""

    def fileno(self) -> int: ...


class Owner(Protocol):
    """Whose rights decide whether a file may be opened."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def groups(self) -> Sequence[int]: ...


class LogFileError(Exception):
    """A log file cannot be opened. `str()` is for the user.

    exit_code: what the process exits with (2: usage or configuration).
    """

    exit_code = 2


class Output:
    """Where lines go: an open descriptor, or a file (`Output.open`).

    most: how many bytes to give to one `write`, so that lines do not mix with those of other
    processes. opened: how often a file has been opened; half a line that was written before
    cannot be completed after it changes.

    *Resource handling*: the descriptor given stays the caller's; `close` closes what was
    opened here.
    """

    __slots__ = (
        "__weakref__",
        "_asks",
        "_fd",
        "_mine",
        "_owner",
        "_poll",
        "_socket",
        "most",
        "opened",
        "path",
    )

    def __init__(self, fd: int, path: str | None = None, owner: Owner | None = None) -> None:
        self.path = path
        self.opened = 1
        self.most = select.PIPE_BUF
        self._owner = owner
        self._fd = fd
        self._mine = path is not None  # whether _fd was opened here
        self._asks = False  # whether a write might block, so that poll must be asked
        self._socket: socket.socket | None = None
        self._poll = select.poll()
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            self._fd = -1  # closed: every line is lost, also when the number is somebody's later
            return
        if stat.S_ISREG(mode):
            self.most = _FILE_BLOCK
        elif self._mine:
            pass  # opened non-blocking, whatever it is
        elif stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(fd))
        elif stat.S_ISFIFO(mode):
            try:
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._mine = True
            except OSError:
                self._asks = True
        else:
            self._asks = True
        self._poll.register(self._fd, select.POLLOUT)

    @classmethod
    def open(cls, path: str, owner: Owner | None = None) -> Output:
        """The file `path`, made if it is not there; `reopen` of this module opens it anew.

        owner: a root process opens it with the rights of this user, now and later. Root must not
        write where another user decides what a name means; and a worker that has become this
        user must be able to open the file again.

        Raises LogFileError.
        """
        path = os.path.abspath(path)
        self = cls(_open(path, owner), path, owner)
        _files.add(self)
        return self

    def fileno(self) -> int:
        return self._fd

    def reopen(self) -> None:
        """Open the file anew, if it is one. Raises LogFileError; then the old one stays in use."""
        if self.path is None or self._fd < 0:
            return
        fd = _open(self.path, self._owner)
        try:
            os.dup2(fd, self._fd, inheritable=False)
        finally:
            os.close(fd)
        self.most = _FILE_BLOCK if stat.S_ISREG(os.fstat(self._fd).st_mode) else select.PIPE_BUF
        self.opened += 1

    def write(self, data: bytes) -> int:
        """Write what goes through now; returns how many bytes that is.

        Raises BlockingIOError when none does, OSError when none will: the reader is gone (EPIPE,
        EIO), the disk is full (ENOSPC), the descriptor is closed (EBADF).
        """
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._asks:
            if not self._poll.poll(0):
                raise BlockingIOError
            data = data[: select.PIPE_BUF]
        return os.write(self._fd, data)

    def wait(self, timeout: float) -> None:
        """Return when a write might go through, or after `timeout` seconds."""
        self._poll.poll(timeout * 1000)

    def close(self) -> None:
        """Close what was opened here; what is written afterwards is lost."""
        if self._socket is not None:
            self._socket.close()
        if self._mine:
            os.close(self._fd)
        self._mine, self._fd = False, -1

    def __repr__(self) -> str:
        return f"<Output {self.path or self._fd}>"


def is_journal(fd: int) -> bool:
    """Whether `fd` leads to systemd's journal, as JOURNAL_STREAM tells."""
    # systemd.exec(5): "$JOURNAL_STREAM [...] device and inode numbers of the file descriptor,
    # decimal, separated by a colon"; they must be compared, because the stream may be another now.
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def check_file(path: str, owner: Owner | None = None) -> None:
    """Raises LogFileError if the file `path` cannot be opened for a log; it is made by that. "-" can."""
    if path != "-":
        os.close(_open(os.path.abspath(path), owner))


def reopen() -> None:
    """Open every log file of this process anew: logrotate has renamed the old ones.

    No line is lost: until a file is open, lines go to the old one, also when it cannot be
    opened, which is logged.
    """
    for output in list(_files):
        try:
            output.reopen()
        except LogFileError as exc:
            logging.getLogger("prefork").error("%s; the old one stays in use", exc)


def _open(path: str, owner: Owner | None) -> int:
    try:
        with _rights_of(owner):
            # O_NONBLOCK: a named pipe that nobody reads would be waited for.
            return os.open(path, _FLAGS, _MODE)
    except OSError as exc:
        who = f" as uid {owner.uid}" if owner is not None and os.geteuid() == 0 else ""
        raise LogFileError(f"cannot open the log file {path}{who}: {exc.strerror}") from None


@contextlib.contextmanager
def _rights_of(owner: Owner | None) -> Iterator[None]:
    if owner is None or os.geteuid() != 0:
        yield
        return
    gid, groups = os.getegid(), os.getgroups()
    try:
        os.setgroups(owner.groups)
        os.setegid(owner.gid)
        os.seteuid(owner.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
