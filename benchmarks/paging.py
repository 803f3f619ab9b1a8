"""A guest that pages inside a machine that is paged: each of two monitors has less memory than the machine on it."""

from __future__ import annotations

import time

from benchmarks.debian import PROMPT, debian_image, initrd
from benchmarks.table import Row
from ringfence.guest.loader import load
from ringfence.machine.board import MiB, virt
from ringfence.monitor.monitor import Monitor
from ringfence.monitor.vm import VirtualMachine

GUEST = 256 * MiB
MACHINES = {"not paged": (320 * MiB, 288 * MiB), "paged": (172 * MiB, 180 * MiB)}
"""Memory of the bare machine, and of the one on it, which is the guest's monitor's."""
COMMAND = "/kernelwork stream 2 96"


def paging() -> list[Row]:
    """Debian, a program there that goes over most of its memory twice, and the command line again."""
    seconds: dict[str, float] = {}
    rows = []
    for what, (bare, machine) in MACHINES.items():
        levels = _levels(bare, machine)
        guest = levels[-1]
        image = debian_image()
        load(guest, image.kernel, initrd=[initrd(image)], append=image.append(command=False))
        start = time.process_time()
        guest.console.expect(PROMPT)
        guest.console.send(f"{COMMAND} && echo over$((1))\n")
        guest.console.expect("over1")
        seconds[what] = time.process_time() - start
        rows.append(Row(what, seconds[what], "s"))
    for level, vm in zip(("outer", "inner"), levels, strict=True):
        rows += [
            Row(f"    pages taken by the {level} monitor", vm.account.paged_out, ""),
            Row("    and given back", vm.account.paged_in, ""),
        ]
    rows.append(Row("paged, not paged = 1", seconds["paged"] / seconds["not paged"], "x"))
    return rows


def _levels(bare: int, machine: int) -> list[VirtualMachine]:
    outer = Monitor(virt(bare)).create("outer", machine)
    return [outer, Monitor(outer).create("guest", GUEST)]
