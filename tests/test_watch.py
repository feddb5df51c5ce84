"""`--reload`: which files are watched, what counts as a change, and a server that follows its source."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import queue
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from prefork import ipc
from prefork.ipc import Changed, Drain, Ready
from prefork.master.events import Forked, Prepare, Reloaded, Said, Start, Stop
from prefork.master.supervisor import Supervisor
from prefork.settings import Given, Settings, load
from prefork.workers import watch
from prefork.workers.watch import Watch, Watched, for_development

APP = """
from prefork import http

mux = http.ServeMux()

@mux.handle_func("/")
def root(w, r):
    w.write({answer!r})
"""


def app(answer: str) -> str:
    return APP.format(answer=answer)


class Project:
    """A directory with modules that can be imported into this process."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, text: str = "") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def load(self, *names: str) -> None:
        importlib.invalidate_caches()
        for name in names:
            importlib.import_module(name)

    def watched(self, *include: str) -> Watched:
        return Watched(str(self.root), include)

    def changes(self, watched: Watched) -> set[str]:
        """Names, with "-" before those that are gone."""
        found = watched.changes().items()
        return {("" if stamp else "-") + watched.name(path) for path, stamp in found}


@pytest.fixture
def project(tmp_path, monkeypatch):
    before = set(sys.modules)
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.syspath_prepend(root)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # Other tests have imported things of this repository, which are not this application.
    monkeypatch.setattr(watch, "_BEFORE", frozenset(before))
    yield Project(root)
    for name in set(sys.modules) - before:
        del sys.modules[name]


# --- what counts ----------------------------------------------------------------------------


def test_a_file_that_was_imported_counts_and_others_do_not(project):
    for name in ("wa_app.py", "wa_pkg/__init__.py", "wa_pkg/inner/__init__.py", "wa_pkg/inner/deep.py"):
        project.write(name)
    project.write("wa_other.py")
    project.write("wa_pkg/other.py")
    project.load("wa_app", "wa_pkg.inner.deep")
    watched = project.watched()
    assert project.changes(watched) == set()
    for name in ("wa_other.py", "wa_pkg/other.py", "notes.txt", "data.sqlite"):
        project.write(name, "x = 1")
    assert project.changes(watched) == set()
    project.write("wa_app.py", "x = 1")
    project.write("wa_pkg/inner/deep.py", "x = 1")
    assert project.changes(watched) == {"wa_app.py", "wa_pkg/inner/deep.py"}


def test_however_it_is_saved(project):
    source = project.write("wb_app.py", "x = 1")
    project.load("wb_app")
    watched = project.watched()
    copy = project.write("wb_app.py.tmp", "x = 2")
    os.utime(copy, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    copy.replace(source)  # the same size and time: it is another file
    assert project.changes(watched) == {"wb_app.py"}
    watched = project.watched()
    source.touch()
    assert project.changes(watched) == {"wb_app.py"}
    watched = project.watched()
    source.unlink()
    assert project.changes(watched) == {"-wb_app.py"}


def test_a_new_python_file_beside_what_was_imported_counts(project):
    project.write("wc_app.py")
    project.write("wc_pkg/__init__.py")
    project.write("elsewhere/there.py")
    project.load("wc_app", "wc_pkg")
    watched = project.watched()
    for name in ("wc_pkg/new.py", "later.py", "elsewhere/new.py"):
        project.write(name)
    assert project.changes(watched) == {"wc_pkg/new.py", "later.py"}


@pytest.mark.parametrize(
    "name",
    [".#app.py", "#app.py#", "app.py~", ".app.py.swp", "4913", "flycheck_app.py", "app.py___jb_tmp___"],
)
def test_what_editors_leave_for_a_moment_does_not_count(project, name):
    watched = project.watched()
    project.write(name, "x")
    assert project.changes(watched) == set()


def test_once_a_change_was_told_every_python_file_counts(project):
    project.write("wd_app.py")
    project.write("wd_other.py")
    project.write("deep/down/there.py")
    project.write("notes.txt")
    project.load("wd_app")
    watched = project.watched()
    project.write("wd_app.py", "import wd_new")
    assert project.changes(watched) == {"wd_app.py"}
    watched.accept()
    assert project.changes(watched) == set()
    for name in ("wd_other.py", "deep/down/there.py", "new_package/inside/module.py", "notes.txt"):
        project.write(name, "x = 1")
    assert project.changes(watched) == {"wd_other.py", "deep/down/there.py", "new_package/inside/module.py"}
    watched.accept()
    (project.root / "wd_other.py").unlink()
    assert project.changes(watched) == {"-wd_other.py"}


def test_what_is_not_the_applications_is_never_watched(project):
    project.write("we_app.py", "import we_installed, json, prefork.http")
    project.write("we_app_2.py")
    installed = project.write("venv/lib/python3/site-packages/we_installed.py")
    project.write("venv/pyvenv.cfg")
    for name in ("node_modules/a/b.py", ".git/hook.py", "__pycache__/c.py"):
        project.write(name)
    sys.path.append(str(installed.parent))
    try:
        project.load("we_app")
    finally:
        sys.path.remove(str(installed.parent))
    watched = project.watched()
    root = str(project.root)
    assert {path for path, _ in watched.directories} == {root}
    watched.accept()
    watched.changes()
    assert {path for path, _ in watched.directories} == {root}


def test_an_editable_install_is_watched(project, tmp_path, monkeypatch):
    library = tmp_path / "library" / "src" / "wf_lib"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(library.parent)
    project.load("wf_lib")
    watched = project.watched()
    (library / "__init__.py").write_text("x = 1")
    assert project.changes(watched) == {str(library / "__init__.py")}


def test_a_link_counts_where_it_points_to(project, tmp_path):
    target = tmp_path / "real" / "wg_app.py"
    target.parent.mkdir()
    target.write_text("")
    (project.root / "wg_app.py").symlink_to(target)
    project.load("wg_app")
    watched = project.watched()
    assert str(target.parent) in {path for path, _ in watched.directories}
    target.write_text("x = 1")
    assert "wg_app.py" in project.changes(watched)


def test_what_is_imported_later_is_watched_from_then_on_and_is_no_change(project):
    project.write("wh_app.py")
    late = project.write("late/wh_late.py")
    project.write("late/wh_unused.py")
    project.load("wh_app")
    watched = project.watched()
    sys.path.append(str(late.parent))
    try:
        project.load("wh_late")
    finally:
        sys.path.remove(str(late.parent))
    assert project.changes(watched) == set()
    late.write_text("x = 1")
    assert project.changes(watched) == {"late/wh_late.py"}


def test_a_module_that_loads_itself_when_it_is_used_is_left_alone(project):
    source = project.write("wi_lazy.py", "raise RuntimeError('loaded')")
    spec = importlib.util.spec_from_file_location("wi_lazy", source)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["wi_lazy"] = module
    spec.loader.exec_module(module)
    sys.modules["wi_odd"] = 42  # sys.modules may hold anything
    watched = project.watched()
    source.write_text("x = 1")
    assert project.changes(watched) == {"wi_lazy.py"}


def test_directories_below_are_counted_up_to_a_limit(project, monkeypatch):
    monkeypatch.setattr(watch, "MOST_DIRECTORIES", 5)
    for number in range(10):
        project.write(f"d{number}/deep/x.py")
    watched = project.watched()
    watched.accept()
    watched.changes()
    found = sorted(watched.name(path) for path, _ in watched.directories)
    assert found == [str(project.root), "d0", "d1", "d2", "d3"]


def test_a_directory_that_was_made_anew_is_another_one(project):
    project.write("wj_pkg/__init__.py")
    project.load("wj_pkg")
    watched = project.watched()
    before = watched.directories
    (project.root / "wj_pkg/__init__.py").unlink()
    (project.root / "wj_pkg").rmdir()
    assert watched.directories < before
    (project.root / "between").mkdir()  # takes the inode that has become free
    project.write("wj_pkg/__init__.py")
    assert watched.directories != before


# --- other files ----------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["templates", "templates/**/*.html", "templates/**", "{root}/templates"])
def test_included_files(project, pattern):
    page = project.write("templates/page.html")
    project.write("templates/part/menu.html")
    watched = project.watched(pattern.format(root=project.root))
    directories = {watched.name(path) for path, _ in watched.directories}
    assert {"templates", "templates/part"} <= directories
    page.write_text("new")
    project.write("templates/part/new.html")
    assert project.changes(watched) == {"templates/page.html", "templates/part/new.html"}
    watched.accept()
    page.unlink()
    assert project.changes(watched) == {"-templates/page.html"}
    watched.accept()
    assert project.changes(watched) == set()


def test_a_pattern_that_matches_nothing_yet(project):
    watched = project.watched("*.toml", "missing/*.sql")
    project.write("site.toml")
    project.write("site.ini")
    project.write("missing/a.sql")
    assert project.changes(watched) == {"site.toml", "missing/a.sql"}


def test_an_event_that_is_no_reason_to_look(project):
    project.write("wk_app.py")
    project.write("pages/index.html")
    project.load("wk_app")
    watched = project.watched("pages/*.html")
    root = str(project.root)
    reasons = ("wk_app.py", "other.py", "pages/index.html")
    assert all(watched.concerns(os.path.join(root, name)) for name in reasons)
    assert not any(watched.concerns(os.path.join(root, name)) for name in ("app.log", "db.sqlite"))


# --- the thread -----------------------------------------------------------------------------


class Told:
    """Takes messages, and refuses the first `refuse` of them."""

    def __init__(self, refuse: int = 0) -> None:
        self.queue: queue.Queue[str] = queue.Queue()
        self.refuse = refuse

    def __call__(self, message: Changed) -> bool:
        if self.refuse:
            self.refuse -= 1
            return False
        self.queue.put(message.paths)
        return True

    def next(self) -> str:
        return self.queue.get(timeout=10)


@pytest.fixture
def begin():
    started = []

    def call(watched: Watched, tell: Told) -> Watch:
        started.append(Watch(watched, tell))
        started[-1].start()
        return started[-1]

    yield call
    for one in started:
        one.stop()
        assert not any(thread.name == "prefork-watch" for thread in threading.enumerate())


def test_changes_are_told_together_and_once(project, begin):
    for name in ("wl_a.py", "wl_b.py", "wl_c.py", "wl_d.py"):
        project.write(name)
    project.load("wl_a", "wl_b", "wl_c", "wl_d")
    told = Told()
    begin(project.watched(), told)
    for name in ("wl_b.py", "wl_a.py", "wl_c.py", "wl_d.py"):
        project.write(name, "x = 1")
    assert told.next() == "wl_a.py, wl_b.py and 2 more"
    project.write("wl_c.py", "x = 10")
    assert told.next() == "wl_c.py"
    assert told.queue.empty()


def test_what_could_not_be_told_is_told_again(project, begin):
    project.write("wm_a.py")
    project.load("wm_a")
    told = Told(refuse=1)
    begin(project.watched(), told)
    project.write("wm_a.py", "x = 1")
    assert told.next() == "wm_a.py"


def test_a_change_before_the_watch_began_is_found(project, begin):
    project.write("wn_a.py")
    project.load("wn_a")
    watched = project.watched()
    project.write("wn_a.py", "x = 1")
    told = Told()
    begin(watched, told)
    assert told.next() == "wn_a.py"


def test_a_package_made_while_the_code_fails_is_watched(project, begin):
    project.write("wo_a.py")
    project.load("wo_a")
    told = Told()
    begin(project.watched(), told)
    project.write("wo_a.py", "import wo_pkg.new")
    assert told.next() == "wo_a.py"
    project.write("wo_pkg/new.py", "syntax error")
    assert told.next() == "wo_pkg/new.py"
    project.write("wo_pkg/new.py", "x = 1")
    assert told.next() == "wo_pkg/new.py"


@pytest.mark.parametrize("error", [OSError("OS file watch limit reached"), RuntimeError("no inotify")])
def test_without_events_it_looks_now_and_then(project, begin, monkeypatch, caplog, error):
    def fail(*paths, **options):
        raise error

    monkeypatch.setattr(watch.watchfiles, "watch", fail)
    monkeypatch.setattr(logging.getLogger("prefork"), "propagate", True)
    project.write("wp_a.py")
    project.load("wp_a")
    told = Told()
    begin(project.watched(), told)
    for size in (1, 2):
        project.write("wp_a.py", "#" * size)
        assert told.next() == "wp_a.py"
    (record,) = caplog.records
    assert (
        record.getMessage() == f"--reload: the kernel tells of no changes ({error}); looking for them instead"
    )


@pytest.mark.parametrize(
    ("count", "text"), [(1, "f0"), (3, "f0, f1, f2"), (4, "f0, f1 and 2 more"), (9, "f0, f1 and 7 more")]
)
def test_names_for_people(count, text):
    assert watch._listed([f"f{number}" for number in range(count)]) == text


# --- settings, message, supervisor ----------------------------------------------------------


def test_settings_for_development(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefork.toml").write_text('workers = 8\ngraceful_timeout = "1m"\nreload = true\n')
    found = for_development(load(environ={}))
    assert (found.workers, found.graceful_timeout, found.worker_timeout) == (1, 2.0, None)
    flags = {
        "workers": Given("-w", "3"),
        "graceful_timeout": Given("--graceful-timeout", "10s"),
        "worker_timeout": Given("--worker-timeout", "5s"),
    }
    found = for_development(load(flags, environ={}))
    assert (found.workers, found.graceful_timeout, found.worker_timeout) == (3, 10.0, 5.0)
    assert for_development(Settings(graceful_timeout=0.5)).graceful_timeout == 0.5


def test_patterns_as_a_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(environ={"PREFORK_RELOAD_INCLUDE": "templates,*.sql"}).reload_include == (
        "templates",
        "*.sql",
    )
    flag = {"reload_include": Given("--reload-include", ["a, b", "c"])}
    assert load(flag, environ={}).reload_include == ("a, b", "c")


def test_the_message_arrives_as_it_was_sent():
    assert ipc.decode(ipc.encode(Changed("app.py, \udcff.py"))) == Changed("app.py, \udcff.py")


def test_the_supervisor_answers_as_to_a_signal():
    supervisor = Supervisor(slots=1)
    supervisor.handle(Start(), 0.0)
    supervisor.handle(Forked(0, 100), 0.0)
    assert supervisor.handle(Said(100, Changed("app.py")), 0.1) == []  # it has not even started
    supervisor.handle(Said(100, Ready()), 0.2)
    log, prepare, *_ = supervisor.handle(Said(100, Changed("app.py")), 1.0)
    assert log.text == "app.py changed: reloading, generation 2"
    assert prepare == Prepare(2)
    supervisor.handle(Stop("TERM"), 1.1)
    actions = supervisor.handle(Said(100, Changed("app.py")), 1.2)
    assert not any(isinstance(action, (Prepare, Reloaded, Drain)) for action in actions)


# --- the server -----------------------------------------------------------------------------


def answers(server, body: str):
    return lambda: server.get().body == body.encode()


def reloads(server) -> int:
    """How many reloads have succeeded."""
    return server.log().count(" reloaded: ")


def tracebacks(server) -> int:
    return server.log().count("Traceback (most recent call last)") + server.log().count('File "')


def test_an_edit_is_served(prefork_process, until):
    server = prefork_process(app("one"), "--reload")
    assert server.get().body == b"one"
    for number, text in enumerate(("two", "three"), 1):
        (server.directory / "app.py").write_text(app(text))
        until(answers(server, text))
        until(lambda number=number: reloads(server) == number)
        assert server.get().body == text.encode()
        until(lambda: len(server.workers()) == 1)
    assert len(re.findall(r"app\.py changed: reloading, generation \d", server.log())) == 2
    assert server.stop() == 0


def test_the_last_good_code_serves_until_the_new_one_does(prefork_process, until):
    server = prefork_process(app("old"), "--reload")
    source = server.directory / "app.py"
    source.write_text("def broken(:\n")
    server.wait_for_log(r"reload failed, generation 1 goes on serving: SyntaxError")
    for _ in range(5):
        assert server.get().body == b"old"
    assert server.log().count("def broken(:") == 1
    source.write_text("import nothing_of_this_name\n")
    server.wait_for_log(r"No module named 'nothing_of_this_name'")
    assert server.get().body == b"old"
    source.write_text(app("new"))
    until(answers(server, "new"))
    assert server.stop() == 0


def test_a_package_and_what_it_has_never_imported(prefork_process, until):
    """A module is added that fails, in a package that is new as well, and is mended there."""
    start = "from site_pages.view import answer\n" + app("{answer}").replace("'{answer}'", "answer")
    server = prefork_process(
        start, "--reload", files={"site_pages/__init__.py": "", "site_pages/view.py": "answer = 'one'\n"}
    )
    view = server.directory / "site_pages" / "view.py"
    assert server.get().body == b"one"
    view.write_text("answer = 'two'\n")
    until(answers(server, "two"))
    until(lambda: reloads(server) == 1)
    view.write_text("from added.words import answer\n")
    server.wait_for_log(r"reload failed.*No module named 'added'")
    words = server.directory / "added" / "words.py"
    words.parent.mkdir()
    words.write_text("answer = = 'three'\n")
    server.wait_for_log(r"reload failed.*SyntaxError")
    assert server.get().body == b"two"
    words.write_text("answer = 'three'\n")
    until(answers(server, "three"))
    server.wait_for_log(r"added/words\.py changed: reloading")


def test_an_included_template(prefork_process, until):
    text = "from pathlib import Path\npage = Path('pages/index.html').read_text()\n"
    text += app("page").replace("'page'", "page")
    server = prefork_process(text, "--reload", "--reload-include", "pages", files={"pages/index.html": "one"})
    assert server.get().body == b"one"
    (server.directory / "pages" / "index.html").write_text("two")
    until(answers(server, "two"))
    server.wait_for_log(r"pages/index\.html changed: reloading")


def test_a_loop_that_hangs_is_mended_by_an_edit(prefork_process, until):
    text = app("x").replace("w.write('x')", "\n    while True: pass")
    server = prefork_process(text, "--reload", "--graceful-timeout", "0.2s")
    client = server.connect()
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    time.sleep(0.05)  # either way it comes out the same; mostly it hangs by now
    (server.directory / "app.py").write_text(app("mended"))
    server.wait_for_log(r" reloaded: ")
    until(lambda: len(server.workers()) == 1)
    assert server.get().body == b"mended"


def test_two_saves_within_a_second_that_differ_in_nothing_but_a_letter(prefork_process, until):
    """Python would take the bytecode of the first for that of the second."""
    server = prefork_process(app("a"), "--reload", env={"PYTHONDONTWRITEBYTECODE": ""})
    source = server.directory / "app.py"
    second = source.stat().st_mtime_ns // 10**9 * 10**9
    for number, text in enumerate("bcd", 1):
        copy = server.directory / "copy"
        copy.write_text(app(text))
        os.utime(copy, ns=(second, second + number))
        copy.replace(source)
        until(answers(server, text))
        until(lambda number=number: reloads(server) == number)
    assert list((server.directory / "__pycache__").glob("app.*.pyc"))


def test_one_worker_unless_the_command_line_has_another_number(prefork_process, until):
    server = prefork_process(app("one"), "--reload", env={"PREFORK_WORKERS": "4"})
    assert len(server.workers()) == 1
    server = prefork_process(app("one"), "--reload", "-w", "3")
    assert len(server.workers()) == 3
    (server.directory / "app.py").write_text(app("two"))
    server.wait_for_log(r"reloaded: 3 workers of generation 2")
    assert {server.get().body for _ in range(20)} == {b"two"}
    threads = [
        sum(
            Path(f"/proc/{pid}/task/{task}/comm").read_text().startswith("notify-rs")
            for task in os.listdir(f"/proc/{pid}/task")
        )
        for pid in (server.pid, *until(lambda: len(server.workers()) == 3 and server.workers()))
    ]
    assert threads[0] == 0, "the master has no threads"
    assert sorted(threads) == [0, 0, 0, 1]


def test_without_it_nobody_watches_and_nothing_is_imported(prefork_process):
    text = app("x").replace("w.write('x')", "import sys, json; w.write(json.dumps(list(sys.modules)))")
    server = prefork_process(text)
    assert not {"watchfiles", "prefork.workers.watch", "anyio"} & set(json.loads(server.get().body))


def test_a_first_start_that_fails_ends_as_without_it(prefork_command):
    done = prefork_command("run", "app:mux", "--reload", "-b", "127.0.0.1:0", app="def broken(:\n")
    assert done.code == 4
    assert "SyntaxError" in done.stderr


def test_without_watchfiles_it_says_how_to_get_it_before_anything_is_bound(prefork_command, tmp_path):
    done = prefork_command(
        "run",
        "app:mux",
        "--reload",
        "-b",
        "unix:app.sock",
        app=app("x"),
        files={"watchfiles.py": "import nothing_"},
    )
    assert done.code == 2
    assert done.stderr == ("prefork: --reload needs the package watchfiles: pip install 'prefork[reload]'\n")
    assert not (tmp_path / "app.sock").exists()


def test_a_program_that_serves_its_own_handler_cannot_be_reloaded():
    from prefork import http

    with pytest.raises(TypeError, match="reload"):
        http.listen_and_serve("127.0.0.1:0", http.ServeMux(), workers=1, reload=True)
