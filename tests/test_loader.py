"""Loading `app:mux`: what is found, and what is said when it is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import pytest

from prefork.ipc import ExitCode
from prefork.workers import loader
from prefork.workers.loader import LoadError, Target, load, parse

GOOD = """
from prefork import http

mux = http.ServeMux()
api = http.ServeMux()
text = "text"
nothing = None

class routes:
    inner = mux

def index(w, r): ...
async def later(w, r): ...

class Thing:
    def serve_http(self, w, r): ...

thing = Thing()

def make(): return mux
async def make_later(): return api
def make_nothing(): ...
def make_error(): raise RuntimeError("no database")
def asgi(scope, receive, send): ...
def wsgi(environ, start_response): ...
def three(a, b, c): ...
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project({"app.py": text})`: a working directory with these files; imports are undone at the end."""
    before, cwd, path = set(sys.modules), os.getcwd(), list(sys.path)
    monkeypatch.chdir(tmp_path)

    def write(files: dict[str, str]):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(textwrap.dedent(text))
        return tmp_path

    yield write
    os.chdir(cwd)
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def failure(target: str) -> str:
    with pytest.raises(LoadError) as caught:
        load(target)
    assert caught.value.exit_code == ExitCode.APP == 4
    return str(caught.value)


# --- targets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("app", Target("app")),
        ("app:mux", Target("app", "mux")),
        ("pkg.app:api.mux", Target("pkg.app", "api.mux")),
        ("app:make()", Target("app", "make", call=True)),
    ],
)
def test_targets(text, target):
    assert parse(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("", "write MODULE:ATTRIBUTE"),
        ("app:", "write MODULE:ATTRIBUTE"),
        (":mux", "write MODULE:ATTRIBUTE"),
        ("app:mux:x", "write MODULE:ATTRIBUTE"),
        ("app:make(1)", "write MODULE:ATTRIBUTE"),
        ("app mux", "write MODULE:ATTRIBUTE"),
        ("app.py", "names a file; write the module: app:mux"),
        ("./src/app.py:api", "write the module: src.app:api"),
    ],
)
def test_what_is_no_target(text, cure):
    assert cure in failure(text)


# --- found ----------------------------------------------------------------------------------


def test_what_can_be_served(project):
    project({"app.py": GOOD, "pkg/__init__.py": "", "pkg/sub.py": GOOD})
    app = sys.modules.get("app")
    mux = load("app:mux")
    app = sys.modules["app"]
    assert mux is app.mux
    assert load("app:routes.inner") is app.mux
    assert load("app:index") is app.index
    assert load("app:later") is app.later
    assert load("app:thing") is app.thing
    assert load("app:make()") is app.mux
    assert load("app:make_later()") is app.api
    assert load("app") is app.mux
    assert load("pkg.sub:mux") is sys.modules["pkg.sub"].mux


def test_an_async_factory_may_be_awaited_elsewhere(project):
    project({"app.py": GOOD})
    seen = []

    def wait(awaitable):
        seen.append(awaitable)
        awaitable.close()
        return lambda w, r: None

    assert callable(load("app:make_later()", wait=wait))
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["mux", "handler", "app", "application"])
def test_names_that_need_not_be_given(project, name):
    project({"app.py": f"other = 1\ndef {name}(w, r): ...\n"})
    assert load("app").__name__ == name


def test_without_a_name_it_may_be_the_default_mux(project):
    """In a process of its own: the default mux cannot be emptied again."""
    app = "from prefork import http\n@http.handle_func('/')\ndef index(w, r): ...\n"
    code = """
from prefork import http
from prefork.workers.loader import load
print(load("app") is http.default_serve_mux)
"""
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=project({"app.py": app}), capture_output=True, text=True, check=True)
    assert out.stdout == "True\n"


def test_chdir_is_where_modules_come_from(project, tmp_path):
    project({"here/app.py": GOOD, "here/data.txt": "x"})
    load("app:mux", str(tmp_path / "here"))
    assert os.path.exists("data.txt")
    assert sys.path[0] == str(tmp_path / "here")


def test_chdir_that_is_none(project):
    with pytest.raises(LoadError, match="cannot change to the directory /no/such: No such file"):
        load("app:mux", "/no/such")


def test_the_working_directory_goes_first(project):
    project({"colorsys.py": "def mux(w, r): ...\n"})
    sys.modules.pop("colorsys", None)
    assert load("colorsys:mux").__module__ == "colorsys"


# --- no such module -------------------------------------------------------------------------


def test_no_such_module(project):
    directory = project({"app.py": GOOD})
    text = failure("appp:mux")
    assert text.startswith(f"there is no module 'appp', neither in {directory} nor among the installed ones")
    assert text.endswith("did you mean app:mux?")
    assert "--chdir" in failure("zzz:mux")


def test_no_such_module_in_a_package(project):
    project({"pkg/__init__.py": "", "pkg/server.py": GOOD, "single.py": ""})
    assert failure("pkg.sever:mux") == "package 'pkg' has no module 'sever'; did you mean pkg.server:mux?"
    assert failure("single.sub:mux") == "'single' is a module, not a package: it has no 'sub' in it"
    assert "there is no module 'zzz'" in failure("zzz.sub:mux")


# --- their module failed --------------------------------------------------------------------


def frames(text: str) -> list[str]:
    return re.findall(r'File "([^"]+)", line', text)


def test_a_module_that_raises_shows_its_own_frames_only(project):
    directory = project(
        {
            "app.py": "import helper\n",
            "helper.py": "def connect():\n    raise RuntimeError('no database')\nconnect()\n",
        }
    )
    text = failure("app:mux")
    assert text.startswith("importing app failed:\nTraceback (most recent call last):\n")
    assert text.endswith("RuntimeError: no database")
    assert frames(text) == [f"{directory}/app.py", f"{directory}/helper.py", f"{directory}/helper.py"]


def test_a_missing_dependency_of_theirs_is_no_missing_app(project):
    project({"app.py": "import no_such_library\n"})
    text = failure("app:mux")
    assert text.startswith("importing app failed:")
    assert "No module named 'no_such_library'" in text
    assert "app.py" in text


def test_a_module_that_imports_what_is_missing_of_its_own_name(project):
    project({"pkg/__init__.py": "", "pkg/app.py": "import pkg.app.gone\n"})
    assert failure("pkg.app:mux").startswith("importing pkg.app failed:")


def test_a_syntax_error_shows_the_line(project):
    directory = project({"app.py": "def mux(w, r)\n    pass\n"})
    text = failure("app:mux")
    assert frames(text) == [f"{directory}/app.py"]
    assert "def mux(w, r)" in text
    assert "SyntaxError" in text


def test_causes_are_filtered_too(project):
    directory = project(
        {
            "app.py": """
            import importlib
            try:
                importlib.import_module("broken")
            except ValueError as exc:
                raise RuntimeError("outer") from exc
            """,
            "broken.py": "raise ValueError('inner')\n",
        }
    )
    text = failure("app:mux")
    assert {os.path.dirname(name) for name in frames(text)} == {str(directory)}
    assert "inner" in text
    assert "outer" in text


def test_groups_are_filtered_too(project):
    directory = project(
        {
            "app.py": """
            faults = []
            for name in ("one", "two"):
                try:
                    __import__(name)
                except ValueError as exc:
                    faults.append(exc)
            raise ExceptionGroup("both", faults)
            """,
            "one.py": "raise ValueError(1)\n",
            "two.py": "raise ValueError(2)\n",
        }
    )
    text = failure("app:mux")
    assert {os.path.dirname(name) for name in frames(text)} == {str(directory)}


def test_a_pattern_that_is_wrong_points_to_their_line(project):
    directory = project(
        {"app.py": "from prefork import http\nmux = http.ServeMux()\nmux.handle_func('bad pattern', print)\n"}
    )
    text = failure("app:mux")
    assert frames(text) == [f"{directory}/app.py"]
    assert "PatternError" in text


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("import sys; sys.exit(3)", "importing app called sys.exit(3)"),
        ("raise SystemExit", "importing app called sys.exit(None)"),
        ("import asyncio; raise asyncio.CancelledError", "importing app failed"),
        ("def f(): f()\nf()", "RecursionError"),
    ],
)
def test_other_ways_to_fail(project, statement, why):
    project({"app.py": statement})
    assert why in failure("app:mux")


# --- no such attribute ----------------------------------------------------------------------


def test_no_such_attribute_lists_what_could_be_meant(project):
    project({"app.py": GOOD})
    text = failure("app:muxx")
    assert text == (
        "'app' has no attribute 'muxx'; it has: api, index, later, mux, thing; did you mean app:mux?"
    )


def test_no_such_attribute_of_an_attribute(project):
    project({"app.py": GOOD})
    assert failure("app:routes.iner") == (
        "'app.routes' has no attribute 'iner'; it has: inner; did you mean app:routes.inner?"
    )


def test_an_empty_module(project):
    project({"app.py": "", "pkg/__init__.py": "", "pkg/app.py": "service = 3\n"})
    assert failure("app:mux") == "'app' has no attribute 'mux'"
    assert failure("pkg.app:servise").endswith("did you mean pkg.app:service?")


def test_imported_names_are_no_candidates(project):
    project({"app.py": "from os.path import join\nfrom prefork.http import ServeMux\ndef serve(w, r): ...\n"})
    assert "it has: serve" in failure("app:x")


def test_an_attribute_that_fails(project):
    directory = project({"app.py": "def __getattr__(name):\n    raise ValueError(name)\n"})
    text = failure("app:mux")
    assert text.startswith("app.mux failed:")
    assert set(frames(text)) == {f"{directory}/app.py"}


def test_no_name_and_no_default(project):
    project({"app.py": "def serve(w, r): ...\nmux = 3\n", "other.py": ""})
    text = failure("app")
    assert text.startswith("'app' has none of mux, handler, app, application")
    assert text.endswith("it has: serve. Write app:serve")
    assert failure("other").endswith("write other:NAME")


# --- no handler -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("app:text", "this is a str"),
        ("app:nothing", "this is None"),
        ("app:http", "this is the module prefork.http"),
        ("app:Thing", "this is the class Thing; app:Thing() serves an instance of it"),
        ("app:make", "a function of (); if it makes the handler, write app:make()"),
        ("app:asgi", "a function of (scope, receive, send), as ASGI has it"),
        ("app:wsgi", "a function of (environ, start_response), as WSGI has it"),
        ("app:three", "a function of (a, b, c)"),
        ("app:make_nothing()", "app:make_nothing() is no handler"),
        ("app:text()", "app:text() is a str, not a function; leave out the ()"),
    ],
)
def test_what_is_no_handler(project, target, why):
    project({"app.py": GOOD})
    assert why in failure(target)


def test_an_instance_of_a_class_can_be_asked_for(project):
    project({"app.py": GOOD})
    assert type(load("app:Thing()")).__name__ == "Thing"


def test_a_factory_that_fails_shows_their_frames(project):
    directory = project({"app.py": GOOD})
    text = failure("app:make_error()")
    assert text.startswith("app:make_error() failed:")
    assert frames(text) == [f"{directory}/app.py"]


def test_a_factory_that_wants_arguments(project):
    project({"app.py": GOOD})
    assert "missing 2 required positional arguments" in failure("app:index()")


def test_an_interrupt_is_not_swallowed(project):
    project({"app.py": "raise KeyboardInterrupt\n"})
    with pytest.raises(KeyboardInterrupt):
        load("app:mux")


def test_ours_is_recognised_through_the_symlink():
    assert not loader._is_theirs(loader.__file__)
    assert loader._is_theirs(os.path.join(os.getcwd(), "app.py"))
