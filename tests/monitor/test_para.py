"""A guest that knows its monitor: its programs do not notice, and what it asks for wrongly is its own."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Sequence
from typing import Literal

import pytest
from test_equivalence import boot

from ringfence import CORRAL, Image, MachineError, MiB, Monitor, Virt, VirtualMachine, load, nested, virt
from ringfence.isa.spec import ISA
from ringfence.machine.board import RAM
from ringfence.machine.hart import SIZE
from ringfence.monitor.monitor import Technique
from ringfence.monitor.stats import lines
from ringfence.monitor.technique.para import EXTENSION, Paravirtual

PROMPT = "corral> "
COMMANDS = ("run hello", "run primes", "run mandel", "run heap", "run fault", "run count 7", "run tick 2", "echo bye")
LISTS = RAM + 4 * MiB
"""Where the wild guest's memory of arguments is."""


def command(machine: Virt, text: str) -> str:
    """What it prints."""
    before = len(machine.console.text)
    machine.console.send(text + "\n")
    machine.console.expect(PROMPT)
    return machine.console.text[before:]


def booted(techniques: Sequence[Technique], engine: Literal["threaded", "reference"] = "threaded") -> Virt:
    machine = nested(len(techniques), 64 * MiB, engine=engine, technique=list(techniques))
    load(machine, CORRAL)
    machine.console.expect(PROMPT)
    return machine


def called(machine: Virt) -> Paravirtual:
    assert isinstance(machine, VirtualMachine) and isinstance(machine.engine, Paravirtual)
    return machine.engine


@pytest.mark.parametrize(
    "techniques",
    [
        ("para",),
        ("virtualizer", "para"),
        ("trap", "para"),
        ("vm-bit", "para"),
        ("para", "para"),
        ("para", "virtualizer"),
    ],
    ids="-".join,
)
def test_programs_print_the_same(techniques: Sequence[Technique]) -> None:
    """They are the bare machine's; under any monitors."""
    bare, found = booted(()), booted(techniques)
    for text in COMMANDS:
        expected, printed = command(bare, text), command(found, text)
        if text.startswith("run tick"):  # which looks at the clock
            expected, printed = (re.sub(r"\d+ ms", "100 ms", told) for told in (expected, printed))
        assert printed == expected
    assert called(found).calls > 10


def test_programs_print_the_same_in_the_reference() -> None:
    bare, found = booted(()), booted(("para",), "reference")
    for text in ("run hello", "run heap 8", "run fault"):
        assert command(found, text) == command(bare, text)
    assert called(found).calls > 10


def test_processes_talk_through_pipes() -> None:
    """Switches from one process to the other lose nothing."""
    assert "200 rounds in" in command(booted(("para",)), "run pingpong 200")


def test_system_calls_enter_no_monitor() -> None:
    """A round of pingpong is four system calls and two switches, and each of those writes satp."""
    machine = booted(("para",))
    engine = called(machine)

    def entered(rounds: int) -> int:
        before = engine.applied_natively + engine.interpreted
        command(machine, f"run pingpong {rounds}")
        return engine.applied_natively + engine.interpreted - before

    few, many = entered(100), entered(1100)
    assert 1.9 < (many - few) / 1000 < 2.3


def test_fresh_memory_is_not_zeroed_again() -> None:
    """512 pages are touched; that they are zero costs the guest 512 stores each on the bare machine."""
    taken = []
    for machine in (booted(()), booted(("para",))):
        before = machine.steps
        command(machine, "run heap")
        taken.append(machine.steps - before)
    assert taken[0] - taken[1] > 512 * 60


def test_page_table_updates_are_foreseen() -> None:
    """A page that an update maps is mapped in the shadow at once, so the process's next access to it runs."""
    machine, other = booted(("para",)), booted(("vm-bit",))
    faults = []
    for board in (machine, other):
        before = board.engine.interpreted  # type: ignore[attr-defined]
        command(board, "run heap")
        faults.append(board.engine.interpreted - before)  # type: ignore[attr-defined]
    assert called(machine).filled > 512
    assert faults[0] < 3 * faults[1]


def test_machine_that_calls_is_impure() -> None:
    """From its first call on, until it is reset; one whose guest does not call stays pure."""
    machine = nested(1, 64 * MiB, technique="para")
    assert isinstance(machine, VirtualMachine)
    load(machine, CORRAL)
    assert not machine.impure
    machine.console.expect(PROMPT)
    assert machine.impure and "(para, impure)" in lines(machine)[0]
    machine.hardware_reset()
    assert not machine.impure and "(para)" in lines(machine)[0]
    for technique in ("virtualizer", "vm-bit"):
        pure = booted((technique,))
        assert isinstance(pure, VirtualMachine) and not pure.impure


def test_guest_that_does_not_call_is_as_on_the_bare_machine(debian: Image) -> None:
    """Stock Debian knows nothing of calls."""
    machine = nested(1, 256 * MiB, technique="para")
    assert boot(machine, debian) == boot(nested(0, 256 * MiB), debian)
    assert isinstance(machine, VirtualMachine) and not machine.impure


def test_calls_are_not_offered_elsewhere() -> None:
    """Nor where they cannot be served."""
    with pytest.raises(MachineError, match="here software fills the TLB"):
        Monitor(virt(64 * MiB, tlb="software")).create("guest", 16 * MiB, technique="para")


def put(name: str, **operands: int) -> bytes:
    return ISA[name].encode(**operands).to_bytes(4, "little")


def wild(monitor: Monitor, name: str, rng: random.Random, count: int, harts: int) -> VirtualMachine:
    """A guest whose harts call with anything, and count in s1 how often a call gave no error: each line of LISTS is the
    arguments of one.
    """
    guest = monitor.create(name, 8 * MiB, harts, turn=30, technique="para")
    load(guest, CORRAL)
    places = [
        0,
        1,
        7,
        RAM,
        RAM + 4096,
        RAM + 8 * MiB - 4096,
        RAM + 8 * MiB,
        LISTS,
        LISTS + 8,
        LISTS + 4096,
        1 << 63,
        -1,
    ]
    numbers = [0, 1, 2, 3, 511, 512, 513, 1 << 28, 1 << 60, -1]
    lines = b""
    for _ in range(count):
        function = rng.choice((0, 1, 1, 1, 3, 4, -1))
        lines += struct.pack(
            "<3Q", *(value & (1 << 64) - 1 for value in (function, rng.choice(places), rng.choice(numbers)))
        )
    code = [
        put("ld", rd=16, rs1=8, imm=0),
        put("ld", rd=10, rs1=8, imm=8),
        put("ld", rd=11, rs1=8, imm=16),
        put("ecall"),
        put("sltiu", rd=10, rs1=10, imm=1),
        put("add", rd=9, rs1=9, rs2=10),
        put("addi", rd=8, rs1=8, imm=24),
        put("bne", rs1=8, rs2=18, imm=-28),
        put("jal", rd=0, imm=0),
    ]
    guest.ram.write(LISTS + 8192, lines)
    guest.ram.write(RAM + 2 * MiB, b"".join(code))
    hart = guest.harts[0]
    hart.pc = RAM + 2 * MiB
    hart["a7"], hart["s0"], hart["s2"], hart["s1"] = EXTENSION, LISTS + 8192, LISTS + 8192 + len(lines), 0
    for other in guest.harts[1:]:
        number = other.mhartid
        other.words[: SIZE // 8] = hart.words[: SIZE // 8]
        other.mhartid, other["s0"] = number, LISTS + 8192 + 24 * (count // 2)  # what the first has for later
        guest.protection(other)
    return guest


@pytest.mark.parametrize("harts", [1, 2])
def test_wild_calls_are_errors_of_their_guest_alone(harts: int) -> None:
    """Whatever they say, and whichever hart: none ends or stops the monitor, most are refused, and a neighbour ends as
    it would alone.
    """
    for seed in range(6 // harts):
        rng = random.Random(seed)
        monitor = Monitor(virt(96 * MiB))
        guest = wild(monitor, "wild", rng, 400, harts)
        neighbour = monitor.create("neighbour", 64 * MiB)
        load(neighbour, CORRAL, append="-- selftest")
        while neighbour.ended is None:
            monitor.run(4_000_000)
            assert neighbour.monitor.machine.steps < 100_000_000
        alone = virt(64 * MiB)
        load(alone, CORRAL, append="-- selftest")
        alone.run()
        assert neighbour.digest() == alone.digest()
        for hart in guest.harts:
            assert hart["s0"] == hart["s2"], "it has come through all its calls"
            assert 1 < hart["s1"] < 400


def test_update_writes_all_entries_or_none() -> None:
    """The first that is no place in memory is told."""
    machine = booted(("para",))
    engine = called(machine)
    hart = machine.harts[0]
    entries = [(RAM + 8 * MiB + 8 * n, n + 1) for n in range(4)]
    for wrong in (RAM - 8, RAM + 64 * MiB, RAM + 4):
        bad = [*entries[:2], (wrong, 9), *entries[2:]]
        machine.ram.write(RAM + 9 * MiB, b"".join(struct.pack("<2Q", *entry) for entry in bad))
        assert engine.call(hart, 1, (RAM + 9 * MiB, 5)) == (-5, 2)
        assert machine.ram.read(RAM + 8 * MiB, 32) == bytes(32)
    machine.ram.write(RAM + 9 * MiB, b"".join(struct.pack("<2Q", *entry) for entry in entries))
    assert engine.call(hart, 1, (RAM + 9 * MiB, 4)) == (0, 4)
    assert machine.ram.read(RAM + 8 * MiB, 32) == struct.pack("<4Q", 1, 2, 3, 4)
