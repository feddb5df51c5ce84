"""Every thread's stack, on demand: what a worker does, also when its loop does nothing any more.

faulthandler writes them from a signal handler in C, so that neither a loop in Python nor a
C function that never lets go of the interpreter can keep it from it. The text goes into a
pipe that the master reads; SIGABRT and the fatal signals write to standard error, as usual.
"""

from __future__ import annotations

import faulthandler

from prefork.ipc import DUMP_SIGNAL


def answer(descriptor: int) -> None:
    """Write all stacks to `descriptor`, a pipe that does not block, whenever DUMP_SIGNAL comes."""
    if descriptor >= 0:
        faulthandler.register(DUMP_SIGNAL, file=descriptor, all_threads=True, chain=False)
    faulthandler.enable()
