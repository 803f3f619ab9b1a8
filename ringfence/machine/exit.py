"""Why a run of a machine ended: a small closed set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Exit:
    """`steps`: the machine's count when it stopped."""

    steps: int


@dataclass(frozen=True)
class Budget(Exit):
    """The steps it was given are used up."""


@dataclass(frozen=True)
class Deadline(Exit):
    """The guest time that it was given has come."""


@dataclass(frozen=True)
class PowerOff(Exit):
    """The guest switched the machine off, with this status."""

    status: int


@dataclass(frozen=True)
class Idle(Exit):
    """Every hart waits. `wake`: the guest time of the next event, where it may not be jumped to; `due`: the host's
    monotonic time of it, in ns, under the host clock. Without either only input can go on.
    """

    wake: int | None = None
    due: int | None = None


@dataclass(frozen=True)
class Stopped(Exit):
    """Somebody asked it to stop."""


@dataclass(frozen=True)
class Break(Exit):
    """Hart `hart` stands at a breakpoint at `va`; or its last instruction met a watchpoint there, of kind `watch`."""

    hart: int
    va: int
    watch: Literal["write", "read", "access"] | None = None
