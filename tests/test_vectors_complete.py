"""No vector file is forgotten: a test reads it, it belongs to a part that is not here yet, or it
is listed as a whole in vector_exceptions.py.

A part that arrives takes its files out of the table: a file that a test reads must not be in it.
"""

from __future__ import annotations

import re
import runpy
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "shared" / "vectors"
EXCEPTIONS: dict[str, dict[str, str]] = runpy.run_path(str(HERE / "vector_exceptions.py"))["EXCEPTIONS"]

NOT_HERE_YET = {
    "reverse proxy": ["reverseproxy_*", "golden_reverseproxy_*"],
    "files": ["fs_*", "range_*", "mime_builtin_types"],
    "cross-origin protection": ["csrf_*"],
    "dumps and the recorder": ["dump_*", "recorder_*"],
    "TLS": ["server_tls_handshake_timeout"],
}


def files() -> set[str]:
    if not FOLDER.exists():
        pytest.skip(f"no vectors in {FOLDER}")
    return {path.stem for path in FOLDER.glob("*.json")}


def names_in_tests() -> set[str]:
    """Every quoted word in a test module: the name of each file that is read is among them."""
    text = "\n".join(path.read_text() for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)
    return set(re.findall(r'"(\w+)(?:\.json)?"', text))


def patterns(name: str) -> list[str]:
    return [pattern for part in NOT_HERE_YET.values() for pattern in part if fnmatchcase(name, pattern)]


def test_every_vector_file_is_read_or_waits_for_its_part() -> None:
    found = files()
    read = found & names_in_tests()
    waiting = {name for name in found if patterns(name)}
    forgotten = found - read - waiting - {name for name, listed in EXCEPTIONS.items() if "*" in listed}
    assert not forgotten, "nobody reads these files"
    assert not read & waiting, "these files are read: take them out of the table"
    print(f"{len(read)} vector files are read, {len(waiting)} belong to parts that are not here yet")


def test_the_table_names_files_that_exist() -> None:
    found = files()
    for part in NOT_HERE_YET.values():
        for pattern in part:
            assert any(fnmatchcase(name, pattern) for name in found), f"no file {pattern}"


def test_every_exception_is_of_a_file_that_a_test_reads() -> None:
    found = files()
    whole = {name for name, listed in EXCEPTIONS.items() if "*" in listed}
    assert set(EXCEPTIONS) <= found
    assert set(EXCEPTIONS) - whole <= names_in_tests()
    assert not whole & names_in_tests()
