"""What the tests of the supervisor share: a kernel of straw. No process is forked, no time passes.

Not a test module. Load it by path, as the test modules do: `tests` is no package.
"""

from __future__ import annotations

import signal

from prefork.ipc import Ready
from prefork.master.events import (
    Action,
    Event,
    Exited,
    Fork,
    Forked,
    ForkFailed,
    Log,
    Prepare,
    Prepared,
    Reload,
    Reloaded,
    Said,
    Scale,
    Send,
    Start,
    Status,
    Tick,
)
from prefork.master.supervisor import CANARY_SERVES, Supervisor

GRACEFUL, BOOT = 30.0, 60.0


def exited(code: int) -> int:
    """A wait status."""
    return code << 8


class World:
    """Answers forks and prepares at once, as the arbiter does, and remembers what was done.

    pids: the newest process of each slot. forks: every `Fork` that worked, by its pid.
    answer: to the next `Prepare`.
    """

    def __init__(self, count: int = 2, **options) -> None:
        self.now = 1000.0
        options = {"graceful_timeout": GRACEFUL, "boot_timeout": BOOT, **options}
        self.supervisor = Supervisor(slots=count, **options)
        self.pids: dict[int, int] = {}
        self.forks: dict[int, Fork] = {}
        self.next_pid = 100
        self.can_fork = True
        self.answer = Prepared()

    def tell(self, event: Event) -> list[Action]:
        done, todo = [], list(self.supervisor.handle(event, self.now))
        while todo:
            action = todo.pop(0)
            done.append(action)
            if isinstance(action, Fork):
                if self.can_fork:
                    self.next_pid += 1
                    self.pids[action.slot] = self.next_pid
                    self.forks[self.next_pid] = action
                    answer = Forked(action.slot, self.next_pid)
                else:
                    answer = ForkFailed(action.slot, "no room")
                todo += self.supervisor.handle(answer, self.now)
            elif isinstance(action, Prepare):
                todo += self.supervisor.handle(self.answer, self.now)
        return done

    def after(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.tell(Tick())

    def say(self, slot: int, message) -> list[Action]:
        return self.tell(Said(self.pids[slot], message))

    def ready(self, slot: int) -> list[Action]:
        return self.say(slot, Ready())

    def serve(self) -> World:
        self.tell(Start())
        for slot in list(self.pids):
            self.ready(slot)
        return self

    def die(self, slot: int, status: int = signal.SIGSEGV, **more) -> list[Action]:
        """The newest process of the slot does."""
        return self.exit(self.pids[slot], status, **more)

    def exit(self, pid: int, status: int = 0, **more) -> list[Action]:
        return self.tell(Exited(pid, status, **more))

    def reload(self, why: str = "SIGHUP") -> list[Action]:
        return self.tell(Reload(why))

    def trust(self) -> list[Action]:
        """The canary, which is ready, has served long enough."""
        return self.after(CANARY_SERVES)

    def scale(self, slots: int) -> list[Action]:
        return self.tell(Scale(slots, "SIGTTIN"))

    def generations(self) -> list[int]:
        """Of the newest process in each slot."""
        return [self.forks[self.pids[slot]].generation for slot in sorted(self.pids)]


def kinds(actions: list[Action]) -> list[type]:
    return [type(action) for action in actions if not isinstance(action, (Log, Status))]


def acts(actions: list[Action]) -> list[Action]:
    """What is done, without what is told."""
    return [action for action in actions if not isinstance(action, (Log, Status))]


def logged(actions: list[Action]) -> str:
    return "\n".join(action.text for action in actions if isinstance(action, Log))


def details(actions: list[Action]) -> list[str]:
    return [action.detail for action in actions if isinstance(action, Log)]


def only(kind: type, actions: list[Action]):
    """The one action of this kind."""
    (found,) = (action for action in actions if isinstance(action, kind))
    return found


def outcome(actions: list[Action]) -> Reloaded:
    return only(Reloaded, actions)


def drained(actions: list[Action]) -> list[int]:
    """Who is told to drain."""
    return [action.pid for action in actions if isinstance(action, Send)]
