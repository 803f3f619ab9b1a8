"""The monitor: it takes a machine and gives machines, each with as much of that machine as its f says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, get_args

from ringfence.errors import MachineError, OutOfMemory
from ringfence.machine.board import RAM, TURN, Isa, Tlb, Virt, assemble, check, virt
from ringfence.machine.clock import Source
from ringfence.machine.device.uart16550 import ConsoleOut
from ringfence.machine.device.virtio_9p import Share
from ringfence.machine.device.virtio_blk import SECTOR, Disk
from ringfence.machine.device.virtio_console import Port
from ringfence.machine.device.virtio_net import Link
from ringfence.machine.exit import Exit
from ringfence.machine.machine import Computer, Engine
from ringfence.machine.map import ROOT, SUPERPAGE, F, GuestRam
from ringfence.machine.memory import FRAME, READ, amount
from ringfence.monitor.allocator import Allocator
from ringfence.monitor.inference import Inference, Learned
from ringfence.monitor.pager import PagingDisk
from ringfence.monitor.scheduler import QUANTUM, Account, Claim, Scheduler, admit
from ringfence.monitor.sharing import SHARED, alike
from ringfence.monitor.technique.rings import RINGS
from ringfence.monitor.technique.shadow import Shadows
from ringfence.monitor.vdevice.extent import Allocation, Extent
from ringfence.monitor.vdevice.minidisk import Minidisk, Mode, attach, release
from ringfence.monitor.vm import Destroyed, VirtualMachine

Technique = Literal["virtualizer", "trap", "trap-s", "vm-bit", "para", "translation"]
"""The hart's own privileged state; trap and emulate in user mode; in user and supervisor mode, which is not exact and
there to be studied; the same with a VM bit in the hart (technique.rings); by calls of a guest that knows its monitor
(technique.para); in supervisor mode again, in translations of the guest's code (technique.translation).
"""
_RINGS = {"trap": (RINGS["U"], False), "trap-s": (RINGS["S"], False), "vm-bit": (RINGS["S"], True)}
"""The rings, and whether the harts have a VM bit."""
LEAST_CODE = 16
"""Pages of a code cache: an instruction may lie in two, and the way from it to the next be long."""
FAULT = 10
"""What the answer to a VM-fault costs the host, in instructions that are left to the reference."""
BATCH = 64
"""Frames that are taken at a time when memory is short."""


def overhead(memory: int, technique: Technique = "virtualizer") -> int:
    """What a machine has to have beside the memory of one that runs on it: its f, all in small pages at worst."""
    code = most_code(memory) if technique == "translation" else 0
    return 2 * SUPERPAGE + -(-memory // (512 * SUPERPAGE)) * SUPERPAGE + (most_tables(memory) + code) * FRAME


def most_tables(memory: int) -> int:
    """Of shadow page tables, for a machine of so much memory."""
    return 256 + memory // FRAME // 32


def most_code(memory: int) -> int:
    """Pages of translated code, of a machine of so much memory: a sixteenth of it."""
    return 256 + memory // FRAME // 16


def map_frames(memory: int) -> int:
    """The most frames that f takes for a machine of so much memory, beside its root."""
    return -(-memory // SUPERPAGE) + -(-memory // (512 * SUPERPAGE))


def nested(
    depth: int,
    memory: int,
    harts: int = 1,
    *,
    engine: Literal["threaded", "reference"] = "threaded",
    clock: Source = "virtual",
    seed: int | None = None,
    console: ConsoleOut | None = None,
    disks: Sequence[Disk] = (),
    links: Sequence[Link] = (),
    shares: Sequence[Share] = (),
    ports: Sequence[Port] = (),
    technique: Technique | Sequence[Technique] = "virtualizer",
    tlb: Tlb = "hardware",
    isa: Isa = "base",
) -> Virt:
    """A machine with `depth` monitors beneath it, each on the machine that the next one gives; 0: a bare one. The
    disks, links, shares and ports are the bare machine's, and each monitor gives all that its machine has.

    `technique`: of all, or of each from the outermost on. Raises MachineError."""
    techniques = [technique] * depth if isinstance(technique, str) else list(technique)
    if len(techniques) != depth:
        raise MachineError(
            f"{len(techniques)} techniques are given for a depth of {depth}: give one for all monitors, or one for each"
        )
    if not depth:
        return virt(
            memory,
            harts,
            clock=clock,
            seed=seed,
            engine=engine,
            console=console,
            disks=disks,
            links=links,
            shares=shares,
            ports=ports,
            tlb=tlb,
            isa=isa,
        )
    sizes = [memory]
    for kind in reversed(techniques):
        sizes.append(sizes[-1] + overhead(sizes[-1], kind))
    check(memory, harts, 1, 1, len(disks) + len(links) + len(shares) + bool(ports), clock)
    machine = virt(
        sizes.pop(),
        harts,
        engine=engine,
        disks=disks,
        links=links,
        shares=shares,
        ports=ports,
        tlb=tlb,
        isa=isa,
    )
    while len(sizes) > 1:
        monitor = Monitor(machine)
        machine = monitor.create(
            "guest",
            sizes.pop(),
            harts,
            disks=monitor.full_packs(),
            links=machine.links,
            shares=machine.shares,
            ports=ports,
            technique=techniques.pop(0),
        )
    monitor = Monitor(machine)
    return monitor.create(
        "guest",
        memory,
        harts,
        clock=clock,
        seed=seed,
        console=console,
        disks=monitor.full_packs(),
        links=machine.links,
        shares=machine.shares,
        ports=ports,
        technique=techniques.pop(0),
    )


class Monitor:
    """The control program of `machine`, bare or virtual, all of whose memory it has."""

    def __init__(self, machine: Virt, *, paging: int | None = None, quantum: int = QUANTUM) -> None:
        """`paging`: the most bytes on the paging disk; None: what the host has. `quantum`: the steps of a slice."""
        self.machine = machine
        self.scheduler = Scheduler(machine, quantum)
        self.guests = self.scheduler.guests
        self.faults = 0
        """VM-faults that this monitor has answered."""
        self._allocator = Allocator(machine.ram)
        self._tables = 0
        self._sharers: dict[int, int] = {}
        """Frames of this machine that nobody may write, and how many machines have each."""
        self._disk = PagingDisk(paging)
        self._extents = Allocation(machine.disks)

        if isinstance(machine, VirtualMachine):
            if machine.control is not None:
                raise MachineError(f"there is a monitor on {machine.path} already")
            machine.control = self

    def run(self, steps: int | None = None, *, until: int | None = None, idle: int | None = None) -> Exit:
        """Run the machines by their shares on the harts of the monitor's own machine, for at most `steps` steps of all
        of them (it ends at a check point fewer than CHECK_SPAN before), or to time `until` of the scheduler (ns).

        `idle`: the most time (ns) that may pass while all wait; None: any, and the host waits where time is its own.
        Idle: all wait. PowerOff: all have ended; `ended` of each says why. Break, Stopped: that of a machine.
        """
        ended = self.scheduler.run(steps, until, idle)
        if not isinstance(self.machine, VirtualMachine):
            self._settle()
        return ended

    def _settle(self) -> None:
        """What the machines have begun on disks is done, where that is not for the host's clock to say."""
        for vm in self.guests.values():
            if vm.clock.source == "virtual":
                vm.settle()
            if vm.control is not None:
                vm.control._settle()

    def stop(self) -> None:
        """Make `run`, or the next one, return `Stopped` soon; from any thread or signal handler."""
        self.scheduler.stop()

    def minidisk(
        self, *extents: Extent, mode: Mode = "rw", delta: Extent | None = None, serial: bytes = b""
    ) -> Minidisk:
        """A disk for a machine, for `create`: extents of this machine's disks side by side. It takes them when it is
        given to the machine. `mode` and `delta`: as `Minidisk` says. `serial`: its name as the guest reads it.

        Raises MachineError."""
        return Minidisk(self._extents, extents, mode, delta, serial)

    def full_packs(self) -> list[Minidisk]:
        """A minidisk for each of this machine's disks, and as large."""
        return [
            self.minidisk(
                Extent(0, disk.size // SECTOR * SECTOR, n), mode="ro" if disk.readonly else "rw", serial=disk.serial
            )
            for n, disk in enumerate(self.machine.disks)
        ]

    def create(
        self,
        name: str,
        memory: int,
        harts: int = 1,
        *,
        clock: Source = "virtual",
        step_ns: int = 1,
        turn: int = TURN,
        seed: int | None = None,
        console: ConsoleOut | None = None,
        disks: Sequence[Disk] = (),
        links: Sequence[Link] = (),
        shares: Sequence[Share] = (),
        ports: Sequence[Port] = (),
        epoch_ns: int | None = None,
        rng_seed: bytes | None = None,
        resident: int = 0,
        share: int = 1,
        cap: float | None = None,
        reservation: float = 0,
        technique: Technique = "virtualizer",
        second_level: int = 4096,
        shadows: Literal["kept", "rebuilt"] = "kept",
        code_cache: int | None = None,
    ) -> VirtualMachine:
        """A virtual machine, as `virt` makes a bare one. It has the first `resident` bytes of its memory at all times.
        Minidisks among `disks` are its own until `vdevice.minidisk.release`. `second_level`: under `trap`, where
        software fills the TLB, how many entries of a hart the monitor remembers (`technique.refill`); 0: none.
        `shadows`: under `trap`, where hardware does, whether shadow page tables outlast a write of the guest's to
        satp, or are made anew after it, as on VM/370. `code_cache`: under `translation`, the most bytes of translated
        code; None: a sixteenth of the memory and 1 MiB.

        Of the harts it has a part by its share, at most `cap` and, while it wants to run, at least `reservation` of
        one. Raises MachineError."""
        if name in self.guests or not name or "/" in name:
            raise MachineError(f"a machine needs a name of its own without a slash, not {name!r}")
        devices = len(disks) + len(links) + len(shares) + bool(ports)
        check(memory, harts, step_ns, turn, devices, clock)
        if technique not in get_args(Technique):
            raise MachineError(
                f"there is no technique {technique!r}: a monitor's is {' or '.join(get_args(Technique))}"
            )
        if technique in ("para", "translation") and self.machine.inputs.tlb == "software":
            raise MachineError(f"the technique {technique} has shadow page tables, and here software fills the TLB")
        code = most_code(memory) if code_cache is None else code_cache // FRAME
        if code < LEAST_CODE:
            raise MachineError(f"a code cache has {amount(LEAST_CODE * FRAME)} at least, not {amount(code_cache or 0)}")
        claim = Claim(share, cap, reservation)
        self._admit(claim)
        try:
            self._set_aside(memory)
            root = self._allocator.root()
        except OutOfMemory as error:
            raise MachineError(f"{name} needs memory for its map: {error}") from None
        f = F(self.machine.ram, memory, root, self._table, self._free_table)

        def fault(at: int, right: int) -> None:
            self._fault(vm, at, right)

        def clear() -> None:
            self._release(vm)
            self._reserve(vm)
            vm.inference.forget()

        ram = GuestRam(RAM, memory, f, fault, clear)
        try:
            vm = assemble(
                VirtualMachine,
                ram,
                harts,
                engine=self._engine(ram, technique, second_level, shadows == "kept", code),
                clock=clock,
                step_ns=step_ns,
                turn=turn,
                seed=seed,
                console=console,
                disks=disks,
                links=links,
                shares=shares,
                epoch_ns=epoch_ns,
                rng_seed=rng_seed,
                tlb=self.machine.inputs.tlb,
                isa=self.machine.inputs.isa,
                ports=ports,
            )
        except MachineError:
            ram.leave()
            self._allocator.give_back_root(root)
            raise
        vm.name, vm.monitor, vm.resident, vm.account = name, self, resident, Account(claim)
        vm.technique = technique
        vm.held = vm.hand = 0
        vm.paged = {}
        vm.inference = Inference(vm)
        self.guests[name] = vm
        try:
            self._reserve(vm)
            attach(name, self._extents, disks)
        except OutOfMemory:
            self.destroy(name)
            raise MachineError(f"{amount(resident)} of resident memory is more than is free") from None
        except MachineError:
            self.destroy(name)
            raise
        if isinstance(self.machine, VirtualMachine):
            self.machine.ended = None  # there is something to run again
            self.machine.stir()
        return vm

    def destroy(self, name: str) -> None:
        """A machine and all machines on it are no more: all that they had is free. Raises MachineError."""
        vm = self.guests.get(name)
        if vm is None:
            raise MachineError(f"there is no machine {name!r}")
        if self.scheduler.running is vm:
            raise MachineError(f"the machine {vm.path} is running")
        if vm.control is not None:
            for inner in list(vm.control.guests):
                vm.control.destroy(inner)
        del self.guests[name]
        if vm.virtualizer is not None:
            vm.virtualizer.clear()
        vm.engine.close()
        vm.settle()
        release(vm.disks)
        for link in vm.links:
            link.connect(lambda frame: None)
        vm.leave_shares()
        for port in vm.ports:
            port.connect(lambda: None)
        self._release(vm)
        vm.ram.leave()
        self._allocator.give_back_root(vm.ram.f.root)
        vm.__class__ = Destroyed

    def grant(self, vm: VirtualMachine, claim: Claim) -> None:
        """Change what part of the harts a machine has. Raises MachineError."""
        self._admit(claim, vm)
        vm.account.claim = claim

    def learned(self, vm: VirtualMachine) -> Learned:
        """What has been learned of a machine, and is so now. Looking changes nothing."""
        return vm.inference.learned()

    def _admit(self, claim: Claim, instead: VirtualMachine | None = None) -> None:
        others = (vm.account.claim for vm in self.guests.values() if vm is not instead)
        admit([claim, *others], len(self.machine.harts))

    def _engine(
        self, ram: GuestRam, technique: Technique, second_level: int, kept: bool, code: int
    ) -> Callable[[Computer], Engine]:
        host = self.machine
        if technique == "virtualizer":
            return lambda vm: host.engine.virtualize(vm, ram)
        if technique == "para":
            from ringfence.monitor.technique.para import Paravirtual

            return lambda vm: Paravirtual(vm, ram, host, self._shadows(ram), kept)
        if technique == "translation":
            from ringfence.monitor.technique.translation import BinaryTranslation

            return lambda vm: BinaryTranslation(vm, ram, host, self._shadows(ram), kept, code)
        rings, vm_bit = _RINGS[technique]
        if host.inputs.tlb == "software":
            from ringfence.monitor.technique.refill import SecondLevel, TrapAndRefill

            return lambda vm: TrapAndRefill(vm, ram, host, SecondLevel(second_level), rings, vm_bit)
        from ringfence.monitor.technique.trap import TrapAndEmulate

        return lambda vm: TrapAndEmulate(vm, ram, host, self._shadows(ram), kept, rings, vm_bit)

    def _shadows(self, ram: GuestRam) -> Shadows:
        return Shadows(ram, self.machine.ram, self._frame, self._free_frame, most_tables(ram.size))

    def _fault(self, vm: VirtualMachine, at: int, right: int) -> None:
        """A VM-fault: f has no answer, so it gets one. Raises OutOfMemory."""
        self.faults += 1
        vm.account.faults += 1
        vm.clock.surcharge += FAULT * vm.engine.slow
        vm.inference.at_fault()
        try:
            found = vm.ram.f.look(at)
            if found is not None and found[2] == FRAME and found[0] in self._sharers:
                self._separate(vm, at & -FRAME, found[0])
            else:
                self._give(vm, at)
        except OutOfMemory as error:
            error.machine = error.machine or vm
            raise

    def _give(self, vm: VirtualMachine, at: int) -> None:
        """Memory is given on demand."""
        f, first = vm.ram.f, at & -SUPERPAGE
        if first + SUPERPAGE <= vm.ram.size and f.vacant(at) and _whole(vm, first):
            superpage = self._allocator.superpage(self._kept())
            if superpage is not None:
                vm.account.zeroed += self._allocator.zeroed * (SUPERPAGE // FRAME)
                f.set(first, superpage, size=SUPERPAGE)
                vm.held += SUPERPAGE
                return
        at &= -FRAME
        before = f.look(at)
        self._take_from_disk(vm, at)
        try:
            to = self._frame()
        except OutOfMemory:
            if at in vm.ram.absent and at not in vm.paged:
                self._put_on_disk(vm, at, vm.ram.absent[at]())
            raise
        vm.account.zeroed += self._allocator.zeroed
        was = vm.ram.absent.get(at)
        if was is not None:
            self.machine.ram.write(self.machine.ram.base + to, was())
        if f.look(at) != before:  # to take a frame for this one, this one was needed
            self._allocator.give_back(to, FRAME)
            return
        f.set(at, to)
        vm.held += FRAME
        if was is not None:
            vm.account.paged_in += 1
            self._take_from_disk(vm, at)
            del vm.ram.absent[at]

    def _put_on_disk(self, vm: VirtualMachine, at: int, data: bytes) -> None:
        slot = vm.paged[at] = self._disk.write(data)
        vm.ram.absent[at] = partial(self._disk.read, slot)

    def _take_from_disk(self, vm: VirtualMachine, at: int) -> None:
        """The slot is free before a frame is sought: on a full disk one changes places with it."""
        slot = vm.paged.pop(at, None)
        if slot is not None:
            data = self._disk.read(slot)
            vm.ram.absent[at] = lambda: data
            self._disk.free(slot)

    def share(self) -> int:
        """Frames of equal bytes in several machines become one, until a machine writes it; those of zeroes are given
        back. Resident memory stays as it is. How many bytes are free for it.
        """
        before = self._allocator.free
        changed: defaultdict[VirtualMachine, list[int]] = defaultdict(list)
        left: list[int] = []
        try:
            for (vm, at, to), other in list(alike(list(self.guests.values()), self.machine.ram)):
                changed[vm].append(at)
                if other is None:
                    vm.ram.f.clear(at)
                    vm.held -= FRAME
                else:
                    if other.to not in self._sharers:
                        changed[other.vm].append(other.at)
                        other.vm.ram.f.set(other.at, other.to, SHARED)
                        self._sharers[other.to] = 1
                    vm.ram.f.set(at, other.to, SHARED)
                    self._sharers[other.to] += 1
                    vm.account.shared += 1
                left.append(to)
        finally:
            for vm, frames in changed.items():
                vm.ram.changed(frames)
            for to in left:
                self._leave(to)
        return self._allocator.free - before

    def _separate(self, vm: VirtualMachine, at: int, to: int) -> None:
        """A machine writes a frame that others have too: it gets one of its own, unless it is the last."""
        if self._sharers[to] == 1:
            del self._sharers[to]
            vm.ram.give(at, to)
            return
        own = self._frame()
        if vm.ram.f.find(at) != to:  # it was taken, to have one
            self._allocator.give_back(own, FRAME)
            if vm.ram.f.find(at) is None:
                self._give(vm, at)
            return
        host = self.machine.ram
        host.write(host.base + own, host.read(host.base + to, FRAME))
        vm.ram.give(at, own)
        self._leave(to)
        vm.account.separated += 1

    def _leave(self, to: int) -> None:
        """A frame of the host is one machine's less."""
        count = self._sharers.pop(to, 1) - 1
        if count:
            self._sharers[to] = count
        else:
            self._allocator.give_back(to, FRAME)

    def _frame(self) -> int:
        """A frame for a machine: one that is free, or one that is taken from a machine. Raises OutOfMemory."""
        try:
            return self._allocator.frame(self._kept())
        except OutOfMemory:
            self.reclaim(BATCH)
            return self._allocator.frame(self._kept())

    def _free_frame(self, at: int) -> None:
        self._allocator.give_back(at, FRAME)

    def _kept(self) -> int:
        """How many free frames are for tables of f alone: as many as all machines can need."""
        return max(0, sum(map_frames(vm.ram.size) for vm in self.guests.values()) - self._tables)

    def _set_aside(self, memory: int) -> None:
        """Frames for the map of one more machine are free beside those of all others. Raises OutOfMemory."""
        wanted = ROOT + (self._kept() + map_frames(memory)) * FRAME
        while (free := self._allocator.free) < wanted:
            self.reclaim(BATCH)
            if self._allocator.free <= free:
                raise OutOfMemory("the host machine's memory is used up")

    def _spare(self) -> int:
        """And how many are free beside them."""
        return self._allocator.free // FRAME - self._kept()

    def _table(self) -> int:
        to = self._allocator.frame()
        self._tables += 1
        return to

    def _free_table(self, at: int) -> None:
        self._allocator.give_back(at, FRAME)
        self._tables -= 1

    def reclaim(self, count: int) -> None:
        """Take frames from machines until `count` more are free. Raises OutOfMemory where there are none to take."""
        taken, before = 0, self._spare()
        self.machine.ram.derived.moved()  # what is used from now on is looked up, and so seen to be used
        try:
            for vm, at in victims(list(self.guests.values())):
                self.page_out(vm, at)
                taken = self._spare() - before
                if taken >= count:
                    return
        except OutOfMemory:  # the paging disk is full
            if taken <= 0:
                raise
        if taken <= 0:
            raise OutOfMemory("the host machine's memory is used up, and none of it can be paged")

    def page_out(self, vm: VirtualMachine, at: int) -> bool:
        """Take the frame at an offset away from a machine, which does not notice. False: it has none there."""
        vm.ram.vacate((at, FRAME))
        found = vm.ram.f.look(at)
        if found is None:
            return False
        to, _, size = found
        to += at & size - 1
        host = self.machine.ram
        data = host.read(host.base + to, FRAME)
        if data != bytes(FRAME):
            self._put_on_disk(vm, at, data)
        vm.account.paged_out += 1
        vm.ram.take(at)  # may ask for the frame at once, where it holds an f of the machine's own
        self._leave(to)
        vm.held -= FRAME
        return True

    def _reserve(self, vm: VirtualMachine) -> None:
        """A machine has its resident memory from the beginning. Raises OutOfMemory."""
        for at in range(0, vm.resident, FRAME):
            if vm.ram.f.look(at) is None:
                self._fault(vm, at, READ)

    def _release(self, vm: VirtualMachine) -> None:
        """All memory of a machine is nobody's."""
        for slot in vm.paged.values():
            self._disk.free(slot)
        vm.paged.clear()
        vm.ram.absent.clear()
        vm.held = vm.hand = 0
        for _, to, _, size in vm.ram.f.pages():
            if size == FRAME:
                self._leave(to)
            else:
                self._allocator.give_back(to, size)
        vm.ram.f.empty()


def _whole(vm: VirtualMachine, first: int) -> bool:
    """Whether no frame of the superpage is on the paging disk, or on its way from there."""
    absent = vm.ram.absent
    return not absent or all(at not in absent for at in range(first, first + SUPERPAGE, FRAME))


def victims(guests: list[VirtualMachine]) -> Iterator[tuple[VirtualMachine, int]]:
    """Which frames to take first: of the machine that has most memory beyond what is resident, one that it did not use
    lately.
    """
    while guests:
        vm = max(guests, key=lambda guest: guest.held - guest.resident)
        if vm.held <= vm.resident:
            return
        at = vm.unused()
        if at is None:
            guests.remove(vm)
        else:
            yield vm, at
