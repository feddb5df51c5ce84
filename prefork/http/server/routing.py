"""The routing tree: from path and method to the most specific pattern.

One tree holds the patterns of one host (or those without a host). Each edge is a segment, so a
look-up costs by the length of the path and not by the number of routes. At a node there are
three ways on, in this order: the literal equal to the segment, the single wildcard, and the
multi that takes the rest. That order is precedence: what a literal leads to is more specific
than what a wildcard leads to. When a way turns out to be blind, the search backs up. With

    /a/{x}/c      /a/b/{y}      /{z...}

the path /a/b/d tries a, b, {y}: found. /a/b/c/e tries a, b, then a, {x}, c, and ends up in
{z...}. A node is visited at most once per look-up, as its depth fixes where in the path it is.

Methods come last: the place where a pattern ends has a table from method to route, with GET
entered for HEAD and a route without method entered for every common method. The first place
on the way that knows the method is the most specific one that does, since two patterns that
match the same request are never incomparable (see pattern.py).

Three shortcuts stand in front of the search (`find`). Each is taken only where it gives what the
search would give, and only for a path that is clean and plain: as received, without `%`, so that
it is neither redirected nor decoded to something else.

`literals` maps whole paths to method tables, for patterns without wildcards: `/a/b`, `/a/{$}`, and
`/a/`, which matches the path `/a/` exactly. The law for an entry (path P, method M): its route
is the one whose pattern spells P. Whatever is more specific and matches P would have to spell P
too, and then it is in the same table; whatever else matches P is more general, its method
included, or it was refused as a conflict.

`one_wild` does the same for patterns whose one wildcard is the last segment, `/a/{id}`: it maps
what stands before. What is more specific than that and matches a path spells it, so it is in
`literals`, which are asked first.

`take` then walks greedily, without remembering where it could back up. If it meets no dead end it
has taken the first way at every node, as the search does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.http.message.url import clean_path
from prefork.http.server.pattern import SLASH, Segment, decode_segment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from prefork.http.handler import HandlerLike
    from prefork.http.message.request import Request
    from prefork.http.server.pattern import Pattern
    from prefork.http.server.response_writer import ResponseWriter

    Call = Callable[[ResponseWriter, Request], Awaitable[None] | None]

COMMON_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
"""Methods under which a route without method is entered; every other one is looked up as ""."""


class Route:
    """One registration in a ServeMux.

    pattern: as written. handler: as given. location: `file:line` of the registering call.
    """

    __slots__ = ("call", "handler", "location", "names", "parsed", "pattern", "records_rest")

    def __init__(self, parsed: Pattern, handler: HandlerLike, call: Call, location: str) -> None:
        self.parsed = parsed
        self.pattern = parsed.text
        self.handler = handler
        self.call = call
        self.location = location
        self.names = parsed.names
        last = parsed.segments[-1]
        # An anonymous multi, the trailing slash, records no value.
        self.records_rest = last.multi and last.text != ""

    @property
    def handler_name(self) -> str:
        """The handler as a reader of the program knows it: `module.function`, `module.Class`."""
        named = self.handler
        if not hasattr(named, "__qualname__"):
            if type(named).__repr__ is not object.__repr__:
                return repr(named)
            named = type(named)
        return f"{named.__module__}.{named.__qualname__}"

    def is_exact(self, path: str) -> bool:
        """Whether this route matches `path` (which it does) without a multi taking anything.

        `/a/` and `/a/{rest...}` match `/a/` exactly, and `/a/b` not.
        """
        segments = self.parsed.segments
        if not segments[-1].multi:
            return True
        return path[-1:] == "/" and path.count("/") == len(segments)

    def __repr__(self) -> str:
        return f"<Route {self.pattern!r} {self.handler_name} {self.location}>"


MethodTable = dict[str, Route]
"""Method to route. "" is the route for every method that is not in the table."""


# `/a/` split at its slashes ends in "": that edge leads to what `{$}` matches.
_TRAILING = Segment("")
# What a single wildcard does not take.
_NAMELESS = ("", SLASH)


class _Node:
    """A place in the tree. ends: routes that end here. multi: routes whose multi stands here.

    Tables are never changed, only replaced, so that a look-up in another thread sees either
    the old or the new one.
    """

    __slots__ = ("depth", "ends", "literals", "multi", "wild")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.literals: dict[str, _Node] = {}
        self.wild: _Node | None = None
        self.multi: MethodTable = {}
        self.ends: MethodTable = {}

    def child(self, segment: Segment) -> _Node:
        """The node that `segment` leads to, made if need be."""
        if segment.wild:
            if self.wild is None:
                self.wild = _Node(self.depth + 1)
            return self.wild
        found = self.literals.get(segment.text)
        if found is None:
            found = self.literals[segment.text] = _Node(self.depth + 1)
        return found

    def below(self) -> Iterator[Route]:
        """Every route further down, and those whose multi stands here."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield from dict.fromkeys(node.multi.values())
            for child in _children(node):
                yield from dict.fromkeys(child.ends.values())
                pending.append(child)


def _children(node: _Node) -> list[_Node]:
    children = list(node.literals.values())
    if node.wild is not None:
        children.append(node.wild)
    return children


def _with_route(table: MethodTable, route: Route) -> MethodTable:
    """Return a copy of `table` with `route` under its method and those it stands in for."""
    explicit = {known.parsed.method: known for known in table.values()}
    explicit[route.parsed.method] = route
    new: MethodTable = {}
    if (catch_all := explicit.get("")) is not None:
        new.update(dict.fromkeys(COMMON_METHODS, catch_all))
    if "GET" in explicit:
        new["HEAD"] = explicit["GET"]
    new.update(explicit)
    return new


class RoutingTree:
    """The patterns of one host. Look-ups need no lock; insertions must not run concurrently.

    literals, one_wild: see the module's docstring; ServeMux looks into `literals` itself.
    """

    __slots__ = ("_depth", "_top", "literals", "one_wild")

    def __init__(self) -> None:
        # A path is split at its slashes, and the nothing before the first one leads from the
        # top to the root. That saves cutting it off on every look-up.
        self._top = _Node(0)
        self._top.literals[""] = _Node(1)
        # Paths are split no further than the tree is deep, whatever a client sends. A look-up in
        # another thread may hold the old number while a deeper pattern goes in, so it starts
        # out larger than patterns are.
        self._depth = 64
        self.literals: dict[str | None, MethodTable] = {}
        self.one_wild: dict[str, MethodTable] = {}

    def insert(self, route: Route) -> None:
        """Add `route`, which must not conflict with another one (see `overlapping`)."""
        segments = _edges(route.parsed)
        node = self._top.literals[""]
        self._depth = max(self._depth, len(segments) + 1)
        for segment in segments[:-1]:
            node = node.child(segment)
        if segments[-1].multi:
            node.multi = _with_route(node.multi, route)
        else:
            node = node.child(segments[-1])
            node.ends = _with_route(node.ends, route)
        self._refresh_shortcuts(segments)

    def _refresh_shortcuts(self, segments: Sequence[Segment]) -> None:
        """Bring the entry of `literals` or `one_wild` that `segments` belong to up to date."""
        last = segments[-1]
        if any(s.wild or "/" in s.text for s in segments[:-1]):
            return
        head = "".join(f"/{s.text}" for s in segments[:-1])
        if clean_path(head + "/x") != head + "/x" or "%" in head:
            return
        node = self._top.literals[""]
        for segment in segments[:-1]:
            node = node.literals[segment.text]
        if last.multi:
            # `/a/{rest...}` may stand beside `/a/` and `/a/{$}`, by method.
            last = _TRAILING
        elif last.wild:
            assert node.wild is not None  # `insert` has just made it
            self.one_wild[head] = node.wild.ends
            return
        path = f"{head}/{last.text}"
        if clean_path(path) != path or "%" in path or path.count("/") != len(segments):
            return
        table: MethodTable = {}
        if not last.text:
            # A multi with a name has a value to record, so it is left to the search.
            table = {method: r for method, r in node.multi.items() if not r.records_rest}
        end = node.literals.get(last.text)
        if end is not None:
            # `{$}` is more specific than the subtree, method by method.
            table = {**table, **end.ends} if table else end.ends
        if table:
            self.literals[path] = table

    def take(self, r: Request, path: str, method: str) -> Route | None:
        """Find the route of a request with a clean plain path by the three shortcuts.

        Sets the request's pattern and path values. None tells nothing but that it takes a
        search. What is found is never to be redirected to the path with a slash appended: if a
        multi took a name, there was no node for that name, so nothing in this tree that matches
        it and a slash exactly.
        """
        table = self.literals.get(path)
        if table is not None and (route := table.get(method)) is not None:
            r.pattern = route.pattern
            r._path_values = None
            return route
        head, _, name = path.rpartition("/")
        table = self.one_wild.get(head)
        if table is not None and name and (route := table.get(method)) is not None:
            r.pattern = route.pattern
            r._path_values = {route.names[0]: name}
            return route
        node = self._top
        values: list[str] = []
        for segment in path.split("/", self._depth):
            following = node.literals.get(segment)
            if following is None:
                following = node.wild
                if following is None or not segment:
                    route = node.multi.get(method) or node.multi.get("")
                    if route is None:
                        return None
                    if route.records_rest:
                        values.append(path.split("/", node.depth)[node.depth])
                    break
                values.append(segment)
            node = following
        else:
            route = node.ends.get(method) or node.ends.get("")
            if route is None:
                return None
        r.pattern = route.pattern
        names = route.names
        count = len(values)
        # Written out because dict(zip(...)) takes as long as all the rest of this.
        if count == 1:
            r._path_values = {names[0]: values[0]}
        elif count == 2:
            r._path_values = {names[0]: values[0], names[1]: values[1]}
        elif count == 3:
            r._path_values = {names[0]: values[0], names[1]: values[1], names[2]: values[2]}
        else:
            r._path_values = dict(zip(names, values, strict=True)) if values else None
        return route

    def find(self, path: str, method: str) -> tuple[Route, list[str]] | None:
        """Find the most specific route for an encoded path that begins with a slash.

        Returns the route and the decoded values of its wildcards, or None.
        """
        segments = _split(path)

        def visit(node: _Node, at: int, values: list[str]) -> tuple[Route, list[str]] | None:
            if at == len(segments):
                route = node.ends.get(method) or node.ends.get("")
                return None if route is None else (route, values)
            segment = segments[at]
            found = None
            if (following := node.literals.get(segment)) is not None:
                found = visit(following, at + 1, values)
            if found is None and node.wild is not None and segment not in _NAMELESS:
                found = visit(node.wild, at + 1, [*values, segment])
            if found is None:
                route = node.multi.get(method) or node.multi.get("")
                if route is not None:
                    found = (route, [*values, _rest(path, at)] if route.records_rest else values)
            return found

        return visit(self._top, 0, [])

    def methods(self, path: str) -> set[str]:
        """Return the methods that patterns with a method answer at `path`: HEAD where GET is."""
        segments = _split(path)
        found: set[str] = set()

        def collect(table: MethodTable) -> None:
            found.update(route.parsed.method for route in table.values())

        def visit(node: _Node, at: int) -> None:
            if at == len(segments):
                collect(node.ends)
                return
            segment = segments[at]
            if (following := node.literals.get(segment)) is not None:
                visit(following, at + 1)
            if node.wild is not None and segment not in _NAMELESS:
                visit(node.wild, at + 1)
            collect(node.multi)

        visit(self._top, 0)
        found.discard("")
        if "GET" in found:
            found.add("HEAD")
        return found

    def overlapping(self, pattern: Pattern) -> Iterator[Route]:
        """Yield the routes that match some path which `pattern` matches too."""
        segments = _edges(pattern)

        def visit(node: _Node, at: int) -> Iterator[Route]:
            if at == len(segments):
                yield from dict.fromkeys(node.ends.values())
                return
            segment = segments[at]
            if segment.multi:
                yield from node.below()
                return
            yield from dict.fromkeys(node.multi.values())
            if segment.wild:
                # There may be thousands of literals here, and thousands of patterns with a
                # wildcard here to come: look one segment ahead before going in.
                ahead = segments[at + 1] if at + 1 < len(segments) else None
                name = None if ahead is None or ahead.wild else ahead.text
                for text, child in node.literals.items():
                    goes_on = name is None or name in child.literals or child.wild or child.multi
                    if goes_on and text not in _NAMELESS:
                        yield from visit(child, at + 1)
            elif (following := node.literals.get(segment.text)) is not None:
                yield from visit(following, at + 1)
            if node.wild is not None and (segment.wild or segment.text not in _NAMELESS):
                yield from visit(node.wild, at + 1)

        return visit(self._top.literals[""], 0)


def _edges(pattern: Pattern) -> Sequence[Segment]:
    """The segments of `pattern` as they lead through the tree."""
    segments = pattern.segments
    return (*segments[:-1], _TRAILING) if segments[-1] == Segment(SLASH) else segments


def _split(path: str) -> list[str]:
    """The decoded segments of a path, with the nothing before its first slash.

    A lone `%2F` at the end counts as a trailing slash, see pattern.py.
    """
    segments = [decode_segment(segment) for segment in path.split("/")]
    if segments[-1] == SLASH:
        segments[-1] = ""
    return segments


def _rest(path: str, depth: int) -> str:
    """What a multi at `depth` takes of a path: may be empty and may hold slashes."""
    return decode_segment(path.split("/", depth)[depth])
