"""A run's result as a picture: one panel of bars per case, as SVG written by hand."""

from __future__ import annotations

from html import escape
from typing import Any

from .sides import side_of
from .targets import median

_COLUMNS, _WIDTH, _BAR, _GAP = 3, 320, 17, 26
_LABEL, _VALUE = 132, 52
_FAR = 20
"""Bars of more than so many times the least are cut, so that the others can be told apart."""
_COLOURS = {"prefork": "#d9480f", "go": "#0b7a99", "nginx": "#2b8a3e", "floor": "#adb5bd", "bare": "#ced4da"}
_OTHER = "#748ffc"
_SHORT = {
    "uvloop+httptools floor": "uvloop+httptools",
    "uvicorn (bare ASGI)": "uvicorn",
    "granian (RSGI)": "granian",
}
_FIGURES = {
    "load": ("cpu_us", "CPU µs per request"),
    "idle": ("kib_per_connection", "KiB per connection"),
    "client": ("cpu_us", "CPU µs per request"),
    "latency": ("p50_us", "median latency in µs"),
    "download": ("cpu_ms", "CPU ms per download"),
}


def svg(results: dict[str, Any]) -> str:
    """The picture of all cases in which requests or connections are compared; shorter bars are better."""
    cases = side_of(results).cases
    panels = [
        panel
        for case in results["cases"]
        if cases[case].kind in _FIGURES
        if (panel := _bars(results, case, *_FIGURES[cases[case].kind]))
    ]
    rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    python = results["python"]
    title = f"{python['implementation']} {python['version']}, one core, medians; shorter is better"
    body, top = [], 44
    for row in rows:
        for column, (lines, _) in enumerate(row):
            body.append(f'<g transform="translate({16 + column * (_WIDTH + _GAP)},{top})">')
            body += lines
            body.append("</g>")
        top += max(height for _, height in row) + _GAP
    columns = min(_COLUMNS, max(1, len(panels)))
    width = 32 + columns * _WIDTH + (columns - 1) * _GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" '
            f'viewBox="0 0 {width} {top}" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
            f"<title>prefork and its peers: {escape(title)}</title>",
            # A background of its own: the picture is looked at on light and on dark pages.
            f'<rect width="{width}" height="{top}" rx="8" fill="#ffffff"/>',
            f'<text x="16" y="27" font-size="14" fill="#495057">{escape(title)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )


def _bars(results: dict[str, Any], case: str, figure: str, unit: str) -> tuple[list[str], int] | None:
    """The lines and the height of one panel; None when nothing was measured."""
    side = side_of(results)
    found = [
        (value, peer) for peer in side.peers if (value := median(results, case, peer, figure)) is not None
    ]
    if not found:
        return None
    found.sort()
    least = min(value for value, _ in found)
    longest = max(value for value, _ in found if value <= least * _FAR) or 1
    scale = (_WIDTH - _LABEL - _VALUE) / longest
    name = side.cases[case].title.replace("`", "")
    lines = [
        f'<text y="12" font-size="13" font-weight="600" fill="#212529">{escape(name)}</text>',
        f'<text y="27" font-size="11" fill="#868e96">{escape(unit)}</text>',
    ]
    top = 36
    for value, peer in found:
        ours = peer == "prefork"
        middle = top + _BAR - 5
        weight = ' font-weight="700"' if ours else ""
        length = max(1.0, min(value, longest) * scale)
        label = side.peers[peer].label
        lines += [
            f'<text x="{_LABEL - 8}" y="{middle}" font-size="12" text-anchor="end"{weight} fill="#343a40">'
            f"{escape(_SHORT.get(label, label))}</text>",
            f'<rect x="{_LABEL}" y="{top}" width="{length:.1f}" height="{_BAR - 3}" rx="2" '
            f'fill="{_COLOURS.get(peer, _OTHER)}"/>',
            f'<text x="{_LABEL + length + 5:.1f}" y="{middle}" font-size="12"{weight} fill="#343a40">'
            f"{_number(value)}</text>",
        ]
        if value > longest:
            x, bottom = _LABEL + length - 22, top + _BAR - 2
            lines.append(f'<path d="M{x} {bottom}l6 {-_BAR}h5l-6 {_BAR}z" fill="#ffffff"/>')
        top += _BAR + 2
    return lines, top


def _number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
