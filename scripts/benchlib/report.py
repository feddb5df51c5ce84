"""A run's result as text: the tables for the terminal, and the block for the README."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .load import DISTURBED
from .sides import SERVER, Side, side_of
from .targets import best_python_peer, describe, judge, median, samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_COLUMNS = {
    "load": (
        ("cpu_us", "CPU µs/req", ".2f"),
        ("rps", "req/s", ",.0f"),
        ("p50_us", "p50 µs", ",.0f"),
        ("p99_us", "p99 µs", ",.0f"),
        ("pss_mib", "PSS MiB", ".1f"),
        ("busy", "busy", ".2f"),
        ("others", "others", ".2f"),
    ),
    "idle": (("kib_per_connection", "KiB/conn", ".2f"), ("pss_mib", "PSS MiB", ".1f")),
    "start": (
        ("seconds", "first answer s", ".3f"),
        ("worker_mib", "worker MiB", ".1f"),
        ("pss_mib", "PSS MiB", ".1f"),
    ),
    "client": (
        ("cpu_us", "CPU µs/req", ".2f"),
        ("rps", "req/s", ",.0f"),
        ("peak_mib", "peak RSS MiB", ".1f"),
        ("busy", "busy", ".2f"),
        ("others", "others", ".2f"),
    ),
    "latency": (
        ("p50_us", "p50 µs", ".2f"),
        ("cpu_us", "CPU µs/req", ".2f"),
        ("p99_us", "p99 µs", ",.0f"),
        ("rps", "req/s", ",.0f"),
        ("peak_mib", "peak RSS MiB", ".1f"),
        ("busy", "busy", ".2f"),
        ("others", "others", ".2f"),
    ),
    "download": (
        ("cpu_ms", "CPU ms", ".2f"),
        ("grown_mib", "RSS growth MiB", ".2f"),
        ("rps", "downloads/s", ".1f"),
        ("peak_mib", "peak RSS MiB", ".1f"),
        ("busy", "busy", ".2f"),
        ("others", "others", ".2f"),
    ),
    "pool": (
        ("hosts_ratio", "1,000 hosts / one", ".2f"),
        ("rotate_ratio", "in turn / one", ".2f"),
        ("waiting_ratio", "10,000 waiting / none", ".2f"),
        ("one_us", "CPU µs/req: one", ".2f"),
        ("hosts_us", "hosts", ".2f"),
        ("rotate_us", "in turn", ".2f"),
        ("waiting_us", "waiting", ".2f"),
        ("others", "others", ".2f"),
    ),
}
"""What a case's table shows of a sample, by the kind of the case; the ratios are of the first."""

_README_ROWS = {"start": 2, "latency": 2, "download": 2, "pool": 3}
"""How many of those have a row in the README; one where nothing is said."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if ours is not None and theirs else "-"


def spread(results: dict[str, Any], case: str, peer: str, figure: str) -> list[str]:
    """The least and the greatest sample, as distances from the median in per cent."""
    values = samples(results, case, peer, figure)
    middle = median(results, case, peer, figure)
    if not middle:
        return ["", ""]
    return [f"{(value / middle - 1) * 100:+.0f}%" for value in (min(values), max(values))]


def case_table(results: dict[str, Any], case: str) -> str:
    """Medians of one case, and each peer's ratio to Go, to the floor and to the best Python peer."""
    columns = _COLUMNS[side_of(results).cases[case].kind]
    figure = columns[0][0]
    best = best_python_peer(results, case, figure)
    references = [name for name in ("go", "floor", best) if name and median(results, case, name, figure)]
    titles = [title for _, title, _ in columns]
    rows = [[case, titles[0], "least", "most", *titles[1:], *(f"/ {name}" for name in references)]]
    failures = []
    for peer, place in results["cases"][case].items():
        failures += [f"  {peer} failed: {text}" for text in dict.fromkeys(place["failed"])]
        if not place["rounds"]:
            continue
        values = [median(results, case, peer, name) for name, _, _ in columns]
        cells = [
            "-" if value is None else f"{value:{form}}"
            for value, (_, _, form) in zip(values, columns, strict=True)
        ]
        ratios = [ratio(values[0], median(results, case, name, figure)) for name in references]
        rows.append([peer, cells[0], *spread(results, case, peer, figure), *cells[1:], *ratios])
    return "\n".join([table(rows), *failures])


def summary(results: dict[str, Any]) -> str:
    """prefork's ratios, case by case."""
    rows = [["prefork", "", "/ go", "/ floor", "/ best Python peer"]]
    for case in results["cases"]:
        figure, title, form = _COLUMNS[side_of(results).cases[case].kind][0]
        ours = median(results, case, "prefork", figure)
        if ours is not None:
            best = best_python_peer(results, case, figure)
            to_best = f"{ratio(ours, median(results, case, best, figure))} {best}" if best else "-"
            to = [ratio(ours, median(results, case, name, figure)) for name in ("go", "floor")]
            rows.append([case, f"{ours:{form}} {title}", *to, to_best])
    return table(rows) if len(rows) > 1 else ""


def setting(results: dict[str, Any]) -> str:
    """Where, with what and how it was measured, in a few lines."""
    machine, python, versions = results["machine"], results["python"], results["versions"]
    settings, side = results["settings"], side_of(results)
    build = "PGO" if python["optimized"] else "no PGO"
    build += ", LTO" if python["lto"] else ""
    pinned = settings["server_core"] is not None
    measured = {peer.partition("-")[0] for case in results["cases"].values() for peer in case}
    shown = [name for name in versions if name in (measured | side.versions) - {"prefork"}]
    listed = ", ".join(f"{name} {versions[name]}" for name in shown)
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['cores']} cores{', virtual' if machine['virtual'] else ''}, "
            f"{machine['system']}, kernel {machine['kernel']}",
            f"{python['implementation']} {python['version']} ({build}), "
            f"prefork {versions.get('prefork', '')} {python['commit'] or '(no commit)'}, {listed}",
            f"{settings['rounds']} interleaved rounds of {settings['seconds']} s, medians; "
            + (f"{side.pinned}; " if pinned else "NOT PINNED; ")
            + f"{results['started']} to {results['finished'] or 'interrupted'}",
        ]
    )


def disturbance(results: dict[str, Any]) -> str:
    """A warning when other work ran on the two cores; empty when the run was quiet."""
    taken = [
        sample["others"]
        for case in results["cases"].values()
        for place in case.values()
        for sample in place["rounds"]
        if "others" in sample
    ]
    disturbed = sum(others > DISTURBED for others in taken)
    if not disturbed:
        return ""
    return (
        f"DISTURBED: in {disturbed} of {len(taken)} samples other work took more than {DISTURBED:.0%} of one "
        f"of the cores (at most {max(taken):.0%}). That makes requests dearer, unevenly: trust the least "
        "samples more than the medians, or run again when the machine is quiet."
    )


def text(results: dict[str, Any]) -> str:
    """Everything for the terminal."""
    verdicts = judge(results)
    parts = [setting(results), *(case_table(results, case) for case in results["cases"]), summary(results)]
    parts.append(disturbance(results))
    parts += [f"{name} was left out: {why}" for name, why in results.get("missing", {}).items()]
    if verdicts:
        met = sum(verdict.met for verdict in verdicts)
        parts.append("\n".join([f"targets: {met} of {len(verdicts)} met", *map(describe, verdicts)]))
    return "\n\n".join(part for part in parts if part)


def markdown(runs: Sequence[dict[str, Any]], picture: str | None = None) -> str:
    """The README's block: for each run the table of its figures, then where it was measured."""
    parts = []
    if picture:
        parts.append(f"![CPU time per request of prefork and its peers]({picture})")
    for results in runs:
        python = results["python"]
        parts.append(f"**{python['implementation']} {python['version']}**, {side_of(results).figure}")
        parts.append(_markdown_table(results))
        parts.append("<sub>" + "<br>".join(setting(results).splitlines()) + "</sub>")
    return "\n\n".join(parts)


def _markdown_table(results: dict[str, Any]) -> str:
    measured = {peer for case in results["cases"].values() for peer, place in case.items() if place["rounds"]}
    side = side_of(results)
    peers = [name for name in side.peers if name in measured]
    labels = [side.peers[name].label for name in peers]
    rows = [
        [
            "",
            *(
                f"**{label}**" if name == "prefork" else label
                for name, label in zip(peers, labels, strict=True)
            ),
        ]
    ]
    rows.append(["---", *("---:" for _ in peers)])
    for case in results["cases"]:
        kind = side.cases[case].kind
        for figure, title, form in _COLUMNS[kind][: _README_ROWS.get(kind, 1)]:
            plain = side.cases[case].title
            name = plain if kind in ("load", "client") else f"{plain}, {title}"
            rows.append([name, *(_cell(median(results, case, peer, figure), form, peer) for peer in peers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: float | None, form: str, peer: str) -> str:
    if value is None:
        return ""
    if form == ".2f" and value >= 100:
        form = ",.0f"
    shown = f"{value:{form}}"
    return f"**{shown}**" if peer == "prefork" else shown


def split_block(path: Path, side: Side = SERVER) -> tuple[str, str]:
    """What stands before and after a side's marks in a file; raise ValueError when it does not have them."""
    before, begin, rest = path.read_text().partition(side.begin)
    _, end, after = rest.partition(side.end)
    if not begin or not end:
        raise ValueError(f"{path.name} has no block between {side.begin} and {side.end}")
    return before, after


def replace_block(path: Path, lines: Iterable[str], side: Side = SERVER) -> None:
    """Put `lines` between a side's marks in a file."""
    before, after = split_block(path, side)
    path.write_text("\n".join([before + side.begin, "", *lines, "", side.end + after]))
