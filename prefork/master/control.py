"""The control socket: a unix socket in the master's loop that answers `prefork status` and its like.

One JSON object per line asks, one JSON object per line answers, in order:

    {"do": "status"}                 {"ok": true, "status": {...}}         as `Loop.status` describes it
    {"do": "reload"}                 {"ok": true, "text": "..."}           at once
    {"do": "reload", "wait": true}   {"ok": true, "text": "..."}           when it is over
    {"do": "scale", "workers": 4}    {"ok": true, "text": "..."}
    {"do": "stop", "now": false}     {"ok": true, "text": "..."}
    {"do": "stacks", "worker": 2}    {"ok": true, "stacks": {"2": "..."}}  without worker: of all
    what cannot be                   {"ok": false, "error": "..."}

So `echo '{"do": "status"}' | socat - UNIX:/run/app/control.sock` works as well.

The laws. Whoever may connect decides about the service, so it is asked of the kernel who that is
(SO_PEERCRED): root and the master's own user, nobody else. And a client is a guest of the loop
that watches over the workers: what one can do to it is bounded, see `control_client`.

The socket file is there when it can be used, with its mode, and not before: it is bound under
another name, then renamed. A live master's file is never taken, a dead one's is. Whatever goes
wrong with it costs a line in the log, and never the service.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import socket
import stat
import struct
import time
from dataclasses import dataclass
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any, Final

from prefork.kinds import MAX_WORKERS, parse_address
from prefork.master.control_client import Client, drain
from prefork.master.sockets import _locked_directory

if TYPE_CHECKING:
    from collections.abc import Collection

    from prefork.master.service import Loop

log = logging.getLogger("prefork")

MAX_CLIENTS: Final = 16
MAX_TEXT: Final = 64 * 1024
"""The longest text in an answer, in characters: of a reload, or the stacks of one worker."""

MAX_STACKS: Final = 1024 * 1024
"""The longest stacks of all workers together, in characters."""

SWEEP_EVERY: Final = 1.0
"""Seconds between two looks for clients whose time is over."""

_PAUSE: Final = 1.0
"""Seconds without accepting, when there are no descriptors left."""

Answer = dict[str, Any]


class ControlService:
    """Listens on `address`, and does for its clients what the loop offers. A `Service`.

    address: "unix:/PATH", or "unix:@NAME" for one without a file.
    allowed_uids: the users that are obeyed; None: root and the user that the master runs as.
    mode: of the socket file; who may not write to it cannot even connect.

        arbiter.run(4, entry, services=[ControlService("unix:/run/app/control.sock")])

    *Resource handling*: `attach` opens the socket, `close` closes it and all its clients. The file
    is removed by the process that made it, if it is still the one that was made.

    Raises ValueError for an address that is no unix socket's. What fails later is logged.
    """

    def __init__(
        self, address: str, *, allowed_uids: Collection[int] | None = None, mode: int = 0o600
    ) -> None:
        path = parse_address(address).path
        if path is None:
            raise ValueError(f"{address!r} is no unix socket; write unix:/run/app/control.sock")
        self.address = address
        self._path = path
        self._mode = mode
        self._allowed = frozenset((0, os.geteuid()) if allowed_uids is None else allowed_uids)
        self._refused: set[int] = set()
        self._starving = False
        self._sweeping = False
        self._loop: Loop | None = None
        self._listener: socket.socket | None = None
        self._made: tuple[int, tuple[int, int]] | None = None  # by which process; device and inode
        self._clients: set[Client] = set()

    def __repr__(self) -> str:
        state = "off" if self._listener is None else f"{len(self._clients)} clients"
        return f"<ControlService {self.address} {state}>"

    # ---------------------------------------------------------------- life

    def attach(self, loop: Loop) -> None:
        self._loop = loop
        try:
            self._listener = self._listen()
            loop.register(self._listener, EVENT_READ, self._accept)
        except OSError as exc:
            self.close()
            log.warning(
                "no control socket: cannot listen on %s: %s; `prefork status` and the like cannot reach "
                "this service, all else works",
                self.address,
                _why(exc, self._path),
            )
        else:
            log.debug("control socket on %s", self.address)

    def close(self) -> None:
        for client in self._clients:
            client.abandon()
        self._clients.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        made, self._made = self._made, None
        if made is not None and made[0] == os.getpid():
            self._remove(made[1])

    def _listen(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if self._path.startswith("@"):
                sock.bind("\0" + self._path[1:])
                sock.listen(MAX_CLIENTS)
            else:
                with _locked_directory(self._path):
                    self._bind_file(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _bind_file(self, sock: socket.socket) -> None:
        """Make the file, complete: the lock keeps others who do the same out until it listens."""
        _check_vacant(self._path)
        directory, name = os.path.split(self._path)
        temporary = os.path.join(directory, f".{name}.{secrets.token_hex(2)}")
        # The mode of the socket itself is what the kernel gives the file, less the umask ...
        os.fchmod(sock.fileno(), self._mode)
        sock.bind(temporary)
        try:
            os.chmod(temporary, self._mode)  # ... so that this one can only widen it.
            sock.listen(MAX_CLIENTS)
            status = os.lstat(temporary)
            os.rename(temporary, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._made = os.getpid(), (status.st_dev, status.st_ino)

    def _remove(self, identity: tuple[int, int]) -> None:
        try:
            with _locked_directory(self._path):
                status = os.lstat(self._path)
                if (status.st_dev, status.st_ino) == identity:
                    os.unlink(self._path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            log.warning("cannot remove %s: %s", self._path, exc.strerror)

    # ---------------------------------------------------------------- clients come

    def _accept(self, events: int) -> None:
        for _ in range(MAX_CLIENTS):
            if self._listener is None or self._loop is None:
                return
            try:
                sock, _ = self._listener.accept()
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # It stays readable: to look again at once would be a loop without rest.
                    if not self._starving:
                        log.warning("control socket: cannot accept: %s", exc.strerror)
                    self._starving = True
                    self._loop.unregister(self._listener)
                    self._loop.call_at(time.monotonic() + _PAUSE, self._accept_again)
                return
            self._starving = False
            sock.setblocking(False)
            self._admit(sock, self._loop)

    def _accept_again(self) -> None:
        if self._listener is None or self._loop is None:
            return
        try:
            self._loop.register(self._listener, EVENT_READ, self._accept)
        except OSError:
            self._loop.call_at(time.monotonic() + _PAUSE, self._accept_again)

    def _admit(self, sock: socket.socket, loop: Loop) -> None:
        try:
            pid, uid = _credentials(sock)
            if uid not in self._allowed:
                users = _users(self._allowed)
                _turn_away(sock, f"permission denied: {users} may control this service, user {uid} may not")
                if uid not in self._refused:
                    self._refused.add(uid)
                    log.warning("control socket: refused user %d (pid %d): %s may use it", uid, pid, users)
            elif len(self._clients) >= MAX_CLIENTS:
                _turn_away(sock, f"too many clients: {MAX_CLIENTS} are connected already")
            else:
                name = f"control socket (pid {pid}, user {uid})"
                client = Client(loop, sock, name, self._perform, self._clients.discard)
                self._clients.add(client)
                if not self._sweeping:
                    self._sweep()
        except OSError as exc:
            sock.close()
            log.warning("control socket: cannot take a client on: %s", exc.strerror)

    def _sweep(self) -> None:
        """Tell clients that they are late, again and again while there are any."""
        now = time.monotonic()
        for client in list(self._clients):
            if client.deadline is not None and client.deadline <= now:
                client.late()
        self._sweeping = bool(self._clients)
        if self._clients and self._loop is not None:
            self._loop.call_at(now + SWEEP_EVERY, self._sweep)

    # ---------------------------------------------------------------- what they ask for

    def _perform(self, client: Client, line: bytes) -> None:
        """Do what a request says; it calls `client.answer`, now or later."""
        assert self._loop is not None
        try:
            request = _Request.parse(line)
        except ValueError as exc:
            client.answer(_error(str(exc)))
            return
        try:
            getattr(self, f"_do_{request.do}")(request, client, self._loop)
        except Exception as exc:
            # A fault in what is asked for must not end the process that watches over the workers.
            log.error("control socket: %r failed", line[:200], exc_info=True)
            client.answer(_error(f"internal error: {type(exc).__name__}: {exc}; the log has more"))

    def _do_status(self, request: _Request, client: Client, loop: Loop) -> None:
        client.answer({"ok": True, "status": loop.status()})

    def _do_reload(self, request: _Request, client: Client, loop: Loop) -> None:
        if request.wait:
            loop.reload(lambda ok, text: client.answer(_outcome(ok, text)), client.name)
        else:
            loop.reload(None, client.name)
            client.answer({"ok": True, "text": "reloading; `prefork status` shows how it goes"})

    def _do_scale(self, request: _Request, client: Client, loop: Loop) -> None:
        assert request.workers is not None
        try:
            client.answer({"ok": True, "text": loop.scale(request.workers)})
        except ValueError as exc:
            client.answer(_error(str(exc)))

    def _do_stop(self, request: _Request, client: Client, loop: Loop) -> None:
        # The answer first: there may be no other turn of the loop.
        how = "stopping at once" if request.now else "stopping; requests in flight are finished first"
        client.answer({"ok": True, "text": how})
        loop.stop(client.name, request.now)

    def _do_stacks(self, request: _Request, client: Client, loop: Loop) -> None:
        def done(stacks: dict[int, str]) -> None:
            room = min(MAX_TEXT, MAX_STACKS // max(1, len(stacks)))
            texts = {str(worker): _cut(text, room) for worker, text in sorted(stacks.items())}
            client.answer({"ok": True, "stacks": texts})

        try:
            loop.stacks(request.worker, done)
        except ValueError as exc:
            client.answer(_error(str(exc)))


# --------------------------------------------------------------------------- requests and answers


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that is well formed: `do`, and the fields that it may have."""

    do: str
    wait: bool = False
    now: bool = False
    workers: int | None = None
    worker: int | None = None

    @classmethod
    def parse(cls, line: bytes) -> _Request:
        """Raises ValueError, saying what is wrong."""
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"not JSON: {_shown(line)}") from None
        if not isinstance(fields, dict):
            raise ValueError(f'not an object such as {{"do": "status"}}: {_shown(line)}')
        do = fields.pop("do", None)
        wanted = _FIELDS.get(do) if isinstance(do, str) else None
        if wanted is None:
            raise ValueError(f'"do" must be one of {", ".join(_FIELDS)}, not {_shown(do)}')
        for name, value in fields.items():
            if name not in wanted:
                raise ValueError(f"{do} has no {_shown(name)}; it has {', '.join(wanted) or 'nothing more'}")
            if wanted[name] is bool:
                if not isinstance(value, bool):
                    raise ValueError(f"{name} of {do} must be true or false, not {_shown(value)}")
            elif type(value) is not int or not 1 <= value <= MAX_WORKERS:
                raise ValueError(f"{name} of {do} must be 1 to {MAX_WORKERS}, not {_shown(value)}")
        if do == "scale" and not fields:
            raise ValueError("scale needs workers: how many there shall be")
        return cls(do, **fields)


_FIELDS: Final[dict[str, dict[str, type]]] = {
    "status": {},
    "reload": {"wait": bool},
    "scale": {"workers": int},
    "stop": {"now": bool},
    "stacks": {"worker": int},
}


def _shown(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    try:
        shown = ascii(text)
    except RecursionError:
        shown = "something deeply nested"
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _error(text: str) -> Answer:
    return {"ok": False, "error": _cut(text, MAX_TEXT)}


def _outcome(ok: bool, text: str) -> Answer:
    return {"ok": True, "text": _cut(text, MAX_TEXT)} if ok else _error(text)


def _cut(text: str, limit: int) -> str:
    """A text that is too long loses its middle: head and end say what was and why."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


# --------------------------------------------------------------------------- sockets


def _credentials(sock: socket.socket) -> tuple[int, int]:
    """Process and user that connected, as the kernel noted them then."""
    # struct ucred: pid, uid, gid
    pid, uid, _ = struct.unpack("@iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _users(uids: Collection[int]) -> str:
    return " and ".join("root" if uid == 0 else f"user {uid}" for uid in sorted(uids)) or "nobody"


def _turn_away(sock: socket.socket, error: str) -> None:
    """Say why, if it can be said without waiting, and close."""
    with contextlib.suppress(OSError):
        sock.send(json.dumps(_error(error)).encode("ascii") + b"\n")
    drain(sock)
    sock.close()


def _check_vacant(path: str) -> None:
    """Whether the name is free, or a dead server's. Raises OSError if it is somebody else's."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, "something that is no socket is there; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return  # the rename will replace it
        except BlockingIOError:
            pass  # its queue is full: very much alive
    raise OSError(errno.EADDRINUSE, "a live server listens there; choose another path")


def _why(exc: OSError, path: str) -> str:
    match exc.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"there is no directory {os.path.dirname(path)}"
        case errno.EADDRINUSE if path.startswith("@"):
            return "another process has this name"
        case errno.EAGAIN:
            return f"another process holds a lock on {os.path.dirname(path)}"
    return exc.strerror or str(exc)
