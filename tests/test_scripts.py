"""scripts/venv, serve and test: what they do and how they fail, with stand-ins for Python and pip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Stands in for an interpreter: answers what the scripts ask, and writes down the rest.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *sys.version_info*) echo @VERSION@; exit @OLD@ ;;
    --version) echo "Python 3.x" ;;
    "-m pip --version") exit 0 ;;
    "-m venv --clear "*) shift 3; mkdir -p "$1/bin" && touch "$1/pyvenv.cfg" && cp "$0" "$1/bin/python" &&
        cp "$0" "$1/bin/prefork" && echo "made $1" >>@LOG@ ;;
    *) echo "$(basename "$0") $* in $PWD" >>@LOG@; exit @FAIL@ ;;
esac
"""


class Checkout:
    """A copy of what the scripts need, in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "check out"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        (self.root / "scripts").mkdir(parents=True)
        for name in ("venv", "serve", "test"):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts" / name)
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()

    def python(self, name: str, version: str = "311", *, old: bool = False, fail: bool = False) -> Path:
        path = self.bin / name
        text = FAKE_PYTHON.replace("@VERSION@", version).replace("@LOG@", f"'{self.log}'")
        path.write_text(text.replace("@OLD@", str(int(old))).replace("@FAIL@", str(int(fail))))
        path.chmod(0o755)
        return path

    def __call__(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [self.root / "scripts" / script, *arguments],
            cwd=self.elsewhere,
            env={"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_serve_sets_up_once_and_runs_the_demo(checkout: Checkout) -> None:
    checkout.python("python3")
    done = checkout("serve")
    assert done.returncode == 0, done.stderr
    root, elsewhere = checkout.root, checkout.elsewhere
    made, installed, ran = checkout.calls()
    assert made == f"made {root}/.venv"
    assert installed == (
        f"python -m pip install --quiet --disable-pip-version-check --editable {root} in {elsewhere}"
    )
    assert ran == f"prefork run demo:mux --chdir {root}/scripts --workers auto in {elsewhere}"
    assert checkout("serve").stderr == ""
    assert len(checkout.calls()) == 1, "nothing to set up the second time"


def test_serve_passes_arguments_and_stays_where_the_user_is(checkout: Checkout) -> None:
    checkout.python("python3")
    checkout("serve", "my app:mux", "-w", "8")
    assert checkout.calls()[-1] == f"prefork run my app:mux -w 8 in {checkout.elsewhere}"


def test_test_installs_the_extra_and_runs_pytest_in_the_checkout(checkout: Checkout) -> None:
    checkout.python("python3")
    checkout("test", "-k", "umask")
    assert f"--editable {checkout.root}[test] in " in checkout.calls()[1]
    assert checkout.calls()[-1] == f"python -m pytest -k umask in {checkout.root}"
    checkout("serve")
    assert len(checkout.calls()) == 1, "what serve needs is installed already"


def test_installs_again_when_pyproject_changes(checkout: Checkout) -> None:
    checkout.python("python3")
    checkout("venv")
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'changed'\n")
    checkout("venv")
    assert len(checkout.calls()) == 1
    assert "pip install" in checkout.calls()[0]


def test_called_through_a_symlink(checkout: Checkout) -> None:
    checkout.python("python3")
    (checkout.bin / "serve").symlink_to(checkout.root / "scripts" / "serve")
    (checkout.root / "scripts" / "serve.link").symlink_to(checkout.bin / "serve")
    checkout("serve.link", "a:b")
    assert checkout.calls()[-1] == f"prefork run a:b in {checkout.elsewhere}"


def test_a_failed_installation_is_told_and_tried_again(checkout: Checkout) -> None:
    checkout.python("python3", fail=True)
    for _ in range(2):
        done = checkout("serve")
        assert done.returncode == 1
        assert "the installation failed, see above" in done.stderr
        assert "pip install" in checkout.calls()[-1]


def test_no_python_that_is_new_enough(checkout: Checkout) -> None:
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        checkout.python(name, old=True)
    done = checkout("serve")
    assert done.returncode == 1
    assert (
        "Python 3.11 or later is needed, and there is none on the PATH; python3 is Python 3.x." in done.stderr
    )
    assert "PYTHON=/path/to/python3.12" in done.stderr


def test_python_that_is_too_old_or_missing(checkout: Checkout) -> None:
    old = checkout.python("old", old=True)
    for value in (str(old), "no-such-python"):
        done = checkout("test", PYTHON=value)
        assert done.returncode == 1
        assert f"PYTHON={value} is not Python 3.11 or later, or does not run" in done.stderr


def test_another_python_gets_another_environment(checkout: Checkout) -> None:
    checkout.python("python3")
    checkout.python("python3.13", version="313")
    assert checkout("venv").stdout == f"{checkout.root}/.venv\n"
    assert checkout("venv", PYTHON="python3.13").stdout == f"{checkout.root}/.venv-313\n"
    assert checkout("venv", PYTHON="python3").stdout == f"{checkout.root}/.venv\n"
    assert checkout("venv", VENV="mine").stdout == f"{checkout.elsewhere}/mine\n"


def test_never_empties_a_folder_that_is_no_environment(checkout: Checkout) -> None:
    checkout.python("python3")
    (checkout.elsewhere / "thesis.txt").write_text("years of work")
    done = checkout("venv", VENV=str(checkout.elsewhere))
    assert done.returncode == 1
    assert "exists and is no virtual environment" in done.stderr
    assert (checkout.elsewhere / "thesis.txt").exists()


@pytest.mark.parametrize("path", ["scripts/venv", "scripts/serve", "scripts/test", ".ci/run"])
def test_scripts_are_executable_and_have_no_syntax_errors(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)
    first = (ROOT / path).read_text().split("\n", 1)[0]
    shell = first.split("/")[-1].split()[-1]
    done = subprocess.run([shell, "-n", ROOT / path], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, done.stderr
