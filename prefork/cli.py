"""The command `prefork`: reads arguments, hands the work on, prints.

    prefork run app:mux -w 8        serve
    prefork check app:mux           import the application, show each setting and its source
    prefork routes app:mux          show the routes of its ServeMux
    prefork version

Options are not written down here: they come from the table in `prefork.settings`, and so
does their help. Whatever is wrong is told in one message on standard error that names cause
and cure, with the exit code that the error itself carries. Nothing of the server is imported
before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import textwrap
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

from prefork import __version__
from prefork.settings import CONFIG_VARIABLE, TABLE, Given, Settings, load, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_CLEAN, _INTERNAL, _USAGE, _INTERRUPTED = 0, 1, 2, 130

_APP_GROUP = "Application"
_UNITS = """\
Durations: 30s, 1m30s, 500ms, a plain number is seconds. Sizes: 64KiB, 10MiB, 1GiB, a plain number
is bytes. `none` switches a limit off. A flag wins over a PREFORK_ variable, and that over the
settings file: -c FILE, else prefork.toml or [tool.prefork] in pyproject.toml."""


class UsageError(Exception):
    """The command line cannot be understood. `str()` is for the user."""

    exit_code = _USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. argv: the arguments; None means the process' own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result = _dispatch(arguments)
        sys.stdout.flush()
        return result
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # `prefork routes app:mux | head`: nobody reads any more. The interpreter would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLEAN
    except Exception as error:
        # Errors that are not ours to see (a bad address, an app that fails) know their code as well.
        code: int | None = getattr(error, "exit_code", None)
        if code is None:
            return _internal(error)
        _complain(str(error))
        return int(code)


def _complain(text: str) -> None:
    print(f"prefork: {text}", file=sys.stderr)


def _internal(error: Exception) -> int:
    import logging

    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" ({os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno})" if frame else ""
    _complain(
        f"internal error: {type(error).__name__}: {error}{where}; this is a fault of prefork, "
        "please report it (--log-level debug shows more)"
    )
    logging.getLogger("prefork").debug("the internal error came from here", exc_info=error)
    return _INTERNAL


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        _complain("which command?\n\n" + _overview())
        return _USAGE
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        print(_overview())
        return _CLEAN
    if name in ("-V", "--version"):
        name = "version"
    command = _COMMANDS.get(name)
    if command is None:
        raise UsageError(_unknown_command(name))
    if "-h" in rest or "--help" in rest:
        print(command.help())
        return _CLEAN
    return command(rest)


def _unknown_command(name: str) -> str:
    import difflib

    if ":" in name:
        return f"there is no command {name!r}; to serve it: prefork run {name}"
    close = difflib.get_close_matches(name, _COMMANDS, n=1)
    cure = f"did you mean {close[0]}?" if close else "there are " + ", ".join(_COMMANDS)
    return f"there is no command {name!r}; {cure}"


# --- commands -------------------------------------------------------------------------------


class Command:
    """A command: its texts, whether it takes an application, which groups of settings are its options."""

    def __init__(
        self, summary: str, run: Callable[[Settings], int], *, app: bool = True, groups: Iterable[str] = ()
    ) -> None:
        self.name = run.__name__.strip("_")
        self.summary = summary
        self.groups = tuple(groups)
        self._app = app
        self._run = run

    def __call__(self, arguments: Sequence[str]) -> int:
        flags, config = self._parse(arguments)
        settings = load(flags, config=config) if self._app else Settings()
        if self._app and not settings.app:
            raise UsageError(
                f"which application? Write: prefork {self.name} MODULE:ATTRIBUTE, "
                "where MODULE is a file here or an installed module, such as prefork run app:mux"
            )
        return self._run(settings)

    def _parse(self, arguments: Sequence[str]) -> tuple[dict[str, Given], str | None]:
        parser = _Parser(prog=f"prefork {self.name}", add_help=False, allow_abbrev=False)
        given: dict[str, Given] = {}
        if self._app:
            parser.add_argument("app", nargs="?")
            parser.add_argument("-c", "--config")
        for setting in TABLE.values():
            if setting.group in self.groups and setting.flags:
                parser.add_argument(*setting.flags, action=_Give, dest=setting.name, given=given)
        known, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise UsageError(self._unknown(unknown[0]))
        if getattr(known, "app", None) is not None:
            given["app"] = Given("the argument APP", known.app)
        return given, getattr(known, "config", None)

    def _unknown(self, argument: str) -> str:
        flag = argument.partition("=")[0]
        if not flag.startswith("-"):
            return f"prefork {self.name}: one argument too many: {argument!r}"
        cure = suggest(flag, lambda setting: setting.flags[-1]) if self.groups else ""
        cure = cure or f"`prefork {self.name} --help` lists them"
        return f"prefork {self.name}: there is no option {flag}; {cure}"

    def help(self) -> str:
        """What `--help` prints, as wide as the terminal."""
        width = min(shutil.get_terminal_size().columns, 110)
        usage = f"Usage: prefork {self.name}" + (" [APP]" if self._app else "")
        lines = [usage + (" [OPTION...]" if self._app else ""), "", *textwrap.wrap(self.summary, width)]
        if self._app:
            app = TABLE["app"]
            lines += ["", f"{_APP_GROUP}:", *_row("APP", app.help, f"[{app.variable}]", width)]
            lines += _row("-c, --config FILE", "the settings file", f"[{CONFIG_VARIABLE}]", width)
        for group in dict.fromkeys(setting.group for setting in TABLE.values()):
            if group not in self.groups:
                continue
            if group != _APP_GROUP:
                lines += ["", f"{group}:"]
            for setting in TABLE.values():
                if setting.group == group and setting.flags:
                    default = f"[default: {setting.shown(setting.default)}] [{setting.variable}]"
                    flags = ", ".join(setting.flags)
                    if not isinstance(setting.default, bool):
                        flags += f" {setting.kind.metavar}"
                    lines += _row(flags, setting.help, default, width)
        if len(self.groups) > 1:
            lines += ["", *textwrap.wrap(_UNITS, width)]
        return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


class _Give(argparse.Action):
    """Collects the text of an option, unread: `settings` knows what it means, and how to complain."""

    def __init__(self, option_strings: Sequence[str], dest: str, given: dict[str, Given]) -> None:
        boolean = isinstance(TABLE[dest].default, bool)
        super().__init__(option_strings, dest, nargs=0 if boolean else None)
        self._given = given

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        flag = option_string or self.option_strings[-1]
        if self.nargs == 0:
            values = "off" if flag.startswith("--no-") else "on"
        elif isinstance(TABLE[self.dest].default, tuple):
            earlier = self._given.get(self.dest)
            values = [*(earlier.value if earlier else []), values]
        self._given[self.dest] = Given(flag, values)


def _row(flags: str, text: str, remark: str, width: int) -> list[str]:
    """One option of `--help`: two columns where there is room for them."""
    column = 34
    if width < 80:
        return [f"  {flags}", *textwrap.wrap(f"{text} {remark}", width - 8, initial_indent=" " * 8)]
    body = [*textwrap.wrap(text, width - column), *textwrap.wrap(remark, width - column)]
    first = f"  {flags}"
    lines = [first] if len(first) > column - 2 else []
    if not lines:
        lines = [first.ljust(column) + body.pop(0)]
    return lines + [" " * column + line for line in body]


def _overview() -> str:
    names = [f"  {name:<9}{command.summary}" for name, command in _COMMANDS.items()]
    return "\n".join(
        ["Usage: prefork COMMAND [...]", "", *names, "", "`prefork COMMAND --help` tells more of each."]
    )


# --- what the commands do -------------------------------------------------------------------


def _run(settings: Settings) -> int:
    from prefork import log

    log.setup(settings.log_level)
    from prefork.workers import boot

    return boot.run(settings.app, None, settings)


def _check(settings: Settings) -> int:
    rows = [(name, row.shown(getattr(settings, name)), settings.origin(name)) for name, row in TABLE.items()]
    print(_table(rows) + "\n")
    sys.stdout.flush()  # what the import prints comes after it
    app = _load(settings)
    print(f"{settings.app} is {_kind(app)}: it can be served")
    return _CLEAN


def _routes(settings: Settings) -> int:
    app = _load(settings)
    if not hasattr(app, "routes"):
        raise UsageError(f"{settings.app} is no ServeMux but {_kind(app)}: it has no routes to show")
    rows = []
    for route in app.routes():
        method, space, rest = route.pattern.rpartition(" ")
        rows.append((method if space else "", rest, route.handler_name, route.location))
    print(_table(rows) if rows else f"{settings.app} has no routes")
    return _CLEAN


def _load(settings: Settings) -> Any:
    from prefork.workers import loader

    return loader.load(settings.app, settings.chdir)


def _kind(app: Any) -> str:
    """What an application is, for people: "a ServeMux with 3 routes", "a function"."""
    if hasattr(app, "routes"):
        count = len(app.routes())
        return f"a {type(app).__name__} with {count} route{'s' if count != 1 else ''}"
    return f"a {type(app).__name__}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns that line up, but for the last one."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


def _version(settings: Settings) -> int:
    print(versions())
    return _CLEAN


def versions() -> str:
    """`prefork 0.1.0, Python 3.11.7, uvloop 0.23.0, httptools 0.9.0`, without importing any of them."""
    libraries = [f"{name} {_installed(name)}" for name in ("uvloop", "httptools")]
    return ", ".join([f"prefork {__version__}", f"Python {platform.python_version()}", *libraries])


def _installed(name: str) -> str:
    # importlib.metadata does the same, but its import alone takes longer than all the rest here.
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return "is not installed"
    for entry in os.listdir(os.path.dirname(os.path.dirname(spec.origin))):
        if entry.startswith(f"{name}-") and entry.endswith((".dist-info", ".egg-info")):
            return entry.rpartition(".")[0].removeprefix(f"{name}-").partition("-")[0]
    return "(unknown version)"


_GROUPS = tuple(dict.fromkeys(setting.group for setting in TABLE.values()))

_COMMANDS = {
    command.name: command
    for command in (
        Command("serve an application with worker processes", _run, groups=_GROUPS),
        Command("import an application, and show every setting with its source", _check, groups=_GROUPS),
        Command("show the routes of an application", _routes, groups=[_APP_GROUP]),
        Command("show the versions of prefork and of what it runs on", _version, app=False),
    )
}
