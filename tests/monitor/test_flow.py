"""Who does what can be watched, and nothing is different for it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ringfence import CORRAL, MachineError, MiB, Virt, load
from ringfence.isa.spec import disassemble
from ringfence.isa.trap import Cause
from ringfence.machine.board import Tlb
from ringfence.monitor.flow import Entry, Event, watch
from ringfence.monitor.monitor import Technique, nested

END = 104_000
"""ns: Corral waits at its prompt by then."""
CONFIGURATIONS: list[list[Technique]] = [[], ["virtualizer"], ["trap"], ["virtualizer"] * 2]
TLBS: list[Tlb] = ["hardware", "software"]


def machine(techniques: list[Technique], tlb: Tlb = "hardware") -> Virt:
    found = nested(len(techniques), 16 * MiB, engine="reference", technique=techniques, tlb=tlb)
    load(found, CORRAL)
    return found


@pytest.mark.parametrize("tlb", TLBS)
@pytest.mark.parametrize("techniques", CONFIGURATIONS, ids=lambda names: "-".join(names) or "bare")
def test_every_step_is_told_once(techniques: list[Technique], tlb: Tlb) -> None:
    """In order, whoever takes it; and the run is the one that is not watched."""
    watched, alone = machine(techniques, tlb), machine(techniques, tlb)
    events: list[Event] = []
    watch(watched, events.append)
    for each in (watched, alone):
        each.run(until=END)
    taken = [event for event in events if event.cause is None or event.after != (event.priv, event.pc)]
    assert [event.steps for event in taken] == list(range(watched.steps))
    assert all(a.after == (b.priv, b.pc) for a, b in pairwise(taken))
    assert watched.digest() == alone.digest()


def test_monitor_is_seen_where_it_traps_and_not_where_it_does_not() -> None:
    """What it applies has left direct execution just before; a process exception under a virtualizer has not."""
    told: dict[Technique, list[Event]] = {}
    techniques: list[Technique] = ["virtualizer", "trap"]
    for technique in techniques:
        guest = machine([technique])
        watch(guest, told.setdefault(technique, []).append)
        guest.run(until=END)
    assert not any(event.by_monitor for event in told["virtualizer"])
    events = told["trap"]
    applied = [(before, event) for before, event in pairwise(events) if event.by_monitor]
    assert len(applied) > 10
    for before, event in applied:
        assert not before.by_monitor and before.cause is not None and before.pc == event.pc
    assert any(before.cause is Cause.ILLEGAL for before, _ in applied)


def test_entry_is_told_where_the_guest_writes_one() -> None:
    """By the one instruction that does, on either machine alike; a hart that walks has none."""
    told: list[list[tuple[int, Entry]]] = []
    cases: list[tuple[list[Technique], Tlb]] = [([], "software"), (["trap"], "software"), (["trap"], "hardware")]
    for techniques, tlb in cases:
        guest = machine(techniques, tlb)
        events: list[Event] = []
        watch(guest, events.append)
        guest.run(until=END)
        written = [event for event in events if event.entry is not None]
        assert all(disassemble(event.bits).startswith("tlbwr ") for event in written)
        told.append([(event.steps, event.entry) for event in written if event.entry is not None])
    assert told[0] == told[1] != [] == told[2]


def test_device_is_told_with_its_register() -> None:
    """The console's first byte."""
    guest = machine(["trap"])
    events: list[Event] = []
    watch(guest, events.append)
    guest.run(until=END)
    sent = [chr(e.transfer.value) for e in events if e.transfer and e.transfer[:3] == ("Uart16550", 0, True)]
    assert "".join(sent).lstrip("\r\n").startswith("Corral, a small")


@pytest.mark.parametrize("depth", [0, 1])
def test_native_code_is_not_watched(depth: int) -> None:
    """It is refused in a sentence, as is what runs on a monitor that traps beneath another that does."""
    with pytest.raises(MachineError, match="only what the reference engine runs can be watched"):
        watch(nested(depth, 16 * MiB, technique="trap"), lambda event: None)
    with pytest.raises(MachineError, match="beneath one monitor"):
        watch(machine(["trap", "trap"]), lambda event: None)
