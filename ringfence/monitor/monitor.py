"""The monitor: it takes a machine and gives machines, each with as much of that machine as its f says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ringfence.errors import MachineError
from ringfence.machine.board import RAM, Virt, assemble, check
from ringfence.machine.clock import Source
from ringfence.machine.device.uart16550 import ConsoleOut
from ringfence.machine.device.virtio_blk import Disk
from ringfence.machine.machine import Computer, Engine
from ringfence.machine.memory import FRAME
from ringfence.monitor.allocator import Allocator
from ringfence.monitor.map import SUPERPAGE, F, GuestRam
from ringfence.monitor.vm import VirtualMachine


class Monitor:
    """The control program of `machine`, bare or virtual, all of whose memory it has."""

    def __init__(self, machine: Virt) -> None:
        self.machine = machine
        self.guests: dict[str, VirtualMachine] = {}
        self.faults = 0
        """VM-faults that this monitor has answered."""
        self._allocator = Allocator(machine.ram)

    def create(
        self,
        name: str,
        memory: int,
        harts: int = 1,
        *,
        clock: Source = "virtual",
        step_ns: int = 1,
        turn: int = 20_000,
        seed: int | None = None,
        console: ConsoleOut | None = None,
        disks: Sequence[Disk] = (),
        epoch_ns: int | None = None,
        rng_seed: bytes | None = None,
    ) -> VirtualMachine:
        """A virtual machine, as `virt` makes a bare one. Raises MachineError."""
        if name in self.guests or not name or "/" in name:
            raise MachineError(f"a machine needs a name of its own without a slash, not {name!r}")
        check(memory, harts, step_ns, turn, len(disks))
        allocator = self._allocator
        f = F(self.machine.ram, memory, allocator.root(), allocator.frame, self._free_frame)

        def fault(at: int, right: int) -> None:
            self._fault(vm, at, right)

        ram = GuestRam(RAM, memory, f, fault, lambda: self._release(vm))
        vm = assemble(
            VirtualMachine,
            ram,
            harts,
            engine=self._engine(ram),
            clock=clock,
            step_ns=step_ns,
            turn=turn,
            seed=seed,
            console=console,
            disks=disks,
            epoch_ns=epoch_ns,
            rng_seed=rng_seed,
        )
        vm.name, vm.monitor = name, self
        self.guests[name] = vm
        return vm

    def _engine(self, ram: GuestRam) -> Callable[[Computer], Engine]:
        """The technique `virtualizer`: the guest's harts run as the bare machine's do, under its f."""
        from ringfence.machine.engine.reference import ReferenceEngine

        if isinstance(self.machine.engine, ReferenceEngine):
            return ReferenceEngine
        from ringfence.machine.engine.threaded import Threaded

        engine = self.machine.engine
        assert isinstance(engine, Threaded)
        native = engine.native
        return lambda vm: Threaded(vm, native=native, places=ram.composed)

    def _fault(self, vm: VirtualMachine, at: int, right: int) -> None:
        """A VM-fault: f has no answer, so it gets one: memory is given on demand."""
        self.faults += 1
        f, allocator = vm.ram.f, self._allocator
        first = at & -SUPERPAGE
        if first + SUPERPAGE <= vm.ram.size and f.vacant(at) and (superpage := allocator.superpage()) is not None:
            f.set(first, superpage, size=SUPERPAGE)
        else:
            f.set(at & -FRAME, allocator.frame())

    def _release(self, vm: VirtualMachine) -> None:
        """All memory of a machine is nobody's."""
        for _, to, _, size in vm.ram.f.pages():
            self._allocator.give_back(to, size)
        vm.ram.f.empty()

    def _free_frame(self, at: int) -> None:
        self._allocator.give_back(at, FRAME)
