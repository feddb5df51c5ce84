"""The wheel that is built from the sdist is what people install: what must be in it, and what must not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_python(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Where hatchling is, if it had to be fetched; None if it is installed."""
    if importlib.util.find_spec("hatchling"):
        return None
    target = tmp_path_factory.mktemp("backend")
    command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(target)]
    done = run_python(*command, "hatchling>=1.25", cwd=target)
    if done.returncode:
        pytest.skip(f"hatchling is not installed, and pip cannot fetch it: {done.stderr.strip()[-300:]}")
    return target


@pytest.fixture(scope="module")
def sdist(backend: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    done = run_python("-m", "hatchling", "build", "-t", "sdist", "-d", str(target), cwd=ROOT, path=backend)
    assert done.returncode == 0, done.stderr
    return next(target.glob("prefork-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, backend: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the sdist holds, and nothing else."""
    source = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    target = tmp_path_factory.mktemp("wheel")
    unpacked = next(source.iterdir())
    done = run_python(
        "-m", "hatchling", "build", "-t", "wheel", "-d", str(target), cwd=unpacked, path=backend
    )
    assert done.returncode == 0, done.stderr
    return next(target.glob("prefork-*.whl"))


def test_sdist_is_complete_and_clean(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    for wanted in (
        "README.md",
        "LICENSE",
        "pyproject.toml",
        "prefork/py.typed",
        "tests/conftest.py",
        "scripts/serve",
    ):
        assert wanted in names
    for part in (".venv", "__pycache__", ".git/", ".bench", ".hypothesis"):
        assert not [name for name in names if part in name]


def test_wheel_holds_the_workers_under_our_name_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    in_source = {path.name for path in (ROOT / "workers").glob("*.py")}
    assert in_source
    in_wheel = {name.rpartition("/")[2] for name in names if name.startswith("prefork/workers/")}
    assert in_wheel == in_source
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"prefork"}
    assert "prefork/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_runs_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # A project with packages of these names must not get in the way, nor we in its.
    for name in ("workers", "master"):
        elsewhere.joinpath(name).mkdir()
        elsewhere.joinpath(name, "__init__.py").write_text("mine = True\n")
    program = (
        "import prefork, prefork.workers.boot, workers, sys; assert workers.mine;"
        f"assert prefork.__file__.startswith({str(site)!r}), prefork.__file__"
    )
    done = run_python("-c", program, cwd=elsewhere, path=site)
    assert done.returncode == 0, done.stderr
    done = run_python("-m", "prefork", "version", cwd=elsewhere, path=site)
    assert done.stdout.startswith("prefork "), done.stderr


def test_workers_folder_refuses_another_name() -> None:
    done = run_python("-c", "import workers", cwd=ROOT)
    assert done.returncode == 1
    assert "this folder is the package prefork.workers, not 'workers'" in done.stderr
