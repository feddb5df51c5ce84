"""TLS of the client: contexts, what they trust, and what a failed handshake means.

`client_context()` makes the context that a Transport uses when it is given none: certificates
are checked against the authorities of this machine and against the name of the server, TLS 1.2
is the least. Where the machine has no authorities (a bare container, a Python built for another
system), those of `certifi` are taken, else what `truststore` finds.

Making a context reads all authorities, some 25 ms: make one and keep it.
"""

from __future__ import annotations

import os
import re
import ssl
from typing import TYPE_CHECKING, Any

from prefork.http.errors import TLSError
from prefork.http.message.query import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_is_hashed_name = re.compile(r"[0-9a-fA-F]{8}\.[0-9]+").fullmatch  # as c_rehash(1) names certificates


def client_context(
    *,
    ca_file: str | os.PathLike[str] | None = None,
    cert_file: str | os.PathLike[str] | None = None,
    key_file: str | os.PathLike[str] | None = None,
    password: str | Callable[[], str] | None = None,
    alpn: Sequence[str] = ("http/1.1",),
) -> ssl.SSLContext:
    """A context for connecting to servers, for the `tls_config` of a Transport.

    ca_file: PEM file of the authorities to trust instead of this machine's. cert_file: PEM file
    of the client's certificate and its chain, with the private key unless key_file has that;
    password: of the key. alpn: the protocols to offer, the preferred one first; none when empty.

    Raises OSError for a file that cannot be read or loaded, TLSError when there is nobody to trust.

        transport = http.Transport(tls_config=client_context(ca_file="corp.pem", cert_file="me.pem"))
    """
    if ca_file is not None:
        context = _new_context()
        context.load_verify_locations(cafile=ca_file)
    else:
        context = _system_context()
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file, password)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _new_context(kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    context = kind(ssl.PROTOCOL_TLS_CLIENT)  # checks certificates and host names
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As Go: who is trusted by name needs no issuer that is trusted, too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _system_context() -> ssl.SSLContext:
    context = _new_context()
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if _trusts_anybody(context):
        return context
    try:
        import certifi
    except ImportError:
        pass
    else:
        context.load_verify_locations(cafile=certifi.where())
        return context
    try:
        import truststore
    except ImportError:
        raise TLSError(
            "this machine has no certificate authorities to trust: install its package "
            "ca-certificates, or: pip install certifi",
            retryable=False,
        ) from None
    return _new_context(truststore.SSLContext)


def _trusts_anybody(context: ssl.SSLContext) -> bool:
    if context.cert_store_stats()["x509"]:
        return True
    # Those of a folder are read when they are needed, and not counted before.
    paths = ssl.get_default_verify_paths()
    for folder in os.environ.get(paths.openssl_capath_env, paths.openssl_capath).split(os.pathsep):
        try:
            if any(map(_is_hashed_name, os.listdir(folder))):
                return True
        except OSError:
            pass
    return False


class NotTLSError(ssl.SSLError):
    """The peer does not speak TLS."""


class PlainHTTPError(NotTLSError):
    """The peer answered the first message of TLS with a response of HTTP."""


def spoke_first(data: bytes) -> NotTLSError:
    """The error for a server that has sent `data` before there was a handshake."""
    return (PlainHTTPError if data.startswith(b"HTTP/") else NotTLSError)(0, "the server spoke first")


class HandshakeContext(ssl.SSLContext):
    """Another context, for handshakes that tell an answer in plain HTTP from other faults.

    Everything is done by the other context, which is not changed and may be shared; loops are
    given this one, because they ask for an SSLContext.
    """

    _context: ssl.SSLContext

    def __new__(cls, context: ssl.SSLContext) -> HandshakeContext:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        self._context = context
        return self

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        wrapped = self._context.wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        do_handshake = wrapped.do_handshake

        def watched() -> None:
            try:
                do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                # The first five bytes ("HTTP/") are gone: OpenSSL took them for a record's header.
                if re.match(rb"1\.[01] [0-9]{3}\b", incoming.read(9)):
                    raise PlainHTTPError(error.errno, "plain HTTP") from error
                raise
            del wrapped.do_handshake  # it has done its work, and is a cycle

        wrapped.do_handshake = watched  # type: ignore[method-assign]
        return wrapped


_ADVICE = {
    "unknown": "if it is an authority of your own, trust it in the SSLContext given as tls_config "
    "(client_context(ca_file=...))",
    "client": "the server wants another client certificate, or any: load one into the SSLContext given as "
    "tls_config (client_context(cert_file=...))",
    "version": "TLS 1.2 is the least that is spoken here",
}
# Numbers of OpenSSL's x509_vfy.h.
_UNTRUSTED = frozenset({2, 18, 19, 20, 21, 27})
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_HOST = frozenset({62, 64})
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
)
_alert = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_ALERT_(\w+)").fullmatch


def handshake_error(error: Exception, host: str, addr: str) -> TLSError:
    """What the error of a handshake with the server `host` at `addr` means, and what helps."""
    return TLSError(_explain(error, host), addr=addr)


def _explain(error: Any, host: str) -> str:
    if isinstance(error, PlainHTTPError):
        return "http: server gave HTTP response to HTTPS client"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: x509: {_explain_certificate(error, host)}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or (
        isinstance(error, ConnectionResetError) and error.errno is None  # what loops make of an end
    ):
        return "EOF: the server closed the connection during the TLS handshake"
    if not isinstance(error, ssl.SSLError):
        what = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        return f"{what} (during the TLS handshake)"
    reason = getattr(error, "reason", None) or ""  # only those of OpenSSL have one
    if reason in _NO_TLS or isinstance(error, NotTLSError):
        return "tls: first record does not look like a TLS handshake: is TLS spoken on this port?"
    if alert := _alert(reason):
        text = f"remote error: tls: {alert[1].lower().replace('_', ' ')}"
        if alert[1] in ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN"):
            return f"{text}: {_ADVICE['client']}"
        return f"{text}: {_ADVICE['version']}" if alert[1] == "PROTOCOL_VERSION" else text
    if reason == "UNSUPPORTED_PROTOCOL":
        return f"tls: server selected unsupported protocol version: {_ADVICE['version']}"
    return f"tls: {reason.lower().replace('_', ' ') or error.strerror or error}"


def _explain_certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    code = error.verify_code
    if code in _UNTRUSTED:
        return f"certificate signed by unknown authority ({error.verify_message}): {_ADVICE['unknown']}"
    if code == _EXPIRED:
        return "certificate has expired: the server needs a new one, unless the clock here is wrong"
    if code == _NOT_YET_VALID:
        return "certificate is not yet valid: the clock here is slow, or the server's was fast"
    if code in _OTHER_HOST:
        return f"certificate is not valid for {quoted(host)}: it was issued for other names"
    return str(error.verify_message)


def is_cut_off(tls: Any) -> bool:
    """Whether a connection that has ended did so without TLS' goodbye: somebody may have cut it.

    tls: the connection's ssl.SSLObject, None in plain text. A body that only the end of the
    connection ends is then not known to be whole (RFC 9112 section 9.8).
    """
    if tls is None:
        return False
    try:
        tls.read(1)
    except ssl.SSLWantReadError:
        return True
    except (ssl.SSLError, OSError, ValueError):
        return False
    return False
