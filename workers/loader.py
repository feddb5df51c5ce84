"""From `app:mux` to a handler, or to a message that tells what is wrong with it.

    app:mux            attribute `mux` of module `app`
    app:api.mux        dotted: attribute of an attribute
    app:make()         what the function `make` returns; awaited if it is `async def`
    app                the first of `mux`, `handler`, `app`, `application`; else
                       http.default_serve_mux, if the module has registered routes there

Four faults look alike to Python (they may all be an ImportError or an AttributeError) and are
different to people: there is no such module, their module failed, there is no such attribute,
the attribute is no handler. The law: who wrote the module sees only frames of theirs, never
one of this package or of importlib.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib
import inspect
import os
import re
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import prefork
from prefork.http.handler import as_callable
from prefork.http.server.mux import default_serve_mux
from prefork.ipc import ExitCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import ModuleType

DEFAULT_NAMES: Final = ("mux", "handler", "app", "application")

_WSGI: Final = ["environ", "start_response"]
_OURS: Final = os.path.dirname(os.path.abspath(prefork.__file__)) + os.sep
_TARGET: Final = re.compile(r"(?P<module>\w+(?:\.\w+)*)(?::(?P<attribute>\w+(?:\.\w+)*)(?P<call>\(\))?)?")


class LoadError(Exception):
    """The application cannot be loaded. `str()` is for the user; their traceback, if any, comes last.

    exit_code: what the process exits with.
    """

    exit_code = ExitCode.APP


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed `app:mux`. attribute: "" means the default names. call: it is a factory."""

    module: str
    attribute: str = ""
    call: bool = False

    def __str__(self) -> str:
        return self.module + (f":{self.attribute}" if self.attribute else "") + ("()" if self.call else "")


def parse(text: str) -> Target:
    """Read `MODULE[:ATTRIBUTE[()]]`. Raises LoadError for anything else."""
    match = _TARGET.fullmatch(text)
    if match is not None and not match["module"].endswith(".py"):
        return Target(match["module"], match["attribute"] or "", match["call"] is not None)
    path, _, attribute = text.partition(":")
    if path.endswith(".py"):
        module = os.path.normpath(path[:-3]).replace(os.sep, ".").lstrip(".")
        raise LoadError(f"{text!r} names a file; write the module: {module}:{attribute or 'mux'}")
    raise LoadError(
        f"{text!r} names no application; write MODULE:ATTRIBUTE, such as app:mux, or MODULE:FACTORY()"
    )


def load(
    text: str,
    chdir: str | None = None,
    *,
    wait: Callable[[Awaitable[Any]], Any] | None = None,
) -> Any:
    """Import the application and return its handler.

    chdir: the directory to work in, which comes first on sys.path; None is the current one.
    wait: runs what an `async def` factory returns to its end; None is asyncio.run.

    Raises LoadError.
    """
    target = parse(text)
    directory = _enter(chdir)
    module = _import(target, directory)
    if not target.attribute:
        found, name = _default(module, target)
    else:
        found, name = _attribute(module, target), str(target)
    if target.call:
        found = _call(found, name, wait)
    _check(found, name)
    return found


def _enter(chdir: str | None) -> str:
    if chdir is not None:
        try:
            os.chdir(chdir)
        except OSError as exc:
            raise LoadError(f"cannot change to the directory {chdir}: {exc.strerror}") from exc
    directory = os.getcwd()
    if directory in sys.path:
        sys.path.remove(directory)
    sys.path.insert(0, directory)
    # What Python remembers of this directory may be older than the application. (Not
    # importlib.invalidate_caches(), which loads importlib.metadata: 25 ms in every worker.)
    sys.path_importer_cache.pop(directory, None)
    return directory


# --------------------------------------------------------------------------- module


def _import(target: Target, directory: str) -> ModuleType:
    try:
        return importlib.import_module(target.module)
    except ModuleNotFoundError as exc:
        if _is_missing(exc, target.module):
            raise LoadError(_no_module(target, exc.name or target.module, directory)) from None
        raise LoadError(_story(f"importing {target.module} failed", exc)) from None
    except KeyboardInterrupt:
        raise
    except SystemExit as exc:
        raise LoadError(_story(f"importing {target.module} called sys.exit({exc.code!r})", exc)) from None
    except BaseException as exc:
        raise LoadError(_story(f"importing {target.module} failed", exc)) from None


def _is_missing(exc: ModuleNotFoundError, module: str) -> bool:
    """The module asked for is missing, rather than one that it imports."""
    # Its own import of something missing has a frame of its own in the traceback.
    return (module == exc.name or module.startswith(f"{exc.name}.")) and not any(_frames(exc))


def _no_module(target: Target, missing: str, directory: str) -> str:
    package, _, name = missing.rpartition(".")
    if package:
        where = getattr(sys.modules.get(package), "__path__", [])
        names = [entry for path in where for entry in _modules_in(path)]
        text = f"package {package!r} has no module {name!r}"
        if sys.modules.get(package) is not None and not where:
            text = f"{package!r} is a module, not a package: it has no {name!r} in it"
    else:
        names = _modules_in(directory)
        text = f"there is no module {missing!r}, neither in {directory} nor among the installed ones"
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        wanted = f"{package}.{close[0]}" if package else close[0]
        return f"{text}; did you mean {wanted}{str(target)[len(target.module) :]}?"
    return text + ("" if package else "; is it the right directory? --chdir changes it")


def _modules_in(directory: str) -> list[str]:
    try:
        entries = os.listdir(directory)
    except OSError:
        return []
    names = [entry[:-3] for entry in entries if entry.endswith(".py")]
    names += [entry for entry in entries if os.path.isfile(os.path.join(directory, entry, "__init__.py"))]
    return sorted(name for name in names if name.isidentifier())


# --------------------------------------------------------------------------- attribute


def _attribute(module: ModuleType, target: Target) -> Any:
    found: Any = module
    path = target.module
    for name in target.attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise LoadError(_no_attribute(found, name, path, target)) from None
        except Exception as exc:  # a property, or a module's __getattr__
            raise LoadError(_story(f"{path}.{name} failed", exc)) from None
        path = f"{path}.{name}"
    return found


def _no_attribute(owner: Any, name: str, path: str, target: Target) -> str:
    has = _candidates(owner)
    text = f"{path!r} has no attribute {name!r}"
    if has:
        text += "; it has: " + ", ".join(has)
    public = [entry for entry in dir(owner) if not entry.startswith("_")]
    close = difflib.get_close_matches(name, has or public, n=1)
    if close:
        text += f"; did you mean {target.module}:{'.'.join([*path.split('.'), close[0]][_depth(target) :])}?"
    return text


def _depth(target: Target) -> int:
    return target.module.count(".") + 1


def _candidates(owner: Any) -> list[str]:
    """Attributes that could be meant: handlers first of all, no imported classes and modules."""
    home = getattr(owner, "__name__", None)
    names = []
    for name, value in list(getattr(owner, "__dict__", {}).items()):
        if name.startswith("_") or isinstance(value, type) or not _is_handler(value):
            continue
        # A function that was imported from elsewhere is seldom what is served.
        if not hasattr(value, "serve_http") and getattr(value, "__module__", home) != home:
            continue
        names.append(name)
    return sorted(names)


def _default(module: ModuleType, target: Target) -> tuple[Any, str]:
    for name in DEFAULT_NAMES:
        if hasattr(module, name) and _is_handler(getattr(module, name)):
            return getattr(module, name), f"{target.module}:{name}"
    if default_serve_mux.routes():
        return default_serve_mux, "http.default_serve_mux"
    has = _candidates(module)
    text = (
        f"{target.module!r} has none of {', '.join(DEFAULT_NAMES)}, and no routes on http.default_serve_mux"
    )
    if has:
        raise LoadError(f"{text}; it has: {', '.join(has)}. Write {target.module}:{has[0]}")
    raise LoadError(f"{text}; write {target.module}:NAME")


def _call(factory: Any, name: str, wait: Callable[[Awaitable[Any]], Any] | None) -> Any:
    if not callable(factory):
        raise LoadError(f"{name} is a {type(factory).__name__}, not a function; leave out the ()")
    try:
        found = factory()
        if inspect.isawaitable(found):
            found = (wait or _run)(found)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise LoadError(_story(f"{name} failed", exc)) from None
    return found


def _run(awaitable: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await awaitable

    return asyncio.run(main())


# --------------------------------------------------------------------------- handler


def _is_handler(value: Any) -> bool:
    try:
        as_callable(value)
    except TypeError:
        return False
    return hasattr(value, "serve_http") or _takes_two(value)


def _takes_two(function: Any) -> bool:
    """A function that can be called with (w, r). True when Python cannot tell."""
    try:
        signature = inspect.signature(function)
        signature.bind(None, None)
    except TypeError:
        return False
    except ValueError:  # built in, without a signature
        return True
    # Two arguments as well, but it would take the writer for a dict.
    return list(signature.parameters)[:2] != _WSGI


def _check(value: Any, name: str) -> None:
    """Raises LoadError unless `value` is a handler."""
    if _is_handler(value):
        return
    what = f"{name} is no handler: a handler has serve_http(w, r) or is a function (w, r); this is "
    if value is None:
        raise LoadError(what + "None")
    if isinstance(value, type):
        raise LoadError(f"{what}the class {value.__name__}; {name}() serves an instance of it")
    if inspect.ismodule(value):
        raise LoadError(f"{what}the module {value.__name__}")
    if not callable(value):
        raise LoadError(f"{what}a {type(value).__name__}")
    parameters = list(inspect.signature(value).parameters)
    text = f"{what}a function of ({', '.join(parameters)})"
    if parameters[:3] == ["scope", "receive", "send"]:
        text += ", as ASGI has it"
    elif parameters[:2] == _WSGI:
        text += ", as WSGI has it"
    elif _takes_none(value) and not name.endswith("()"):
        text += f"; if it makes the handler, write {name}()"
    raise LoadError(text)


def _takes_none(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


# --------------------------------------------------------------------------- tracebacks


def _is_theirs(filename: str) -> bool:
    return not filename.startswith((_OURS, "<frozen importlib")) and "importlib" not in filename.split(os.sep)


def _frames(exc: BaseException) -> Iterator[str]:
    """File names of the user's frames."""
    return (f.filename for f in traceback.extract_tb(exc.__traceback__) if _is_theirs(f.filename))


def _story(headline: str, exc: BaseException) -> str:
    """The headline, then the traceback with the user's frames only."""
    text = traceback.TracebackException.from_exception(exc)
    _keep_theirs(text, set())
    return f"{headline}:\n{''.join(text.format()).rstrip()}"


def _keep_theirs(text: traceback.TracebackException, seen: set[int]) -> None:
    if id(text) in seen:
        return
    seen.add(id(text))
    theirs = [frame for frame in text.stack if _is_theirs(frame.filename)]
    text.stack = traceback.StackSummary.from_list(theirs)
    for other in (text.__cause__, text.__context__, *(getattr(text, "exceptions", None) or ())):
        if other is not None:
            _keep_theirs(other, seen)
