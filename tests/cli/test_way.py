"""`ringfence explain` and `ringfence trace` as their user meets them."""

from __future__ import annotations

import re

import pytest
from test_cli import ringfence, sentence

from ringfence.cli.trace import NAMES
from ringfence.guest.flows import FLOWS


def shown(*arguments: str) -> list[str]:
    found = ringfence(*arguments)
    assert (found.returncode, found.stderr) == (0, b"")
    return found.stdout.decode().splitlines()


def test_explain_shows_page_tables_and_every_f() -> None:
    """From a symbol to the bare machine's memory."""
    lines = shown("explain", "--depth", "2", "trap_entry")
    assert re.match(r"hart 0 of guest/guest, S-mode, pc 0x\w+ in schedule, at step [\d,]+$", lines[0])
    assert re.match(r"φ +0x8020\w+ by satp 0x8\w+: Sv39$", lines[2])
    assert [line.split()[:2] for line in lines[3:6]] == [["level", "2"], ["level", "1"], ["level", "0"]]
    assert lines[5].endswith("  DAG.X.RV")
    assert re.match(r" +-> 0x8020\w+: fetch, load$", lines[6])
    assert lines[7].strip() == "a store is a page fault: the page has no W"
    assert [line.split(":")[0].split()[-1] for line in lines if line.startswith("f ")] == ["guest/guest", "guest"]
    assert re.match(r"memory  0x8\w+ on the bare machine$", lines[-1])


def test_explain_shows_shadows_and_the_process() -> None:
    """A program that was started before is in its own page tables, and in the shadows of its mode."""
    lines = shown("explain", "--technique", "trap", "--send", "run cat", "0x1000000000")
    assert "        a load or a store is a page fault: the page is U-mode's, and sstatus.SUM is 0" in lines
    place = next(line.split()[1] for line in lines if line.startswith("memory"))
    assert "shadow  in the bare machine, for U-mode" in lines
    assert lines[-1] == f"        -> {place} on the bare machine"


def test_explain_takes_a_technique_for_each_monitor() -> None:
    """The outermost first: shadows are those of the monitor that traps, in its own machine."""
    for names, host in (("trap,virtualizer", "the bare machine"), ("virtualizer,trap", "guest")):
        lines = shown("explain", "--depth", "2", "--technique", names, "0x80200000")
        assert [line for line in lines if line.startswith("shadow")] == [f"shadow  in {host}, for S-mode"]


def test_explain_ends_where_there_is_nothing_below() -> None:
    """A device; an address that nothing maps; the bare machine."""
    assert shown("explain", "0x10000005")[-1] == "device  Uart16550 of guest, register 0x5"
    assert "any access is a page fault: the last entry is not valid" in shown("explain", "0x3000000000")[-1]
    lines = shown("explain", "--depth", "0", "--after", "0.000001", "--engine", "reference", "0x80200000+8")
    assert lines[0].startswith("hart 0 of the bare machine") and "no translation" in lines[2]
    assert lines[-1] == "memory  0x80200008 on the bare machine"


@pytest.mark.parametrize(
    "arguments,status,why",
    [
        (["explain"], 2, "Missing argument 'VA'"),
        (["explain", "nosuch_symbol"], 2, "neither an address, as 0x80200000 is, nor a symbol"),
        (["explain", "trap_entry+x"], 2, "neither an address"),
        (["explain", "0x10000000000000000"], 2, "no virtual address: they have 64 bits"),
        (["explain", "a", "b", "0"], 2, "one image runs at a time, and 2 were given"),
        (["explain", "nosuch", "0"], 127, "no image is called 'nosuch'"),
        (["explain", "--hart", "1", "0"], 2, "there is no hart 1: the last is 0"),
        (["explain", "--depth", "0", "--technique", "trap", "0"], 2, "at depth 0 there is none"),
        (["explain", "--technique", "trap,trap", "0"], 2, "2 techniques are given for a depth of 1"),
        (["explain", "--depth", "65", "0"], 2, "--depth"),
        (["explain", "-m", "1M", "0"], 2, "at least 4 MiB"),
        (["explain", "--after", "0", "0"], 2, "--after"),
        (["explain", "--send", "poweroff 3", "0"], 125, "switched the machine off, with status 3"),
        (["explain", "--send", "run tick 1000", "0"], 125, "does not wait for input within 20 seconds"),
        (["trace"], 2, "Missing argument"),
        (["trace", "tlb"], 2, "'tlb' is not one of"),
        (["trace", "syscall", "--technique", "none"], 2, "'none' is not one of"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], status: int, why: str) -> None:
    found = ringfence(*arguments)
    assert why in sentence(found)
    assert (found.returncode, found.stdout) == (status, b"")


@pytest.mark.parametrize("technique,count", [("bare", 3), ("virtualizer", 3), ("trap", 5)])
def test_trace_prints_the_textbooks_table(technique: str, count: int) -> None:
    """Numbered steps in columns, each with the step of the machine and its code."""
    lines = shown("trace", "syscall", "--technique", technique)
    head = lines[2]
    columns = ["Process", "Operating system", "Virtual machine monitor"][: 2 if technique == "bare" else 3]
    assert re.split(r" {2,}", head) == ["step", *columns]
    begun = [re.match(r"([\d,]+) +(\d+)\. ", line) for line in lines]
    assert [int(found[2]) for found in begun if found] == list(range(1, count + 1))
    first = next(line for line in lines if "1. System call" in line)
    handler = next(line for line in lines if "OS trap handler: trap_entry" in line)
    assert first.index("1. ") == head.index("Process") and handler.index(". OS") - 1 == head.index("Operating")
    assert sum(line.endswith(" ecall") for line in lines) == (2 if technique == "trap" else 1)
    assert ("the monitor was entered" in lines[-1]) == (technique != "bare")


def test_trace_knows_every_flow() -> None:
    """The command's names are the flows', and the help tells of each."""
    text = ringfence("trace", "--help").stdout.decode()
    assert tuple(FLOWS) == NAMES and all(f"  {name} " in text for name in NAMES)
