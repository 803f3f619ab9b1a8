"""`ringfence virtualizable`: whether the machine can be virtualized by trapping, decided by execution."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ringfence.monitor.monitor import Technique
    from ringfence.monitor.sensitive_data import Reference
    from ringfence.monitor.virtualizable import Decision, Sensitive, Violation

NAMES = ("U", "S")
TECHNIQUES: dict[tuple[str, bool], Technique] = {("U", False): "trap", ("S", False): "trap-s", ("S", True): "vm-bit"}
"""Those that keep rings, so that a monitor can show what references come to."""
BREAKS = 1
"""Exit status: there are violations."""
MOST = 9
"""Rows that are alike, up to which all are named."""
ROWS, DATA = (44, 34, 28, 15), (25, 47, 15, 9, 24)
"""Widths of columns, in characters."""


@click.command()
@click.option(
    "--rings",
    type=click.Choice(NAMES),
    default="U",
    show_default=True,
    help="The real modes of the virtual ones. U: all are in U. S: M and S are in S, and U in U.",
)
@click.option("--vm-bit", is_flag=True, help="The real hart has a VM bit (docs/vm-bit.md). With rings S.")
def virtualizable(rings: str, vm_bit: bool) -> None:
    """Decide Popek and Goldberg's theorem for this machine, by execution.

    Every instruction, with every CSR, runs on pairs of states that differ in what must stay hidden (mode, relocation,
    the rest of the hart's state), which shows whether it is sensitive; and deprivileged, as a monitor with these rings
    runs it: there it has to trap, or to do what the bare machine does. Then programs refer to data that show the mode.

    The exit status is 0 where the theorem's condition holds, and 1 where there are violations.
    """
    if (rings, vm_bit) not in TECHNIQUES:
        raise click.UsageError("a VM bit says what S-mode learns of itself, and in rings U nothing runs there")
    from ringfence.monitor.sensitive_data import references
    from ringfence.monitor.technique.rings import RINGS
    from ringfence.monitor.virtual_state import deprivileged
    from ringfence.monitor.virtualizable import decide

    ring, technique, prepare = RINGS[rings], TECHNIQUES[rings, vm_bit], partial(deprivileged, vm_bit=vm_bit)
    decision, found = decide(ring, prepare), references(ring, technique, prepare)
    click.echo("\n".join(lines(rings + " with a VM bit" * vm_bit, technique, decision, found)))
    click.get_current_context().exit(0 if decision.holds and all(r.holds for r in found) else BREAKS)


def lines(rings: str, technique: Technique, decision: Decision, found: Sequence[Reference]) -> Iterator[str]:
    """The text."""
    yield f"{decision.instructions:,} instructions (each row; those on CSRs with each CSR, and one that there is not),"
    yield f"from {decision.tried:,} states, on the bare machine and deprivileged"
    yield f"{decision.innocuous} rows are innocuous; {decision.direct} of them run directly in every mode"
    yield ""
    yield from _columns(ROWS, "sensitive", "depends on", "changes", "traps")
    for names, depends, changes, traps in groups(decision.sensitive):
        yield from _columns(ROWS, names, depends, changes, traps)
    yield ""
    yield from _columns(DATA, "sensitive data", "referred to by", "answered by", "as bare", f"by technique {technique}")
    structure = ""
    for reference in found:
        first = reference.structure if reference.structure != structure else ""
        structure = reference.structure
        answers, same = ", ".join(reference.answers), "yes" if reference.same else "no"
        yield from _columns(DATA, first, reference.who, answers, same, _counts(reference))
    if decision.violations:
        yield ""
    for n, violation in enumerate(decision.violations, 1):
        yield from _violation(n, violation)
    yield ""
    yield from textwrap.wrap(_verdict(rings, decision, found), 120)


def _counts(reference: Reference) -> str:
    counts = reference.monitor
    if counts is None:
        return ""
    writes = f" ({counts.table_writes})" if counts.table_writes else ""
    said = f"applied {counts.applied}{writes}, fills {counts.filled}"
    return said if counts.same else f"{said}: another end"


def _violation(n: int, violation: Violation) -> Iterator[str]:
    witness, more = violation.witness, len(violation.rows) - 1
    where = f"in virtual {'US?M'[witness.mode]}, which is in {'US?M'[witness.real_mode]}"
    rows = f"; and {more} rows more" if more > 1 else f"; and {more} row more" if more else ""
    yield f"{n:2}. {violation.name}: {witness.instruction}, {where}{rows}"
    for name, value, monitor in witness.parts:
        yield f"    {name} is {value:#x}" + (f", the monitor's {monitor:#x}" if monitor != value else "")
    yield f"    the bare machine  {witness.bare}"
    yield f"    deprivileged      {witness.real}"


def _verdict(rings: str, decision: Decision, found: Sequence[Reference]) -> str:
    broken = [reference for reference in found if not reference.holds]
    if decision.holds and not broken:
        return (
            f"This machine can be virtualized by trapping in rings {rings}: a row that is sensitive traps, or comes to "
            "what it does on the bare machine, in every state; and sensitive data are answered as there."
        )
    names = [violation.name for violation in decision.violations]
    said = []
    if names:
        said.append(f"{len(names)} violations, {names[0]} first" if len(names) > 1 else f"a violation, {names[0]}")
    if broken:
        said.append(f"{len(broken)} references to sensitive data that show what the guest must not see")
    return f"This machine cannot be virtualized by trapping in rings {rings}: {', and '.join(said)}."


# Rows that are alike


def groups(sensitive: Iterable[Sensitive]) -> list[tuple[str, str, str, str]]:
    """(names, what they depend on, what they change, whether they trap), alike ones together, in order."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in sensitive:
        key = parts(row.depends, row.name), parts(row.changes, row.name), row.traps
        found.setdefault(key, []).append(row.name)
    return [(series(names), *key) for key, names in found.items()]


def parts(names: Iterable[str], row: str) -> str:
    """Mode and relocation first; bits of one field behind its name; the CSR's own is "itself"."""
    fields: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name != "mode", name != "relocation", name)):
        register, _, bit = name.partition(".")
        own = register == row or (row == "satp" and register == "relocation")
        fields.setdefault("itself" if own else register, []).append(bit)
    return ", ".join(name if name == "itself" else _bits(name, bits) for name, bits in fields.items())


def _bits(register: str, bits: Sequence[str]) -> str:
    if not bits[0]:
        return register
    return f"{register}.{bits[0]}" if len(bits) == 1 else f"{register}.({' '.join(bits)})"


def series(names: Sequence[str]) -> str:
    """Names; numbered ones as a range, and of very many the first and how many."""
    said: dict[tuple[str, int], list[str]] = {}
    ends: dict[str, tuple[str, int]] = {}
    """Of a name without its number: its last range."""
    for name in names:
        numbered = re.fullmatch(r"(\D+)(\d+)", name)
        stem, number = (numbered[1], int(numbered[2])) if numbered else (name, 0)
        key = ends.get(stem)
        if key is None or number != key[1] + len(said[key]):
            key = ends[stem] = stem, number
        said.setdefault(key, []).append(name)
    last = {key: f" to {key[1] + len(group) - 1}" if len(group) > 1 else "" for key, group in said.items()}
    ranges = [group[0] + last[key] for key, group in said.items()]
    if len(ranges) > 3 * MOST:
        return f"{', '.join(ranges[:MOST])} and {len(ranges) - MOST} more"
    return ", ".join(ranges)


def _columns(widths: Sequence[int], *texts: str) -> Iterator[str]:
    wrapped = [textwrap.wrap(text, width - 2) for text, width in zip(texts, widths, strict=True)]
    for line in zip_longest(*wrapped, fillvalue=""):
        yield "".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
