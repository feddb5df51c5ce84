"""Who may import whom, read from the source: a master that stays light, an http that knows no processes.

    cli      -> master, workers.boot, workers.loader, ctl, unit, settings, log
    unit     -> settings and its kinds
    ctl      -> overview, settings and its kinds: it runs beside a server, not in it
    workers  -> http, ipc, scoreboard, settings, log
    master   -> ipc, scoreboard, settings, log; of others' only the standard library, and no asyncio
    http     -> nothing of ours; never uvloop
    leaves   -> nothing of ours (settings has its kinds, ipc the scoreboard)

Three exceptions, all inside of functions, so that nobody pays for them who does not call:
`http.listen_and_serve(workers=N)` looks up `prefork.workers.boot` by name, the only such name in
the source; `workers.boot.run` imports the master that it hands its job to, in the parent; and
`kinds` asks the log which access log formats there are, when a setting names one.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# area -> what it may import of ours: an area, or one module of it. `prefork` alone is the
# version, which everybody may read.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "cli": {"master", "workers.boot", "workers.loader", "ctl", "unit", "settings", "log"},
    "ctl": {"overview", "settings", "kinds"},
    "overview": set(),
    "unit": {"settings", "kinds"},
    # (The protocol of what lives in the master's loop is for the type checker alone.)
    "workers": {"workers", "http", "ipc", "scoreboard", "settings", "log", "master.service"},
    "master": {"master", "ipc", "scoreboard", "settings", "log", "kinds"},
    "http": {"http"},
    "settings": {"kinds"},
    "kinds": set(),
    "ipc": {"scoreboard"},
    "scoreboard": set(),
    "log": {"log"},
}
IN_FUNCTIONS: dict[str, set[str]] = {"prefork.workers.boot": {"master"}, "prefork.kinds": {"log.atoms"}}
# area -> the libraries it may import besides the standard one.
LIBRARIES: dict[str, set[str]] = {
    "workers": {"uvloop", "httptools", "setproctitle", "watchfiles"},
    "http": {"httptools", "multipart", "idna", "publicsuffixlist", "certifi", "truststore"},
    "master": {"setproctitle"},
    "overview": {"rich"},
}
FORBIDDEN: dict[str, set[str]] = {"master": {"asyncio", "http", "concurrent", "multiprocessing"}}


def sources() -> list[Path]:
    found = []
    for folder, folders, files in os.walk(ROOT / "prefork", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def area_of(module: str) -> str:
    """The area of a full module name: "prefork.http.server.mux" is in "http"."""
    return (module.split(".") + ["__init__"])[1]


def imports(path: Path) -> set[tuple[str, bool]]:
    """Full names of all modules imported anywhere in a file, and whether that is inside a function.

    What is imported only for the type checker counts as well.
    """
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(), str(path))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.removesuffix(".__init__").split(".")
                base = ".".join(filter(None, [*parents[: len(parents) - node.level + 1], base]))
            # `from prefork import log` imports prefork.log; `from prefork.log import setup` does not
            # import a module prefork.log.setup, which is harmless here: the area is the same.
            ours = base.split(".")[0] == "prefork"
            names = [f"{base}.{alias.name}" for alias in node.names] if ours else [base]
        found.update((name, id(node) in inside) for name in names)
    return found


def test_there_is_something_to_check() -> None:
    areas = {area_of(module_name(path)) for path in sources()}
    assert {"cli", "workers", "master", "http", "settings", "ipc", "log"} <= areas
    assert areas <= set(ALLOWED), "a new module: say in ALLOWED what it may import"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports(path: Path) -> None:
    area = area_of(module_name(path))
    wrong = []
    for name, in_function in sorted(imports(path)):
        top = name.split(".")[0]
        if top == "prefork":
            mine = name.split(".")[1:]
            allowed = ALLOWED[area] | (IN_FUNCTIONS.get(module_name(path), set()) if in_function else set())
            if mine in ([], ["__version__"]) or mine[0] in allowed or ".".join(mine[:2]) in allowed:
                continue
        elif top in sys.stdlib_module_names:
            if top not in FORBIDDEN.get(area, set()):
                continue
        elif top in LIBRARIES.get(area, set()):
            continue
        wrong.append(name)
    assert not wrong, f"{area} must not import {', '.join(wrong)}"


def test_modules_named_in_strings() -> None:
    """importlib could go around all of this; the one place that does is known."""
    found = [
        (area_of(module_name(path)), argument.value)
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__"))
        for argument in node.args
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("prefork")
    ]
    assert found in ([], [("http", "prefork.workers.boot")])


def test_the_workers_folder_is_installed_under_our_name_only() -> None:
    assert (ROOT / "prefork" / "workers").is_symlink()
    assert os.readlink(ROOT / "prefork" / "workers") == "../workers"
