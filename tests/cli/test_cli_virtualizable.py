"""`ringfence virtualizable` as its user meets it."""

from __future__ import annotations

import pytest
from test_cli import ringfence, sentence

from ringfence.cli.virtualizable import NAMES, TECHNIQUES, groups, lines, parts, series
from ringfence.monitor.technique.rings import RINGS
from ringfence.monitor.virtualizable import Decision, Sensitive


def shown(*arguments: str, status: int) -> list[str]:
    found = ringfence("virtualizable", *arguments)
    assert (found.returncode, found.stderr) == (status, b"")
    return found.stdout.decode().splitlines()


def test_machine_can_be_virtualized_in_user_rings() -> None:
    """By default; the status is 0, and the last sentence says so."""
    text = shown(status=0)
    assert " ".join(text[-2:]).startswith("This machine can be virtualized by trapping in rings U: ")
    assert not [line for line in text if line.startswith(" 1. ")]
    row = next(line for line in text if line.startswith("sstatus "))
    assert row.endswith("always") and "mode" in row
    assert [line for line in text if "a store to its page table" in line and "a trap" in line and "yes" in line]


def test_machine_cannot_in_supervisor_rings() -> None:
    """The status is 1; each violation has its witness, and sstatus is the first."""
    text = shown("--rings", "S", status=1)
    last = " ".join(text[-2:])
    assert last.startswith("This machine cannot be virtualized by trapping in rings S: 10 violations, sstatus first,")
    first = text.index(" 1. sstatus: csrrs a0, sstatus, zero, in virtual S, which is in S; and 9 rows more")
    assert text[first + 1] == "    mstatus.SIE is 0x0, the monitor's 0x1"
    assert text[first + 2].startswith("    the bare machine  a0 = ") and text[first + 3].startswith("    deprivileged ")
    assert [line[:2] for line in text if line[2:4] == ". "] == [f"{n:2}" for n in range(1, 11)]


@pytest.mark.parametrize(
    "arguments,why",
    [(["--rings", "M"], "'M' is not one of"), (["--rings"], "requires an argument"), (["U"], "unexpected")],
)
def test_wrong_use_is_one_sentence(arguments: list[str], why: str) -> None:
    found = ringfence("virtualizable", *arguments)
    assert why in sentence(found)
    assert (found.returncode, found.stdout) == (2, b"")


def test_rings_are_those_that_there_are() -> None:
    """The command's names are the table's, and the help tells of each and of the statuses."""
    assert tuple(RINGS) == NAMES and {rings for rings, _ in TECHNIQUES} == RINGS.keys()
    text = " ".join(ringfence("virtualizable", "--help").stdout.decode().split())
    assert all(f"{name}: " in text for name in NAMES) and "exit status is 0" in text


def test_alike_rows_are_one_line() -> None:
    """Numbered ones as a range; a CSR's own value is its own whatever its name."""
    mode = frozenset({"mode"})
    rows = [Sensitive(f"pmpaddr{n}", mode | {f"pmpaddr{n}"}, frozenset({f"pmpaddr{n}"}), "always") for n in range(16)]
    rows += [Sensitive("mtvec", mode | {"mtvec"}, frozenset({"mtvec"}), "always"), Sensitive("x", mode, mode, "no")]
    assert groups(rows) == [("pmpaddr0 to 15, mtvec", "mode, itself", "itself", "always"), ("x", "mode", "mode", "no")]
    assert series(["a1", "b1", "a2", "b2", "c", "a4"]) == "a1 to 2, b1 to 2, c, a4"
    assert series([f"r{n}.x" for n in range(40)]).endswith(" and 31 more")
    named = parts({"mstatus.SPP", "relocation", "mode", "mstatus.FS", "mie"}, "sret")
    assert named == "mode, relocation, mie, mstatus.(FS SPP)"
    assert parts({"relocation", "mstatus.TVM"}, "satp") == "itself, mstatus.TVM"


def test_nothing_sensitive_is_a_verdict_too() -> None:
    text = list(lines("S", "trap-s", Decision(3, 9, 3, 3, (), ()), []))
    assert text[0].startswith("3 instructions") and " ".join(text).endswith("are answered as there.")
