"""Addresses, and the listening sockets made of them."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import re
import select
import socket
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.ipc import ExitCode
from prefork.kinds import Address
from prefork.kinds import parse_address as parse
from prefork.master import sockets
from prefork.master.sockets import BindError, bind, retire_all

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def listen():
    """`bind` whose sockets are closed for you."""
    made = []

    def call(*addresses, **options):
        options.setdefault("environ", {})
        listeners = bind(addresses, **options)
        made.extend(listeners)
        return listeners if len(addresses) != 1 else listeners[0]

    yield call
    retire_all(made)


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8000", Address(":8000", host="", port=8000)),
        (":0", Address(":0", host="", port=0)),
        ("127.0.0.1:8000", Address("127.0.0.1:8000", host="127.0.0.1", port=8000)),
        ("localhost:80", Address("localhost:80", host="localhost", port=80)),
        ("[::1]:8000", Address("[::1]:8000", host="::1", port=8000)),
        ("[fe80::1%lo]:8000", Address("[fe80::1%lo]:8000", host="fe80::1%lo", port=8000)),
        ("unix:/run/app.sock", Address("unix:/run/app.sock", path="/run/app.sock")),
        ("unix:app.sock", Address("unix:app.sock", path="app.sock")),
        ("unix:@app", Address("unix:@app", path="@app")),
        ("fd:3", Address("fd:3", fd=3)),
    ],
)
def test_addresses(text, address):
    assert parse(text) == address
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("8000", "write :8000 or 127.0.0.1:8000"),
        ("localhost", "has no port; write localhost:8000"),
        ("[::1]", "has no port"),
        ("", "has no port"),
        ("::1:8000", "stands in brackets"),
        ("[]:8000", "brackets are empty"),
        ("host:", "'' is no port"),
        ("host:http", "'http' is no port"),
        ("host:65536", "'65536' is no port"),
        ("host:+80", "is no port"),
        ("host:8_0", "is no port"),
        ("host:\u0668\u0660", "is no port"),
        ("unix:", "names no path"),
        ("unix:/a\0b", "names no path"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("fd:", "no descriptor number"),
        ("fd:-1", "no descriptor number"),
        ("fd:x", "no descriptor number"),
    ],
)
def test_what_is_no_address(text, cure):
    with pytest.raises(ValueError, match=re.escape(cure)):
        parse(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        address = parse(text)
        assert [address.port, address.path, address.fd].count(None) == 2


# --- TCP ------------------------------------------------------------------------------------


def test_it_listens_and_does_not_block(listen):
    listener = listen("127.0.0.1:0")
    port = listener.sock.getsockname()[1]
    assert listener.url == f"http://127.0.0.1:{port}"
    assert repr(listener) == f"<Listener http://127.0.0.1:{port} fd {listener.sock.fileno()}>"
    assert not listener.sock.getblocking()
    assert not listener.sock.get_inheritable()
    with socket.create_connection(("127.0.0.1", port), 5), listener.sock.accept()[0]:
        pass


@needs_ipv6
def test_no_host_is_every_address_of_both_families(listen):
    listener = listen(":0")
    port = listener.sock.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, port), 5):
            pass


def test_no_host_without_ipv6(listen, monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert listen(":0").sock.family == socket.AF_INET


@needs_ipv6
def test_an_ipv6_address_is_ipv6_only(listen):
    listener = listen("[::1]:0")
    assert listener.url.startswith("http://[::1]:")
    assert listener.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_a_name_is_looked_up_and_ipv4_preferred(listen):
    assert listen("localhost:0").sock.family == socket.AF_INET


def test_options_that_matter(listen):
    sock = listen("127.0.0.1:0").sock
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15


@pytest.mark.parametrize("backlog", [7, 100, 2048])
def test_the_backlog_is_what_was_asked_for(listen, backlog):
    port = listen("127.0.0.1:0", backlog=backlog).sock.getsockname()[1]
    out = subprocess.run(
        ["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True, close_fds=True
    )
    assert int(out.stdout.split()[2]) == backlog


def test_a_backlog_that_the_kernel_cuts_is_told(listen, caplog):
    with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
        limit = int(file.read())
    listen("127.0.0.1:0", backlog=limit)
    assert not caplog.records
    listen("127.0.0.1:0", backlog=limit + 1)
    assert f"is cut to {limit}" in caplog.text


def test_an_address_in_use(listen):
    port = listen("127.0.0.1:0").sock.getsockname()[1]
    with pytest.raises(BindError, match="in use by another process") as caught:
        bind([f"127.0.0.1:{port}"], environ={})
    assert f"ss -ltnp 'sport = :{port}'" in str(caught.value)
    assert caught.value.exit_code == ExitCode.BIND == 6


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        ("192.0.2.1:0", "this machine has no such address"),
        ("no-such-host.invalid:0", "host 'no-such-host.invalid' is unknown"),
        ("a" * 70 + ".invalid:0", "is unknown"),
    ],
)
def test_a_host_that_is_not_here(address, cure):
    with pytest.raises(BindError, match=re.escape(cure)):
        bind([address], environ={})


def test_a_port_that_is_not_for_everybody():
    cure = sockets._cure(PermissionError(13, "Permission denied"), parse(":80"))
    assert "systemd socket unit" in cure
    assert "such as 8080" in cure


def test_one_failure_closes_what_was_opened(tmp_path, listen):
    taken = listen("127.0.0.1:0").sock.getsockname()[1]
    path = tmp_path / "app.sock"
    with pytest.raises(BindError):
        bind([f"unix:{path}", f"127.0.0.1:{taken}"], environ={})
    assert not path.exists()


def test_several_addresses_in_their_order(listen, tmp_path):
    urls = [listener.url for listener in listen("127.0.0.1:0", f"unix:{tmp_path}/a", "unix:@prefork-test-a")]
    assert urls[1:] == [f"unix:{tmp_path}/a", "unix:@prefork-test-a"]


# --- unix -----------------------------------------------------------------------------------


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True


@pytest.mark.parametrize(("umask", "mode"), [(None, 0o660), (0, 0o666), (0o007, 0o660), (0o077, 0o600)])
def test_the_mode_of_a_socket_file(listen, tmp_path, umask, mode):
    path = tmp_path / "app.sock"
    before = os.umask(0o022)
    try:
        listen(f"unix:{path}", umask=umask)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert connects(str(path))


def test_the_mode_is_never_wider_than_it_will_be(tmp_path, listen, monkeypatch):
    modes = []
    real = os.lstat

    def look(path, **options):
        with contextlib.suppress(FileNotFoundError):
            status = real(path, **options)
            modes.append(stat.S_IMODE(status.st_mode))
        return real(path, **options)

    monkeypatch.setattr(os, "lstat", look)
    listen(f"unix:{tmp_path}/app.sock")
    assert modes == [0o660]


@needs_root
def test_the_owner_of_a_socket_file(listen, tmp_path):
    nobody = pwd.getpwnam("nobody")
    listen(f"unix:{tmp_path}/app.sock", owner=(nobody.pw_uid, nobody.pw_gid))
    status = (tmp_path / "app.sock").stat()
    assert (status.st_uid, status.st_gid) == (nobody.pw_uid, nobody.pw_gid)


def test_the_file_is_removed_at_the_end(tmp_path):
    path = tmp_path / "app.sock"
    retire_all(bind([f"unix:{path}"], environ={}))
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_closes_leaves_the_file(tmp_path, listen):
    listener = listen(f"unix:{tmp_path}/app.sock")
    listener.close()
    assert (tmp_path / "app.sock").exists()


def test_a_file_that_is_not_ours_any_more_stays(tmp_path):
    path = tmp_path / "app.sock"
    listeners = bind([f"unix:{path}"], environ={})
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        retire_all(listeners)
        assert path.exists()


def test_a_file_that_is_gone_is_no_matter(tmp_path, caplog):
    path = tmp_path / "app.sock"
    listeners = bind([f"unix:{path}"], environ={})
    path.unlink()
    retire_all(listeners)
    retire_all(listeners)
    assert not caplog.records


def test_a_dead_servers_file_is_replaced(tmp_path, listen, caplog):
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    caplog.set_level(logging.INFO, "prefork")
    listen(f"unix:{path}")
    assert connects(str(path))
    assert "left behind by a server that is gone" in caplog.text


def test_a_live_servers_file_is_not(tmp_path, listen):
    path = tmp_path / "app.sock"
    listen(f"unix:{path}")
    with pytest.raises(BindError, match="a live server listens there"):
        bind([f"unix:{path}"], environ={})
    assert connects(str(path))


def test_a_live_server_whose_queue_is_full_is_alive(tmp_path, listen):
    path = tmp_path / "app.sock"
    listen(f"unix:{path}", backlog=0)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        with pytest.raises(BindError, match="a live server"):
            bind([f"unix:{path}"], environ={})


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text("data"), lambda p: p.mkdir(), lambda p: p.symlink_to("/x")]
)
def test_what_is_no_socket_is_left_alone(tmp_path, make):
    path = tmp_path / "app.sock"
    make(path)
    with pytest.raises(BindError, match="exists and is no socket"):
        bind([f"unix:{path}"], environ={})
    assert path.is_symlink() or path.exists()


def test_servers_that_start_at_once_do_not_rob_each_other(tmp_path):
    """Eight processes find the same stale file: one of them gets the address, seven are told so."""
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    code = (
        "import sys; from prefork.master.sockets import bind, BindError\n"
        "sys.stdin.readline()\n"
        "try: held = bind([sys.argv[1]], environ={}); print('bound', flush=True); sys.stdin.readline()\n"
        "except BindError as e: print(e, flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"unix:{path}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [process.stdout.readline().strip() for process in processes]
    assert connects(str(path))
    for process in processes:
        process.communicate("end\n")
    assert lines.count("bound") == 1
    assert sum("a live server listens there" in line for line in lines) == 7


@pytest.mark.parametrize(
    ("name", "cure"),
    [("no/such/app.sock", "there is no directory"), ("file/app.sock", "there is no directory")],
)
def test_a_directory_that_is_none(tmp_path, name, cure):
    (tmp_path / "file").write_text("")
    with pytest.raises(BindError, match=cure):
        bind([f"unix:{tmp_path}/{name}"], environ={})


def test_a_directory_that_somebody_locks(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(sockets, "_LOCK_WITHIN", 0.05)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(BindError, match="holds a lock"):
            bind([f"unix:{tmp_path}/app.sock"], environ={})
    finally:
        os.close(fd)


def test_an_abstract_name_has_no_file_and_one_owner(listen):
    listen("unix:@prefork-test-b")
    assert connects("\0prefork-test-b")
    with pytest.raises(BindError, match="another process has it"):
        bind(["unix:@prefork-test-b"], environ={})


# --- the end --------------------------------------------------------------------------------


def test_retiring_keeps_who_is_in_the_queue_and_lets_nobody_in(listen):
    listener = listen("127.0.0.1:0")
    address = listener.sock.getsockname()
    with (
        listener.sock.dup() as workers_own,
        socket.create_connection(address, 5) as early,
        socket.socket() as late,
    ):
        listener.retire()
        assert listener.sock.fileno() == -1
        late.setblocking(False)
        with pytest.raises(BlockingIOError):
            late.connect(address)
        with workers_own.accept()[0] as connection:
            connection.sendall(b"served")
            assert early.recv(10) == b"served"
        workers_own.setblocking(False)
        # The kernel has had time for both: the queue is empty, and stays so.
        assert select.select([workers_own], [late], [], 0.1) == ([], [], [])
    with socket.socket() as refused, pytest.raises(ConnectionRefusedError):
        refused.connect(address)


def test_retiring_what_was_passed_to_us_only_closes(listen):
    made = socket.create_server(("127.0.0.1", 0))
    with made.dup() as systemds_own:
        listen(f"fd:{made.detach()}").retire()
        with socket.create_connection(systemds_own.getsockname(), 5), systemds_own.accept()[0]:
            pass


def test_retiring_works_where_filters_are_forbidden(listen, monkeypatch):
    monkeypatch.setattr(sockets, "_SO_ATTACH_FILTER", 9999)
    listener = listen("127.0.0.1:0")
    listener.retire()
    assert listener.sock.fileno() == -1


# --- inherited ------------------------------------------------------------------------------


def test_a_descriptor_is_taken_as_it_is(listen):
    made = socket.create_server(("127.0.0.1", 0), backlog=5)
    port = made.getsockname()[1]
    fd = made.detach()
    os.set_inheritable(fd, True)
    listener = listen(f"fd:{fd}", backlog=99)
    assert listener.sock.fileno() == fd
    assert listener.url == f"http://127.0.0.1:{port}"
    assert not os.get_inheritable(fd)
    assert not listener.sock.getblocking()
    out = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    assert int(out.stdout.split()[2]) == 5


def test_a_bound_descriptor_begins_to_listen(listen):
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    listener = listen(f"fd:{made.detach()}")
    with socket.create_connection(listener.sock.getsockname(), 5):
        pass


def test_descriptors_that_are_no_listeners(tmp_path):
    with (
        open(tmp_path / "f", "w") as file,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.socket() as unbound,
    ):
        for fd, why in [(file.fileno(), "is no socket"), (999, "is not open")]:
            with pytest.raises(BindError, match=why):
                bind([f"fd:{fd}"], environ={})
        for sock, why in [(datagrams, "SOCK_DGRAM"), (unbound, "not bound")]:
            with pytest.raises(BindError, match=why):
                bind([f"fd:{os.dup(sock.fileno())}"], environ={})


def activated(count: int, addresses: list[str], pid: str = "$$") -> str:
    """The urls that `bind` makes in a process to which `count` sockets were passed from 3 on."""
    code = (
        "import os, sys, logging; logging.basicConfig(stream=sys.stdout, level=20, format='%(message)s')\n"
        "from prefork.master.sockets import bind, BindError\n"
        "try: print(*[l.url for l in bind(sys.argv[1:])])\n"
        "except BindError as e: print(e)\n"
        "print([n for n in os.environ if n.startswith('LISTEN_')])\n"
    )
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    fds = [sock.fileno() for sock in socks]
    # The shell gives the sockets the numbers that systemd would, and its own pid, which exec keeps.
    script = f'exec 3<&{fds[0]} 4<&{fds[1]}; LISTEN_PID={pid} LISTEN_FDS={count} LISTEN_FDNAMES=a:b exec "$@"'
    command = ["bash", "-c", script, "-", sys.executable, "-c", code, *addresses]
    out = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, check=True)
    text = out.stdout
    for number, sock in enumerate(socks):
        text = text.replace(str(sock.getsockname()[1]), f"PORT{number}")
        sock.close()
    return text


def test_systemds_sockets_take_the_place_of_the_addresses():
    assert activated(2, ["127.0.0.1:8000"]) == (
        "using the 2 sockets that systemd passed in place of 127.0.0.1:8000\n"
        "http://127.0.0.1:PORT0 http://127.0.0.1:PORT1\n[]\n"
    )


def test_an_address_that_names_a_descriptor_chooses_among_them():
    assert activated(2, ["fd:4"]) == "http://127.0.0.1:PORT1\n[]\n"


def test_sockets_for_another_process_are_not_ours():
    text = activated(2, ["unix:@prefork-test-c"], pid="1")
    assert text == "unix:@prefork-test-c\n[]\n"


def test_a_promise_of_sockets_that_are_not_there():
    assert "cannot listen on fd:5: descriptor 5 is not open" in activated(3, [":8000"])


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "2"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
    ],
)
def test_no_activation(environ):
    assert sockets.take_activation(environ) == []
    assert environ == {}


@pytest.mark.parametrize(
    ("names", "passed"),
    [
        ("http:admin", [(3, "http"), (4, "admin")]),
        (":", [(3, ""), (4, "")]),
        ("http", [(3, "unknown"), (4, "unknown")]),
        (None, [(3, "unknown"), (4, "unknown")]),
    ],
)
def test_the_names_of_what_is_passed(names, passed, monkeypatch):
    monkeypatch.setattr(os, "set_inheritable", lambda fd, flag: None)  # 3 and 4 are somebody else's here
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
    environ |= {"LISTEN_FDNAMES": names} if names is not None else {}
    assert sockets.take_activation(environ) == passed
    assert environ == {}
