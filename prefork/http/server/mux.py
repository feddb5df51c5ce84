"""ServeMux: sends each request to the handler whose pattern matches it best (Go: ServeMux).

What a request goes through, in this order:

  1. `*` as the target (and not answered by the server itself) is a bad request.
  2. The path is made canonical; where that changes it, the client is redirected. The path of
     CONNECT is left alone, and its host keeps its port.
  3. Patterns with the request's host are asked first, then those without one. Of the patterns
     that match, the most specific one wins: see pattern.py and routing.py.
  4. Where `/p` finds nothing, or only a subtree further up, and `/p/` would be matched exactly,
     the client is redirected there. This and 2 are one redirect, 307, so that a POST stays a POST.
  5. Where only the method is wrong: 405 and Allow. Else 404.

Law: the hot path of `serve_http` is a shortcut, never a different answer. It takes a request
only when 1 to 5 would end in the same route: a plain path (as received, no `%`) that is spelled
by a pattern without wildcards, in a mux that has no host patterns. Everything else takes the
long way.
"""

from __future__ import annotations

import re
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar, overload

from prefork.http.errors import PatternConflict, PatternError
from prefork.http.handler import as_callable
from prefork.http.handlers import replies
from prefork.http.message.query import quoted
from prefork.http.message.url import clean_path
from prefork.http.server.pattern import conflicts, describe_conflict, parse_pattern
from prefork.http.server.routing import Route, RoutingTree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Final

    from prefork.http.handler import HandlerCallable, HandlerLike
    from prefork.http.message.request import Request
    from prefork.http.server.pattern import Pattern
    from prefork.http.server.response_writer import ResponseWriter
    from prefork.http.server.routing import Call

    F = TypeVar("F", bound=HandlerCallable)

__all__ = ["Route", "ServeMux", "default_serve_mux", "handle", "handle_func"]

_TEMPORARY_REDIRECT: Final = 307
_METHOD_NOT_ALLOWED: Final = 405
_BAD_REQUEST: Final = 400


class ServeMux:
    """A request multiplexer (Go: ServeMux). It is a Handler; so muxes can be nested.

    A pattern is `[METHOD ][HOST]/[PATH]`:

        "/items/list"            this path, any method, any host
        "GET /items/{id}"        GET and HEAD; `r.path_value("id")` is one segment, decoded
        "/files/{path...}"       the rest of the path, may be empty and hold slashes
        "/static/"               the whole subtree; `/static` is redirected to it
        "/{$}"                   the path `/` alone
        "example.com/"           requests for this host (without port, compared exactly)

    The most specific pattern wins, in whatever order they were registered; a pattern with a
    host beats one without. Two patterns of which neither is more specific cannot both be
    registered.

    Registering is safe at any time from any thread, also while requests are being served; a
    pattern that is refused leaves the mux as it was. Nothing can be removed.

    *Raises*: PatternError for a pattern that cannot be parsed, PatternConflict (its text names
    both registrations with file and line), TypeError for a handler that is none.

        mux = http.ServeMux()

        @mux.handle_func("GET /items/{id}")
        async def item(w, r):
            await w.write(r.path_value("id"))

        mux.handle("/admin/", admin_mux)
    """

    __slots__ = ("_any_host", "_hosts", "_literals", "_lock", "_routes")

    def __init__(self) -> None:
        self._any_host = RoutingTree()
        self._hosts: dict[str, RoutingTree] = {}
        # What the hot path looks into; empty as soon as there is a pattern with a host.
        self._literals = self._any_host.literals
        self._routes: list[Route] = []
        self._lock = threading.Lock()

    def serve_http(self, w: ResponseWriter, r: Request) -> Awaitable[None] | None:
        """Find the handler and return what `handler(w, r)` returns.

        Sets `r.pattern` and the values that `r.path_value` gives; those that an outer mux
        set are replaced.
        """
        table = self._literals.get(r._plain_path)
        if table is not None:
            route = table.get(r.method)
            if route is not None:
                r.pattern = route.pattern
                r._path_values = None
                return route.call(w, r)
        return self._serve(w, r)

    def _serve(self, w: ResponseWriter, r: Request) -> Awaitable[None] | None:
        path = r._plain_path
        method = r.method
        if path is None:
            if r.request_uri == "*":
                _refuse_asterisk(w, r)
                return None
            path = _plain_path(r)
        # Clean, not decoded and not CONNECT: then nothing but the method can keep the path
        # from being matched as it is. "/." is in every path with a dot segment.
        if path is not None and "//" not in path and "/." not in path and method != "CONNECT":
            route = self._take(r, path, method) if self._hosts else self._any_host.take(r, path, method)
            if route is not None:
                return route.call(w, r)
        answer, r.pattern, r._path_values = self._resolve(r)
        call = answer.call if isinstance(answer, Route) else answer
        return call(w, r)

    def _take(self, r: Request, path: str, method: str) -> Route | None:
        """Do as RoutingTree.take, in a mux that has patterns with hosts."""
        tree = self._hosts.get(_strip_port(r.host))
        if tree is None:
            return self._any_host.take(r, path, method)
        route = tree.take(r, path, method)
        if route is None and tree.find(path, method) is None:
            # The host's patterns leave it to the others; but they may still match the path
            # with a slash behind, and come first again, where the others have no exact match.
            route = self._any_host.take(r, path, method)
            if route is not None and not route.is_exact(path):
                return None
        return route

    def handler(self, r: Request) -> tuple[HandlerLike, str]:
        """Return the handler for `r` and the pattern that matches it; runs and changes nothing.

        Never None: a request to be redirected gets a handler that does it, with the pattern
        that will match then ("" if none will); one that matches nothing gets a handler that
        answers 404 or 405, with "".
        """
        answer, pattern, _ = self._resolve(r)
        return answer.handler if isinstance(answer, Route) else answer, pattern

    def routes(self) -> list[Route]:
        """Return every registration, in order: pattern, handler, handler_name, location."""
        return list(self._routes)

    def _resolve(self, r: Request) -> tuple[Route | Call, str, dict[str, str] | None]:
        """Do the whole of what this module's docstring lists, but 1.

        Returns the route, or what answers in its place; the pattern; the path values.
        """
        url, method = r.url, r.method
        escaped = url.escaped_path()
        if method == "CONNECT":
            host, path = url.host, escaped
        else:
            host, path = _strip_port(r.host), clean_path(escaped)
        found = self._find(host, path, method)
        slashed = self._find_slashed(host, path, method, found)
        if slashed is not None:
            return _Redirect(path + "/", url.raw_query), slashed.pattern, None
        if path != escaped:
            return _Redirect(path, url.raw_query), found[0].pattern if found else "", None
        if method == "CONNECT":
            found = self._find(r.host, path, method)
        if found is None:
            return self._nothing(host, path), "", None
        route, values = found
        return route, route.pattern, dict(zip(route.names, values, strict=True))

    def _find(self, host: str, path: str, method: str) -> tuple[Route, list[str]] | None:
        if path[:1] != "/":  # only CONNECT's can be that: `CONNECT host:port` has no path
            return None
        tree = self._hosts.get(host) if host else None
        found = tree.find(path, method) if tree is not None else None
        return found or self._any_host.find(path, method)

    def _find_slashed(
        self, host: str, path: str, method: str, found: tuple[Route, list[str]] | None
    ) -> Route | None:
        """Return the route that matches `path + "/"` exactly where `path` itself has none."""
        if path[-1:] in ("", "/") or (found is not None and found[0].is_exact(path)):
            return None
        path += "/"
        slashed = self._find(host, path, method)
        return slashed[0] if slashed is not None and slashed[0].is_exact(path) else None

    def _nothing(self, host: str, path: str) -> Call:
        paths = [path] if path[-1:] == "/" else [path, path + "/"]
        trees = [self._any_host]
        if host and host in self._hosts:
            trees.append(self._hosts[host])
        allowed: set[str] = set()
        if path[:1] == "/":
            allowed.update(*(tree.methods(path) for tree in trees for path in paths))
        return _MethodNotAllowed(sorted(allowed)) if allowed else replies.not_found

    def handle(self, pattern: str, handler: HandlerLike) -> None:
        """Register `handler` for `pattern`. Raises as the class says."""
        self._register(parse_pattern(pattern), handler, _caller())

    @overload
    def handle_func(self, pattern: str) -> Callable[[F], F]: ...
    @overload
    def handle_func(self, pattern: str, f: HandlerCallable) -> None: ...
    def handle_func(self, pattern: str, f: Any = ...) -> Any:
        """Register the function `f` for `pattern`; without `f`, a decorator that does.

        The decorator returns the function unchanged.
        """
        parsed, location = parse_pattern(pattern), _caller()
        if f is not ...:  # not None: that is a mistake to be told of
            return self._register(parsed, f, location)

        def register(f: F) -> F:
            self._register(parsed, f, location)
            return f

        return register

    def _register(self, pattern: Pattern, handler: HandlerLike, location: str) -> None:
        if handler is None:
            raise PatternError("http: nil handler")
        route = Route(pattern, handler, as_callable(handler), location)
        with self._lock:
            tree = self._any_host
            if pattern.host:
                tree = self._hosts.get(pattern.host) or RoutingTree()
            for known in tree.overlapping(pattern):
                if conflicts(pattern, known.parsed):
                    raise PatternConflict(
                        f"pattern {quoted(pattern.text)} (registered at {location}) conflicts with "
                        f"pattern {quoted(known.pattern)} (registered at {known.location}):\n"
                        f"{describe_conflict(pattern, known.parsed)}"
                    )
            tree.insert(route)
            self._routes.append(route)
            if pattern.host and pattern.host not in self._hosts:
                self._literals = {}
                self._hosts[pattern.host] = tree

    def __repr__(self) -> str:
        hosts = f", {len(self._hosts)} hosts" if self._hosts else ""
        return f"<ServeMux {len(self._routes)} routes{hosts}>"


class _Redirect:
    """Answers 307 with `path` and the request's query; what `ServeMux.handler` shows for one."""

    __slots__ = ("_target",)

    def __init__(self, path: str, raw_query: str) -> None:
        self._target = f"{path}?{raw_query}" if raw_query else path

    def serve_http(self, w: ResponseWriter, r: Request, /) -> Awaitable[None] | None:
        return replies.redirect(w, r, self._target, _TEMPORARY_REDIRECT)

    __call__ = serve_http

    def __repr__(self) -> str:
        return f"<redirect to {self._target}>"


class _MethodNotAllowed:
    """Answers 405 and says which methods there are (RFC 9110 section 15.5.6)."""

    __slots__ = ("_allow",)

    def __init__(self, methods: list[str]) -> None:
        self._allow = ", ".join(methods)

    def serve_http(self, w: ResponseWriter, r: Request, /) -> Awaitable[None] | None:
        w.header["Allow"] = self._allow
        return replies.error(w, "Method Not Allowed", _METHOD_NOT_ALLOWED)

    __call__ = serve_http

    def __repr__(self) -> str:
        return f"<405, allowed: {self._allow}>"


def _refuse_asterisk(w: ResponseWriter, r: Request) -> None:
    # `*` asks about the server as a whole, and only OPTIONS may (RFC 9112 section 3.2.4). What
    # comes here with it was not for handlers; the sender had better start anew.
    if r.proto_at_least(1, 1):
        w.header["Connection"] = "close"
    w.write_header(_BAD_REQUEST)


def _plain_path(r: Request) -> str | None:
    """Return the request's path if it travels unescaped, else None.

    For requests whose URL has been looked at, so that it may have been changed as well.
    """
    url = r.url
    path = url.path
    return path if not url.raw_path and "%" not in path and path[:1] == "/" else None


_HOST_PORT = re.compile(r"([^:\[\]]*):[^:\[\]]*|\[([^\[\]]*)\]:[^:\[\]]*")


def _strip_port(host: str) -> str:
    """Return `host` without its port, and then without brackets; unchanged where that is unclear."""
    if ":" not in host:
        return host
    match = _HOST_PORT.fullmatch(host)
    return host if match is None else match[1] or match[2] or ""


def _caller() -> str:
    """Return `file:line` of the nearest frame outside this module."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


default_serve_mux = ServeMux()
"""The mux that a Server without a handler uses (Go: DefaultServeMux)."""


def handle(pattern: str, handler: HandlerLike) -> None:
    """Register `handler` for `pattern` in `default_serve_mux` (Go: http.Handle)."""
    default_serve_mux.handle(pattern, handler)


@overload
def handle_func(pattern: str) -> Callable[[F], F]: ...
@overload
def handle_func(pattern: str, f: HandlerCallable) -> None: ...
def handle_func(pattern: str, f: Any = ...) -> Any:
    """Register the function `f` for `pattern` in `default_serve_mux`, or decorate it.

    @http.handle_func("/ping")
    def ping(w, r):
        w.write(b"pong")
    """
    return default_serve_mux.handle_func(pattern, f)
