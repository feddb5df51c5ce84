"""Settings: precedence, origins, units, and one clear message for everything that is wrong."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import kinds
from prefork.settings import TABLE, Given, Settings, SettingsError, load, suggest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failure(**arguments: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(environ=arguments.pop("environ", {}), **arguments)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- the table ------------------------------------------------------------------------------


def test_defaults_are_the_documented_ones() -> None:
    settings = load(environ={})
    assert settings == Settings()
    assert dataclasses.asdict(settings) == {
        "app": "",
        "chdir": None,
        "bind": ("127.0.0.1:8000",),
        "backlog": 2048,
        "workers": 1,
        "user": None,
        "group": None,
        "umask": None,
        "blocking_threads": 16,
        "boot_timeout": 60.0,
        "graceful_timeout": 30.0,
        "drain_delay": 0.0,
        "worker_timeout": 30.0,
        "crash_budget": None,
        "max_requests": None,
        "max_requests_jitter": None,
        "max_rss": None,
        "max_lifetime": None,
        "read_header_timeout": 10.0,
        "read_timeout": None,
        "body_idle_timeout": 30.0,
        "write_timeout": None,
        "write_idle_timeout": 60.0,
        "idle_timeout": 75.0,
        "max_header_bytes": 65536,
        "max_header_values": 500,
        "max_body_bytes": 10485760,
        "max_conns": None,
        "log_level": "info",
        "log_format": "console",
        "log_file": "-",
        "access_log": False,
        "access_log_format": "combined",
        "access_log_file": "-",
        "control": "auto",
        "reload": False,
        "reload_include": (),
        "admin": None,
        "origins": {},
    }
    assert all(settings.origin(name) == "default" for name in TABLE)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().workers = 2  # type: ignore[misc]


@pytest.mark.parametrize("name", [name for name in TABLE if name != "app"])
def test_every_default_can_be_written_and_read_back(name: str) -> None:
    setting = TABLE[name]
    assert setting.kind.read(setting.kind.show(setting.default)) == setting.default
    assert setting.flags
    assert setting.help[0].islower()
    assert not setting.help.endswith(".")


def test_no_two_settings_share_a_flag() -> None:
    flags = [flag for setting in TABLE.values() for flag in setting.flags]
    assert len(flags) == len(set(flags))


# --- precedence and origins -----------------------------------------------------------------


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    tmp_path.joinpath("prefork.toml").write_text(
        'workers = 2\nbacklog = 20\nidle_timeout = "20s"\nbind = [":2000", "unix:/tmp/s"]\n'
    )
    environ = {"PREFORK_WORKERS": "3", "PREFORK_BACKLOG": "30", "PATH": "/bin"}
    settings = load({"workers": Given("-w", "4")}, environ)
    assert (settings.workers, settings.origin("workers")) == (4, "-w")
    assert (settings.backlog, settings.origin("backlog")) == (30, "PREFORK_BACKLOG")
    file = tmp_path / "prefork.toml"
    assert (settings.idle_timeout, settings.origin("idle_timeout")) == (20.0, f"{file}: idle_timeout")
    assert settings.bind == (":2000", "unix:/tmp/s")
    assert settings.origin("read_timeout") == "default"


def test_bind_of_a_flag_replaces_the_list_of_the_file(tmp_path: Path) -> None:
    tmp_path.joinpath("prefork.toml").write_text('bind = [":1", ":2"]\n')
    assert load({"bind": Given("-b", [":3"])}, {}).bind == (":3",)


def test_bind_in_the_environment_is_a_list_with_commas_or_spaces() -> None:
    environ = {"PREFORK_BIND": ":1, [::1]:2  unix:/run/x.sock,fd:3"}
    assert load(environ=environ).bind == (":1", "[::1]:2", "unix:/run/x.sock", "fd:3")


def test_an_empty_variable_counts_as_not_set() -> None:
    settings = load(environ={"PREFORK_WORKERS": "", "PREFORK_CONFIG": ""})
    assert settings.origin("workers") == "default"


def test_pyproject_table(tmp_path: Path) -> None:
    tmp_path.joinpath("pyproject.toml").write_text(
        '[project]\nname = "x"\n[tool.prefork]\napp = "app:mux"\nworkers = "auto"\naccess-log = true\n'
    )
    settings = load(environ={})
    assert settings.app == "app:mux"
    assert settings.workers == kinds.available_cpus()
    assert settings.access_log is True
    assert settings.origin("access_log") == f"{tmp_path / 'pyproject.toml'}: access-log"


@pytest.mark.parametrize("text", ['[project]\nname = "x"\n', "tool = 3\n", "[tool.ruff]\n"])
def test_a_pyproject_without_our_table_is_none_of_our_business(tmp_path: Path, text: str) -> None:
    tmp_path.joinpath("pyproject.toml").write_text(text)
    assert load(environ={}) == Settings()


def test_prefork_toml_wins_over_pyproject(tmp_path: Path) -> None:
    tmp_path.joinpath("pyproject.toml").write_text("[tool.prefork]\nworkers = 2\nbacklog = 5\n")
    tmp_path.joinpath("prefork.toml").write_text("workers = 3\n")
    settings = load(environ={})
    assert settings.workers == 3
    assert settings.backlog == 2048, "only one file is read"


def test_config_flag_wins_over_config_variable_over_working_directory(tmp_path: Path) -> None:
    for number, name in enumerate(("prefork.toml", "a.toml", "b.toml"), 1):
        tmp_path.joinpath(name).write_text(f"workers = {number}\n")
    environ = {"PREFORK_CONFIG": "a.toml"}
    assert load(environ={}).workers == 1
    assert load(environ=environ).workers == 2
    assert load(environ=environ, config="b.toml").workers == 3


def test_settings_file_is_looked_for_in_chdir(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    there.joinpath("prefork.toml").write_text("workers = 7\n")
    settings = load({"chdir": Given("--chdir", "there")}, {})
    assert settings.workers == 7
    assert settings.chdir == str(there)


# --- what is wrong, and how it is told ------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PREFORK_WROKERS", "3", "PREFORK_WROKERS: there is no such setting; did you mean PREFORK_WORKERS?"),
        ("PREFORK_KEEP_ALIVE", "3", "there is no such setting; did you mean PREFORK_IDLE_TIMEOUT?"),
        ("PREFORK_ZZZZZZ", "3", "PREFORK_ZZZZZZ: there is no such setting; unset it"),
        (
            "PREFORK_WORKERS",
            "many",
            "PREFORK_WORKERS: 'many' does not fit; expected a whole number from 1 to 1024, or auto",
        ),
        ("PREFORK_WORKERS", "0", "PREFORK_WORKERS: 0 is less than 1; expected"),
        ("PREFORK_WORKERS", "9999", "PREFORK_WORKERS: 9999 is more than 1024; expected"),
        ("PREFORK_WORKERS", "1_0", "PREFORK_WORKERS: '1_0' does not fit"),
        ("PREFORK_BIND", "localhost", "'localhost' has no port; write localhost:8000; expected HOST:PORT"),
        ("PREFORK_BIND", "::1:80", "an IPv6 address stands in brackets, as in [::1]:8000"),
        ("PREFORK_BIND", "[::1]", "'[::1]' has no port; write [::1]:8000"),
        ("PREFORK_BIND", "8000", "'8000' has no colon; write :8000 or 127.0.0.1:8000; expected HOST:PORT"),
        ("PREFORK_BIND", "[]:80", "'[]:80': the brackets are empty; write [::]:80 or :80"),
        ("PREFORK_BIND", ":http", "'http' is no port (0 to 65535)"),
        ("PREFORK_BIND", ":65536", "'65536' is no port (0 to 65535)"),
        ("PREFORK_BIND", "unix:", "'unix:' names no path"),
        ("PREFORK_BIND", "unix:/" + "x" * 107, "the path of a unix socket is at most 107 bytes long"),
        ("PREFORK_BIND", "fd:x", "'fd:x' is no descriptor number"),
        ("PREFORK_BIND", ",", "PREFORK_BIND: ',' does not fit; expected HOST:PORT"),
        ("PREFORK_IDLE_TIMEOUT", "soon", "'soon' does not fit; expected a duration such as 30s, 1m30s"),
        ("PREFORK_IDLE_TIMEOUT", "0", "0s is less than 1ms; expected a duration"),
        ("PREFORK_MAX_BODY_BYTES", "10MB", "'10MB' does not fit; expected a size such as 64KiB, 10MiB"),
        ("PREFORK_MAX_HEADER_BYTES", "1", "1 is less than 256; expected a size"),
        ("PREFORK_ACCESS_LOG", "maybe", "'maybe' does not fit; expected on or off"),
        ("PREFORK_LOG_LEVEL", "loud", "expected one of debug, info, warning, error, critical"),
        ("PREFORK_UMASK", "888", "PREFORK_UMASK: '888' does not fit; expected octal digits"),
        ("PREFORK_USER", "no-such-user", "there is no user 'no-such-user' on this machine"),
        ("PREFORK_GROUP", "no-such-group", "there is no group 'no-such-group' on this machine"),
        ("PREFORK_CHDIR", "/nowhere", "PREFORK_CHDIR: /nowhere is no directory; expected a directory"),
    ],
)
def test_wrong_variables(variable: str, value: str, message: str) -> None:
    text = failure(environ={variable: value})
    assert text.startswith(f"{variable}: ")
    assert message in text


def test_wrong_flag_is_named_as_it_was_typed() -> None:
    text = failure(flags={"workers": Given("-w", "x")})
    assert text.startswith("-w: 'x' does not fit; expected a whole number")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrokers = 3", "there is no setting 'wrokers'; did you mean workers?"),
        ("zzzzzz = 3", "there is no setting 'zzzzzz'; `prefork run --help` lists them"),
        ("workers = 'many'", ": workers: 'many' does not fit"),
        ("workers = true", ": workers: True does not fit"),
        ("workers = 1.5", ": workers: 1.5 does not fit"),
        ("workers = 3\nworkers = 4", "this is no valid TOML: "),
        ("read_timeout = 3\nread-timeout = 4", "'read_timeout' and 'read-timeout' are the same setting"),
        ("umask = 22", ": umask: 22 does not fit; expected octal digits as a text"),
        ("bind = []", ": bind: [] does not fit"),
        ("bind = [8000]", ": bind: [8000] does not fit"),
        ("idle_timeout = -1", ": idle_timeout: -1 does not fit"),
        ("idle_timeout = nan", ": idle_timeout: nan does not fit"),
        ("access_log = 1", ": access_log: 1 does not fit; expected on or off"),
        ("app = ''", ": app: '' does not fit; expected MODULE:ATTRIBUTE"),
        ("[tool.prefork]\nworkers = 1", "the settings stand at the top level of this file, in no table"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    tmp_path.joinpath("prefork.toml").write_text(text)
    error = failure()
    assert error.startswith(str(tmp_path / "prefork.toml"))
    assert message in error


def test_settings_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert (
        failure(config="no.toml") == "-c no.toml: cannot read this settings file: No such file or directory"
    )
    assert failure(environ={"PREFORK_CONFIG": "no.toml"}).startswith("PREFORK_CONFIG=no.toml: cannot read")
    tmp_path.joinpath("latin.toml").write_bytes(b'app = "\xe9"')
    assert "latin.toml: this is no valid TOML: " in failure(config="latin.toml")
    tmp_path.joinpath("pyproject.toml").write_text("[project]\n")
    assert failure(config="pyproject.toml") == "-c pyproject.toml: it has no [tool.prefork] table"


def test_long_values_are_cut_in_messages() -> None:
    text = failure(environ={"PREFORK_LOG_LEVEL": "x" * 5000})
    assert len(text) < 250


def test_kubernetes_service_links_are_no_settings() -> None:
    environ = {
        "PREFORK_SERVICE_HOST": "10.0.0.1",
        "PREFORK_SERVICE_PORT": "80",
        "PREFORK_SERVICE_PORT_HTTP": "80",
        "PREFORK_PORT": "tcp://10.0.0.1:80",
        "PREFORK_PORT_80_TCP": "tcp://10.0.0.1:80",
        "PREFORK_PORT_80_TCP_ADDR": "10.0.0.1",
        "PREFORK_WEB_SERVICE_HOST": "10.0.0.2",
        "PREFORK_WEB_PORT_80_TCP_PROTO": "tcp",
    }
    assert load(environ=environ) == Settings()
    del environ["PREFORK_SERVICE_HOST"]
    assert "PREFORK_PORT: there is no such setting" in failure(environ=environ)


def test_suggest_knows_flags_too() -> None:
    assert suggest("--keepalive", lambda setting: setting.flags[0]) == "did you mean --keep-alive?"
    assert suggest("--zzzzzz", lambda setting: setting.name) == ""


# --- units ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        ("2", 2.0),
        ("0.25", 0.25),
        ("1h2m3s4ms", 3723.004),
        ("10M", 600.0),
        (7, 7.0),
        (1.5, 1.5),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert kinds.read_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5 s",
        "1s1m",
        "-1",
        "+1",
        "1e3",
        "1_0",
        "nan",
        "inf",
        "1..2s",
        ".5",
        "٣",
        "1d",
        "9999999h",
        True,
        [],
    ],
)
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError):
        kinds.read_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 65536),
        ("10mib", 10 << 20),
        ("1GiB", 1 << 30),
        ("1.5 KiB", 1536),
        ("99", 99),
        ("7B", 7),
        (5, 5),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert kinds.read_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "KiB", "64KB", "10M", "-1", "1.5", "1_0", "٣", "9999999999GiB", -1, 1.5, True]
)
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError):
        kinds.read_size(text)


@given(st.integers(0, 10**9))
def test_every_duration_in_milliseconds_survives(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert kinds.read_duration(kinds.show_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.integers(0, 2**53 - 1))
def test_every_size_survives(size: int) -> None:
    assert kinds.read_size(kinds.show_size(size)) == size


@given(st.sampled_from(sorted(TABLE)), st.text(max_size=20))
def test_any_text_is_read_or_refused_with_a_settings_error(name: str, text: str) -> None:
    try:
        load(environ={TABLE[name].variable: text})
    except SettingsError as error:
        message = str(error)
    else:
        return
    assert message.startswith(TABLE[name].variable)


def test_nullable_settings_take_none_and_off() -> None:
    environ = {"PREFORK_IDLE_TIMEOUT": "none", "PREFORK_MAX_BODY_BYTES": "OFF", "PREFORK_MAX_CONNS": "none"}
    settings = load(environ=environ)
    assert (settings.idle_timeout, settings.max_body_bytes, settings.max_conns) == (None, None, None)
    assert TABLE["idle_timeout"].shown(None) == "none"


def test_umask_is_octal() -> None:
    assert load(environ={"PREFORK_UMASK": "027"}).umask == 0o27
    assert load(environ={"PREFORK_UMASK": "0o077"}).umask == 0o77
    assert TABLE["umask"].shown(0o27) == "027"


def test_accounts_by_name_and_number() -> None:
    settings = load(environ={"PREFORK_USER": "root", "PREFORK_GROUP": "4711"})
    assert (settings.user, settings.group) == ("root", "4711")


# --- CPUs -----------------------------------------------------------------------------------


def test_cpus_without_cgroups_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert kinds.available_cpus(str(tmp_path), str(tmp_path)) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("150000 100000", 2),
        ("100000 100000", 1),
        ("1000 100000", 1),
        ("max 100000", 64),
        ("9900000 100000", 64),
    ],
)
def test_cpus_of_a_version_2_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    group = tmp_path / "cgroup" / "system.slice" / "app.service"
    group.mkdir(parents=True)
    tmp_path.joinpath("proc", "self").mkdir(parents=True)
    tmp_path.joinpath("proc", "self", "cgroup").write_text("0::/system.slice/app.service/worker\n")
    group.joinpath("cpu.max").write_text(quota + "\n")
    group.parent.joinpath("cpu.max").write_text("max 100000\n")
    assert kinds.available_cpus(str(tmp_path / "proc"), str(tmp_path / "cgroup")) == cpus


def test_cpus_of_a_version_1_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    group = tmp_path / "cgroup" / "cpu" / "docker"
    group.mkdir(parents=True)
    tmp_path.joinpath("proc", "self").mkdir(parents=True)
    tmp_path.joinpath("proc", "self", "cgroup").write_text("4:memory:/x\n2:cpu,cpuacct:/docker\n")
    group.joinpath("cpu.cfs_quota_us").write_text("250000\n")
    group.joinpath("cpu.cfs_period_us").write_text("100000\n")
    group.parent.joinpath("cpu.cfs_quota_us").write_text("-1\n")
    group.parent.joinpath("cpu.cfs_period_us").write_text("100000\n")
    assert kinds.available_cpus(str(tmp_path / "proc"), str(tmp_path / "cgroup")) == 3
