"""Go's net/http in Python.

Server side: `Handler`, `ServeMux`, `Server`, `ResponseWriter`, `Request`.

    from prefork import http

    mux = http.ServeMux()

    @mux.handle_func("GET /hello/{name}")
    async def hello(w, r):
        w.write("hello " + r.path_value("name"))

    http.listen_and_serve(":8000", mux)

This package is usable in any asyncio program; it knows nothing of master and workers.
"""

from prefork.http.errors import (
    AbortHandler,
    CookieError,
    HTTPError,
    HTTPTimeout,
    LocalProtocolError,
    MaxBytesError,
    PatternConflict,
    PatternError,
    RemoteProtocolError,
    ServerClosed,
    StatusError,
)
from prefork.http.handler import Handler, HandlerFunc
from prefork.http.handlers.blocking import blocking
from prefork.http.handlers.chain import chain
from prefork.http.handlers.max_bytes import max_bytes_handler
from prefork.http.handlers.replies import (
    error,
    not_found,
    not_found_handler,
    redirect,
    redirect_handler,
    set_cookie,
    write_json,
)
from prefork.http.handlers.semicolons import allow_query_semicolons
from prefork.http.handlers.strip_prefix import strip_prefix
from prefork.http.message.body import Body
from prefork.http.message.cookie import Cookie, SameSite, parse_cookie, parse_set_cookie
from prefork.http.message.form import FormError
from prefork.http.message.header import Header, canonical_header_key
from prefork.http.message.httptime import format_time, parse_time
from prefork.http.message.multipart import FileHeader, MultipartForm
from prefork.http.message.request import Notice, Request
from prefork.http.message.sniff import detect_content_type
from prefork.http.message.status import status_text
from prefork.http.message.url import URL, URLError
from prefork.http.server.access import AccessRecord
from prefork.http.server.connection import Connection, ConnState
from prefork.http.server.mux import ServeMux, default_serve_mux, handle, handle_func
from prefork.http.server.response_writer import ResponseWriter
from prefork.http.server.server import Server, listen_and_serve
from prefork.http.server.wrapper import WriterWrapper

__all__ = [
    "URL",
    "AbortHandler",
    "AccessRecord",
    "Body",
    "ConnState",
    "Connection",
    "Cookie",
    "CookieError",
    "FileHeader",
    "FormError",
    "HTTPError",
    "HTTPTimeout",
    "Handler",
    "HandlerFunc",
    "Header",
    "LocalProtocolError",
    "MaxBytesError",
    "MultipartForm",
    "Notice",
    "PatternConflict",
    "PatternError",
    "RemoteProtocolError",
    "Request",
    "ResponseWriter",
    "SameSite",
    "ServeMux",
    "Server",
    "ServerClosed",
    "StatusError",
    "URLError",
    "WriterWrapper",
    "allow_query_semicolons",
    "blocking",
    "canonical_header_key",
    "chain",
    "default_serve_mux",
    "detect_content_type",
    "error",
    "format_time",
    "handle",
    "handle_func",
    "listen_and_serve",
    "max_bytes_handler",
    "not_found",
    "not_found_handler",
    "parse_cookie",
    "parse_set_cookie",
    "parse_time",
    "redirect",
    "redirect_handler",
    "set_cookie",
    "status_text",
    "strip_prefix",
    "write_json",
]
