"""What monitors cost, as one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from benchmarks.events import faults, switches
from benchmarks.paging import paging
from benchmarks.rest import rest
from benchmarks.speed import debian, programs
from benchmarks.table import Row, show
from benchmarks.techniques import techniques

Group = dict[str, list[Row]]
"""Rows under headings."""


def _speed(runs: int) -> Group:
    of_debian, traps = debian(runs)
    return {"time on monitors, the bare machine's = 1": programs(runs) + of_debian, "technique trap": traps}


GROUPS: dict[str, Callable[[int], Group]] = {
    "speed": _speed,
    "techniques": lambda runs: {"time by technique, the bare machine's = 1": techniques(runs)},
    "switch": lambda runs: {"machine switch": switches(runs)},
    "rest": lambda _: {"a guest at rest, of a core": rest()},
    "paging": lambda _: {"a guest that pages on a machine that is paged": paging()},
    "fault": lambda runs: {"VM-fault on vmm on vmm": faults(runs)},
}


def monitors(named: Collection[str], runs: int) -> None:
    """The table, of all groups or of those that are named."""
    start = time.monotonic()
    found: Group = {}
    for name, measured in GROUPS.items():
        if not named or name in named:
            found |= measured(runs)
    title = (
        f"Monitors; medians of {runs} alternating runs, processor time; measured in {time.monotonic() - start:.0f} s"
    )
    show(title, found.items())
