"""Rollout: a reload under way, slot after slot.

The state of it, and nothing that decides: what happens next is the supervisor's. The first
slot is the canary: until its new worker has served for a moment, beside the old one, nothing
else of the service changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Rollout:
    """The replacement of every worker by one of `generation`.

    waiting: the slots whose worker is still of an earlier one, the next one first. at: the slot
    whose new worker boots or proves itself now. done: the slots that have theirs.
    prepared: the settings have been read, and `waiting` is filled. proves_at: when the canary, which
    serves already, is to be trusted (monotonic seconds); else None.
    slots: how many workers the new settings ask for, from when the canary is trusted; None: as now.
    """

    generation: int
    why: str
    started_at: float
    waiting: list[int]
    prepared: bool = False
    at: int | None = None
    proves_at: float | None = None
    slots: int | None = None
    done: list[int] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f"<Rollout of generation {self.generation}: {len(self.done)} done, {len(self.waiting)} waiting>"
        )

    @property
    def total(self) -> int:
        return len(self.done) + len(self.waiting) + (self.at is not None)

    def begin_next(self) -> int:
        """The next slot's new worker boots."""
        assert self.at is None
        self.at = self.waiting.pop(0)
        return self.at

    def finish(self) -> None:
        """The new worker serves."""
        assert self.at is not None
        self.done.append(self.at)
        self.at = self.proves_at = None

    def add(self, slot: int) -> None:
        """The slot is wanted from now on."""
        assert slot != self.at
        assert slot not in self.waiting + self.done
        self.waiting.append(slot)

    def forget(self, slot: int) -> None:
        """The slot is not wanted any more."""
        for slots in (self.waiting, self.done):
            if slot in slots:
                slots.remove(slot)
        if slot == self.at:
            self.at = self.proves_at = None

    def covers(self, slot: int) -> bool:
        """Whether a worker forked into this slot now is one of the new generation.

        From when the canary is trusted all of them are, also those that are not due yet: a worker
        that replaces a dead one need not be replaced again.
        """
        return slot == self.at or bool(self.done)
