"""The public names of `prefork.http` and their signatures, as written down in public_api.txt.

A change of the API changes that file, and so shows up in review. To write it anew:

    UPDATE_SNAPSHOTS=1 scripts/test tests/test_public_api.py
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

from prefork import http

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def signature(function: Any) -> str:
    try:
        text = str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"
    text = re.sub(r"<(?:function|object|class) ?[^>]*>|<[^>]* at 0x[0-9a-f]+>", "...", text)
    # Annotations are texts, because of `from __future__ import annotations`.
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def describe_class(cls: type) -> list[str]:
    """A line for the class, and one for each public member that it or a base of ours defines."""
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    lines = [f"class {cls.__name__}({bases})" if bases else f"class {cls.__name__}"]
    members: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("prefork"):
            continue
        for name in getattr(base, "__annotations__", {}):
            members.setdefault(name, name)
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            members.setdefault(name, name)
        for name, member in base.__dict__.items():
            if isinstance(member, (staticmethod, classmethod)):
                members[name] = f"{type(member).__name__} {name}{signature(member.__func__)}"
            elif inspect.isfunction(member):
                prefix = "async def" if inspect.iscoroutinefunction(member) else "def"
                members[name] = f"{prefix} {name}{signature(member)}"
            elif isinstance(member, property):
                members[name] = f"property {name}" + (" (settable)" if member.fset else "")
            elif not inspect.ismemberdescriptor(member):
                members[name] = f"{name} = {member!r}" if isinstance(member, (int, str, float)) else name
    kept = ("__init__", "__call__", "__await__", "__aiter__", "__aenter__", "__getitem__", "__contains__")
    lines += [f"    {text}" for name, text in sorted(members.items()) if name[0] != "_" or name in kept]
    return lines


def describe(name: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        return describe_class(value)
    if inspect.isfunction(value):
        prefix = "async def" if inspect.iscoroutinefunction(value) else "def"
        return [f"{prefix} {name}{signature(value)}"]
    if isinstance(value, (int, str, float)):
        return [f"{name} = {value!r}"]
    if type(value).__module__.startswith("prefork"):
        return [f"{name}: {type(value).__name__}"]
    return [f"{name}: a type" if type(value).__module__ in ("typing", "types") else f"{name}: {value!r}"]


def test_public_api() -> None:
    names = sorted(http.__all__)
    now = "\n".join(line for name in names for line in describe(name, getattr(http, name))) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(now)
    assert now == SNAPSHOT.read_text(), "the public API has changed; UPDATE_SNAPSHOTS=1 if that is meant"


def test_all_is_all() -> None:
    """`__all__` names what there is, sorted out of what only happens to be imported."""
    assert len(set(http.__all__)) == len(http.__all__)
    undeclared = {
        name
        for name, value in vars(http).items()
        if name[0] != "_"
        and name not in http.__all__
        and not inspect.ismodule(value)
        and name != "annotations"
    }
    assert not undeclared


def test_every_public_name_says_what_it_is() -> None:
    silent = [
        name
        for name in http.__all__
        if (inspect.isclass(value := getattr(http, name)) or inspect.isfunction(value))
        and not inspect.getdoc(value)
    ]
    assert not silent
