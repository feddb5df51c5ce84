"""Listeners that systemd keeps from one run to the next: this process is systemd here."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

import pytest

from prefork.master.sockets import Listener, bind, retire_all

HOST = "127.0.73.1"  # nobody else's, so that a port that was free a moment ago still is


@pytest.fixture
def listen():
    """`bind` for one address, or the listeners for several; closed for you."""
    made: list[Listener] = []

    def call(*addresses):
        listeners = bind(addresses, environ={})
        made.extend(listeners)
        return listeners if len(addresses) != 1 else listeners[0]

    yield call
    retire_all(made)


def free_address() -> str:
    with socket.create_server((HOST, 0)) as sock:
        return f"{HOST}:{sock.getsockname()[1]}"


def next_run(
    kept: list[tuple[str, socket.socket]], *addresses: str, connect_to: str = ""
) -> tuple[list[str], bool]:
    """What `bind` says in the next start, and whether its first listener accepts two connections.

    kept: names and sockets of systemd's store. This process is systemd: it holds on to them.
    connect_to: where to; the first address if it is empty.
    """
    code = (
        "import sys, logging; logging.basicConfig(stream=sys.stdout, level=20, format='%(message)s')\n"
        "from prefork.master.sockets import bind, BindError\n"
        "try: made = bind(sys.argv[1:], backlog=7, forget=lambda name: print('forget', name))\n"
        "except BindError as exc: sys.exit(str(exc))\n"
        "for one in made: print(one.url, one.kept_as, one.ours)\n"
        "print('bound', flush=True)\n"
        "made[0].sock.settimeout(10)\n"
        "for _ in range(2): made[0].sock.accept()[0].sendall(b'x')\n"
    )
    fds = [sock.fileno() for _, sock in kept]
    moves = " ".join(f"{3 + number}<&{fd}" for number, fd in enumerate(fds))
    names = ":".join(name for name, _ in kept)
    script = f'exec {moves}; LISTEN_PID=$$ LISTEN_FDS={len(fds)} LISTEN_FDNAMES="{names}" exec "$@"'
    command = ["bash", "-c", script, "-", sys.executable, "-c", code, *addresses]
    with subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            if line == "bound\n":
                break
            lines.append(line.strip())
        else:
            return lines, False
        host, _, port = (connect_to or addresses[0]).rpartition(":")
        with contextlib.ExitStack() as stack:
            for _ in range(2):  # the first may have been waiting since the last run
                stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            return lines, process.wait(10) == 0


def test_what_systemd_may_keep(tmp_path, listen):
    address = free_address()
    made = listen(address, f"{HOST}:0", f"unix:{tmp_path}/a.sock", "unix:@prefork-test-kept")
    assert [one.kept_as for one in made] == [f"listen-{address.replace(':', '_')}", None, None, None]


@pytest.mark.parametrize("end", ["retired", "killed"])
def test_the_next_run_takes_a_socket_over_with_its_queue(listen, end):
    address = free_address()
    first = listen(address)
    with first.sock.dup() as store, socket.create_connection(first.sock.getsockname()) as waiting:
        if end == "retired":
            first.retire()
        else:
            first.close()
        waiting.settimeout(10)
        lines, served = next_run([(first.kept_as, store)], address)
        assert lines == [
            f"taking over {address} from the last run, as systemd kept it",
            f"http://{address} {first.kept_as} True",
        ]
        assert served
        assert waiting.recv(1) == b"x"
        assert send_queue(store) == 7


def send_queue(listener: socket.socket) -> int:
    """The backlog of a TCP listener: Send-Q of ss(8)."""
    host, port = listener.getsockname()
    text = subprocess.run(["ss", "-ltnH", f"src {host}:{port}"], capture_output=True, text=True, check=True)
    return int(text.stdout.split()[2])


def test_what_is_not_wanted_any_more_is_closed_and_its_address_free_at_once(listen):
    address = free_address()
    port = address.rpartition(":")[2]
    first = listen(address)
    with first.sock.dup() as store:
        first.close()
        lines, served = next_run([(first.kept_as, store)], f"0.0.0.0:{port}")
    assert lines == [
        f"closing {first.kept_as}, which systemd kept: it is not what shall be listened on",
        f"forget {first.kept_as}",
        f"http://0.0.0.0:{port} listen-0.0.0.0_{port} True",
    ]
    assert served


def test_only_what_fits_its_name_is_taken(listen):
    address = free_address()
    name = f"listen-{address.replace(':', '_')}"
    wrong = listen(free_address())
    with contextlib.ExitStack() as stack:
        datagrams = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        deaf = stack.enter_context(socket.socket())
        host, _, port = address.rpartition(":")
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deaf.bind((host, int(port)))
        for sock in (wrong.sock, datagrams, deaf):
            lines, served = next_run([(name, sock)], address)
            assert lines == [
                f"closing {name}, which systemd kept: it is not what shall be listened on",
                f"forget {name}",
                f"http://{address} {name} True",
            ]
            assert served
        # Two of one name: one of them, and systemd shall drop both, to be given the right one again.
        deaf.close()
        second = listen(address)
        lines, served = next_run([(name, second.sock), (name, wrong.sock)], address)
        assert lines[0].startswith("taking over")
        assert lines[2:] == [f"forget {name}", f"http://{address} {name} True"]
        assert served


def test_a_file_in_the_place_of_a_kept_socket(tmp_path):
    address = free_address()
    name = f"listen-{address.replace(':', '_')}"
    with open(tmp_path / "file", "w") as file:
        lines, served = next_run([(name, file)], address)
    assert lines[:2] == [
        f"{name}, which systemd kept, cannot be used: Socket operation on non-socket",
        f"forget {name}",
    ]
    assert served


def test_a_start_that_fails_leaves_the_queue_to_the_next(listen):
    address, taken = free_address(), free_address()
    first, _other = listen(address), listen(taken)
    with first.sock.dup() as store, socket.create_connection(first.sock.getsockname()) as waiting:
        first.retire()
        assert next_run([(first.kept_as, store)], address, taken)[1] is False
        assert next_run([(first.kept_as, store)], address)[1]
        waiting.settimeout(10)
        assert waiting.recv(1) == b"x"


def test_a_socket_unit_wins_over_what_was_kept(listen):
    address = free_address()
    first = listen(address)
    with first.sock.dup() as store, socket.create_server((HOST, 0)) as unit:
        first.close()
        listens_on = f"{HOST}:{unit.getsockname()[1]}"
        lines, served = next_run([("http", unit), (first.kept_as, store)], address, connect_to=listens_on)
    assert lines == [
        f"using the socket that systemd passed in place of {address}",
        f"closing {first.kept_as}, which systemd kept: it is not what shall be listened on",
        f"forget {first.kept_as}",
        f"http://{listens_on} None False",
    ]
    assert served
