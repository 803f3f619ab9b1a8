"""What monitors had to do for a machine, under the four sources of overhead of R. P. Goldberg, "Survey of Virtual
Machine Research" (1974).
"""

from __future__ import annotations

from collections.abc import Iterator

from ringfence.machine.board import Virt
from ringfence.machine.machine import Computer
from ringfence.monitor.technique.para import Paravirtual
from ringfence.monitor.technique.translation import BinaryTranslation
from ringfence.monitor.technique.trap import Deprivileged
from ringfence.monitor.vm import VirtualMachine

QUIET = {"machine switches", "frames shared", "copied at a write", "zeroed to give"}
QUIET |= {
    "pages translated",
    "instructions replaced",
    "translations that made room",
    "made calls as they trapped often",
}
"""What is no entry of its own to the monitor."""
Stats = dict[str, dict[str, int]]
"""Source of overhead: what was done, and how often."""


def path(machine: Virt) -> list[VirtualMachine]:
    """The virtual machines from the outermost to this one."""
    found: list[VirtualMachine] = []
    while isinstance(machine, VirtualMachine):
        found.insert(0, machine)
        machine = machine.monitor.machine
    return found


def stats(vm: VirtualMachine) -> Stats:
    """What the monitor of a machine has done for it. What one of those beneath did for that monitor's own machine is
    counted there.
    """
    account, engine = vm.account, vm.engine
    privileged, paging = (
        {},
        {
            "VM-faults": account.faults,
            "pages taken": account.paged_out,
            "and given back": account.paged_in,
            "frames shared": account.shared,
            "copied at a write": account.separated,
            "zeroed to give": account.zeroed,
        },
    )
    if isinstance(engine, Deprivileged):
        privileged = {
            "rows applied natively": engine.applied_natively,
            "by the reference": engine.interpreted - engine.table_writes,
        }
        if isinstance(engine, Paravirtual):
            privileged["calls"] = engine.calls
        if isinstance(engine, BinaryTranslation):
            code = engine.code
            privileged |= {
                "pages translated": code.translated,
                "instructions replaced": code.replaced,
                "pages written to": code.written,
                "translations that made room": code.evicted,
                "made calls as they trapped often": code.called,
            }
        paging |= {"translations": engine.filled, "writes to page tables": engine.table_writes}
    return {
        "integrity of the virtual processor": {"slices": account.slices, "machine switches": account.switches},
        "privileged instructions": privileged,
        "paging": paging,
        "console functions": {"device accesses": vm.bus.accesses},
    }


def entries(found: Stats) -> int:
    """How often the monitor was entered."""
    return sum(count for rows in found.values() for what, count in rows.items() if what not in QUIET)


def direct(vm: VirtualMachine) -> float:
    """The part of its steps that were executed with no monitor entered."""
    return 1 - entries(stats(vm)) / vm.steps if vm.steps else 1.0


def lines(machine: Virt) -> list[str]:
    """All of it as text, for a machine and those that it is on."""
    told = []
    for vm in path(machine):
        kind = f"{vm.technique}, impure" if vm.impure else vm.technique
        told.append(f"{vm.path} ({kind}): {vm.steps:,} steps, {direct(vm):.4%} of them with no monitor entered")
        for source, rows in stats(vm).items():
            counts = ", ".join(f"{what} {count:,}" for what, count in rows.items() if count) or "none"
            told.append(f"  {source:<36}{counts}")
        if vm.control is None:
            told.append(f"  {'seen from outside':<36}{vm.monitor.learned(vm)}")
    return [*told, *_launched(machine, machine.path if isinstance(machine, VirtualMachine) else "")]


def _launched(machine: Computer, path: str) -> Iterator[str]:
    """The machines that a monitor that is a guest has launched, by number, and those on them."""
    if machine.virtualizer is None or not machine.launched:
        return
    exits = ", ".join(f"{cause.name.lower()} {count:,}" for cause, count in sorted(machine.virtualizer.exits.items()))
    yield f"{path or 'the bare machine'}: its monitor was entered for: {exits or 'nothing'}"
    for number, inner in sorted(machine.launched.items()):
        name = f"{path}/{number}"
        yield f"{name} (launched): {inner.steps:,} steps"
        yield from _launched(inner, name)
