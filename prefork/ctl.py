"""The operator's side of the control socket: finds it, asks the master, prints what it says.

    prefork status [--json]     prefork scale N         prefork stacks [WORKER]
    prefork reload [--wait]     prefork stop [--now]    prefork top

Where the socket is says, the first that does: --control, PREFORK_CONTROL, the settings file, and
$RUNTIME_DIRECTORY, which a unit's ExecReload= has as well. Nothing is guessed: a socket that merely
exists is named in the error message, not used, because it may be another service's.

Each command is a function that prints and returns an exit code: 0, or it raises a `ControlError`
whose text is for people. What clients of the service chose (request lines) is escaped before it
reaches a terminal. How the service is shown is in `overview`.
"""

from __future__ import annotations

import glob
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from prefork import kinds, overview
from prefork.settings import CONFIG_VARIABLE, TABLE, control_address, load

if TYPE_CHECKING:
    from collections.abc import Mapping

_ANSWER_WITHIN = 10.0
_STACKS_WITHIN = 60.0
_FIELDS = {"status": dict, "text": str, "stacks": dict}
_LONGEST_ANSWER = 64 << 20
_USUAL_PLACES = ("/run/*/control.sock", "/run/user/*/*/control.sock")
"""Where units and users have them, to be named when none is given."""


class ControlError(Exception):
    """The master cannot be asked, or says no. `str()` is for the user, and may have many lines."""

    exit_code = 1


class UsageError(ControlError):
    """The command line, or a setting, does not say enough, or not what can be."""

    exit_code = 2


# --- where is it ------------------------------------------------------------------------------


def find(flag: str | None, config: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The address of the control socket: "unix:/PATH" or "unix:@NAME". Whether anybody listens is not asked.

    flag: what --control says; config: what -c says; environ: None means this process' own.

    Raises UsageError if none is named, SettingsError if the settings file is wrong; it is not
    looked at when a flag or variable has said enough.
    """
    environ = os.environ if environ is None else environ
    setting = TABLE["control"]
    value: str | None
    if flag is not None:
        value, source = _read("--control", flag), "--control"
    elif environ.get(setting.variable):
        value, source = _read(setting.variable, environ[setting.variable]), setting.variable
    else:
        settings = load(environ=environ, config=config)
        value, source = settings.control, settings.origin("control")
    address = control_address(value, environ)
    if address is not None:
        return address
    if value is None:
        raise UsageError(f"{source} says that there is no control socket")
    place = config or environ.get(CONFIG_VARIABLE) or f"a settings file of {os.getcwd()}"
    there = sorted({f"unix:{path}" for pattern in _USUAL_PLACES for path in glob.glob(pattern)})
    hint = f"; on this machine there are {', '.join(there)}" if there else ""
    raise UsageError(
        f"which server? --control is not given, {setting.variable} is not set, no `control` in {place}, "
        "RUNTIME_DIRECTORY is not set. Start it with --control unix:/PATH (or with RuntimeDirectory= in "
        f"its systemd unit), and name the same --control here{hint}"
    )


def _read(source: str, text: str) -> str | None:
    try:
        result: str | None = kinds.CONTROL.read(text)
    except ValueError as error:
        problem = str(error) or f"{text!r} does not fit"
        raise UsageError(f"{source}: {problem}; expected {kinds.CONTROL.expected}") from None
    return result


# --- talking to it ----------------------------------------------------------------------------


class Master:
    """A connection to a master that answers one request after the other.

        with Master("unix:/run/app/control.sock") as master:
            master.ask("text", do="scale", workers=4)

    timeout: seconds that it may take to answer; None for no limit: its end ends the wait, too.

    Raises ControlError if nobody answers there.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.timeout: float | None = _ANSWER_WITHIN
        path = address.removeprefix("unix:")
        self._buffer = b""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(self.timeout)
        try:
            self._sock.connect("\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            self._sock.close()
            raise ControlError(_why(error, address)) from None

    def __enter__(self) -> Master:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def ask(self, want: str, **request: object) -> Any:
        """The field `want` of its answer.

        Raises ControlError: with what the master says if it says no, or with why there is no answer.
        """
        try:
            self._sock.settimeout(self.timeout)
            self._sock.sendall(json.dumps(request).encode("ascii") + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has said why before it closed the connection
        except TimeoutError:
            raise self._silent() from None
        try:
            answer = json.loads(self._line())
            if answer["ok"] is True and isinstance(answer[want], _FIELDS[want]):
                return answer[want]
            error = str(answer["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ControlError(f"what answers at {self.address} is no prefork master") from None
        raise ControlError(overview.clean_lines(error).rstrip())

    def _line(self) -> bytes:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        pieces = [self._buffer]
        size = 0
        while b"\n" not in pieces[-1]:
            try:
                self._sock.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
                data = self._sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            except TimeoutError:
                raise self._silent() from None
            if not data:
                raise ControlError(
                    f"the server at {self.address} has closed the connection without an answer"
                )
            size += len(data)
            if size > _LONGEST_ANSWER:
                raise ValueError
            pieces.append(data)
        line, _, self._buffer = b"".join(pieces).partition(b"\n")
        return line

    def _silent(self) -> ControlError:
        waited = f"{self.timeout:g} s"
        return ControlError(f"the server at {self.address} does not answer ({waited}); is it stopped?")


def _why(error: OSError, address: str) -> str:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return f"there is no {address}: the server is not running, or with another --control"
        case ConnectionRefusedError():
            return f"nobody listens at {address}: the server has ended, or has another --control"
        case PermissionError():
            return (
                f"permission denied: {address} is for root and the user that the server's master runs as; "
                "try it with sudo"
            )
        case BlockingIOError() | TimeoutError():
            return f"the server at {address} does not take connections; is it stopped?"
    return f"cannot connect to {address}: {error.strerror or error}"


# --- commands ---------------------------------------------------------------------------------


def status(address: str, *, as_json: bool = False) -> int:
    """Print how the service does."""
    with Master(address) as master:
        found = master.ask("status", do="status")
    # JSON: ASCII only, and so nothing in it can drive a terminal
    overview.say(json.dumps(found, indent=2) if as_json else overview.text(found))
    return 0


def reload(address: str, *, wait: bool = False) -> int:
    """Have the application loaded anew; with `wait` until the new generation serves.

    Raises ControlError with the reason, and the application's traceback, if it never will.
    """
    with Master(address) as master:
        # Without a limit: boot_timeout is one, and only the master knows it.
        if wait:
            master.timeout = None
        _print_text(master.ask("text", do="reload", wait=wait))
    return 0


def scale(address: str, workers: str) -> int:
    """Change the number of workers."""
    number = _number("the number of workers", workers)
    with Master(address) as master:
        _print_text(master.ask("text", do="scale", workers=number))
    return 0


def stop(address: str, *, now: bool = False) -> int:
    """End the service; returns when it has begun to end."""
    with Master(address) as master:
        _print_text(master.ask("text", do="stop", now=now))
    return 0


def stacks(address: str, worker: str | None = None) -> int:
    """Print what all threads of a worker, or of each, are doing."""
    request = {} if worker is None else {"worker": _number("the number of the worker", worker)}
    with Master(address) as master:
        master.timeout = _STACKS_WITHIN
        found = master.ask("stacks", do="stacks", **request)
    blocks = [
        f"worker {number}:\n{overview.clean_lines(str(text)).rstrip()}" for number, text in found.items()
    ]
    overview.say("\n\n".join(blocks))
    return 0


def top(address: str) -> int:
    """Show how the service does, again and again; once, if standard output is no terminal."""
    master: Master | None = Master(address)

    def look() -> dict[str, Any]:
        nonlocal master
        try:
            master = master or Master(address)
            return dict(master.ask("status", do="status"))
        except ControlError:
            # It may be about to start again: the next look connects anew.
            if master is not None:
                master.close()
                master = None
            raise

    try:
        overview.watch(look, ControlError)
    finally:
        if master is not None:
            master.close()
    return 0


def _number(what: str, text: str) -> int:
    kind = kinds.integer(1, kinds.MAX_WORKERS)
    try:
        return int(kind.read(text))
    except ValueError:
        raise UsageError(f"{text!r} is not {what}; expected {kind.expected}") from None


def _print_text(text: str) -> None:
    overview.say(overview.clean_lines(text).rstrip())
