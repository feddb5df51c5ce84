"""The process around the loop: its rights, limits, memory and parent.

All of it happens in the child, right after the fork and before any line of the application
runs: code of the application never sees root, an unset limit, or the master's process.
"""

from __future__ import annotations

import ctypes
import grp
import logging
import os
import pwd
import resource
import signal
from dataclasses import dataclass
from typing import Final

from prefork.ipc import ExitCode

log = logging.getLogger("prefork")

_MAX_FILES: Final = 1 << 20
_PR_SET_PDEATHSIG: Final = 1
# mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_MALLOC_ENVIRONMENT: Final = (
    "GLIBC_TUNABLES",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_THRESHOLD_",
)


class PrivilegeError(Exception):
    """The user or group asked for cannot be taken on. `str()` is for the user.

    exit_code: what the process exits with.
    """

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the workers shall be. groups: the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def identity(user: str | None, group: str | None) -> Identity | None:
    """Look up names or numbers; None when nothing is to change.

    user alone brings its own group and supplementary groups along, as a login would. group
    alone leaves the user as it is. Raises PrivilegeError, also when this process may not change.
    """
    if user is None and group is None:
        return None
    uid, gid, groups = os.geteuid(), os.getegid(), tuple(os.getgroups())
    if group is not None:
        gid = _group_id(group)
        groups = (gid,)
    if user is not None:
        entry = _passwd(user)
        if entry is not None:
            uid = entry.pw_uid
            gid = gid if group is not None else entry.pw_gid
            groups = tuple(os.getgrouplist(entry.pw_name, gid))
        elif group is not None:
            uid, groups = int(user), (gid,)
        else:
            raise PrivilegeError(
                f"user {user} has no entry in passwd, so its group is unknown; give --group too"
            )
    if os.geteuid() != 0 and (uid, gid) != (os.geteuid(), os.getegid()):
        raise PrivilegeError(
            "only root can run workers as another user or group; leave out --user and --group"
        )
    return Identity(uid, gid, groups)


def _passwd(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        pass
    if not user.isascii() or not user.isdigit():
        raise PrivilegeError(f"there is no user {user!r} on this machine")
    try:
        return pwd.getpwuid(int(user))
    except KeyError:
        return None


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        pass
    if not group.isascii() or not group.isdigit():
        raise PrivilegeError(f"there is no group {group!r} on this machine")
    return int(group)


def become(who: Identity) -> None:
    """Give up root for good. Raises PrivilegeError if any of it did not take hold."""
    if os.geteuid() != 0:
        return  # identity() has made sure that nothing is to change
    try:
        # The order is forced: without root, neither groups nor gid can be changed.
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    except OSError as exc:
        raise PrivilegeError(f"cannot become uid {who.uid}, gid {who.gid}: {exc.strerror}") from exc
    # Checked, because a server that believes that it dropped root is worse than one that knows it did not.
    if (os.getresuid(), os.getresgid()) != ((who.uid,) * 3, (who.gid,) * 3):
        raise PrivilegeError(f"became {os.getresuid()}, {os.getresgid()} instead of {who.uid}, {who.gid}")
    if who.uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise PrivilegeError(f"uid {who.uid} can become root again; does it have CAP_SETUID?")


def raise_file_limit() -> int:
    """Use all the descriptors that the hard limit allows; returns how many that are.

    The soft limit is 1024 in most places for the sake of select(2), which we do not use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MAX_FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as exc:  # a sandbox forbids it
        log.debug("the limit of open files stays at %d: %s", soft, exc)
        return soft
    return wanted


def tune_malloc() -> bool:
    """Make glibc keep what a request used for the next one; False where that is not to be done.

    The loop reads into fresh buffers of 256 kB. By default glibc maps each from the kernel or
    gives it back right after, and faulting its pages in again costs most of the time that a
    large body takes. An operator who has tuned malloc by the environment is not overruled.
    """
    if any(name in os.environ for name in _MALLOC_ENVIRONMENT):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # AttributeError unless it is glibc
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, 4 << 20), (_M_TRIM_THRESHOLD, 1 << 20), (_M_TOP_PAD, 16 << 20))
    results = [mallopt(option, value) for option, value in settings]
    return results == [1, 1, 1]


def die_with(parent: int) -> bool:
    """Ask for a SIGTERM when the master, `parent`, dies. False when it is dead already.

    The end of the control socket tells the same, but only to a loop that runs: an import
    that hangs would outlive its master for ever. To be called after `become`, because the
    kernel forgets it at a change of user.
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    except (OSError, AttributeError):
        pass  # not there: the control socket has to do
    return os.getppid() == parent
