"""`prefork unit`: a systemd service and its socket unit, written for this machine and this application.

    units = write_units(Wish(settings=settings, flags=["--workers=8"]), Machine.this())
    units.files["shop.service"], units.files["shop.socket"]

The service is the one that prefork ships (`systemd/prefork@.service`, explained line by line in
`systemd/README.md`), with what differs from machine to machine filled in: the interpreter, the
working directory, the flags, and times that fit the settings. A test compares the two.

Two laws. What is written says the same after systemd has read it: every path and argument is
quoted for the directive it stands in, and what cannot be written there is refused
(`UnitError`). And the hardening is not traded for convenience: an application in somebody's
home is made visible there, read-only, and the rest of the homes is not.
"""

from __future__ import annotations

import grp
import math
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from prefork.kinds import Address, parse_address
from prefork.settings import ENV_PREFIX, Settings

UNITS: Final = "/etc/systemd/system"
"""Where the administrator's units are."""

NOTIFY_RELOAD_SINCE: Final = 253
"""The first systemd that knows `Type=notify-reload`."""

_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""Of these the service sees nothing, but for what is bound into them (ProtectHome=, PrivateTmp=)."""

_PROXY_GROUPS: Final = ("www-data", "nginx", "haproxy")
_WATCHDOG_SPARE: Final = 30

HARDENING: Final = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
{protect_home}PrivateTmp=yes
PrivateMounts=yes
PrivateDevices=yes
PrivateUsers=yes
PrivateIPC=yes
DevicePolicy=closed
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
ProcSubset=pid
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
"""

SERVICE: Final = """\
[Unit]
Description=prefork: {title}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
WorkingDirectory={directory}
{environment}EnvironmentFile=-/etc/prefork/{name}.env
ExecStart={start}
ExecReload={reload}
KillMode=mixed
KillSignal=SIGTERM
TimeoutStartSec={start_timeout}
TimeoutStopSec={stop_timeout}
{watchdog}Restart=on-failure
RestartSec=1
RestartPreventExitStatus=2 4
OOMPolicy=continue
LimitNOFILE=65536
FileDescriptorStoreMax=16
RuntimeDirectory={runtime}
{logs}UMask=0077
{user}{hardening}
[Install]
WantedBy=multi-user.target
"""

SOCKET: Final = """\
[Unit]
Description=prefork: listening sockets of {title}

[Socket]
{streams}Backlog={backlog}
Accept=no
FileDescriptorName=http
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""

NOTIFY_RELOAD: Final = """\
[Service]
Type=notify-reload
ExecReload=
"""


class UnitError(Exception):
    """No unit can be made of this. `str()` is for the user: what, why, and what to do.

    exit_code: what the command line exits with (2: usage or configuration).
    """

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the units depend on besides the settings.

    python: the interpreter, absolute. directory: the current one. paths: what Python must be able
    to read. environ: the environment. systemd: its version, None when there is none here.
    """

    python: str
    directory: str
    paths: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    systemd: int | None = None

    @classmethod
    def this(cls) -> Machine:
        """This machine, this interpreter, this directory."""
        if not sys.executable:
            raise UnitError("this Python does not know its own path; start it by an absolute one")
        here = Path(__file__).resolve().parent.parent
        interpreter = Path(sys.executable).resolve().parent
        paths = [sys.prefix, sys.base_prefix, str(interpreter), str(here), *filter(None, sys.path)]
        return cls(
            python=os.path.abspath(sys.executable),
            directory=os.getcwd(),
            paths=[path for path in paths if os.path.isdir(path)],
            environ=dict(os.environ),
            systemd=systemd_version(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asks for.

    settings: what `prefork run` would have. flags: those of them that are to be given as flags,
    without --user and --group, which are directives here. name: of the units; "" takes the
    directory's. notify_reload: with the drop-in for `Type=notify-reload`.
    """

    settings: Settings
    flags: Sequence[str] = ()
    name: str = ""
    notify_reload: bool = False


@dataclass(frozen=True, slots=True)
class Units:
    """files: texts by their path below the directory of units. notes: what else is to do, for people."""

    files: dict[str, str]
    notes: list[str]

    def shown(self) -> str:
        """All of them, each under a comment that says where it goes, as `systemctl cat` does."""
        return "\n".join(f"# {UNITS}/{path}\n{text}" for path, text in self.files.items())


def systemd_version() -> int | None:
    """Of the systemd here; None when there is none."""
    try:
        out = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"systemd (\d+)", out.stdout)
    return int(match[1]) if match else None


def write_units(wish: Wish, machine: Machine) -> Units:
    """The units for one application. Raises UnitError, and ValueError for an address that is none."""
    name = _name(wish, machine)
    addresses = [parse_address(address) for address in wish.settings.bind]
    runtime = _runtime(name, addresses, wish.settings)
    notes: list[str] = []
    files = {f"{name}.service": _service(name, wish, machine, runtime, notes)}
    streams = _streams(addresses, wish.settings, runtime, notes)
    if streams:
        title = _plain(f"{name} ({wish.settings.app})")
        files[f"{name}.socket"] = SOCKET.format(
            title=title, streams="".join(streams), backlog=wish.settings.backlog
        )
    if wish.notify_reload:
        if machine.systemd is not None and machine.systemd < NOTIFY_RELOAD_SINCE:
            raise UnitError(
                f"--notify-reload: the systemd here is version {machine.systemd}, and knows no "
                f"Type=notify-reload, which came with {NOTIFY_RELOAD_SINCE}; leave it out"
            )
        files[f"{name}.service.d/notify-reload.conf"] = NOTIFY_RELOAD
    return Units(files, notes)


def install(units: Units, directory: str) -> list[str]:
    """Write the files below `directory`; returns their paths. Raises UnitError, then nothing is changed.

    A file that says something else is not overwritten: it may have been edited.
    """
    paths = {Path(directory, name): text for name, text in units.files.items()}
    if not os.path.isdir(directory):
        raise UnitError(f"--install: {directory} is no directory")
    try:
        for path, text in paths.items():
            if path.exists() and path.read_text("utf-8", "replace") != text:
                raise UnitError(f"{path} is there and says something else; move it away, or choose a --name")
        for path, text in paths.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
    except OSError as error:
        raise UnitError(f"--install: cannot write {error.filename}: {error.strerror}") from None
    return [str(path) for path in paths]


# --- the service ----------------------------------------------------------------------------


def _service(name: str, wish: Wish, machine: Machine, runtime: str, notes: list[str]) -> str:
    settings = wish.settings
    watchdog = ""
    if settings.worker_timeout is not None:
        # A lone worker may hang until it is found out, and its successor boots: all in order.
        seconds = settings.worker_timeout + settings.boot_timeout + _WATCHDOG_SPARE
        watchdog = f"WatchdogSec={math.ceil(seconds)}\n"
    user = "DynamicUser=yes\n"
    if settings.user is not None or settings.group is not None:
        user = "".join(
            f"{directive}={_plain(account)}\n"
            for directive, account in (("User", settings.user), ("Group", settings.group))
            if account is not None
        )
    visible = _visible(machine, settings)
    protect_home = "ProtectHome=yes\n"
    if visible:
        # The homes are empty but for these. /tmp is its own, with these in it.
        protect_home = "ProtectHome=tmpfs\nBindReadOnlyPaths=" + " ".join(map(_quoted_path, visible)) + "\n"
    if settings.user is None:
        notes += _unreadable(machine, settings, visible)
    base = [machine.python, "-m", "prefork"]
    return SERVICE.format(
        name=name,
        title=_plain(f"{name} ({wish.settings.app})"),
        directory=_plain(machine.directory),
        environment=_environment(settings, machine.environ),
        start=command_line([*base, "run", wish.settings.app, *wish.flags]),
        reload=_reload(base, settings),
        start_timeout=math.ceil(settings.boot_timeout) + 30,
        stop_timeout=math.ceil(settings.drain_delay + settings.graceful_timeout) + 15,
        watchdog=watchdog,
        runtime=runtime,
        logs=_logs(name, settings, notes),
        user=user,
        hardening=HARDENING.format(protect_home=protect_home),
    )


def _name(wish: Wish, machine: Machine) -> str:
    if wish.name:
        name = wish.name.removesuffix(".service").removesuffix(".socket")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
            raise UnitError(f"--name: {wish.name!r} is no name for a unit; use letters, digits, - and _")
        return name
    directory = os.path.basename(wish.settings.chdir or machine.directory)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", directory).strip("-.")[:100]
    return name or re.sub(r"[^A-Za-z0-9_]+", "-", wish.settings.app.partition(":")[0])[:100]


def _reload(base: Sequence[str], settings: Settings) -> str:
    if settings.control is None:
        return "/bin/kill -HUP $MAINPID"
    # Of the settings, because the command is given none of the flags.
    where = [] if settings.control == "auto" else [f"--control={settings.control}"]
    return command_line([*base, "reload", "--wait", *where])


def _environment(settings: Settings, environ: Mapping[str, str]) -> str:
    """What of this environment decides how prefork runs."""
    wanted = {
        name: value
        for name, value in environ.items()
        if (name.startswith(ENV_PREFIX) or name == "PYTHONPATH") and value
    }
    for name in ("user", "group"):
        variable = ENV_PREFIX + name.upper()
        wanted.pop(variable, None)
        if getattr(settings, name) is not None and settings.origin(name) not in (variable, f"--{name}"):
            # The settings file has it. The service is that user already.
            wanted[variable] = "none"
    return "".join(f"Environment={_word(f'{name}={value}')}\n" for name, value in sorted(wanted.items()))


def _runtime(name: str, addresses: Sequence[Address], settings: Settings) -> str:
    """The directory below /run that systemd makes: where the settings put socket files, if they do."""
    others = [text for text in (settings.control, settings.admin) if text not in (None, "auto")]
    paths = [address.path for address in (*addresses, *(parse_address(text or "") for text in others))]
    for path in paths:
        match = re.fullmatch(r"/run/([A-Za-z0-9_.@-]+)/[^/]+", path or "")
        # Only one: with several it is not defined which of them has the control socket.
        if match:
            return match[1]
    return f"prefork-{name}"


def _logs(name: str, settings: Settings, notes: list[str]) -> str:
    """The directory below /var/log for the files that the settings name; else there is none."""
    found = []
    for file in (settings.log_file, settings.access_log_file):
        if file == "-":
            continue
        match = re.fullmatch(r"/var/log/([A-Za-z0-9_.-]+)/.+", os.path.abspath(file))
        if match and not re.search(r"/\.\.?(/|$)", file):
            found.append(match[1])
        else:
            notes.append(f"{file}: the service may not write there; choose a file in /var/log/{name}/")
    return f"LogsDirectory={' '.join(dict.fromkeys(found))}\n" if found else ""


# --- what the service can see ---------------------------------------------------------------


def _needed(machine: Machine, settings: Settings) -> list[str]:
    """The directories that it must be able to read, as they are written and as they are."""
    written = [machine.directory, *([settings.chdir] if settings.chdir else []), *machine.paths]
    return sorted({path for one in written for path in (os.path.abspath(one), os.path.realpath(one))})


def _visible(machine: Machine, settings: Settings) -> list[str]:
    """Those of them that the service would not see; without what is inside of another one."""
    found: list[str] = []
    for path in _needed(machine, settings):
        if path in _HIDDEN and path in (machine.directory, settings.chdir):
            raise UnitError(f"{path} itself is no place for an application; make a directory for it")
        hidden = any(path.startswith(f"{place}/") for place in _HIDDEN)
        if hidden and not any(path.startswith(f"{outer}/") for outer in found):
            found.append(path)
    return found


def _unreadable(machine: Machine, settings: Settings, visible: Sequence[str]) -> list[str]:
    """Notes on directories that are closed to others, of whom the service's own user is one."""
    notes = []
    for path in _needed(machine, settings):
        steps = [Path(path)] if path in visible else [Path(path), *Path(path).parents]
        if any(str(step) in visible for step in steps[1:]):
            continue  # told of the outer one
        for step in steps:
            try:
                mode = step.stat().st_mode
            except OSError:
                break
            if mode & (stat.S_IROTH | stat.S_IXOTH) != stat.S_IROTH | stat.S_IXOTH:
                notes.append(
                    f"{step} has mode {stat.S_IMODE(mode):04o}, and the service runs as a user of its own: "
                    f"chmod o+rx {step}, or name a user by --user"
                )
                break
    return sorted(set(notes))


# --- the socket unit ------------------------------------------------------------------------


def _streams(addresses: Sequence[Address], settings: Settings, runtime: str, notes: list[str]) -> list[str]:
    """The lines of the socket unit that say where to listen; none when it cannot be one."""
    lines: list[str] = []
    only = set()
    for address in addresses:
        if address.fd is not None:
            notes.append(f"{address}: somebody else passes this socket, so there is no socket unit")
            return []
        if address.port == 0:
            notes.append(f"{address}: any free port, so there is no socket unit")
            return []
        if address.path is not None:
            path = address.path if address.path.startswith("@") else os.path.abspath(address.path)
            lines.append(f"ListenStream={_plain(path)}\n")
            if not path.startswith("@") and os.path.dirname(path) != f"/run/{runtime}":
                notes.append(f"{address}: the service may not write there; enable the socket unit")
            continue
        assert address.port is not None
        if address.port < 1024:
            notes.append(f"{address}: the service has no right to a port below 1024; enable the socket unit")
        host = _numeric(address)
        if address.host == "" or ":" in host:
            only.add("both" if address.host == "" else "ipv6-only")
        port = str(address.port)
        lines.append("ListenStream=" + (f"{_bracketed(_plain(host))}:{port}" if host else port) + "\n")
    if len(only) > 1:
        notes.append("one socket unit cannot have both :PORT and [IPV6]:PORT, so there is none")
        return []
    lines += [f"BindIPv6Only={value}\n" for value in only]
    if any(address.path for address in addresses):
        mode = 0o660 if settings.umask is None else 0o666 & ~settings.umask
        lines.append(f"SocketMode={mode:04o}\n")
        group = settings.group or next(filter(_is_group, _PROXY_GROUPS), None)
        lines += [f"SocketGroup={_plain(group)}\n"] if group else []
    return lines


def _numeric(address: Address) -> str:
    """The host of an address as systemd takes it: no names."""
    if not address.host:
        return ""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UnitError(f"{address}: host {address.host!r} is unknown here") from None
    _, _, _, _, sockaddr = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return str(sockaddr[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


# --- quoting --------------------------------------------------------------------------------


def command_line(words: Iterable[str]) -> str:
    """The value of ExecStart=: systemd reads these words out of it, and expands nothing.

    systemd.service(5), "Command lines"; systemd.syntax(7), "Quoting".
    """
    program, *arguments = words
    if not program.startswith("/") or not re.fullmatch(r"[^\x00-\x1f\x7f\"'\\]+", program):
        raise UnitError(f"systemd cannot start {program!r}: no quotes, backslashes or control characters")
    # "If the executable path is prefixed with ":", environment variable substitution is not applied"
    prefix = ":" if any("$" in word for word in (program, *arguments)) else ""
    return " ".join([_word(prefix + program), *map(_word, arguments)])


def _word(text: str) -> str:
    """One word of a command line or of Environment=: in quotes when it must be."""
    text = _valid(text).replace("%", "%%")  # specifiers
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./^~$-]+", text):
        return text
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    text = re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", text)
    return f'"{text}"'


def _plain(text: str) -> str:
    """A value that is the rest of its line."""
    if text != text.strip() or re.search(r"[\x00-\x1f\x7f]|\\$", text):
        raise UnitError(f"{text!r} cannot be written in a unit; give it another name")
    return _valid(text).replace("%", "%%")


def _quoted_path(path: str) -> str:
    """A path in a list of paths, where a colon would part it from its place in the service."""
    if re.search(r"[\x00-\x1f\x7f\"\\]", path):
        raise UnitError(f"{path!r} cannot be written in a unit; give it another name")
    path = _valid(path).replace("%", "%%")
    return path if re.fullmatch(r"[A-Za-z0-9_@%+=,./~-]+", path) else f'"{path}"'


def _valid(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UnitError(f"{text!r} is no UTF-8, which a unit must be; give it another name") from None
    return text
