"""The textbook's tables, from runs: three steps on the bare machine, five or seven through a monitor that traps."""

from __future__ import annotations

import re

import pytest

from ringfence import CORRAL
from ringfence.guest.flows import (
    FLOWS,
    HARDWARE,
    LOADS,
    MEMORY,
    MONITOR,
    PROCESS,
    SYSTEM,
    Table,
    Technique,
    table,
)
from ringfence.guest.symbols import Symbols
from ringfence.machine.board import RAM

TECHNIQUES: tuple[Technique, ...] = ("bare", "virtualizer", "trap")


@pytest.fixture(scope="module")
def tables() -> dict[tuple[str, Technique], Table]:
    return {(name, technique): table(flow, technique) for name, flow in FLOWS.items() for technique in TECHNIQUES}


Tables = dict[tuple[str, Technique], Table]


def who(found: Table) -> list[str]:
    return [step.who for step in found.steps]


def test_system_call_takes_three_steps_and_five_through_a_monitor(tables: Tables) -> None:
    """OSTEP, appendix B. A virtualizer's monitor is not entered."""
    assert who(tables["syscall", "bare"]) == who(tables["syscall", "virtualizer"]) == [PROCESS, SYSTEM, PROCESS]
    assert who(tables["syscall", "trap"]) == [PROCESS, MONITOR, SYSTEM, MONITOR, PROCESS]
    assert tables["syscall", "bare"].columns == (PROCESS, SYSTEM)
    assert tables["syscall", "trap"].columns == (PROCESS, SYSTEM, MONITOR)
    assert [tables["syscall", technique].entered for technique in TECHNIQUES[:2]] == [0, 0]
    assert tables["syscall", "trap"].entered > 2


def test_tlb_miss_takes_three_steps_and_seven_through_a_monitor(tables: Tables) -> None:
    """OSTEP, appendix B. The real entry is there when the process goes on: the monitor is entered for the miss, for
    what is sensitive in the handler (six instructions), and for the return.
    """
    assert who(tables["tlb-miss", "bare"]) == who(tables["tlb-miss", "virtualizer"]) == [PROCESS, SYSTEM, PROCESS]
    assert who(tables["tlb-miss", "trap"]) == [PROCESS, MONITOR, SYSTEM, MONITOR, SYSTEM, MONITOR, PROCESS]
    assert [tables["tlb-miss", technique].entered for technique in TECHNIQUES] == [0, 0, 8]
    steps = tables["tlb-miss", "trap"].steps
    texts = (
        "TLB miss, trap",
        "TLB handler, at",
        "handler: tlb_refill",
        "frame",
        "goes on: tlb_refill",
        "return",
        "hit",
    )
    assert all(text in step.what for text, step in zip(texts, steps, strict=True))


def test_tlb_miss_shows_the_handlers_code(tables: Tables) -> None:
    """From a load, through the handler, its write to the TLB and its return, to the same load; the page is the load's,
    and its frame is another on the machine.
    """
    handler = Symbols(CORRAL).addresses["tlb_refill"]
    for technique in TECHNIQUES:
        steps = tables["tlb-miss", technique].steps
        assert steps[0].code == steps[-1].code and steps[0].code[0].split()[1] in LOADS
        begun = next(step for step in steps if step.who == SYSTEM)
        assert begun.code[0] == f"{handler:#x} csrrw t0, stlbscratch, t0"
        assert any(code.endswith(" tlbret") for step in steps for code in step.code)
    (filled,) = (step for step in tables["tlb-miss", "trap"].steps if step.code[0].split()[1] == "tlbwr")
    found = re.search(r"page (\w+), frame (\w+): do it with frame (\w+)", filled.what)
    assert found is not None
    page, frame, real = (int(word, 16) for word in found.groups())
    assert page == 0x100_0001 and frame != real
    assert all(RAM <= number << 12 < RAM + 2 * MEMORY for number in (frame, real))


def test_read_goes_through_devices(tables: Tables) -> None:
    """The process waits, the line comes with an interrupt, and is read from the chip; under a monitor, from its own."""
    between = [SYSTEM, HARDWARE, SYSTEM, HARDWARE, SYSTEM, HARDWARE, SYSTEM]
    assert who(tables["read", "bare"]) == [PROCESS, *between, PROCESS]
    monitored = [MONITOR if n in (1, 5) else each for n, each in enumerate(between)]
    assert who(tables["read", "virtualizer"]) == [PROCESS, *monitored, PROCESS]
    trapped = [SYSTEM, MONITOR] * 4
    assert who(tables["read", "trap"]) == [PROCESS, MONITOR, *trapped, PROCESS]
    for technique in TECHNIQUES:
        assert sum("is read: 0xa" in step.what for step in tables["read", technique].steps) == 1
        assert any("SEI" in step.what for step in tables["read", technique].steps)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_is_one_run_under_every_technique(tables: Tables, name: str) -> None:
    """The same step of the same guest: the techniques differ in who does it alone."""
    found = [tables[name, technique] for technique in TECHNIQUES]
    assert len({each.length for each in found}) == 1
    for end in (0, -1):
        assert len({(each.steps[end].at, each.steps[end].code) for each in found}) == 1
    for each in found:
        order = [step.at for step in each.steps]
        assert order == sorted(order) and order[-1] - order[0] == each.length


@pytest.mark.parametrize("name", ["syscall", "read"])
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_flow_shows_the_guests_own_code(tables: Tables, name: str, technique: Technique) -> None:
    """From an ecall, through the kernel's entry and its sret, to the instruction behind the ecall."""
    steps = tables[name, technique].steps
    entry = Symbols(CORRAL).addresses["trap_entry"]
    call, text = steps[0].code[0].split(" ", 1)
    assert text == "ecall"
    assert int(steps[-1].code[0].split()[0], 16) == int(call, 16) + 4
    handlers = [step for step in steps if "handler: trap_entry" in step.what]
    assert len(handlers) == (1 if name == "syscall" else 2)
    assert all(step.code[0].startswith(f"{entry:#x} csrrw sp, sscratch, sp") for step in handlers)
    assert any(code.endswith(" sret") for step in steps for code in step.code)
    assert ("sys_getpid" if name == "syscall" else "sys_read") in " ".join(step.what for step in steps)


def test_symbols_name_functions_and_nothing_else() -> None:
    """A process's address is no kernel function's; a file without symbols has none."""
    symbols = Symbols(CORRAL)
    assert symbols.function(symbols.addresses["syscall"] + 2) == "syscall"
    assert symbols.function(0x10_0000_0000) == symbols.function(0) == ""
    assert Symbols(None).addresses == {}
    assert Symbols(CORRAL.with_name("build.py")).addresses == {}
