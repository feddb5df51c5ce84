"""Go's net/http in Python.

Server side: `Handler`, `ServeMux`, `Server`, `ResponseWriter`, `Request`.

    from prefork import http

    mux = http.ServeMux()

    @mux.handle_func("GET /hello/{name}")
    async def hello(w, r):
        w.write("hello " + r.path_value("name"))

    http.listen_and_serve(":8000", mux)

Client side: `Client`, `Transport`, `Request`, `Response`, `CookieJar`.

    async with http.Client(timeout=30) as client:
        response = await client.get("https://example.com/")
        response.raise_for_status().text()

This package is usable in any asyncio program; it knows nothing of master and workers.
"""

from prefork.http import metrics as metrics
from prefork.http.client.call import Call
from prefork.http.client.client import Client, default_client, get, head, post, post_form
from prefork.http.client.file_transport import FileTransport
from prefork.http.client.idle_pool import HostStats
from prefork.http.client.jar import CookieJar, PublicSuffixList, public_suffix_list
from prefork.http.client.proxy import proxy_from_environment, proxy_url
from prefork.http.client.redirect import UseLastResponse, use_last_response
from prefork.http.client.round_tripper import RoundTripper
from prefork.http.client.trace import ClientTrace, GotConnInfo, context_client_trace, with_client_trace
from prefork.http.client.transport import SkipAltProtocol, Transport, TransportStats
from prefork.http.errors import (
    AbortHandler,
    BodyTooLarge,
    ClientTimeout,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    CookieError,
    DecodingError,
    HTTPError,
    HTTPTimeout,
    LocalProtocolError,
    MalformedResponse,
    MaxBytesError,
    PatternConflict,
    PatternError,
    PoolTimeout,
    ProxyError,
    RemoteProtocolError,
    RequestBodyError,
    ResponseHeaderTimeout,
    ResponseStatusError,
    ServerClosed,
    ServerClosedIdle,
    StatusError,
    TLSError,
    TLSTimeout,
    TooManyRedirects,
    TransportError,
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
from prefork.http.message.response import NoLocation, Response
from prefork.http.message.response_body import ResponseBody
from prefork.http.message.sniff import detect_content_type
from prefork.http.message.status import status_text
from prefork.http.message.url import URL, URLError
from prefork.http.server.access import AccessRecord
from prefork.http.server.connection import Connection, ConnState
from prefork.http.server.mux import ServeMux, default_serve_mux, handle, handle_func
from prefork.http.server.response_writer import ResponseWriter
from prefork.http.server.server import Server, listen_and_serve
from prefork.http.server.wrapper import WriterWrapper
from prefork.http.tls import client_context

__all__ = [
    "URL",
    "AbortHandler",
    "AccessRecord",
    "Body",
    "BodyTooLarge",
    "Call",
    "Client",
    "ClientTimeout",
    "ClientTrace",
    "ConnState",
    "ConnectError",
    "ConnectTimeout",
    "Connection",
    "ConnectionLost",
    "Cookie",
    "CookieError",
    "CookieJar",
    "DecodingError",
    "FileHeader",
    "FileTransport",
    "FormError",
    "GotConnInfo",
    "HTTPError",
    "HTTPTimeout",
    "Handler",
    "HandlerFunc",
    "Header",
    "HostStats",
    "LocalProtocolError",
    "MalformedResponse",
    "MaxBytesError",
    "MultipartForm",
    "NoLocation",
    "Notice",
    "PatternConflict",
    "PatternError",
    "PoolTimeout",
    "ProxyError",
    "PublicSuffixList",
    "RemoteProtocolError",
    "Request",
    "RequestBodyError",
    "Response",
    "ResponseBody",
    "ResponseHeaderTimeout",
    "ResponseStatusError",
    "ResponseWriter",
    "RoundTripper",
    "SameSite",
    "ServeMux",
    "Server",
    "ServerClosed",
    "ServerClosedIdle",
    "SkipAltProtocol",
    "StatusError",
    "TLSError",
    "TLSTimeout",
    "TooManyRedirects",
    "Transport",
    "TransportError",
    "TransportStats",
    "URLError",
    "UseLastResponse",
    "WriterWrapper",
    "allow_query_semicolons",
    "blocking",
    "canonical_header_key",
    "chain",
    "client_context",
    "context_client_trace",
    "default_client",
    "default_serve_mux",
    "detect_content_type",
    "error",
    "format_time",
    "get",
    "handle",
    "handle_func",
    "head",
    "listen_and_serve",
    "max_bytes_handler",
    "not_found",
    "not_found_handler",
    "parse_cookie",
    "parse_set_cookie",
    "parse_time",
    "post",
    "post_form",
    "proxy_from_environment",
    "proxy_url",
    "public_suffix_list",
    "redirect",
    "redirect_handler",
    "set_cookie",
    "status_text",
    "strip_prefix",
    "use_last_response",
    "with_client_trace",
    "write_json",
]
