"""Status texts, rendered status lines, and which statuses have a body."""

from __future__ import annotations

import pytest

from prefork.http.message import status


def test_texts_are_gos() -> None:
    assert status.status_text(200) == "OK"
    assert status.status_text(413) == "Request Entity Too Large"
    assert status.status_text(416) == "Requested Range Not Satisfiable"
    assert status.status_text(418) == "I'm a teapot"
    assert status.status_text(299) == ""
    assert status.status_text(306) == ""


def test_every_constant_has_a_text_that_its_name_spells() -> None:
    constants = {
        name: value
        for name, value in vars(status).items()
        if name.startswith("STATUS_") and isinstance(value, int)
    }
    assert len(constants) == len(set(constants.values())) == len(status.STATUS_LINE) == 62
    for name, code in constants.items():
        first = name.removeprefix("STATUS_").split("_")[0]
        assert status.status_text(code).upper().replace("-", " ").startswith(first) or code == 418


@pytest.mark.parametrize(
    ("code", "proto", "line"),
    [
        (200, "HTTP/1.1", b"HTTP/1.1 200 OK\r\n"),
        (200, "HTTP/1.0", b"HTTP/1.0 200 OK\r\n"),
        (299, "HTTP/1.1", b"HTTP/1.1 299 status code 299\r\n"),
        (999, "HTTP/1.0", b"HTTP/1.0 999 status code 999\r\n"),
        (404, "HTTP/2.0", b"HTTP/1.1 404 Not Found\r\n"),
    ],
)
def test_line(code: int, proto: str, line: bytes) -> None:
    assert status.status_line(code, proto) == line


@pytest.mark.parametrize("proto", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("code", [0, 99, 1000, -200])
def test_a_code_without_three_digits_has_no_line(code: int, proto: str) -> None:
    with pytest.raises(ValueError, match="invalid status code"):
        status.status_line(code, proto)


def test_body_allowed() -> None:
    bodiless = [code for code in range(600) if not status.body_allowed_for_status(code)]
    assert bodiless == [*range(100, 200), 204, 304]
