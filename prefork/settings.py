"""Settings: one table that feeds flags, environment, TOML, `--help`, `prefork check` and the manual.

Every setting is declared once, as a field of `Settings`: type, default, kind, group, flags
and help stand side by side. A new setting is a new field and nothing else.

Where a value may come from; the first that has one wins:

    a flag              prefork run app:mux --graceful-timeout 1m30s
    the environment     PREFORK_GRACEFUL_TIMEOUT=1m30s
    a file              graceful_timeout = "1m30s"   in -c FILE, else in prefork.toml, else
                        under [tool.prefork] in pyproject.toml, of the working directory
    the default

Two laws. What nobody can have meant is an error: an unknown key, an unknown PREFORK_ variable
and a value that cannot be read all raise `SettingsError`, which names the source, the value
and what was expected. And every value remembers its source: `settings.origin("workers")`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prefork import kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ENV_PREFIX = "PREFORK_"
CONFIG_VARIABLE = "PREFORK_CONFIG"


class SettingsError(Exception):
    """A setting that cannot be used. `str()` is one line for the user: source, value, cure.

    exit_code: what the command line exits with (2: usage or configuration).
    """

    exit_code = 2


# --- the table ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `default` is the value, not its text."""

    name: str
    kind: kinds.Kind
    group: str
    flags: tuple[str, ...]
    help: str
    default: Any

    @property
    def variable(self) -> str:
        """The environment variable: PREFORK_ and the name in capitals."""
        return ENV_PREFIX + self.name.upper()

    def shown(self, value: Any) -> str:
        """`value` as a user would write it; "-" for an empty text."""
        return self.kind.show(value) or "-"


def _setting(default: Any, kind: kinds.Kind, group: str, flags: str, help: str) -> Any:
    metadata = {"kind": kind, "group": group, "flags": tuple(flags.split()), "help": help}
    return dataclasses.field(default=default, metadata=metadata)


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one server runs with: seconds as float, bytes as int, None = switched off.

    Made by `load` for the command line. A program may also make one itself; the values are
    then taken as they are.

        settings = Settings(app="app:mux", bind=(":8000",), workers=4)
    """

    app: str = _setting(
        "", kinds.APP, "Application", "",
        "the handler to serve: MODULE:ATTRIBUTE, or MODULE:FACTORY() to call for one")
    chdir: str | None = _setting(
        None, kinds.DIRECTORY, "Application", "--chdir",
        "directory to work in; modules and settings files are looked up there")

    bind: tuple[str, ...] = _setting(
        ("127.0.0.1:8000",), kinds.BIND, "Listening", "-b --bind",
        "address to listen on: HOST:PORT, :PORT, [IPV6]:PORT, unix:/PATH or fd:N; may be repeated")
    backlog: int = _setting(
        2048, kinds.integer(1, 2**31 - 1), "Listening", "--backlog",
        "connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn")

    workers: int = _setting(
        1, kinds.WORKERS, "Processes", "-w --workers",
        "worker processes; auto: one for each CPU that affinity and cgroup quota allow")
    user: str | None = _setting(
        None, kinds.USER, "Processes", "--user",
        "user to run the workers as (needs root)")
    group: str | None = _setting(
        None, kinds.GROUP, "Processes", "--group",
        "group to run the workers as (needs root)")
    umask: int | None = _setting(
        None, kinds.UMASK, "Processes", "--umask",
        "file mode mask, in octal")
    blocking_threads: int = _setting(
        16, kinds.integer(1, 4096), "Processes", "--blocking-threads",
        "threads for http.blocking handlers, per worker")
    boot_timeout: float = _setting(
        60.0, kinds.DEADLINE, "Processes", "--boot-timeout",
        "from the start of a worker until it is ready to serve")
    graceful_timeout: float = _setting(
        30.0, kinds.DURATION, "Processes", "--graceful-timeout",
        "when stopping: for the requests in flight; then they are cut")

    drain_delay: float = _setting(
        0.0, kinds.DURATION, "Processes", "--drain-delay",
        "when stopping: to go on serving while load balancers learn that we are not ready any more")
    worker_timeout: float | None = _setting(
        30.0, kinds.NULLABLE_DEADLINE, "Processes", "--worker-timeout",
        "for the event loop of a worker to turn; one that hangs is explained, killed and replaced")
    crash_budget: int | None = _setting(
        None, kinds.optional(kinds.integer(1, 10_000), "any number"), "Processes", "--crash-budget",
        "unexpected deaths of workers within a minute that end the service with exit code 5")
    max_requests: int | None = _setting(
        None, kinds.optional(kinds.integer(1, 2**53), "any number"), "Processes", "--max-requests",
        "requests after which a worker is replaced, its successor first")
    max_requests_jitter: int | None = _setting(
        None, kinds.optional(kinds.integer(0, 2**53), "a tenth of max_requests"), "Processes",
        "--max-requests-jitter",
        "up to so many requests more, by chance, so that not all are replaced at once")
    max_rss: int | None = _setting(
        None, kinds.optional(kinds.SIZE, "no limit"), "Processes", "--max-rss",
        "memory in RAM above which a worker is replaced")
    max_lifetime: float | None = _setting(
        None, kinds.NULLABLE_DEADLINE, "Processes", "--max-lifetime",
        "age at which a worker is replaced")

    read_header_timeout: float | None = _setting(
        10.0, kinds.NULLABLE_DEADLINE, "Time limits", "--read-header-timeout",
        "for the head of a request")
    read_timeout: float | None = _setting(
        None, kinds.NULLABLE_DEADLINE, "Time limits", "--read-timeout",
        "for the whole body of a request")
    body_idle_timeout: float | None = _setting(
        30.0, kinds.NULLABLE_DEADLINE, "Time limits", "--body-idle-timeout",
        "for the next piece of a request body")
    write_timeout: float | None = _setting(
        None, kinds.NULLABLE_DEADLINE, "Time limits", "--write-timeout",
        "from the head of a request to the end of its handler")
    write_idle_timeout: float | None = _setting(
        60.0, kinds.NULLABLE_DEADLINE, "Time limits", "--write-idle-timeout",
        "for a client that takes nothing of the response waiting for it")
    idle_timeout: float | None = _setting(
        75.0, kinds.NULLABLE_DEADLINE, "Time limits", "--keep-alive --idle-timeout",
        "for a connection waiting for its next request")

    max_header_bytes: int = _setting(
        64 << 10, kinds.at_least(kinds.SIZE, 256, 1 << 30), "Size limits", "--max-header-bytes",
        "of the head of a request; a larger one is answered 431")
    max_header_values: int = _setting(
        500, kinds.integer(1, 1_000_000), "Size limits", "--max-header-values",
        "header lines of a request; more are answered 431")
    max_body_bytes: int | None = _setting(
        10 << 20, kinds.optional(kinds.SIZE, "no limit"), "Size limits", "--max-body-bytes",
        "of the body of a request; a larger one is answered 413")
    max_conns: int | None = _setting(
        None, kinds.optional(kinds.integer(1, 2**31 - 1), "as many as descriptors allow"),
        "Size limits", "--max-conns",
        "open connections per worker; a full worker leaves new ones to the others")

    log_level: str = _setting(
        "info", kinds.choice("debug", "info", "warning", "error", "critical"), "Logging", "--log-level",
        "debug, info, warning, error or critical: the least that is logged")
    log_format: str = _setting(
        "console", kinds.choice("console", "json", "logfmt"), "Logging", "--log-format",
        "console, for people, or json or logfmt, for programs")
    log_file: str = _setting(
        "-", kinds.LOG_FILE, "Logging", "--log-file",
        "file to append the log to; -: standard error. SIGUSR1 opens it anew")
    access_log: bool = _setting(
        False, kinds.BOOLEAN, "Logging", "--access-log --no-access-log",
        "log each request; an access_log_file turns it on as well")
    access_log_format: str = _setting(
        "combined", kinds.ACCESS_LOG_FORMAT, "Logging", "--access-log-format",
        "combined (and the seconds taken), json, logfmt, or a text with atoms such as %(h)s")
    access_log_file: str = _setting(
        "-", kinds.LOG_FILE, "Logging", "--access-log-file",
        "file to append the access log to; -: standard output. SIGUSR1 opens it anew")

    control: str | None = _setting(
        "auto", kinds.CONTROL, "Operations", "--control",
        "unix socket for `prefork status`, `reload` and the like; auto: control.sock in the directory "
        "that systemd's RuntimeDirectory= makes, without that none")

    admin: str | None = _setting(
        None, kinds.ADMIN, "Operations", "--admin",
        "address where the master answers /livez, /readyz and /metrics, also when all workers hang")

    reload: bool = _setting(
        False, kinds.BOOLEAN, "Development", "--reload --no-reload",
        "for development: load the application afresh when its files change; while the new code fails the "
        "old one serves on, but a first start that fails ends as usual. Unless a flag says otherwise: "
        "1 worker, at most 2s of graceful_timeout, no worker_timeout. It needs watchfiles: "
        "pip install 'prefork[reload]'")
    reload_include: tuple[str, ...] = _setting(
        (), kinds.PATTERNS, "Development", "--reload-include",
        "other files to watch with --reload, such as 'templates/*.html', or a directory with all that is "
        "below it; may be repeated")

    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def origin(self, name: str) -> str:
        """Where the value of setting `name` came from: a flag, a variable, a file, "default"."""
        return self.origins.get(name, "default")

    @property
    def logs_requests(self) -> bool:
        """Whether there is an access log: asked for, or given a file and not refused."""
        return self.access_log or (self.access_log_file != "-" and self.origin("access_log") == "default")
# fmt: on


TABLE: Mapping[str, Setting] = MappingProxyType(
    {
        field.name: Setting(name=field.name, default=field.default, **field.metadata)
        for field in dataclasses.fields(Settings)
        if field.metadata
    }
)


def control_address(value: str | None, environ: Mapping[str, str] | None = None) -> str | None:
    """Where setting `control` puts the control socket: "unix:/run/app/control.sock"; None: nowhere.

    value: that of the setting. environ: None means this process' own.
    """
    if value != "auto":
        return value
    environ = os.environ if environ is None else environ
    # systemd.exec(5): "If multiple directories are set, then in the environment variable the paths
    # are concatenated with colon".
    directory = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return f"unix:{directory}/control.sock" if directory.startswith("/") else None


# --- loading --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Given:
    """A value from the command line, and how to point the user at it: "-w", "--workers"."""

    source: str
    value: str | list[str]


def load(
    flags: Mapping[str, Given] | None = None,
    environ: Mapping[str, str] | None = None,
    config: str | None = None,
) -> Settings:
    """Settings from flags, environment and file, in this order of precedence.

    flags: by the setting's name. environ: None means this process' own; a variable that is
    empty counts as not set. config: the file that `-c` names; None means PREFORK_CONFIG, else
    what the working directory has (`chdir`, if a flag or variable gives it). Paths given are
    relative to the current directory.

    Raises SettingsError.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(name: str, source: str, value: object) -> None:
        if name not in values:
            values[name] = _read(TABLE[name], source, value)
            origins[name] = source

    for name, given in (flags or {}).items():
        take(name, given.source, given.value)
    for name, variable, text in _from_environment(environ):
        take(name, variable, text)
    if config is not None:
        path, table = _read_file(Path(config), "-c ")
    elif environ.get(CONFIG_VARIABLE):
        path, table = _read_file(Path(environ[CONFIG_VARIABLE]), f"{CONFIG_VARIABLE}=")
    else:
        path, table = _find_file(Path(values.get("chdir") or os.getcwd()))
    for name, key, value in _from_file(path, table):
        take(name, f"{path}: {key}", value)
    return Settings(**values, origins=origins)


def suggest(wanted: str, spell: Callable[[Setting], str]) -> str:
    """ "did you mean ...?", spelled by `spell`, for a setting or flag close to `wanted`; else ""."""
    import difflib  # only a mistake pays for it

    names = dict(TABLE)
    for setting in TABLE.values():
        names.update({flag.lstrip("-").replace("-", "_"): setting for flag in setting.flags})
    close = difflib.get_close_matches(wanted.lstrip("-").lower().replace("-", "_"), names, n=1)
    return f"did you mean {spell(names[close[0]])}?" if close else ""


def _read(setting: Setting, source: str, value: object) -> Any:
    try:
        return setting.kind.read(value)
    except ValueError as error:
        problem = str(error) or f"{_quoted(value)} does not fit"
        raise SettingsError(f"{source}: {problem}; expected {setting.kind.expected}") from None


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _from_environment(environ: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    known = {setting.variable: name for name, setting in TABLE.items()}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if variable in known:
            if environ[variable]:
                yield known[variable], variable, environ[variable]
        elif not _is_service_link(variable, environ):
            cure = suggest(variable.removeprefix(ENV_PREFIX), lambda setting: setting.variable)
            raise SettingsError(f"{variable}: there is no such setting; {cure or 'unset it'}")


def _is_service_link(variable: str, environ: Mapping[str, str]) -> bool:
    # Kubernetes gives every pod variables named after the services beside it; a service called
    # `prefork` or `prefork-web` must not keep the server from starting.
    services = [name.removesuffix("_SERVICE_HOST") for name in environ if name.endswith("_SERVICE_HOST")]
    link = r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_\w+)?)"
    return any(re.fullmatch(re.escape(service) + link, variable) for service in services)


def _find_file(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """The settings file of `directory` and its settings; an empty table if it has none."""
    path = directory / "prefork.toml"
    if not path.is_file():
        path = directory / "pyproject.toml"
        if not path.is_file() or "prefork" not in _tool(_parse(path, "")):
            return path, {}
    return _read_file(path, "")


def _read_file(path: Path, source: str) -> tuple[Path, Mapping[str, Any]]:
    table: Any = _parse(path, source)
    if path.name == "pyproject.toml":
        table = _tool(table).get("prefork")
        if not isinstance(table, dict):
            raise SettingsError(f"{source}{path}: it has no [tool.prefork] table")
    return path, table


def _parse(path: Path, source: str) -> dict[str, Any]:
    import tomllib  # only who has a file pays for the parser

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{source}{path}: cannot read this settings file: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise SettingsError(f"{source}{path}: this is no valid TOML: {error}") from None


def _tool(document: dict[str, Any]) -> dict[str, Any]:
    tool = document.get("tool")
    return tool if isinstance(tool, dict) else {}


def _from_file(path: Path, table: Mapping[str, Any]) -> Iterable[tuple[str, str, object]]:
    seen: dict[str, str] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in TABLE:
            cure = suggest(name, lambda setting: setting.name)
            if isinstance(value, dict):
                cure = "the settings stand at the top level of this file, in no table"
            raise SettingsError(
                f"{path}: there is no setting {key!r}; {cure or '`prefork run --help` lists them'}"
            )
        if name in seen:
            raise SettingsError(f"{path}: {seen[name]!r} and {key!r} are the same setting; keep one")
        seen[name] = key
        yield name, key, value
