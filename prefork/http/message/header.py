"""Header: the fields of a message, as Go's http.Header with Python's manners.

Case-insensitive, multi-valued, in the order of insertion. Names are kept in canonical
spelling (`content-type` is `Content-Type`), which is also the spelling on the wire.
Values are `str`: the bytes of the wire read as UTF-8 with `surrogateescape`, so that any
byte survives a round trip.

An incoming header is parsed only when somebody looks at it, and a response's header is
snapshotted when it is sent; both lean on one law: the dict of lists inside belongs to
whoever made it until `_shared` is set; from then on the next change copies it first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from prefork.http.message.grammar import OWS, is_token

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_canonical: dict[str, str] = {}
_CANONICAL_LIMIT = 4096  # spellings remembered: the network must not be able to grow it without end


def canonical_header_key(name: str) -> str:
    """`content-type` -> `Content-Type` (Go: CanonicalHeaderKey).

    A name that is no token (RFC 9110 section 5.6.2), one with a space say, is returned
    unchanged.
    """
    known = _canonical.get(name)
    if known is not None:
        return known
    if not is_token(name):
        return name
    # str.title would lower-case after an apostrophe and raise after a digit: only "-" starts a word.
    known = "-".join([word[:1].upper() + word[1:].lower() for word in name.split("-")])
    if len(_canonical) < _CANONICAL_LIMIT and len(name) <= 64:
        _canonical[name] = known
    return known


class Header:
    """The header fields, or the trailer fields, of one message.

    `h[k]` is the first value (KeyError when the field is absent), `h[k] = v` replaces all
    values, `h[k] = None` keeps the name without a value: on a response that suppresses
    what the server would add by itself (`Date`, `Content-Type`, `Content-Length`).

    items: a mapping, or pairs (repeated names add up), or None for an empty header.

        h = Header({"content-type": "text/plain"})
        h.add("Set-Cookie", "a=1")
        h.add("Set-Cookie", "b=2")
        h["Content-Type"], h.values("set-cookie")  # 'text/plain', ['a=1', 'b=2']
    """

    __slots__ = ("_fields", "_shared")

    def __init__(self, items: Mapping[str, str] | Iterable[tuple[str, str]] | None = None) -> None:
        self._fields: dict[str, list[str]] = {}
        self._shared = False
        if items is not None:
            pairs = items.items() if hasattr(items, "items") else items
            for name, value in pairs:
                self.add(name, value)

    @classmethod
    def _of(cls, fields: dict[str, list[str]]) -> Header:
        """A header around a dict whose names are canonical already."""
        self = cls.__new__(cls)
        self._fields = fields
        self._shared = False
        return self

    def _share(self) -> dict[str, list[str]]:
        """The fields as they are now; later changes of this header do not reach them."""
        self._shared = True
        return self._fields

    def _unshare(self) -> None:
        self._fields = {name: list(values) for name, values in self._fields.items()}
        self._shared = False

    def __getitem__(self, name: str) -> str:
        values = self._fields.get(canonical_header_key(name))
        if not values:
            raise KeyError(name)
        return values[0]

    def __setitem__(self, name: str, value: str | None) -> None:
        if self._shared:
            self._unshare()
        if value is None:
            self._fields[canonical_header_key(name)] = []
        elif isinstance(value, str):
            self._fields[canonical_header_key(name)] = [value]
        else:
            raise TypeError(f"header {name!r}: the value must be str or None, not {type(value).__name__}")

    def __delitem__(self, name: str) -> None:
        if self._shared:
            self._unshare()
        del self._fields[canonical_header_key(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and canonical_header_key(name) in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Header) and self._fields == other._fields

    __hash__ = None  # type: ignore[assignment]

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """The first value of the field, or `default`."""
        values = self._fields.get(canonical_header_key(name))
        return values[0] if values else default

    def values(self, name: str) -> list[str]:
        """Every value of the field, in order; an empty list when it is absent."""
        return list(self._fields.get(canonical_header_key(name), ()))

    def add(self, name: str, value: str) -> None:
        """Append one more value of the field (Go: Header.Add)."""
        if not isinstance(value, str):
            raise TypeError(f"header {name!r}: the value must be str, not {type(value).__name__}")
        if self._shared:
            self._unshare()
        self._fields.setdefault(canonical_header_key(name), []).append(value)

    def pop(self, name: str, default: str | None = None) -> str | None:
        """Remove the field; its first value, or `default` when it was absent."""
        if self._shared:
            self._unshare()
        values = self._fields.pop(canonical_header_key(name), None)
        return values[0] if values else default

    def items(self) -> Iterator[tuple[str, str]]:
        """Every (name, value), one pair per value."""
        for name, values in self._fields.items():
            for value in values:
                yield name, value

    def clone(self) -> Header:
        """A copy that shares nothing with this one."""
        return Header._of({name: list(values) for name, values in self._fields.items()})

    def __repr__(self) -> str:
        return f"Header({list(self.items())!r})"


def parse_fields(head: str) -> dict[str, list[str]]:
    """The fields of a received head, by canonical name; its syntax has been checked already."""
    fields: dict[str, list[str]] = {}
    for line in head.split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        name = canonical_header_key(name)
        values = fields.get(name)
        if values is None:
            fields[name] = [value.strip(OWS)]
        else:
            values.append(value.strip(OWS))
    # Go: a message of HTTP/1.0 days that says Pragma means Cache-Control.
    if "Pragma" in fields and fields["Pragma"][0] == "no-cache" and "Cache-Control" not in fields:
        fields["Cache-Control"] = ["no-cache"]
    return fields
