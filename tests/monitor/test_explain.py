"""The way of an address is the machine's own, and looking at it changes nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from states import MEMORY, SCALE, Layout, scramble
from test_engine_programs import Program

from ringfence import CORRAL, MiB, Monitor, Virt, load, virt
from ringfence.isa import pmp
from ringfence.isa.paging import ADUE, Access, R, V, W, X
from ringfence.isa.trap import Cause, M, S
from ringfence.machine.board import PLIC, RAM, ROM, UART
from ringfence.machine.engine.reference import Trap
from ringfence.machine.hart import SIZE
from ringfence.machine.memory import FRAME
from ringfence.monitor.explain import BARE, Way, explain
from ringfence.monitor.monitor import Technique, nested
from ringfence.monitor.vm import VirtualMachine

USER_PAGE = 0x10_0000_0000
"""Where Corral's programs begin."""
PERMISSION = {Access.FETCH: pmp.X, Access.LOAD: pmp.R, Access.STORE: pmp.W}
CONFIGURATIONS: list[list[Technique]] = [
    [],
    ["virtualizer"],
    ["trap"],
    ["virtualizer"] * 2,
    ["trap"] * 2,
    ["virtualizer"] * 3,
    ["trap"] * 3,
    ["trap", "virtualizer", "trap"],
]


def levels(machine: Virt) -> list[Virt]:
    """The machine and all beneath it."""
    found = [machine]
    while isinstance(found[-1], VirtualMachine):
        found.append(found[-1].monitor.machine)
    return found


def reached(machine: Virt, va: int, access: Access) -> int | Cause:
    """What the hart's own access comes to."""
    hart, reference = machine.harts[0], machine.reference
    try:
        pa, _, as_machine = reference.walk(hart, va, access)
    except Trap as trap:
        return Cause(trap.cause)
    if not reference.permission(hart, pa, 1, as_machine) & PERMISSION[access]:
        return (Cause.FETCH_ACCESS, Cause.LOAD_ACCESS, Cause.STORE_ACCESS)[access]
    return pa


def put(machine: Virt, rng: random.Random) -> Layout:
    """A random state of hart and memory."""
    hart = machine.harts[0]
    layout = scramble(rng, hart)
    for page, data in layout.frames.items():
        machine.ram.write(RAM + page * FRAME, data)
    machine.protection(hart)
    return layout


def agree(machine: Virt, va: int) -> Way:
    """What the way says is what the hart's accesses come to, and the composed map; no accessed bit was set for it."""
    ram = machine.ram
    before = ram.read(RAM, 20 * FRAME)
    way = explain(machine, va)
    assert ram.read(RAM, 20 * FRAME) == before
    in_ram = way.phi.pa is not None and 0 <= way.phi.pa - ram.base < ram.size
    for access in Access:
        found = reached(machine, va, access)
        if isinstance(found, Cause):
            assert way.phi.faults[access][0] == found, way
        elif access is not Access.FETCH:
            assert way.phi.pa == found, way
            assert in_ram == (access not in way.phi.faults) or way.device, way
        elif 0 <= found - ram.base < ram.size:
            assert access not in way.phi.faults, way
    if in_ram:
        assert way.phi.pa is not None and len(way.answers) == len(levels(machine)) - 1
        assert way.place == RAM + ram.place(way.phi.pa - ram.base)
    return way


@pytest.mark.parametrize("techniques", CONFIGURATIONS, ids=lambda names: "-".join(names) or "bare")
def test_way_is_what_an_access_comes_to(techniques: list[Technique]) -> None:
    """In random states of hart, page tables and protection, for random addresses."""
    machine = nested(len(techniques), MEMORY, technique=techniques)
    rng = random.Random(f"explain {len(techniques)}")
    allowed = refused = 0
    for _ in range(round(60 * SCALE)):
        layout = put(machine, rng)
        # Frames that nobody has asked for have no answer until the guest's access gives them one.
        for at in range(0, machine.ram.size, FRAME):
            machine.ram.place(at)
        for _ in range(10):
            way = agree(machine, layout.pointer() if rng.random() < 0.7 else layout.target())
            allowed += Access.LOAD not in way.phi.faults
            refused += Access.LOAD in way.phi.faults
    assert allowed > 50 and refused > 50


def running(techniques: list[Technique]) -> Virt:
    """Corral, with a process that waits."""
    machine = nested(len(techniques), 16 * MiB, technique=techniques)
    load(machine, CORRAL)
    machine.console.expect("corral> ")
    machine.console.send("run cat\n")
    machine.run()
    return machine


@pytest.mark.parametrize("techniques", CONFIGURATIONS, ids=lambda names: "-".join(names) or "bare")
def test_explaining_changes_nothing(techniques: list[Technique]) -> None:
    """Not the machine, none beneath it, no page table's bits, no frame's place, nor what is known to be used lately."""
    machine = running(techniques)
    virtual = [level for level in levels(machine) if isinstance(level, VirtualMachine)]
    for level in virtual:  # the way leads through, and to, what is not there
        for va in (RAM, USER_PAGE):
            for entry in explain(level, va).phi.entries:
                level.monitor.page_out(level, entry.pa - RAM & -FRAME)
        level.monitor.page_out(level, 0x20_0000)
    for level in virtual:  # and is not known to be used lately
        for at in range(0, level.ram.size, FRAME):
            level.ram.recent(at)

    def state() -> list[object]:
        composed = [bytes(vm.ram.composed or b"") for vm in virtual]
        told = [(vm.monitor.faults, vm.held, dict(vm.paged)) for vm in virtual]
        return [*composed, *told, machine.harts[0].block[:SIZE].tobytes(), levels(machine)[-1].digest()]

    rng = random.Random(5)
    before = state()
    assert explain(machine, USER_PAGE).phi.pa is not None
    for va in (RAM + 0x20_0000, RAM, USER_PAGE, UART, *(RAM + rng.randrange(machine.ram.size) for _ in range(50))):
        explain(machine, va)
    assert state() == before


def test_way_leads_through_every_f() -> None:
    """Each level's answer begins where the last one's ended."""
    machine = running(["virtualizer"] * 3)
    way = explain(machine, USER_PAGE)
    assert [answer.path for answer in way.answers] == ["guest/guest/guest", "guest/guest", "guest"]
    assert [answer.host for answer in way.answers] == ["guest/guest", "guest", BARE]
    at = way.phi.pa
    for answer in way.answers:
        assert at == RAM + answer.at and answer.page is not None
        to, rights, size = answer.page
        assert rights == 7 and answer.host_pa == RAM + to + (answer.at & size - 1)
        at = answer.host_pa
    assert at == way.place
    assert at is not None and levels(machine)[-1].memory[at : at + 64] == machine.memory[way.phi.pa : way.phi.pa + 64]  # type: ignore[operator]


def test_way_of_a_frame_that_is_not_there() -> None:
    """It ends with the level whose f has no answer, and says where the frame is."""
    middle = Monitor(virt(64 * MiB)).create("middle", 48 * MiB)
    guest = Monitor(middle).create("guest", 16 * MiB)
    load(guest, CORRAL)
    guest.run(1000)
    untouched = explain(guest, RAM + 8 * MiB)
    assert [(a.path, a.host, a.page, a.paged) for a in untouched.answers] == [
        ("middle/guest", "middle", None, False)
    ] and untouched.place is None

    there = explain(guest, RAM + 0x20_0000)
    middle.monitor.page_out(middle, there.answers[1].at & -FRAME)
    beneath = explain(guest, RAM + 0x20_0000)
    assert [(a.path, a.page is None, a.paged) for a in beneath.answers] == [
        ("middle/guest", False, False),
        ("middle", True, True),
    ]
    guest.monitor.page_out(guest, 0x20_0000)
    above = explain(guest, RAM + 0x20_0000)
    assert [(a.path, a.page is None, a.paged) for a in above.answers] == [("middle/guest", True, True)]
    assert above.phi == there.phi


@pytest.mark.parametrize("device,va,offset", [("Uart16550", UART + 5, 5), ("Plic", PLIC + 0x1000, 0x1000)])
def test_way_of_a_device_ends_there(device: str, va: int, offset: int) -> None:
    """There is no memory beneath."""
    way = explain(running(["virtualizer"]), va)
    assert (way.device, way.answers, way.place) == ((device, offset), (), None)
    assert way.phi.faults[Access.FETCH] and Access.LOAD not in way.phi.faults


def test_way_without_translation() -> None:
    """A hart in M-mode, or with satp 0, has physical addresses."""
    machine = nested(1, 16 * MiB)
    load(machine, CORRAL)
    assert explain(machine, RAM + 0x1234).phi.pa == RAM + 0x1234
    machine.harts[0].priv = M
    assert explain(machine, ROM).device == ("boot ROM", 0)
    nothing = explain(machine, 0x5000_0000)
    assert nothing.device is None and [c for c, _ in nothing.phi.faults.values()] == [1, 5, 7]


def test_way_says_why_it_is_refused() -> None:
    """In words, for what the process may and the kernel may not."""
    machine = running([])
    phi = explain(machine, USER_PAGE).phi
    assert phi.pa is not None
    assert phi.faults[Access.LOAD] == (Cause.LOAD_PAGE, "the page is U-mode's, and sstatus.SUM is 0")
    assert phi.faults[Access.FETCH][1] == "S-mode executes no page of U-mode's"
    machine.harts[0].priv = 0
    assert set(explain(machine, USER_PAGE).phi.faults) == {Access.STORE}
    assert explain(machine, RAM + 0x20_0000).phi.faults[Access.LOAD][1] == "the page is not U-mode's"
    assert "not valid" in explain(machine, USER_PAGE + 0x800_0000).phi.faults[Access.LOAD][1]
    assert "sign extension" in explain(machine, 1 << 40).phi.faults[Access.LOAD][1]


def test_way_says_what_protection_refuses() -> None:
    """The page itself; the walk's write of an accessed bit; the walk's read of a table."""
    machine = virt(4 * MiB)
    hart, table = machine.harts[0], RAM + FRAME
    hart.priv, hart.satp, hart.menvcfg = S, 8 << 60 | table >> 12, hart.menvcfg | 1 << ADUE
    machine.ram.write(table + 16, (RAM >> 2 | V | R | W | X).to_bytes(8, "little"))
    hart["pmpaddr0"], hart["pmpaddr1"] = table >> 2 | 511, (1 << 54) - 1
    why = {}
    for granted, everywhere in ((7, 7), (7, 1), (1, 7), (0, 7)):
        hart.pmpcfg0 = pmp.NAPOT | granted | (pmp.NAPOT | everywhere) << 8
        machine.protection(hart)
        way = explain(machine, RAM + 0x2000)
        why[granted, everywhere] = way.phi.faults.get(Access.STORE, (0, ""))[1]
        assert [way.phi.faults.get(access, (None, ""))[0] for access in Access] == [
            found if isinstance(found, Cause) else None
            for access in Access
            for found in [reached(machine, RAM + 0x2000, access)]
        ]
        machine.ram.write(table + 16, (RAM >> 2 | V | R | W | X).to_bytes(8, "little"))
    refused = "physical memory protection refuses it"
    assert list(why.values()) == ["", refused, refused, "the next table is not in RAM, or protected from the walk"]


@pytest.mark.parametrize("techniques", [["trap"], ["trap"] * 2, ["trap"] * 3, ["virtualizer", "trap"]], ids="-".join)
def test_shadow_maps_what_the_way_says(techniques: list[Technique]) -> None:
    """A shadow's entry leads to where f ∘ φ does, with no right that φ does not give; there is one for each level that
    traps."""
    machine = running(techniques)
    seen = set()
    for va in (USER_PAGE, *range(RAM + 0x20_0000, RAM + 0x21_0000, FRAME)):
        way = explain(machine, va + 0x123)
        ends = {BARE: way.place} | {answer.path: answer.at + RAM for answer in way.answers}
        for shadow in way.shadows:
            seen.add((shadow.host, shadow.mode))
            assert shadow.host_pa == ends[shadow.host]
            assert not shadow.entries[-1].value & (R | W | X) & ~(way.phi.entries[-1].value | R)
    trapping = [level for level, name in zip(levels(machine)[1:], reversed(techniques), strict=True) if name == "trap"]
    hosts = [level.path if isinstance(level, VirtualMachine) else BARE for level in trapping]
    assert {host for host, _ in seen} == set(hosts)
    assert {(hosts[0], "U-mode"), (hosts[0], "S-mode")} <= seen


def test_shadow_entry_that_was_cleared_is_not_shown() -> None:
    """Where the guest's entry is written, native code clears the shadow's; nobody else is told."""
    machine = running(["trap"])
    way = explain(machine, USER_PAGE)
    assert way.shadows
    entry = way.phi.entries[-1]
    place = machine.ram.place(entry.pa - RAM)
    levels(machine)[-1].ram.write(RAM + place, entry.value.to_bytes(8, "little"))
    assert explain(machine, USER_PAGE) == replace(way, shadows=())


def test_shadows_of_random_programs_agree() -> None:
    """After programs that change tables and modes, what shadows map is where the machine's own access comes."""
    found = 0
    for case in range(round(10 * SCALE)):
        machine = nested(1, MEMORY, technique="trap")
        program = Program(f"explain {case}")
        program.load(machine).run(until=program.clock * 100 + 2000)
        hart = machine.harts[0]
        for page in range(20):
            way = agree(machine, hart.x[11] - 12 * FRAME + page * FRAME & (1 << 64) - 1)
            for shadow in way.shadows:
                found += 1
                assert shadow.host_pa == way.place
    assert found


def test_nothing_is_shadowed_by_a_virtualizer() -> None:
    assert explain(running(["virtualizer"]), USER_PAGE).shadows == ()
