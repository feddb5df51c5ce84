"""The command `prefork`: reads arguments, hands the work on, prints.

    prefork run app:mux -w 8        serve
    prefork check app:mux           import the application, show each setting and its source
    prefork routes app:mux          show the routes of its ServeMux
    prefork version
    prefork status, reload, scale, stop, stacks, top      ask a server that runs
    prefork unit app:mux -w 8       print systemd units for it

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
from typing import TYPE_CHECKING, Any, Final, NoReturn

from prefork import __version__
from prefork.settings import CONFIG_VARIABLE, TABLE, Given, Settings, load, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

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
    """A command: its texts, whether it takes an application, which groups of settings are its options.

    run: what it does, called with the settings; with `rereads` also with a function that loads them anew.
    """

    def __init__(
        self,
        summary: str,
        run: Callable[..., int],
        *,
        app: bool = True,
        groups: Iterable[str] = (),
        rereads: bool = False,
    ) -> None:
        self.name = run.__name__.strip("_")
        self.summary = summary
        self.groups = tuple(groups)
        self._app = app
        self._rereads = rereads
        self._run = run

    def __call__(self, arguments: Sequence[str]) -> int:
        settings, flags, config = self._load(arguments)
        if self._rereads:
            return self._run(settings, lambda: load(flags, config=config))
        return self._run(settings)

    def _load(self, arguments: Sequence[str]) -> tuple[Settings, dict[str, Given], str | None]:
        """The settings, and the flags and the file that they were given by."""
        flags, config = self._parse(arguments)
        settings = load(flags, config=config) if self._app else Settings()
        if self._app and not settings.app:
            raise UsageError(
                f"which application? Write: prefork {self.name} MODULE:ATTRIBUTE, "
                "where MODULE is a file here or an installed module, such as prefork run app:mux"
            )
        return settings, flags, config

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


class _Ask(Command):
    """A command for a server that runs: `run` gets the address of its control socket, and the arguments.

    arguments: besides --control and -c, each with its help: "--json" a switch, "N" an argument,
    "[N]" one that may be left out.
    """

    def __init__(
        self,
        summary: str,
        run: Callable[[str, argparse.Namespace], int],
        arguments: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(summary, run, app=False)
        self._arguments = arguments or {}

    def __call__(self, arguments: Sequence[str]) -> int:
        parser = _Parser(prog=f"prefork {self.name}", add_help=False, allow_abbrev=False)
        parser.add_argument("--control")
        parser.add_argument("-c", "--config")
        for name in self._arguments:
            if name.startswith("--"):
                parser.add_argument(name, action="store_true")
            else:
                optional = name.startswith("[")
                word = name.strip("[]")
                parser.add_argument(word.lower(), metavar=word, nargs="?" if optional else None)
        known, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise UsageError(self._unknown(unknown[0]))
        from prefork import ctl

        return self._run(ctl.find(known.control, known.config), known)

    def help(self) -> str:
        width = min(shutil.get_terminal_size().columns, 110)
        words = " ".join(name for name in self._arguments if not name.startswith("--"))
        lines = [f"Usage: prefork {self.name} [OPTION...] {words}".rstrip(), ""]
        lines += [*textwrap.wrap(self.summary, width), ""]
        for name, text in self._arguments.items():
            lines += _row(name.strip("[]"), text, "", width)
        control = TABLE["control"]
        default = f"[default: {control.shown(control.default)}] [{control.variable}]"
        lines += _row(
            f"--control {control.kind.metavar}",
            "the control socket of the server: unix:/PATH or unix:@NAME",
            default,
            width,
        )
        lines += _row(
            "-c, --config FILE",
            "the settings file of the server, if that says it",
            f"[{CONFIG_VARIABLE}]",
            width,
        )
        return "\n".join(lines)


class _Unit(Command):
    """`prefork unit`: the arguments of `prefork run`, and a few of its own."""

    _OWN: Final = {
        "--name NAME": "of the units; without it that of the directory",
        "--notify-reload": "with a drop-in for Type=notify-reload, which needs systemd 253",
        "--install DIR": "write the files into DIR, such as /etc/systemd/system, instead of printing them",
    }

    def __call__(self, arguments: Sequence[str]) -> int:
        parser = _Parser(prog=f"prefork {self.name}", add_help=False, allow_abbrev=False)
        for words in self._OWN:
            flag, _, value = words.partition(" ")
            parser.add_argument(flag, action="store" if value else "store_true")
        own, rest = parser.parse_known_args(arguments)
        settings, flags, config = self._load(rest)
        return self._run(own, settings, _as_typed(flags, config))

    def help(self) -> str:
        width = min(shutil.get_terminal_size().columns, 110)
        head, mark, settings = super().help().partition(f"\n{_APP_GROUP}:\n")
        rows = [line for words, text in self._OWN.items() for line in _row(words, text, "", width)]
        return "\n".join([head, "Units:", *rows, mark.rstrip("\n"), settings.lstrip("\n")])


def _as_typed(flags: Mapping[str, Given], config: str | None) -> list[str]:
    """The options of a command line in their long form. User and group are directives of a unit."""
    words = [f"--config={config}"] if config is not None else []
    for name, given in flags.items():
        if name in ("app", "user", "group"):
            continue
        if isinstance(TABLE[name].default, bool):
            words.append(given.source)
        else:
            values = [given.value] if isinstance(given.value, str) else given.value
            words += [f"{TABLE[name].flags[-1]}={value}" for value in values]
    return words


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


def _run(settings: Settings, reread: Callable[[], Settings]) -> int:
    from prefork import log

    log.setup(settings.log_level, settings.log_format)
    from prefork.workers import boot

    return boot.run(settings.app, None, settings, reread=reread)


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


def _status(address: str, given: argparse.Namespace) -> int:
    from prefork import ctl

    return ctl.status(address, as_json=given.json)


def _reload(address: str, given: argparse.Namespace) -> int:
    from prefork import ctl

    return ctl.reload(address, wait=given.wait)


def _scale(address: str, given: argparse.Namespace) -> int:
    from prefork import ctl

    return ctl.scale(address, given.n)


def _stop(address: str, given: argparse.Namespace) -> int:
    from prefork import ctl

    return ctl.stop(address, now=given.now)


def _stacks(address: str, given: argparse.Namespace) -> int:
    from prefork import ctl

    return ctl.stacks(address, given.worker)


def _top(address: str, given: argparse.Namespace) -> int:
    from prefork import ctl

    return ctl.top(address)


def _unit(own: argparse.Namespace, settings: Settings, flags: Sequence[str]) -> int:
    from prefork import unit

    wish = unit.Wish(settings=settings, flags=flags, name=own.name or "", notify_reload=own.notify_reload)
    units = unit.write_units(wish, unit.Machine.this())
    if own.install is None:
        print(units.shown(), end="")
    else:
        for path in unit.install(units, own.install):
            print(path)
    for note in units.notes:
        print(f"note: {note}", file=sys.stderr)
    return _CLEAN


_GROUPS = tuple(dict.fromkeys(setting.group for setting in TABLE.values()))

_COMMANDS = {
    command.name: command
    for command in (
        Command("serve an application with worker processes", _run, groups=_GROUPS, rereads=True),
        Command("import an application, and show every setting with its source", _check, groups=_GROUPS),
        Command("show the routes of an application", _routes, groups=[_APP_GROUP]),
        Command("show the versions of prefork and of what it runs on", _version, app=False),
        _Unit("print units for systemd: a service, and sockets for it", _unit, groups=_GROUPS),
        _Ask(
            "show how a running server and each of its workers do",
            _status,
            {"--json": "all figures, as JSON"},
        ),
        _Ask(
            "have a running server load the application anew; the old one serves until the new one does",
            _reload,
            {"--wait": "return when it is over: 0, or 1 with the reason and the traceback if it failed"},
        ),
        _Ask("change how many workers a running server has", _scale, {"N": "how many there shall be"}),
        _Ask(
            "end a running server, as SIGTERM does",
            _stop,
            {"--now": "cut what is in flight, as SIGQUIT does"},
        ),
        _Ask(
            "print what every thread of a running server's workers is doing",
            _stacks,
            {"[WORKER]": "the number of one worker; without it all"},
        ),
        _Ask(
            "watch a running server: as status, again and again (q ends; prettier with rich installed)", _top
        ),
    )
}
