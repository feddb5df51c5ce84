"""Kinds: how a setting's value is read from text or TOML, and shown as a user would write it.

Durations are seconds as float inside and `30s`, `1m30s`, `500ms` outside; sizes are bytes as
int inside and `64KiB`, `10MiB` outside. Reading is strict, because `int()` and `float()` are
not: they take `1_0`, `1e9`, `nan` and digits of other scripts. The law: whatever `show`
returns, `read` takes, with the same value.

Nothing of ours is imported here.
"""

from __future__ import annotations

import dataclasses
import functools
import grp
import math
import os
import pwd
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_WORKERS = 1024

_OFF = ("none", "off")
_LONGEST = 366 * 86400.0
_LONGEST_PATH = 107  # sockaddr_un.sun_path, less its final NUL
_LONGEST_CONTROL_PATH = _LONGEST_PATH - 6  # it is made under a longer name, then renamed
_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DURATION = re.compile(r"(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s)?(?:([0-9.]+)ms)?", re.IGNORECASE)
_DURATION_UNITS = (3600.0, 60.0, 1.0, 0.001)
_SIZE = re.compile(r"([0-9.]+) ?(B|KiB|MiB|GiB)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of one sort are read and shown.

    read: from a flag's or variable's text, or from a TOML value; raises ValueError when it is
    no such value, with a message where "it does not fit" would not be enough.
    expected: completes "expected ...". metavar: stands for the value in `--help`.
    """

    read: Callable[[object], Any]
    expected: str
    metavar: str
    show: Callable[[Any], str] = str


# --- durations and sizes --------------------------------------------------------------------


def _decimal(text: str) -> float:
    if not _DECIMAL.fullmatch(text):
        raise ValueError
    return float(text)


def read_duration(value: object) -> float:
    """Seconds in `value`: "1m30s", "500ms", "2.5" or a TOML number."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if not value or match is None:
            seconds = _decimal(value)
        else:
            parts = zip(match.groups(), _DURATION_UNITS, strict=True)
            seconds = math.fsum(_decimal(part) * unit for part, unit in parts if part is not None)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise ValueError
    if not 0 <= seconds <= _LONGEST:  # refuses nan as well
        raise ValueError
    return seconds


def show_duration(seconds: float) -> str:
    """`seconds` as `read_duration` takes it: 75.0 -> "75s", 150.0 -> "2m30s", 0.5 -> "500ms"."""
    whole, milliseconds = divmod(round(seconds * 1000, 6), 1000)
    # Up to two minutes people think in seconds.
    minutes, whole = divmod(int(whole), 60) if whole >= 120 else (0, int(whole))
    hours, minutes = divmod(minutes, 60)
    parts = (hours, "h"), (minutes, "m"), (whole, "s"), (milliseconds, "ms")
    return "".join(f"{number:.9g}{unit}" for number, unit in parts if number) or "0s"


def read_size(value: object) -> int:
    """Bytes in `value`: "64KiB", "10MiB", "1.5GiB", "4096" or a TOML integer."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError
        size = _decimal(match[1]) * _SIZE_UNITS[(match[2] or "").lower()]
        if size != int(size) or size >= 1 << 53:
            raise ValueError
        return int(size)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53:
        return value
    raise ValueError


def show_size(size: int) -> str:
    """`size` as `read_size` takes it: 65536 -> "64KiB"."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


# --- plain values ---------------------------------------------------------------------------


def read_integer(value: object) -> int:
    """The whole number `value` is: ASCII digits or a TOML integer."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError


def read_text(value: object) -> str:
    """`value`, a text that is not empty."""
    if isinstance(value, str) and value:
        return value
    raise ValueError


def read_boolean(value: object) -> bool:
    """True or False for a TOML boolean and for on/off, true/false, yes/no, 1/0."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value.lower() in ("1", "true", "yes", "on"):
            return True
        if value.lower() in ("0", "false", "no", "off"):
            return False
    raise ValueError


# --- kinds made from kinds ------------------------------------------------------------------


def at_least(kind: Kind, low: float, high: float = math.inf) -> Kind:
    """`kind`, but nothing below `low` or above `high`."""

    def read(value: object) -> Any:
        result = kind.read(value)
        if result < low:
            raise ValueError(f"{kind.show(result)} is less than {kind.show(low)}")
        if result > high:
            raise ValueError(f"{kind.show(result)} is more than {kind.show(high)}")
        return result

    return dataclasses.replace(kind, read=read)


def optional(kind: Kind, meaning: str) -> Kind:
    """`kind`, or None, written `none` or `off`; `meaning` says what that does."""

    def read(value: object) -> Any:
        if isinstance(value, str) and value.lower() in _OFF:
            return None
        return kind.read(value)

    def show(value: Any) -> str:
        return "none" if value is None else kind.show(value)

    return dataclasses.replace(kind, read=read, show=show, expected=f"{kind.expected}, or none ({meaning})")


def integer(low: int, high: int) -> Kind:
    """A whole number within bounds."""
    return at_least(Kind(read_integer, f"a whole number from {low} to {high}", "N"), low, high)


def choice(*names: str) -> Kind:
    """One of `names`, in whatever case it is written."""

    def read(value: object) -> str:
        if isinstance(value, str) and value.lower() in names:
            return value.lower()
        raise ValueError

    return Kind(read, "one of " + ", ".join(names), "NAME")


# --- addresses, files, accounts -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen, parsed: exactly one of `port`, `path` and `fd` is set.

    host: a name or number, "" for every address of the machine. path: of a unix socket; "@name"
    is abstract. fd: a listening socket that somebody else has opened.
    """

    text: str
    host: str = ""
    port: int | None = None
    path: str | None = None
    fd: int | None = None

    def __str__(self) -> str:
        return self.text


def parse_address(text: str) -> Address:
    """Read HOST:PORT, :PORT, [IPV6]:PORT, unix:/PATH, unix:@NAME or fd:N.

    Raises ValueError with a text for the user: what is wrong, and what to write.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(f"{text!r} names no path; write unix:/run/app.sock")
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise ValueError(f"{text!r}: the path of a unix socket is at most {_LONGEST_PATH} bytes long")
        return Address(text, path=path)
    if text.startswith("fd:"):
        if not re.fullmatch(r"fd:[0-9]{1,7}", text):
            raise ValueError(f"{text!r} is no descriptor number; write fd:3")
        return Address(text, fd=int(text[3:]))
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        if re.fullmatch(r"[0-9]{1,5}", text):
            raise ValueError(f"{text!r} has no colon; write :{text} or 127.0.0.1:{text}")
        raise ValueError(f"{text!r} has no port; write {text}:8000")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not host:
            raise ValueError(f"{text!r}: the brackets are empty; write [::]:{port} or :{port}")
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, as in [::1]:8000")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{text!r}: {port!r} is no port (0 to 65535)")
    return Address(text, host=host, port=int(port))


def _read_bind(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = re.split(r"[,\s]+", value.strip(", \t\n"))
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError
    for address in value:
        parse_address(read_text(address))
    return tuple(value)


def _read_admin(value: object) -> str:
    return parse_address(read_text(value)).text


def _read_control(value: object) -> str:
    text = read_text(value)
    if text.lower() == "auto":
        return "auto"
    if not text.startswith("unix:") or text == "unix:@":
        raise ValueError(f"{text!r} names no unix socket; write unix:/run/app/control.sock")
    path = parse_address(text).path or ""
    if not path.startswith("@"):
        # Who looks for the socket later stands in another directory.
        path = os.path.abspath(path)
        if len(os.fsencode(path)) > _LONGEST_CONTROL_PATH:
            raise ValueError(f"the path {path} is longer than {_LONGEST_CONTROL_PATH} bytes")
    return f"unix:{path}"


def _read_patterns(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [pattern for pattern in value.split(",") if pattern]
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return tuple(read_text(pattern) for pattern in value)


def _read_workers(value: object) -> int:
    return available_cpus() if value == "auto" else int(integer(1, MAX_WORKERS).read(value))


def _read_umask(value: object) -> int:
    # A TOML integer is refused: `umask = 22` would be 0o26, which nobody means.
    if isinstance(value, str) and re.fullmatch(r"(?:0o)?[0-7]{1,4}", value):
        mask = int(value.removeprefix("0o"), 8)
        if mask <= 0o777:
            return mask
    raise ValueError


def _read_directory(value: object) -> str:
    path = os.path.abspath(read_text(value))
    if not os.path.isdir(path):
        raise ValueError(f"{path} is no directory")
    return path


def _read_log_file(value: object) -> str:
    text = read_text(value)
    if "\0" in text:
        raise ValueError
    # A worker may stand in another directory when it opens the file anew.
    return text if text == "-" else os.path.abspath(text)


def _read_access_log_format(value: object) -> str:
    from prefork.log import atoms  # only who sets it pays for the log

    return atoms.check(read_text(value))


def _read_account(lookup: Callable[[str], object], sort: str, value: object) -> str:
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else read_text(value)
    if re.fullmatch(r"[0-9]{1,10}", name):
        return name
    try:
        lookup(name)
    except KeyError:
        raise ValueError(f"there is no {sort} {name!r} on this machine") from None
    return name


DURATION = Kind(
    read_duration,
    "a duration such as 30s, 1m30s or 500ms (a plain number is seconds)",
    "TIME",
    show_duration,
)
SIZE = Kind(read_size, "a size such as 64KiB, 10MiB or 1GiB (a plain number is bytes)", "SIZE", show_size)
# A deadline of zero would cut everybody off; who wants no deadline says so.
DEADLINE = at_least(DURATION, 0.001)
NULLABLE_DEADLINE = optional(DEADLINE, "no deadline")
BOOLEAN = Kind(read_boolean, "on or off", "on|off", lambda value: "on" if value else "off")
APP = Kind(read_text, "MODULE:ATTRIBUTE, such as app:mux", "APP")
BIND = Kind(_read_bind, "HOST:PORT, :PORT, [IPV6]:PORT, unix:/PATH or fd:N", "ADDRESS", " ".join)
ADMIN = optional(
    Kind(_read_admin, "HOST:PORT, :PORT, [IPV6]:PORT, unix:/PATH or fd:N", "ADDRESS"), "no such listener"
)
CONTROL = optional(
    Kind(_read_control, "unix:/PATH, unix:@NAME, or auto ($RUNTIME_DIRECTORY/control.sock)", "ADDRESS"),
    "no control socket",
)
LOG_FILE = Kind(_read_log_file, "the path of a file, or -", "PATH")
ACCESS_LOG_FORMAT = Kind(
    _read_access_log_format,
    "combined, json, logfmt, or a text with atoms, such as '%(h)s %(r)s %(s)s'",
    "FORMAT",
)
PATTERNS = Kind(_read_patterns, "patterns such as templates/*.html, or directories", "GLOB", ",".join)
DIRECTORY = optional(Kind(_read_directory, "a directory", "DIR"), "stay in the current one")
WORKERS = Kind(_read_workers, f"a whole number from 1 to {MAX_WORKERS}, or auto", "N|auto")
UMASK = optional(
    Kind(_read_umask, 'octal digits as a text, such as "027"', "OCTAL", lambda mask: f"{mask:03o}"),
    "keep the inherited one",
)
USER = optional(
    Kind(functools.partial(_read_account, pwd.getpwnam, "user"), "a user's name or number", "USER"),
    "no change",
)
GROUP = optional(
    Kind(functools.partial(_read_account, grp.getgrnam, "group"), "a group's name or number", "GROUP"),
    "no change",
)


# --- how many CPUs --------------------------------------------------------------------------


def available_cpus(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> int:
    """CPUs this process may keep busy: its affinity, or its cgroup's CPU quota if that is less.

    A quota of 1.5 CPUs counts as 2. proc, cgroups: where those file systems are (for tests).
    """
    cpus = len(os.sched_getaffinity(0))
    for quota in _quotas(proc, cgroups):
        cpus = min(cpus, max(1, math.ceil(quota)))
    return cpus


def _quotas(proc: str, cgroups: str) -> Iterable[float]:
    try:
        lines = Path(proc, "self", "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = Path(cgroups)  # version 2
        elif "cpu" in controllers.split(","):
            root = Path(cgroups, "cpu")  # version 1
        else:
            continue
        # A limit on any group above holds for this one too. Inside a container the path may
        # be the host's; the root that is mounted here is then the container's own group.
        parts = Path(path).parts[1:]
        for depth in range(len(parts) + 1):
            group = root.joinpath(*parts[:depth])
            try:
                if controllers == "":
                    quota, period = (group / "cpu.max").read_text().split()
                else:
                    quota = (group / "cpu.cfs_quota_us").read_text()
                    period = (group / "cpu.cfs_period_us").read_text()
            except OSError:
                continue
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
