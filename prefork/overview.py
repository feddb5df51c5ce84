"""How a running service is shown: `prefork status` once, `prefork top` again and again.

What is shown is what `Loop.status` in prefork.master.service describes; whatever is missing in it
or null is shown as "-", so that another version of the master can be looked at. Request lines
and tracebacks hold what strangers chose: all of it is escaped (`clean`).

With rich installed (`pip install prefork[top]`) `top` is drawn by it, else in plain text.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Status = Mapping[str, Any]
    Show = Callable[[Status | None, str], None]

EVERY = 1.0
"""Seconds between two looks of `watch`."""

_HELP = "q ends"

# name, aligned to the right, how to show a worker's figure
_COLUMNS: Sequence[tuple[str, bool, Callable[[Mapping[str, Any]], str]]] = (
    ("worker", True, lambda worker: _plain(worker, "worker")),
    ("pid", True, lambda worker: _plain(worker, "pid")),
    ("gen", True, lambda worker: _plain(worker, "generation")),
    ("state", False, lambda worker: _plain(worker, "state")),
    ("req/s", True, lambda worker: _figure(worker, "rate", _rate)),
    ("p50", True, lambda worker: _figure(worker, "p50_ms", _milliseconds)),
    ("p90", True, lambda worker: _figure(worker, "p90_ms", _milliseconds)),
    ("p99", True, lambda worker: _figure(worker, "p99_ms", _milliseconds)),
    ("open", True, lambda worker: _plain(worker, "open")),
    ("active", True, lambda worker: _plain(worker, "active")),
    ("lag", True, lambda worker: _figure(worker, "lag_ms", _milliseconds)),
    ("rss", True, lambda worker: _figure(worker, "rss", _size)),
    ("pss", True, lambda worker: _figure(worker, "pss", _size)),
    ("doing", False, lambda worker: _doing(worker)),
)

_SPARED = ("pss", "p50", "lag", "gen", "p90", "rss", "active", "pid", "state")
"""Columns that a narrow terminal does without, the first ones first."""

_DOING = 24
"""How many characters of what a worker is doing shall be seen."""


# --- as text ----------------------------------------------------------------------------------


def text(status: Status) -> str:
    """All of it, in lines as long as they are."""
    return "\n".join([*head(status), "", *table(status)])


def head(status: Status) -> list[str]:
    """What is true of the whole service."""
    workers = _workers(status)
    lines = [
        f"{_plain(status, 'app')} is {_plain(status, 'phase')}: generation {_plain(status, 'generation')}, "
        f"up {_figure(status, 'uptime', _seconds)} (prefork {_plain(status, 'version')}, "
        f"pid {_plain(status, 'pid')})",
        "on " + (", ".join(clean(str(url)) for url in status.get("bind") or ()) or "-"),
        f"{_plain(status, 'workers_ready')} of {_plain(status, 'workers_wanted')} workers ready, "
        f"{_rate(_sum(workers, 'rate'))} req/s, {_sum(workers, 'open'):.0f} connections open, "
        f"{_sum(workers, 'active'):.0f} active",
    ]
    last = status.get("last_reload")
    if last:
        ago = _seconds(max(0.0, time.time() - last["at"]))
        what, _, more = str(last["text"]).strip().partition("\n")
        if more and not last["ok"]:
            what = f"{what} ... {more.rpartition(chr(10))[2].strip()}"  # the exception is at the end
        lines.append(f"last reload {'' if last['ok'] else 'FAILED '}{ago} ago: {clean(what)}")
    restarts = {name: count for name, count in (status.get("restarts") or {}).items() if count}
    if restarts:
        lines.append("restarts: " + ", ".join(f"{clean(name)} {count}" for name, count in restarts.items()))
    return lines


def table(status: Status, width: int | None = None) -> list[str]:
    """A line for each worker process, below a line of names; see `cells_of`."""
    return ["  ".join(cells).rstrip() for cells in cells_of(status, width)]


def cells_of(status: Status, width: int | None = None) -> list[list[str]]:
    """The same as cells, each as wide as its column. Workers are sorted by number, then by age.

    width: of the terminal; where there is no room, columns are left out, so that it can be read
    what the workers are doing. None: there is room.
    """
    workers = _workers(status)
    columns = []
    for name, right, show in _COLUMNS:
        cells = [name, *(show(worker) for worker in workers)]
        size = max(map(len, cells))
        columns.append([cell.rjust(size) if right else cell.ljust(size) for cell in cells])
    columns[-1] = [cell.rstrip() for cell in columns[-1]]
    kept = dict(zip([name for name, _, _ in _COLUMNS], columns, strict=True))
    if width is not None:
        taken = sum(len(column[0]) + 2 for column in columns[:-1]) + _DOING
        for name in _SPARED:
            if taken <= width:
                break
            taken -= len(kept.pop(name)[0]) + 2
    return [list(row) for row in zip(*kept.values(), strict=True)]


def say(text: str) -> None:
    """Print, whatever standard output can hold."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def clean(text: str) -> str:
    """`text` with everything escaped that could drive a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def clean_lines(text: str) -> str:
    """The same for a text of several lines, which stay."""
    return "\n".join(clean(line) for line in text.expandtabs().split("\n"))


# --- again and again --------------------------------------------------------------------------


def watch(look: Callable[[], Status], trouble: type[Exception]) -> None:
    """Show what `look()` returns each second, until q or Ctrl-C; once, if standard output is no terminal.

    trouble: what `look` raises when nobody answers. The first time it ends the watch; later it is shown,
    and looked again.
    """
    status: Status | None = look()
    if not sys.stdout.isatty():
        assert status is not None
        say(text(status))
        return
    error = ""
    with contextlib.suppress(KeyboardInterrupt), _keys() as ended, _screen() as show:
        while True:
            show(status, error)
            if ended(EVERY):
                return
            try:
                status, error = look(), ""
            except trouble as exc:
                status, error = None, str(exc)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds, and tells whether q was pressed meanwhile."""
    if not sys.stdin.isatty():

        def wait(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        yield wait
        return

    import termios
    import tty

    fd = sys.stdin.fileno()

    def pressed(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([fd], [], [], left)[0]:
                keys = os.read(fd, 1024)
                if not keys or b"q" in keys.lower():
                    return True
        return False

    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _screen() -> Iterator[Show]:
    """The terminal's other page, and a function that fills it."""
    try:
        import rich  # noqa: F401
    except ImportError:
        screen = _plain_screen()
    else:
        screen = _rich_screen()
    with screen as show:
        yield show


@contextlib.contextmanager
def _plain_screen() -> Iterator[Show]:
    def show(status: Status | None, error: str) -> None:
        size = shutil.get_terminal_size()
        lines = (
            [*error.splitlines(), ""] if status is None else [*head(status), "", *table(status, size.columns)]
        )
        lines = [line[: size.columns - 1] for line in [*lines[: size.lines - 2], "", _HELP]]
        # Home, each line over the old one and the rest of it cleared, then all below: no flicker.
        say("\x1b[H" + "\n".join(f"{line}\x1b[K" for line in lines[: size.lines - 1]) + "\x1b[J")

    # The alternate screen, no cursor, no line wrap; and all of it back.
    print("\x1b[?1049h\x1b[?25l\x1b[?7l", end="", flush=True)
    try:
        yield show
    finally:
        print("\x1b[?7h\x1b[?25h\x1b[?1049l", end="", flush=True)


@contextlib.contextmanager
def _rich_screen() -> Iterator[Show]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    colours = {"ready": "green", "booting": "yellow", "draining": "magenta", "leaving": "red"}

    def line(*parts: str | tuple[str, str], style: str = "") -> Text:
        # Not a rich Table, which in a narrow terminal takes from figures what the last column
        # could spare. And Text, not str: a request line is no markup.
        return Text.assemble(*parts, style=style, no_wrap=True, overflow="ellipsis")

    def picture(status: Status | None, error: str) -> Group:
        if status is None:
            return Group(Text(error, style="bold red"), Text("\n" + _HELP, style="dim"))
        first, *more = head(status)
        names, *rows = cells_of(status, console.width)
        lines = [line(first, style="bold")]
        lines += [line(text, style="red" if " FAILED " in text else "") for text in more]
        lines += [Text(), line("  ".join(names), style="bold")]
        lines += [line(*((f"{cell}  ", colours.get(cell.strip(), "")) for cell in cells)) for cells in rows]
        return Group(*lines, Text(), line(_HELP, style="dim"))

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda status, error: live.update(picture(status, error), refresh=True)


# --- figures ----------------------------------------------------------------------------------


def _workers(status: Status) -> list[Mapping[str, Any]]:
    workers = status.get("workers") or ()
    return sorted(workers, key=lambda worker: (worker.get("worker") or 0, -(worker.get("age") or 0)))


def _sum(workers: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(worker.get(name) or 0 for worker in workers)


def _plain(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return "-" if value is None else clean(str(value))


def _figure(values: Mapping[str, Any], name: str, show: Callable[[float], str]) -> str:
    value = values.get(name)
    return "-" if value is None else show(value)


def _doing(worker: Mapping[str, Any]) -> str:
    """The request that is in hand the longest, and how many more there are: "GET /report 41 s (+2)"."""
    requests = worker.get("doing") or ()
    if not requests:
        return ""
    first = max(requests, key=lambda request: request["seconds"])
    more = f" (+{len(requests) - 1})" if len(requests) > 1 else ""
    return f"{clean(str(first['request']))} {_seconds(first['seconds'])}{more}"


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if 0 < rate < 9.95 else f"{rate:.0f}"


def _milliseconds(value: float) -> str:
    if value >= 999.5:
        return f"{value / 1000:.2f}s"
    return f"{value:.0f}ms" if value >= 9.95 else f"{value:.1f}ms"


def _seconds(value: float) -> str:
    if value < 9.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} m"
    return f"{minutes} m {seconds} s" if minutes >= 2 else f"{round(value)} s"


def _size(size: float) -> str:
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20)):
        if size >= factor:
            number = size / factor
            return f"{number:.1f}{unit}" if number < 9.95 else f"{number:.0f}{unit}"
    return f"{size / 1024:.0f}K"
