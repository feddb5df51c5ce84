"""Listening sockets: what `-b` may say, and how each is made.

    :8000               every address of this machine, IPv6 and IPv4 by one socket
    127.0.0.1:8000      one address; a name is looked up, IPv4 first, as Go does
    [::1]:8000          an IPv6 address stands in brackets
    unix:/run/app.sock  a socket file; unix:@name is an abstract one, without a file
    fd:3                a socket that the parent process left open for us

When systemd passes sockets (LISTEN_FDS, meant for this process by LISTEN_PID) they are used in
place of the addresses, unless an address names a descriptor: then that is what was meant.
Among them may be sockets of an earlier run of this service, which systemd has kept for it
(`Listener.kept_as`): their names say for which address they were made. One that is still
wanted is taken instead of binding anew, with the connections that wait in it; the others are closed.

The master binds, before the first fork and while it may still be root; the workers inherit.
One socket per address, shared by all workers, so that the death of a worker loses no
connection that waits. The laws for socket files: a live server's file is never taken away,
a dead one's is; nobody may connect in the moment between its creation and its mode; at the
end a file is removed only if it is still the one that was made.

Everything that can go wrong is a `BindError`, whose text names the cause and the cure.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import re
import socket
import stat
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prefork.ipc import ExitCode
from prefork.kinds import Address, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping, Sequence

log = logging.getLogger("prefork")

UNIX_MODE: Final = 0o660
"""Of socket files when no umask is set: owner and group may connect, strangers may not."""

_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_LOCK_WITHIN: Final = 5.0
_SO_ATTACH_FILTER: Final = 26  # missing in Python's socket module
_SO_DETACH_FILTER: Final = 27
_KEPT: Final = "listen-"
"""How the names of our own sockets in systemd's descriptor store begin."""


class BindError(Exception):
    """An address cannot be listened on. `str()` is for the user: what, why, and what to do.

    exit_code: what the master exits with.
    """

    exit_code = ExitCode.BIND


@dataclass(slots=True, eq=False)
class Listener:
    """A socket that listens and does not block.

    url: what to tell people, as in "http://127.0.0.1:8000" or "unix:/run/app.sock".
    ours: it was made here, and ends with us; False for one that was passed to us.
    identity: device and inode of the socket file that was made, or None.
    kept_as: the name under which systemd may keep a copy for the next start; None when that makes
    no sense: for a socket file, which is gone by then, and for one that a socket unit keeps anyway.

    *Resource handling*: `close()` closes the descriptor of this process, and is all that a
    worker ever does. `retire()` is for the master, when the service ends.
    """

    sock: socket.socket
    url: str
    ours: bool = True
    path: str | None = None
    identity: tuple[int, int] | None = None
    kept_as: str | None = None

    def __repr__(self) -> str:
        return f"<Listener {self.url} fd {self.sock.fileno()}>"

    def close(self) -> None:
        self.sock.close()

    def retire(self) -> None:
        """Keep newcomers out from now on, and close. Who is in the queue stays there for the workers.

        The kernel resets what is in the queue when the last process closes the socket. Somebody who
        comes between the last accept and that close would be let in and then thrown out. So the
        door is closed first: a file is removed; on TCP the requests for a connection are left
        unanswered for these few milliseconds, and the client's kernel asks again. So it does as long
        as systemd keeps a copy: until the next start, which takes it over, or until it is closed.
        """
        if self.ours and self.sock.fileno() != -1 and self.sock.family != socket.AF_UNIX:
            _ignore_newcomers(self.sock)
        self._remove()
        self.sock.close()

    def _remove(self) -> None:
        """Unlink the socket file, if it is still the one that was made here."""
        if self.path is None or self.identity is None:
            return
        try:
            with _locked_directory(self.path):
                status = os.lstat(self.path)
                if (status.st_dev, status.st_ino) == self.identity:
                    os.unlink(self.path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            log.warning("cannot remove %s: %s", self.path, exc.strerror)
        self.identity = None


def bind(
    addresses: Sequence[str],
    *,
    backlog: int = 2048,
    umask: int | None = None,
    owner: tuple[int, int] = (-1, -1),
    environ: MutableMapping[str, str] | None = None,
    forget: Callable[[str], object] | None = None,
) -> list[Listener]:
    """Listen on all addresses, or on none: the first failure closes what was opened and raises BindError.

    backlog: connections that may wait to be accepted, passed to listen(2) as it is.
    umask: decides the mode of socket files (0o666 less its bits); None means 0o660.
    owner: uid and gid that socket files get, -1 leaves one as it is. Workers that give up root
    want their group to be able to connect.
    environ: where systemd's variables are (None: this process'). They are removed, so that no
    program started later takes them for its own.
    forget: told the name of each socket that systemd keeps of an earlier run in vain.

        for listener in bind([":8000", "unix:/run/app.sock"], backlog=2048): ...

    Raises ValueError for an address that cannot be read.
    """
    wanted = [parse_address(address) for address in addresses]
    passed = take_activation(os.environ if environ is None else environ)
    kept = [one for one in passed if one.name.startswith(_KEPT)]
    passed = [one for one in passed if one not in kept]
    if passed and not any(address.fd is not None for address in wanted):
        sockets = "the socket" if len(passed) == 1 else f"the {len(passed)} sockets"
        log.info("using %s that systemd passed in place of %s", sockets, " ".join(addresses))
        wanted = [Address(f"fd:{one.fd}", fd=one.fd) for one in passed]
    listeners: list[Listener] = []
    # Before anything is bound: one that nobody wants may hold an address that somebody wants.
    reused = _reuse(kept, wanted, backlog, forget or (lambda name: None))
    taken = frozenset(reused.values())
    try:
        for address in wanted:
            if address.text in reused:
                listeners.append(reused.pop(address.text))
            elif address.fd is not None:
                listeners.append(_adopt(address, address.fd, backlog))
            elif address.path is not None:
                mode = UNIX_MODE if umask is None else 0o666 & ~umask
                listeners.append(_bind_unix(address, address.path, backlog, mode, owner))
            else:
                listeners.append(_bind_tcp(address, backlog))
    except BaseException:
        # One that systemd keeps stays open for newcomers: the next attempt serves them.
        for listener in taken:
            listener.close()
        retire_all([listener for listener in listeners if listener not in taken])
        raise
    _check_backlog(backlog)
    return listeners


def retire_all(listeners: Sequence[Listener]) -> None:
    """The beginning of the end in the master; harmless when done twice."""
    for listener in listeners:
        listener.retire()


class Passed(NamedTuple):
    """A descriptor that systemd passed. name: from LISTEN_FDNAMES; "unknown" when it has none for it."""

    fd: int
    name: str


def take_activation(environ: MutableMapping[str, str]) -> list[Passed]:
    """The descriptors that systemd passed to this process; removes the variables that say so.

    sd_listen_fds(3): "$LISTEN_PID [...] the PID of the process it is intended for". Variables for
    another process are left over from a parent, and are removed as well.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not re.fullmatch(r"[0-9]{1,5}", count):
        return []
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    for fd in fds:
        with contextlib.suppress(OSError):  # if it is not open, adopting it says so
            os.set_inheritable(fd, False)
    if len(names) != len(fds):  # then nobody can tell which name is whose
        names = ["unknown"] * len(fds)
    return [Passed(fd, name) for fd, name in zip(fds, names, strict=True)]


# --------------------------------------------------------------------------- TCP


def _bind_tcp(address: Address, backlog: int) -> Listener:
    assert address.port is not None
    family, sockaddr = _resolve(address, address.host, address.port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a restart fails for a minute, while connections of the last run linger in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Said outright, because the default is the administrator's (net.ipv6.bindv6only).
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != ""))
        # Accepted connections inherit these: one that died in silence is found out, as in Go,
        # whose ListenConfig probes after 15 seconds, every 15 seconds, 9 times.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, 15),
            (socket.TCP_KEEPINTVL, 15),
            (socket.TCP_KEEPCNT, 9),
        ):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.bind(sockaddr)
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise BindError(f"cannot listen on {address}: {_cure(exc, address)}") from exc
    return Listener(sock, _url(sock), kept_as=_name_to_keep(address))


def _name_to_keep(address: Address) -> str | None:
    """What a TCP listener is called in systemd's descriptor store, where names have no colon."""
    # Port 0 asks for a new one each time.
    return _KEPT + address.text.replace(":", "_") if address.port else None


def _resolve(address: Address, host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    if not host:
        if socket.has_dualstack_ipv6():
            return socket.AF_INET6, ("::", port)
        return socket.AF_INET, ("0.0.0.0", port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as exc:
        why = exc.strerror if isinstance(exc, socket.gaierror) else "not a host name"
        raise BindError(
            f"cannot listen on {address}: host {host!r} is unknown ({why}); "
            f"write an address of this machine, or :{port} for all of them"
        ) from exc
    # Go's net.Listen: "uses at most one of the host's IP addresses", and prefers IPv4.
    family, _, _, _, sockaddr = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, sockaddr


def _ignore_newcomers(sock: socket.socket) -> None:
    """Drop what asks for a new connection (SYN), and let pass what completes one (ACK).

    By a filter in the kernel, socket(7) SO_ATTACH_FILTER, on the packet from its TCP header on.
    It belongs to the socket, which all workers share: no thing to do while any of them stays.
    """
    program = (
        (0x30, 0, 0, 13),  # A = byte 13: the flags
        (0x54, 0, 0, 0x12),  # A &= SYN | ACK
        (0x15, 0, 1, 0x02),  # if A == SYN
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # else pass all of it
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    try:
        # struct sock_fprog: the number of instructions, and where they are.
        pointer = struct.pack("@HP", len(program), ctypes.addressof(code))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
    except OSError as exc:  # a sandbox
        log.debug("cannot keep newcomers out of %s: %s", sock, exc)


def _heed_newcomers(sock: socket.socket) -> None:
    """Undo `_ignore_newcomers`, which the last run did to this socket at its end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    except OSError as exc:
        if exc.errno != errno.ENOENT:  # that is: there was none, because the last run was killed
            raise


def _cure(exc: OSError, address: Address) -> str:
    """Cause and cure of a bind(2) or listen(2) that failed."""
    port = address.port
    match exc.errno:
        case errno.EADDRINUSE if port is not None:
            return (
                f"the address is in use by another process; `ss -ltnp 'sport = :{port}'` shows which. "
                "Stop it or choose another port"
            )
        case errno.EACCES if port is not None and port < 1024:
            return (
                f"permission denied: ports below 1024 need root, CAP_NET_BIND_SERVICE, "
                f"or a systemd socket unit. Or choose a port from 1024 up, such as {8000 + port}"
            )
        case errno.EADDRNOTAVAIL:
            return f"this machine has no such address; `ip addr` lists them, and :{port} means all of them"
        case errno.EACCES | errno.EPERM:
            return f"permission denied; who may write to {os.path.dirname(address.path or '') or '.'}?"
        case errno.ENOENT | errno.ENOTDIR if address.path is not None:
            return f"there is no directory {os.path.dirname(address.path) or '.'}; create it first"
        case errno.EAGAIN:
            return f"another process holds a lock on {os.path.dirname(address.path or '') or '.'}"
        case errno.EROFS:
            return "the file system is read-only; choose a directory such as /run"
    return exc.strerror or str(exc)


# --------------------------------------------------------------------------- unix


def _bind_unix(address: Address, path: str, backlog: int, mode: int, owner: tuple[int, int]) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if path.startswith("@"):
            sock.bind("\0" + path[1:])
            sock.listen(backlog)
            return Listener(sock, address.text)
        # The lock makes looking, removing and binding one step among servers that start at once.
        with _locked_directory(path):
            _remove_stale(address, path)
            # The kernel makes the file with the mode that the umask leaves: there is no moment
            # in which it is wider. The umask is the process', which has one thread here.
            before = os.umask(0o777 & ~mode)
            try:
                sock.bind(path)
            finally:
                os.umask(before)
            status = os.lstat(path)
            identity = (status.st_dev, status.st_ino)
            listener = Listener(sock, address.text, path=path, identity=identity)
            try:
                if owner != (-1, -1):
                    os.chown(path, *owner, follow_symlinks=False)
                sock.listen(backlog)
            except OSError:
                os.unlink(path)
                raise
        return listener
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:  # abstract: a file would have been dealt with
            cause = f"another process has it; `ss -lxp src {path}` shows which"
        else:
            cause = _cure(exc, address)
        raise BindError(f"cannot listen on {address}: {cause}") from exc
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def _locked_directory(path: str) -> Iterator[None]:
    """Hold a lock on the directory of `path`: no lock file is left behind, and none outlives its holder."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _LOCK_WITHIN
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Ours hold it for microseconds. Who holds it for long is somebody else.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _remove_stale(address: Address, path: str) -> None:
    """Take away the file of a server that is dead. Raises BindError for anything else that stands there."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise BindError(
            f"cannot listen on {address}: {path} exists and is no socket; move it away or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            log.info("removed %s, left behind by a server that is gone", path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its queue is full: very much alive
    raise BindError(
        f"cannot listen on {address}: a live server listens there; `ss -lxp src {path}` shows which. "
        "Stop it or choose another path"
    )


# --------------------------------------------------------------------------- inherited


def _adopt(address: Address, fd: int, backlog: int) -> Listener:
    """Take over a descriptor that the parent process opened."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        if exc.errno == errno.ENOTSOCK:
            why = f"descriptor {fd} is no socket"
        elif exc.errno == errno.EBADF:
            why = f"descriptor {fd} is not open"
        else:
            why = exc.strerror or str(exc)
        raise BindError(f"cannot listen on {address}: {why}; who starts prefork must pass it") from exc
    try:
        if sock.type != socket.SOCK_STREAM:
            raise BindError(
                f"cannot listen on {address}: descriptor {fd} is a {sock.type.name} socket, not a stream"
            )
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # Only then: a second listen(2) would change the queue that its maker asked for.
            # One that was never bound would get a random port here.
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == 0:
                raise BindError(f"cannot listen on {address}: the socket is not bound to an address")
            sock.listen(backlog)
        os.set_inheritable(fd, False)
        sock.setblocking(False)
        return Listener(sock, _url(sock), ours=False)
    except OSError as exc:
        sock.close()
        raise BindError(f"cannot listen on {address}: {exc.strerror}") from exc
    except BaseException:
        sock.close()
        raise


def _reuse(
    kept: Sequence[Passed], wanted: Sequence[Address], backlog: int, forget: Callable[[str], object]
) -> dict[str, Listener]:
    """The listeners of an earlier run that are wanted still, by address. The others are closed."""
    reused: dict[str, Listener] = {}
    texts = {name: address for address in wanted if (name := _name_to_keep(address)) is not None}
    for one in kept:
        address = texts.get(one.name)
        try:
            sock = socket.socket(fileno=one.fd)
        except OSError as exc:
            log.warning("%s, which systemd kept, cannot be used: %s", one.name, exc.strerror)
            forget(one.name)
            continue
        if address is not None and address.text not in reused and _serves(sock, address, backlog):
            log.info("taking over %s from the last run, as systemd kept it", address)
            reused[address.text] = Listener(sock, _url(sock), kept_as=one.name)
        else:
            log.info("closing %s, which systemd kept: it is not what shall be listened on", one.name)
            # systemd closes its copy when it gets round to it. The address is wanted now, perhaps.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            forget(one.name)
    return reused


def _serves(sock: socket.socket, address: Address, backlog: int) -> bool:
    """Make `sock` listen as one that is bound to `address` now would; False if it is none of this kind."""
    assert address.port is not None
    try:
        family, sockaddr = _resolve(address, address.host, address.port)
        if (
            sock.family != family
            or sock.type != socket.SOCK_STREAM
            or sock.getsockname()[:2] != sockaddr[:2]
            or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            return False
        _heed_newcomers(sock)
        sock.listen(backlog)
        sock.setblocking(False)
    except (OSError, BindError) as exc:
        log.debug("%s is not usable for %s: %s", sock, address, exc)
        return False
    return True


def _url(sock: socket.socket) -> str:
    """Where a listening socket can be reached, for people."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        path = os.fsdecode(name)
        return f"unix:@{path[1:]}" if path.startswith("\0") else f"unix:{path}"
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        host, port = name[0], name[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return f"fd:{sock.fileno()}"


def _check_backlog(backlog: int) -> None:
    """The kernel cuts a backlog to net.core.somaxconn in silence. Not in silence here."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            limit = int(file.read())
    except (OSError, ValueError):  # hidden by the service manager's hardening
        return
    if backlog > limit:
        log.warning("the backlog of %d is cut to %d; raise it by sysctl net.core.somaxconn", backlog, limit)
