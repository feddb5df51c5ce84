"""Tell systemd how the service does: the protocol of sd_notify(3), in datagrams.

    notifier = Notifier.from_environ()
    notifier.ready("4/4 workers ready")
    notifier.stopping("draining 4 workers")

Without systemd (no NOTIFY_SOCKET) every call does nothing. The law: telling may fail, serving
may not; a manager that does not listen costs a line in the log.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import MutableMapping

log = logging.getLogger("prefork")

_SEND_WITHIN: Final = 1.0


class Notifier:
    """Sends to one notification socket.

    address: a path, or "@name" for an abstract socket; None sends nothing.
    """

    __slots__ = ("_address",)

    def __init__(self, address: str | None) -> None:
        self._address = address

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] | None = None) -> Notifier:
        """Use NOTIFY_SOCKET, and remove it: no program started later shall speak for the service.

        The watchdog's variables go with it, for the same reason.
        """
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", None)
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            environ.pop(name, None)
        if address and address[0] not in "/@":
            # sd_notify(3) knows vsock: as well, for virtual machines; a service inside never sees it.
            log.warning("NOTIFY_SOCKET=%s is no path and no abstract name: systemd is not told", address)
            address = None
        return cls(address or None)

    def __repr__(self) -> str:
        return f"<Notifier {self._address or 'off'}>"

    def ready(self, status: str = "") -> bool:
        """Startup is finished: READY=1."""
        return self.send("READY=1", *_status(status))

    def stopping(self, status: str = "") -> bool:
        """The service begins to end: STOPPING=1."""
        return self.send("STOPPING=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self.send(*_status(text))

    def send(self, *assignments: str) -> bool:
        """Send "NAME=value" assignments in one datagram. False when nobody was told."""
        if self._address is None or not assignments:
            return False
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            # One socket per message: these are rare, and a descriptor kept open would have to
            # be closed in every worker.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_SEND_WITHIN)
                sock.connect(address)
                sock.send("\n".join(assignments).encode("utf-8", "backslashreplace"))
        except OSError as exc:
            log.warning("systemd was not told %s: %s", assignments[0], exc)
            return False
        return True


def _status(text: str) -> list[str]:
    # A newline would begin another assignment.
    return [f"STATUS={' '.join(text.split())}"] if text else []
