"""`prefork unit`: units for this machine, read back by systemd itself."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import cli, unit
from prefork.settings import Settings
from prefork.unit import Machine, UnitError, Wish, write_units

ROOT = Path(__file__).resolve().parent.parent
SYSTEMD = "/lib/systemd/systemd"
NOBODY = 65534

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def machine(**changes: Any) -> Machine:
    """A tidy one: everything is where the service can see it."""
    values: dict[str, Any] = {
        "python": "/usr/bin/python3",
        "directory": "/srv/shop",
        "paths": ["/usr"],
        "systemd": 252,
    }
    return Machine(**(values | changes))


def wish(*flags: str, name: str = "", notify_reload: bool = False, **settings: Any) -> Wish:
    values = {"app": "app:mux"} | settings
    return Wish(settings=Settings(**values), flags=flags, name=name, notify_reload=notify_reload)


def directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def service(one: Wish, where: Machine | None = None) -> dict[str, list[str]]:
    units = write_units(one, where or machine())
    return directives(next(text for path, text in units.files.items() if path.endswith(".service")))


def sockets(one: Wish) -> dict[str, list[str]]:
    units = write_units(one, machine())
    return directives(next((text for path, text in units.files.items() if path.endswith(".socket")), ""))


# --- what is in them ------------------------------------------------------------------------


def test_it_is_the_shipped_unit_with_the_machine_filled_in():
    shipped = directives((ROOT / "systemd" / "prefork@.service").read_text())
    made = service(wish())
    different = {name for name in shipped.keys() | made if shipped.get(name) != made.get(name)}
    assert different == {
        "Description",
        "WorkingDirectory",
        "EnvironmentFile",
        "ExecStart",
        "ExecReload",
        "RuntimeDirectory",
    }
    assert made["ExecStart"] == ["/usr/bin/python3 -m prefork run app:mux"]
    assert made["ExecReload"] == ["/usr/bin/python3 -m prefork reload --wait"]
    assert made["WorkingDirectory"] == ["/srv/shop"]
    assert made["RuntimeDirectory"] == ["prefork-shop"]
    assert made["EnvironmentFile"] == ["-/etc/prefork/shop.env"]


def test_the_order_of_the_lines_is_that_of_the_shipped_unit():
    lines = [line.partition("=")[0] for line in (ROOT / "systemd/prefork@.service").read_text().splitlines()]
    made = write_units(wish(), machine()).files["shop.service"].splitlines()
    assert [line.partition("=")[0] for line in made] == lines


def test_the_drop_in_is_the_shipped_one():
    units = write_units(wish(notify_reload=True), machine(systemd=253))
    shipped = (ROOT / "systemd" / "prefork@.service.d" / "notify-reload.conf").read_text()
    assert units.files["shop.service.d/notify-reload.conf"] == shipped
    assert list(write_units(wish(), machine(systemd=257)).files) == ["shop.service", "shop.socket"]


def test_an_old_systemd_has_no_notify_reload():
    with pytest.raises(UnitError, match="version 252, and knows no Type=notify-reload"):
        write_units(wish(notify_reload=True), machine(systemd=252))


def test_the_readme_explains_what_differs():
    text = (ROOT / "systemd" / "README.md").read_text()
    explained = set(re.findall(r"`([A-Z][A-Za-z0-9]+)=", text))
    made = write_units(
        wish(
            bind=(":80", "unix:/run/shop/a.sock"),
            user="www-data",
            group="www-data",
            log_file="/var/log/shop/log",
            notify_reload=True,
        ),
        machine(directory="/home/me/shop", systemd=253, environ={"PREFORK_WORKERS": "2"}),
    )
    for part in made.files.values():
        assert set(directives(part)) <= explained


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({}, ("90", "45", ["120"])),
        ({"graceful_timeout": 120.0, "drain_delay": 9.5}, ("90", "145", ["120"])),
        ({"boot_timeout": 300.0}, ("330", "45", ["360"])),
        ({"worker_timeout": None}, ("90", "45", [])),
        ({"worker_timeout": 0.5}, ("90", "45", ["91"])),
    ],
)
def test_times_fit_the_settings(settings, times):
    made = service(wish(**settings))
    assert (made["TimeoutStartSec"][0], made["TimeoutStopSec"][0], made.get("WatchdogSec", [])) == times


def test_user_and_group_are_directives():
    made = service(wish(user="www-data", group="adm"))
    assert (made["User"], made["Group"]) == (["www-data"], ["adm"])
    assert "DynamicUser" not in made
    # In a settings file: prefork must not try to become who it is.
    assert sorted(made["Environment"]) == ["PREFORK_GROUP=none", "PREFORK_USER=none"]


def test_the_environment_of_the_command_is_that_of_the_service():
    environ = {
        "PREFORK_WORKERS": "4",
        "PYTHONPATH": "/srv/a b",
        "HOME": "/",
        "PREFORK_USER": "x",
        "LANG": "C",
    }
    made = service(wish(), machine(environ=environ))
    assert made["Environment"] == ["PREFORK_WORKERS=4", '"PYTHONPATH=/srv/a b"']


@pytest.mark.parametrize(
    ("control", "reload"),
    [
        ("auto", "/usr/bin/python3 -m prefork reload --wait"),
        ("unix:/run/x/c.sock", "/usr/bin/python3 -m prefork reload --wait --control=unix:/run/x/c.sock"),
        (None, "/bin/kill -HUP $MAINPID"),
    ],
)
def test_how_it_reloads(control, reload):
    assert service(wish(control=control))["ExecReload"] == [reload]


@pytest.mark.parametrize(
    ("settings", "directory"),
    [
        ({"bind": ("unix:/run/shop/http.sock",)}, "shop"),
        ({"bind": (":80", "unix:/run/a/http.sock", "unix:/run/b/http.sock")}, "a"),
        ({"control": "unix:/run/c/ctl"}, "c"),
        ({"admin": "unix:/run/d/admin.sock"}, "d"),
        ({"bind": ("unix:/run/http.sock",)}, "prefork-shop"),
        ({"bind": ("unix:@run",)}, "prefork-shop"),
    ],
)
def test_the_runtime_directory(settings, directory):
    assert service(wish(**settings))["RuntimeDirectory"] == [directory]


@pytest.mark.parametrize(
    ("log_file", "access_log_file", "directories", "notes"),
    [
        ("-", "-", None, 0),
        ("/var/log/shop/log", "/var/log/shop/access/log", ["shop"], 0),
        ("/var/log/a/log", "/var/log/b/log", ["a b"], 0),
        ("/var/log/shop.log", "-", None, 1),
        ("/var/log/a/../b", "log", None, 2),
    ],
)
def test_where_it_may_log_to(log_file, access_log_file, directories, notes):
    one = wish(log_file=log_file, access_log_file=access_log_file)
    assert service(one).get("LogsDirectory") == directories
    assert len(write_units(one, machine()).notes) == notes


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "directory", "found"),
    [
        ("", "/srv/shop", "shop"),
        ("", "/srv/My Shop!", "My-Shop"),
        ("", "/", "app"),
        ("", "/srv/-.-", "app"),
        ("web", "/srv/shop", "web"),
        ("web.service", "/srv/shop", "web"),
    ],
)
def test_the_name_of_the_units(name, directory, found):
    units = write_units(wish(name=name), machine(directory=directory))
    assert list(units.files) == [f"{found}.service", f"{found}.socket"]


@pytest.mark.parametrize("name", ["a b", "a/b", "-x", "x@", "a\n", "%i", "x" * 101])
def test_a_name_that_is_none(name):
    with pytest.raises(UnitError, match="no name for a unit"):
        write_units(wish(name=name), machine())


# --- what the service can see ---------------------------------------------------------------


def test_what_lies_in_a_home_is_made_visible_and_no_more():
    made = service(
        wish(),
        machine(
            directory="/home/me/shop",
            python="/home/me/shop/.venv/bin/python",
            paths=["/home/me/shop/.venv", "/root/.pyenv/versions/3.13", "/usr/lib", "/tmp/lib dir"],
        ),
    )
    assert made["ProtectHome"] == ["tmpfs"]
    assert made["BindReadOnlyPaths"] == ['/home/me/shop /root/.pyenv/versions/3.13 "/tmp/lib dir"']


def test_a_link_into_a_home_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(unit, "_HIDDEN", (str(tmp_path.parent),))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    made = service(wish(), machine(directory=str(tmp_path / "link")))
    assert made["BindReadOnlyPaths"] == [f"{tmp_path}/link {tmp_path}/real"]


@pytest.mark.parametrize("directory", ["/root", "/tmp", "/home"])
def test_a_home_itself_is_no_place_for_a_service(directory):
    with pytest.raises(UnitError, match=f"{directory} itself is no place"):
        write_units(wish(), machine(directory=directory))


def test_what_the_services_user_may_not_read_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(unit, "_HIDDEN", (str(tmp_path.parent),))
    shop = tmp_path / "shop"
    shop.mkdir(mode=0o750)
    notes = write_units(wish(), machine(directory=str(shop))).notes
    assert notes == [
        f"{shop} has mode 0750, and the service runs as a user of its own: "
        f"chmod o+rx {shop}, or name a user by --user"
    ]
    # The directories above do not matter where the service has its own view of them.
    shop.chmod(0o755)
    tmp_path.chmod(0o700)
    assert write_units(wish(), machine(directory=str(shop))).notes == []
    assert write_units(wish(user="root"), machine(directory=str(shop))).notes == []


# --- sockets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bind", "streams", "only"),
    [
        ([":8000"], ["8000"], ["both"]),
        (["127.0.0.1:8000"], ["127.0.0.1:8000"], None),
        (["localhost:8000"], ["127.0.0.1:8000"], None),
        (["[::1]:8000"], ["[::1]:8000"], ["ipv6-only"]),
        (["[::]:80", "0.0.0.0:80"], ["[::]:80", "0.0.0.0:80"], ["ipv6-only"]),
        (["unix:/run/a b%c.sock"], ["/run/a b%%c.sock"], None),
        (["unix:@app"], ["@app"], None),
        ([":80", "[::1]:81"], None, None),
        (["fd:3"], None, None),
        ([":8000", "127.0.0.1:0"], None, None),
    ],
)
def test_addresses_in_the_socket_unit(bind, streams, only):
    made = sockets(wish(bind=tuple(bind), backlog=77))
    assert made.get("ListenStream") == streams
    assert made.get("BindIPv6Only") == only
    assert made.get("Backlog") == (["77"] if streams else None)


def test_the_mode_of_socket_files(monkeypatch):
    monkeypatch.setattr(unit, "_is_group", lambda name: name == "nginx")
    made = sockets(wish(bind=("unix:/run/a.sock",)))
    assert (made["SocketMode"], made["SocketGroup"]) == (["0660"], ["nginx"])
    made = sockets(wish(bind=("unix:/run/a.sock",), umask=0o007, group="web"))
    assert (made["SocketMode"], made["SocketGroup"]) == (["0660"], ["web"])
    assert "SocketMode" not in sockets(wish(bind=(":80",)))


@pytest.mark.parametrize(
    ("bind", "note"),
    [
        (":80", "no right to a port below 1024; enable the socket unit"),
        ("unix:/srv/a.sock", "may not write there; enable the socket unit"),
        ("fd:3", "no socket unit"),
        (":0", "no socket unit"),
    ],
)
def test_an_address_that_needs_a_word(bind, note):
    assert any(note in text for text in write_units(wish(bind=(bind,)), machine()).notes)
    assert write_units(wish(bind=(":8000", "unix:/run/shop/a.sock")), machine()).notes == []


def test_a_host_that_is_unknown():
    with pytest.raises(UnitError, match=r"host 'nowhere.invalid' is unknown here"):
        write_units(wish(bind=("nowhere.invalid:80",)), machine())


# --- quoting --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/bin/a", "--x=1", "y"], "/bin/a --x=1 y"),
        (["/bin/a", "two words", "", ";"], '/bin/a "two words" "" ";"'),
        (["/bin/a", 'say "hi"', "back\\slash"], '/bin/a "say \\"hi\\"" "back\\\\slash"'),
        (["/bin/a", "100%"], "/bin/a 100%%"),
        (["/bin/a", "$HOME", "${X}"], ':/bin/a $HOME "${X}"'),
        (["/bin/a", "line\nline\t"], '/bin/a "line\\x0aline\\x09"'),
        (["/bin/a b", "x"], '"/bin/a b" x'),
    ],
)
def test_a_command_line(words, line):
    assert unit.command_line(words) == line


@pytest.mark.parametrize("program", ["bin/a", "/bin/a'b", '/bin/"', "/bin/\\", "/bin/\n", "/bin/\udcff"])
def test_what_systemd_cannot_start(program):
    with pytest.raises(UnitError):
        unit.command_line([program])


@pytest.mark.parametrize("directory", ["/srv/a ", "/srv/a\nb", "/srv/a\\", "/srv/\udcff"])
def test_what_cannot_stand_in_a_unit(directory):
    with pytest.raises(UnitError, match=r"cannot be written|no UTF-8"):
        write_units(wish(), machine(directory=directory))


def unquote(line: str) -> list[str]:
    """What systemd.syntax(7) says: words at white space, quotes, C escapes; then specifiers."""
    words: list[str] = []
    for bare, quoted in re.findall(r'([^\s"\\]+)|"((?:[^"\\]|\\.)*)"', line):
        text = bare or re.sub(
            r"\\(x[0-9a-f]{2}|.)", lambda m: chr(int(m[1][1:], 16)) if len(m[1]) == 3 else m[1], quoted
        )
        words.append(text.replace("%%", "%"))
    return words


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=5))
def test_every_argument_comes_back(arguments):
    line = unit.command_line(["/bin/a", *arguments])
    assert "\n" not in line
    assert unquote(line.removeprefix(":")) == ["/bin/a", *arguments]


ARGUMENTS = [
    "a b",
    'q"uote',
    "it's",
    "back\\slash",
    "100%",
    "%i",
    "$HOME",
    "${HOME}",
    ";",
    "",
    "é",
    "#",
    "x\ty",
]


@functools.cache
def why_no_test_mode() -> str:
    """Why systemd cannot be asked what it reads in a unit; "" when it can."""
    if not os.path.exists(SYSTEMD):
        return "systemd is not installed"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "setpriv is not installed, and systemd tests nothing for root"
    return (
        ""
        if "Command Line:" in read_by_systemd({"a.service": "[Service]\nExecStart=/bin/true\n"})
        else ("systemd --test does not work here")
    )


def read_by_systemd(files: dict[str, str]) -> str:
    """What the system manager has understood of the first of these units."""
    folder = Path(tempfile.mkdtemp())  # one that another user may enter, as tmp_path is not
    try:
        folder.chmod(0o755)
        for name, text in files.items():
            (folder / name).write_text(text)
        (folder / "run").mkdir()
        become = []
        if os.geteuid() == 0:
            os.chown(folder / "run", NOBODY, NOBODY)
            become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        out = subprocess.run(
            [*become, SYSTEMD, "--test", "--system", f"--unit={next(iter(files))}"],
            env={
                "PATH": os.environ["PATH"],
                "SYSTEMD_UNIT_PATH": f"{folder}:",
                "HOME": f"{folder}/run",
                "XDG_RUNTIME_DIR": f"{folder}/run",
                "LC_ALL": "C.UTF-8",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        shutil.rmtree(folder)
    return out.stdout.partition(f"-> Unit {next(iter(files))}:")[2].partition("\n\t-> Unit ")[0]


def test_systemd_reads_what_was_written():
    if why := why_no_test_mode():
        pytest.skip(why)
    where = machine(
        directory="/home/me/my shop 100%",
        paths=["/home/me/my shop 100%", "/root/py"],
        environ={"PREFORK_LOG_LEVEL": 'a "b" $c %d'},
    )
    text = write_units(wish(*ARGUMENTS, name="shop"), where).files["shop.service"]
    understood = read_by_systemd({"shop.service": text})
    (line,) = re.findall(r"-> ExecStart:\n\t*Command Line: (.*)", understood)
    # It prints the command line quoted for a shell-like reader, with $ escaped.
    shown = [word.replace("\\$", "$") for word in unquote_shown(line)]
    assert shown == ["/usr/bin/python3", "-m", "prefork", "run", "app:mux", *ARGUMENTS]
    assert "WorkingDirectory: /home/me/my shop 100%\n" in understood
    assert 'Environment: PREFORK_LOG_LEVEL=a "b" $c %d\n' in understood
    assert "BindReadOnlyPaths: /home/me/my shop 100%:/home/me/my shop 100%:rbind\n" in understood
    assert "ProtectHome: tmpfs\n" in understood
    assert "FDSTORE" not in understood
    assert "File Descriptor Store Max: 16\n" in understood


def unquote_shown(line: str) -> list[str]:
    words = []
    for bare, quoted in re.findall(r'([^\s"\\]+)|"((?:[^"\\]|\\.)*)"', line):
        text = bare or re.sub(r"\\(.)", lambda m: {"t": "\t", "n": "\n"}.get(m[1], m[1]), quoted)
        words.append(text)
    return words


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory called shop, and no settings."""
    for name in [name for name in os.environ if name.startswith("PREFORK_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_it_prints_a_service_and_sockets(here, capsys):
    assert cli.main(["unit", "app:mux", "-w", "8", "-b", ":8000", "-b", ":8001", "--no-access-log"]) == 0
    out = capsys.readouterr().out
    first, second = out.split("\n# /etc/systemd/system/shop.socket\n")
    assert first.startswith("# /etc/systemd/system/shop.service\n[Unit]\n")
    command = f"ExecStart={sys.executable} -m prefork run app:mux"
    assert f"{command} --workers=8 --bind=:8000 --bind=:8001 --no-access-log\n" in first
    assert directives(second)["ListenStream"] == ["8000", "8001"]


def test_settings_of_a_file_stay_there(here, capsys):
    (here / "prefork.toml").write_text('app = "shop:mux"\nworkers = 3\nbind = [":9000"]\nuser = "root"\n')
    assert cli.main(["unit", "-c", "prefork.toml", "--graceful-timeout", "2m"]) == 0
    out = capsys.readouterr().out
    assert f"{sys.executable} -m prefork run shop:mux --config=prefork.toml --graceful-timeout=2m\n" in out
    assert "ListenStream=9000\n" in out
    assert "TimeoutStopSec=135\n" in out
    assert "User=root\n" in out
    assert "Environment=PREFORK_USER=none\n" in out


def test_a_user_given_as_a_flag_is_not_given_again(here, capsys):
    assert cli.main(["unit", "app:mux", "--user", "root", "--group", "root"]) == 0
    out = capsys.readouterr().out
    assert "User=root\nGroup=root\n" in out
    assert "--user" not in out
    assert "PREFORK_USER" not in out


def test_installing(here, tmp_path, capsys):
    units = tmp_path / "units"
    assert cli.main(["unit", "app:mux", "--install", str(units)]) == 2
    assert f"{units} is no directory" in capsys.readouterr().err
    units.mkdir()
    for _ in range(2):  # the same again is no harm
        assert cli.main(["unit", "app:mux", "--name", "web", "--install", str(units)]) == 0
        assert capsys.readouterr().out.split() == [f"{units}/web.service", f"{units}/web.socket"]
    before = (units / "web.service").read_text()
    assert cli.main(["unit", "app:mux", "--name", "web", "-w", "2", "--install", str(units)]) == 2
    assert "web.service is there and says something else" in capsys.readouterr().err
    assert (units / "web.service").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unit"], "which application?"),
        (["unit", "app:mux", "--nmae", "x"], "there is no option --nmae"),
        (["unit", "app:mux", "--name", "a/b"], "no name for a unit"),
        (["unit", "app:mux", "-w", "many"], "-w: "),
    ],
)
def test_what_is_wrong_is_told(here, capsys, arguments, message):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_help_has_its_own_options_and_those_of_run(capsys):
    assert cli.main(["unit", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: prefork unit [APP] [OPTION...]\n")
    for flag in ("--name NAME", "--install DIR", "--notify-reload", "--workers", "APP "):
        assert flag in out


def test_the_commands_of_the_unit_do_what_it_says(here, tmp_path, prefork_process, capsys):
    """ExecStart= and ExecReload= as systemd would run them, but for the address."""
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    environ = {"RUNTIME_DIRECTORY": str(runtime)}
    assert cli.main(["unit", "app:mux", "-w", "2"]) == 0
    made = directives(capsys.readouterr().out)
    start, reload = unquote(made["ExecStart"][0]), unquote(made["ExecReload"][0])
    assert start[:5] == [sys.executable, "-m", "prefork", "run", "app:mux"]
    app = (
        "from prefork import http\nmux = http.ServeMux()\nmux.handle_func('/')(lambda w, r: w.write('%s'))\n"
    )
    server = prefork_process(app % "old", *start[5:], env=environ)

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=here,
            env=os.environ | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    (server.directory / "app.py").write_text(app % "new")
    assert run(reload).returncode == 0
    assert server.get("/").body == b"new"
    (server.directory / "app.py").write_text("1 / 0")
    done = run(reload)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr + done.stdout
    assert server.get("/").body == b"new"


@needs_analyze
@pytest.mark.parametrize("flags", [[], ["-b", ":80", "-b", "unix:/run/x/a.sock", "--user", "root"]])
def test_systemd_likes_what_it_gets(here, tmp_path, flags):
    """Verified, and as locked down as the shipped unit, although Python is in a home on some machines."""
    units = tmp_path / "units"
    units.mkdir()
    assert cli.main(["unit", "app:mux", "-w", "2", "--install", str(units), *flags]) == 0
    paths = sorted(str(path) for path in units.iterdir())
    assert analyze("verify", *paths) == (0, "")
    limit = 12 if "--user" not in flags else 20  # root is the user that was asked for
    code, text = analyze("security", "--offline=true", f"--threshold={limit}", f"{units}/shop.service")
    assert code == 0, text


def analyze(*arguments: str) -> tuple[int, str]:
    out = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    return out.returncode, out.stdout + out.stderr
