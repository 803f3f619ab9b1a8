"""The Hardware Virtualizer: a hart launches virtual machines by an instruction (Goldberg 1973; docs/xhv.md).

A control block in the launching machine's memory holds a virtual machine's f, the state of its harts and why it was
left last. A machine that is launched is a machine, whose board is a replica of its host's: it may launch machines in
turn, each in memory that it has by f, and a VM-fault goes to the machine whose map has no answer, past all others.
"""

from __future__ import annotations

from collections import Counter
from enum import IntEnum
from struct import Struct

from ringfence.errors import RingfenceError
from ringfence.isa.csr import CSRS
from ringfence.isa.paging import PPN
from ringfence.isa.trap import M, S, U
from ringfence.machine.board import HARTS, MEMORY_LEAST, Virt, assemble
from ringfence.machine.clock import NEVER
from ringfence.machine.device.device import AccessFault
from ringfence.machine.exit import Idle, PowerOff
from ringfence.machine.hart import FIELDS, SIZE, Hart
from ringfence.machine.launched import Launched, LaunchedRam, Terminal, VmFault
from ringfence.machine.machine import CHECK_SPAN
from ringfence.machine.map import ROOT, GuestRam
from ringfence.machine.memory import FRAME, WRITE, Ram

MODE = 8
"""Of f: Sv39x4."""
MACHINES = 15
"""The highest number of a virtual machine of one machine."""
MOST = 64
"""Of all that stand on one bare machine; and of levels on it, of monitors in Python too: each calls the next."""
BEGUN, RESUMED = 50, 2
"""What a launch costs the host for each hart and one more, in instructions that are left to the reference."""
FOREVER = (1 << 64) - 1
IN_MACHINE = 3
"""In a hart's `waiting`: the machine that it runs has nothing to do."""

START, FIRMWARE, CONSOLE = 1, 2, 4
"""Flags: the machine begins; with the host's firmware beneath it; with the host's console."""

REQUEST = Struct("<7Q")
"""f, number, bytes of memory, harts, flags, the most steps, the most idle time (ns)."""
F_AT, NUMBER_AT, MEMORY_AT, HARTS_AT, FLAGS_AT = 0, 8, 16, 24, 32
RESULT = Struct("<5Q")
"""cause, address, detail, steps, time (ns) to the next event."""
FLAGS, RESULT_AT, STATE_AT = Struct("<Q"), 0x40, 0x100

_X, _PC, _F = (FIELDS[name].offset >> 3 for name in ("x", "pc", "f"))
_PRIV = FIELDS["priv"].offset >> 3
_CSRS = [
    (number, FIELDS[line.name].offset >> 3)
    for number, line in CSRS.items()
    if line.name in FIELDS and line.name not in ("mcycle", "minstret", "mhartid") and number >> 10 != 3
]
"""Those that the control block's state sets, as a write in M-mode does."""


class Cause(IntEnum):
    """Why a machine was left. `address` and `detail` of the control block, where they say something:"""

    BUDGET = 0
    FAULT = 1  # f has no answer: the offset in its memory; the right, as memory.READ, WRITE, EXECUTE
    OFF = 2  # detail: the status
    RESET = 3
    IDLE = 4
    INTERRUPT = 5  # of the launching machine's
    INVALID = 6  # the control block: the offset of the word that is wrong
    WILD = 7  # f leads outside the launching machine's memory, to this physical address
    ROOM = 8  # there are as many machines as there can be


class Virtualizer:
    """What harts of one machine launch."""

    def __init__(self, host: Virt) -> None:
        self._host = host
        self.machines: dict[int, Launched] = {}
        """By number: a machine's path from the bare one is these."""
        self.exits: Counter[Cause] = Counter()
        self._runs: dict[int, Launched] = {}
        """What a hart, by its number, runs."""

    # The instructions

    def launch(self, hart: Hart, block: int) -> None:
        """VMRUN. Raises AccessFault where there is no control block."""
        ram = self._host.ram
        if block & FRAME - 1:
            raise AccessFault
        ram.place(ram.offset(block, FRAME), WRITE)  # nothing is done that a VM-fault would have done twice
        request = REQUEST.unpack(ram.read(block, REQUEST.size))
        f, number, memory, harts, flags, steps, idle = request
        wrong = self._wrong(f, number, memory, harts, flags)
        if wrong is not None:
            self._tell(block, Cause.INVALID, wrong)
            return
        self._host.clock.surcharge += self._host.engine.slow * (BEGUN if flags & START else RESUMED) * (harts + 1)
        state = ram.read(block + STATE_AT, harts * SIZE)
        if flags & START:
            self.end(number)
            root = (f & PPN) * FRAME - ram.base
            machine = self._make(number, root, memory, harts)
            if machine is None:
                self._tell(block, Cause.ROOM)
                return
            machine.flags = flags
            self._start(machine, state)
            ram.write(block + FLAGS_AT, FLAGS.pack(flags & ~START))
        else:
            machine = self.machines[number]
            self._resume(machine, state)
        machine.hart = hart.number
        machine.clock.start()
        machine.budget_end = machine.steps + steps if steps else NEVER
        machine.idle_end = NEVER if idle == FOREVER else machine.clock.idle_ns + idle
        self._runs[hart.number] = machine
        hart.launched, hart.waiting = block, 0
        hart.reservation = FOREVER
        self._host.wanted = True  # it is not this machine's instructions that come next

    def _wrong(self, f: int, number: int, memory: int, harts: int, flags: int) -> int | None:
        """The offset of the first word of a control block that is not as it must be."""
        root, ram = (f & PPN) * FRAME - self._host.ram.base, self._host.ram
        if f >> 60 != MODE or f >> 44 & 0xFFFF or root & ROOT - 1 or not 0 <= root <= ram.size - ROOT:
            return F_AT
        machine = self.machines.get(number)
        if not 1 <= number <= MACHINES or (machine is not None and machine.hart is not None):
            return NUMBER_AT
        if memory & FRAME - 1 or not MEMORY_LEAST <= memory <= ram.size:
            return MEMORY_AT
        if not 1 <= harts <= HARTS:
            return HARTS_AT
        if flags & ~(START | FIRMWARE | CONSOLE) or (flags & FIRMWARE and self._host.firmware is None):
            return FLAGS_AT
        if flags & START:
            return None
        if machine is None:
            return FLAGS_AT
        if (machine.ram.f.root, machine.ram.size, len(machine.harts)) != (root, memory, harts):
            return F_AT
        return None if machine.flags & ~START == flags else FLAGS_AT

    def end(self, number: int) -> None:
        """VMEND, where there is such a machine and no hart runs it."""
        machine = self.machines.get(number)
        if machine is not None and machine.hart is None:
            del self.machines[number]
            self._leave_board(machine)

    def clear(self) -> None:
        """There are no machines."""
        for machine in self.machines.values():
            self._leave_board(machine)
        self.machines.clear()
        self._runs.clear()

    def _leave_board(self, machine: Launched) -> None:
        assert machine.virtualizer is not None
        machine.virtualizer.clear()
        if self._host.uart.heir is machine.uart:
            self._host.uart.heir = None
        machine.engine.close()
        machine.ram.leave()
        _beneath(self._host.ram)[0].machines -= 1

    def _make(self, number: int, root: int, memory: int, harts: int) -> Launched | None:
        """A machine as this one is, but for its memory and harts."""
        host = self._host
        bare, level = _beneath(host.ram)
        if bare.machines == MOST or level >= MOST:
            return None
        ram = LaunchedRam(host.ram.base, memory, host.ram, root)
        try:
            machine = assemble(
                Launched,
                ram,
                harts,
                engine=lambda computer: host.engine.virtualize(computer, ram),
                clock=host.clock.source,
                step_ns=host.clock.step_ns,
                turn=host.inputs.turn,
                seed=host.inputs.seed,
                console=Terminal(host),
                disks=(),
                links=(),
                shares=(),
                epoch_ns=host.inputs.epoch_ns,
                rng_seed=host.inputs.rng_seed,
                tlb=host.inputs.tlb,
                isa=host.inputs.isa,
            )
        except RingfenceError:
            ram.leave()
            return None
        bare.machines += 1
        machine.rng.entropy = host.rng.entropy
        machine.host, machine.hart = host, None
        machine.clock.follow(host.clock)
        machine.on_reset = lambda: None
        self.machines[number] = machine
        return machine

    def _start(self, machine: Launched, state: bytes) -> None:
        """As at power-on, where hart 0's pc and registers say."""
        machine.hardware_reset()
        words = memoryview(state).cast("Q")
        if machine.flags & FIRMWARE:
            assert self._host.firmware is not None
            machine.firmware = self._host.firmware.another(machine)
            machine.firmware.power_on(words[_PC], words[_X + 11])
        else:
            for n, hart in enumerate(machine.harts):
                self._set(machine, hart, words[n * SIZE >> 3 : (n + 1) * SIZE >> 3])
        if machine.flags & CONSOLE:
            assert isinstance(machine.console, Terminal)
            machine.console.given = True
            self._host.uart.pass_on(machine.uart, machine.feed)

    def _resume(self, machine: Launched, state: bytes) -> None:
        """The harts go on with what the control block says of them."""
        for n, hart in enumerate(machine.harts):
            given = state[n * SIZE : (n + 1) * SIZE]
            if given != bytes(hart.block[:SIZE]):  # memoryviews compare word by word
                self._set(machine, hart, memoryview(given).cast("Q"))

    def _set(self, machine: Launched, hart: Hart, words: memoryview) -> None:
        """What a monitor can change of a hart; the rest is as it is. What a CSR cannot hold it takes as in a write."""
        own = hart.words
        own[_X + 1 : _X + 32] = words[_X + 1 : _X + 32]
        own[_F : _F + 32] = words[_F : _F + 32]
        own[_PC] = words[_PC] & ~1
        changed = [(number, words[at]) for number, at in _CSRS if words[at] != own[at]]
        machine.reference.write_csrs(hart, changed)
        if words[_PRIV] in (U, S, M):
            own[_PRIV] = words[_PRIV]

    # Running

    def run(self, hart: Hart, deadline: int, end: int | None) -> bool:
        """The machine that the hart has launched goes on to its first check point at or behind `deadline` steps of the
        host, as `Engine.run` does; or, not further than step `end`, exactly. True: that is a check point of the hart's.
        """
        clock, machine = self._host.clock, self._runs[hart.number]
        if machine.left is not None:  # the control block was not there to be told
            self.leave(hart, *machine.left)
            return True
        steps = max(min(deadline - clock.steps, machine.budget_end - machine.steps), 1)
        real = clock.source == "host"
        idle = 0 if real else None if machine.idle_end == NEVER else machine.idle_end - machine.clock.idle_ns
        surcharge = machine.clock.surcharge
        machine.clock.allow(clock.left)
        try:
            if end is None:
                ended = machine.slice(steps + CHECK_SPAN, idle)
            else:
                ended = machine.run(min(steps, end - clock.steps), idle=idle)
        except VmFault as fault:
            if fault.memory is not machine.ram:
                raise
            self.leave(hart, Cause.FAULT if fault.right else Cause.WILD, fault.at, fault.right)
            return True
        finally:
            machine.called = False
            clock.surcharge += machine.clock.surcharge - surcharge
        if machine.reset_wanted:
            self.leave(hart, Cause.RESET)
        elif isinstance(ended, PowerOff):
            self.leave(hart, Cause.OFF, detail=ended.status)
        elif isinstance(ended, Idle):
            if machine.idle_end == NEVER:
                hart.waiting = IN_MACHINE
            else:
                self.leave(hart, Cause.IDLE)
        elif machine.steps >= machine.budget_end and machine.at_check_point:
            self.leave(hart, Cause.BUDGET)
        else:
            return machine.at_check_point
        return True

    def interrupt(self, hart: Hart) -> None:
        """An interrupt has come for the hart itself, whether it takes one now or not."""
        self.leave(hart, Cause.INTERRUPT)

    def leave(self, hart: Hart, cause: Cause, address: int = 0, detail: int = 0) -> None:
        """The hart goes on behind its launch, and the control block says why."""
        machine = self._runs[hart.number]
        machine.left = cause, address, detail
        when = machine.next_event()
        wake = FOREVER if when == NEVER else max(when - machine.clock.now(), 0)
        result = RESULT.pack(cause, address, detail, machine.steps, wake)
        state = b"".join(bytes(own.block[:SIZE]) for own in machine.harts)
        between = bytes(STATE_AT - RESULT_AT - RESULT.size)
        self._host.ram.write(hart.launched + RESULT_AT, result + between + state)  # may be a VM-fault of the host's
        self.exits[cause] += 1
        machine.hart = machine.left = None
        machine.clock.stop()
        hart.launched = hart.waiting = 0

    def _tell(self, block: int, cause: Cause, address: int = 0) -> None:
        """A machine is not launched."""
        self._host.ram.write(block + RESULT_AT, RESULT.pack(cause, address, 0, 0, 0))
        self.exits[cause] += 1

    def ready(self, hart: Hart) -> bool:
        """The machine that a waiting hart has launched can go on."""
        return self._runs[hart.number].stirred()

    def next_event(self) -> int:
        """The host's time at which one of them waits for, under the host clock, or NEVER."""
        own, found = self._host.clock, NEVER
        for machine in self.machines.values():
            if machine.hart is not None and (when := machine.next_event()) != NEVER:
                found = min(found, when + machine.clock.host_start - own.host_start)
        return found

    def kick(self) -> None:
        """What runs is to look at what the host wants; from any thread."""
        for machine in list(self.machines.values()):
            if machine.hart is not None:
                machine.called = machine.wanted = True
                machine.kick()


def _beneath(ram: Ram) -> tuple[Ram, int]:
    """The bare machine's memory, and how many levels up from that this is."""
    level = 0
    while isinstance(ram, GuestRam):
        ram, level = ram.host, level + 1
    return ram, level
