"""Tell systemd how the service does: the protocol of sd_notify(3), in datagrams.

    notifier = Notifier.from_environ()
    notifier.store("listen-127.0.0.1_8000", sock)     # systemd keeps it for the next start
    notifier.ready("4/4 workers ready")
    notifier.reloading("loading generation 2")
    notifier.reloaded("generation 2 serves")
    notifier.stopping("draining 4 workers")

What systemd was told last is the *stage*, and only methods named after the step change it:

    STARTING ──ready──> SERVING <──reloaded── RELOADING
    every stage ──stopping──> STOPPING         SERVING ──reloading──> RELOADING

A step that makes no sense any more, or not yet, is not told: no READY=1 after STOPPING=1, and
none from a reload that ends before the service has ever been ready.

Without systemd (no NOTIFY_SOCKET) the steps are taken and nobody is told. The law: telling may
fail, serving may not. Nothing here raises; a manager that does not listen is waited for once,
for a second, and then not again until it listens; it costs one line in the log.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

log = logging.getLogger("prefork")

_SEND_WITHIN: Final = 1.0
_LONGEST_NAME: Final = 255  # FDNAME_MAX


class Stage(enum.Enum):
    """What systemd has been told, and so what it waits for."""

    STARTING = "starting"  # nothing yet: TimeoutStartSec= runs
    SERVING = "serving"  # READY=1: the watchdog runs
    RELOADING = "reloading"  # RELOADING=1: the watchdog runs, and TimeoutStartSec= again
    STOPPING = "stopping"  # STOPPING=1: TimeoutStopSec= runs


class Notifier:
    """Sends to one notification socket.

    address: a path, or "@name" for an abstract socket; None tells nobody.
    watchdog: seconds after which systemd gives the service up unless it hears `alive()`; None: it
    does not watch.
    keeps: whether systemd may have room for descriptors; False: `store()` does not even try.

    All methods that tell something return whether it was told.
    """

    __slots__ = ("_address", "_deaf", "_keeps", "_watchdog", "stage")

    def __init__(self, address: str | None, *, watchdog: float | None = None, keeps: bool = True) -> None:
        self.stage = Stage.STARTING
        self._address = address
        self._watchdog = watchdog
        self._keeps = keeps
        self._deaf = False

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] | None = None) -> Notifier:
        """Use NOTIFY_SOCKET, and remove it: no program started later shall speak for the service.

        The variables of the watchdog and of the descriptor store go with it, for the same reason.
        sd_watchdog_enabled(3): WATCHDOG_PID, if it is set, says for which process it is meant.
        """
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", None)
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        watchdog = None
        if pid in ("", str(os.getpid())) and re.fullmatch(r"[0-9]{1,15}", usec):
            watchdog = int(usec) / 1e6 or None
        # systemd 254 and later say by FDSTORE when there is room. Older ones say nothing; what came
        # with 254 as well tells them apart. (To send in vain costs a line in the journal, no more.)
        keeps = environ.pop("FDSTORE", None) is not None or "MEMORY_PRESSURE_WATCH" not in environ
        if address and address[0] not in "/@":
            # sd_notify(3) knows vsock: as well, for virtual machines; a service inside never sees it.
            log.warning("NOTIFY_SOCKET=%s is no path and no abstract name: systemd is not told", address)
            address = None
        return cls(address or None, watchdog=watchdog, keeps=keeps)

    def __repr__(self) -> str:
        return f"<Notifier {self._address or 'off'}>"

    @property
    def on(self) -> bool:
        """Whether there is anybody to tell."""
        return self._address is not None

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two `alive()`, half of what systemd allows; None when it does not watch."""
        if self._address is None or self._watchdog is None:
            return None
        return self._watchdog / 2

    # ---------------------------------------------------------------- the steps

    def ready(self, status: str = "") -> bool:
        """Startup is finished: READY=1."""
        if self.stage is Stage.STOPPING:
            return False
        self.stage = Stage.SERVING
        return self.send("READY=1", *_status(status))

    def reloading(self, status: str = "") -> bool:
        """A reload begins: RELOADING=1. To be told anew for one that was asked for while another went on.

        `Type=notify-reload` (systemd 253) takes a reload for begun only by a RELOADING=1 whose time
        is later than its own demand, and both must come in one datagram.
        """
        if self.stage not in (Stage.SERVING, Stage.RELOADING):
            return False
        self.stage = Stage.RELOADING
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self.send("RELOADING=1", f"MONOTONIC_USEC={usec}", *_status(status))

    def reloaded(self, status: str = "") -> bool:
        """The reload is over, whether it worked or not: READY=1. status: says which."""
        if self.stage is not Stage.RELOADING:
            return False
        return self.ready(status)

    def stopping(self, status: str = "") -> bool:
        """The service begins to end: STOPPING=1."""
        self.stage = Stage.STOPPING
        return self.send("STOPPING=1", *_status(status))

    # ---------------------------------------------------------------- what changes no stage

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self.send(*_status(text))

    def extend(self, seconds: float) -> bool:
        """The current step goes on: let its time run out no sooner than `seconds` from now."""
        return self.send(f"EXTEND_TIMEOUT_USEC={max(1, round(seconds * 1e6))}")

    def alive(self) -> bool:
        """The watchdog need not bark: WATCHDOG=1."""
        return self.send("WATCHDOG=1")

    def store(self, name: str, sock: socket.socket) -> bool:
        """Let systemd keep a copy of `sock`, which the next start gets back under `name`.

        One that it has already is not kept twice. FDPOLL=0: systemd shall not drop it because of what
        poll(2) says of it. name: at most 255 printable ASCII characters, no colon; another one is not
        stored.
        """
        if not self._keeps:
            return False
        if not re.fullmatch(rf"[ -9;-~]{{1,{_LONGEST_NAME}}}", name):
            log.debug("no name for systemd's descriptor store: %r", name)
            return False
        return self.send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=[sock.fileno()])

    def forget(self, name: str) -> bool:
        """Let systemd close all that it keeps under `name`."""
        return self.send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def send(self, *assignments: str, fds: Sequence[int] = ()) -> bool:
        """Send "NAME=value" assignments in one datagram, with copies of descriptors."""
        if self._address is None or not assignments:
            return False
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        data = "\n".join(assignments).encode("utf-8", "backslashreplace")
        try:
            # One socket per message: these are rare, and a descriptor kept open would have to
            # be closed in every worker.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.0 if self._deaf else _SEND_WITHIN)
                sock.connect(address)
                if fds:
                    socket.send_fds(sock, [data], list(fds))
                else:
                    sock.send(data)
        except OSError as exc:
            level = logging.DEBUG if self._deaf else logging.WARNING
            log.log(level, "systemd was not told %s: %s", assignments[0], exc)
            self._deaf = True
            return False
        self._deaf = False
        return True


def _status(text: str) -> list[str]:
    # A newline would begin another assignment.
    return [f"STATUS={' '.join(text.split())}"] if text else []
