"""The `virt` board: a computer with the memory map of QEMU's virt machine, and the device tree that tells of it.

    0x0000_1000  boot ROM                        0x0c00_0000  PLIC: 95 sources
    0x0010_0000  test finisher                   0x1000_0000  16550A UART, source 10
    0x0010_1000  goldfish RTC, source 11         0x1000_1000  eight virtio-mmio slots, sources 1 to 8
    0x0200_0000  ACLINT                          0x1000_9000  virtio-mmio entropy device, source 9
                                                 0x8000_0000  RAM

The PLIC's context 2n is hart n's M-mode, 2n + 1 its S-mode.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from ringfence.errors import MachineError
from ringfence.isa.trap import Irq, M
from ringfence.machine.bus import Rom
from ringfence.machine.clock import Clock, Source
from ringfence.machine.console import Console
from ringfence.machine.device.aclint import Aclint
from ringfence.machine.device.goldfish_rtc import GoldfishRtc
from ringfence.machine.device.plic import SOURCES, Plic
from ringfence.machine.device.syscon import PASS, RESET, Syscon
from ringfence.machine.device.uart16550 import CLOCK_HZ, ConsoleOut, Uart16550
from ringfence.machine.device.virtio_9p import Share, Virtio9p
from ringfence.machine.device.virtio_blk import Disk, VirtioBlk
from ringfence.machine.device.virtio_console import NAME_MOST, PORTS, Port, VirtioConsole
from ringfence.machine.device.virtio_mmio import VirtioMmio
from ringfence.machine.device.virtio_net import Link, VirtioNet
from ringfence.machine.device.virtio_rng import Entropy, HostEntropy, SeededEntropy, VirtioRng
from ringfence.machine.devicetree import U64, Node, flatten
from ringfence.machine.hart import SIZE, Hart
from ringfence.machine.look import Listing, Look, Memory, VirtualMemory, listing
from ringfence.machine.machine import Computer, Engine, HartLine, SupervisorTimers
from ringfence.machine.memory import FRAME, Ram, amount

MiB = 1 << 20
GiB = 1 << 30

ROM, ROM_SIZE = 0x1000, 0xF000
FINISHER = 0x10_0000
RTC, RTC_SOURCE = 0x10_1000, 11
ACLINT = 0x200_0000
PLIC = 0xC00_0000
UART, UART_SOURCE = 0x1000_0000, 10
VIRTIO, VIRTIO_STRIDE, SLOTS = 0x1000_1000, 0x1000, 8
"""Slot n has source 1 + n."""
RNG, RNG_SOURCE = VIRTIO + SLOTS * VIRTIO_STRIDE, 1 + SLOTS
RAM = 0x8000_0000

COMING = 512
"""Frames that have come for a machine that has not come to a check point since."""
HARTS = 8
MEMORY = 512 * MiB
MEMORY_LEAST = 4 * MiB
TIMEBASE_HZ = 10_000_000
EPOCH_NS = 1_735_689_600 * 1_000_000_000
"""2025-01-01 00:00 UTC: what the RTC shows at power-on where time is virtual."""
RNG_SEED = bytes(range(0x40, 0x60))
"""What a kernel's random numbers grow from where time is virtual, so that a run can be repeated."""
TURN = 20_000
"""Steps of a hart's turn."""
CACHE_BLOCK = 64
BASE = "rv64i"
EXTENSIONS = (
    *("i", "m", "a", "f", "d", "c", "zicbom", "zicbop", "zicboz", "zicntr", "zicond", "zicsr", "zifencei", "zihpm"),
    *("zba", "zbb", "zbs", "sstc", "svadu", "svinval", "svpbmt"),
)
WALKING = ("svadu",)
"""Those of harts that walk page tables."""
SOFTWARE_TLB = "xrftlb"
"""And of harts that do not (docs/software-tlb.md)."""
Tlb = Literal["hardware", "software"]
"""What fills the TLB."""
XHV = "xrfhv"
"""The extension of harts that launch virtual machines (docs/xhv.md)."""
Isa = Literal["base", "hv"]
"""What harts have: what Debian needs; and Xhv too."""


class NoDevice(VirtioMmio):
    """A slot with nothing in it: device 0, which drivers pass over (VIRTIO 1.2, section 4.2.3.1.1)."""

    ID = 0
    QUEUES = 0


@dataclass(frozen=True)
class Inputs:
    """Everything that a guest on this board can tell one run from another by, beside its program, disks, shares and
    input."""

    memory: int
    harts: int
    disks: int
    links: tuple[bytes, ...]
    """The addresses of its network devices."""
    shares: tuple[bytes, ...]
    """The tags of its shares."""
    ports: int
    rng_seed: bytes
    epoch_ns: int
    turn: int
    seed: int | None
    tlb: Tlb
    isa: Isa


class Virt(Computer):
    """A computer made by `virt`, which sets these."""

    inputs: Inputs
    rom: Rom
    plic: Plic
    uart: Uart16550
    rtc: GoldfishRtc
    slots: tuple[VirtioMmio, ...]
    rng: VirtioRng
    console: Console
    memory: Memory
    """Physical memory, by slice."""

    @property
    def disks(self) -> list[Disk]:
        """What its block devices stand on, by slot."""
        return [slot.disk for slot in self.slots if isinstance(slot, VirtioBlk)]

    @property
    def links(self) -> list[Link]:
        """What its network devices are plugged into, by slot."""
        return [slot.link for slot in self.slots if isinstance(slot, VirtioNet)]

    @property
    def shares(self) -> list[Share]:
        """What its file system devices share, by slot."""
        return [slot.share for slot in self.slots if isinstance(slot, Virtio9p)]

    def leave_shares(self) -> None:
        """Lets go of all files that are held for the guest."""
        for slot in self.slots:
            if isinstance(slot, Virtio9p):
                slot.session.reset()

    @property
    def ports(self) -> list[Port]:
        """What the ports of its console device lead to."""
        return [port for slot in self.slots if isinstance(slot, VirtioConsole) for port in slot.ports]

    def virtual(self, hart: int = 0) -> VirtualMemory:
        """Memory as this hart's translation shows it, by slice."""
        return VirtualMemory(self, self.harts[hart])

    def csr(self, name: str, hart: int = 0) -> int:
        """A CSR as the hart's own instructions read it."""
        return Look(self, self.harts[hart]).csr(name)

    def disassemble(self, pc: int | None = None, count: int = 8, hart: int = 0) -> Listing:
        """So many instructions from virtual address `pc`, by default the hart's own; a line each."""
        return listing(self.virtual(hart), self.harts[hart].pc if pc is None else pc, count)

    def check_program(self) -> None:
        if self.harts[0].pc == ROM and not self.rom.content and all(h.priv == M and h.pc == ROM for h in self.harts):
            raise MachineError("there is nothing to run: load(machine, kernel) puts a program in")

    def __repr__(self) -> str:
        size, count = self.ram.size / MiB, len(self.harts)
        seconds = f"{self.clock.now() / 1e9:.6f} s"
        head = f"{size:g} MiB, {count} hart{'s' if count > 1 else ''}, {self.steps:,} steps, {seconds}"
        return f"<virt: {head}; hart {self.current} at {self.harts[self.current].pc:#x}>"

    def device_tree(self, bootargs: str = "", initrd: tuple[int, int] | None = None) -> bytes:
        """The board's device tree; `initrd` is its first physical address and the one behind it."""
        return device_tree(self.inputs, bootargs, initrd)

    def hardware_reset(self) -> None:
        """Every chip as at power-on, RAM cleared; time goes on. Harts stand in M-mode at the boot ROM."""
        if self.virtualizer is not None:
            self.virtualizer.clear()
        self.ram.clear()
        for hart in self.harts:
            hart.reset()
            hart.pc = ROM
            hart.mcycle = hart.minstret = -self.steps
            hart.away = self.steps
            self.timers.update(hart)
            self.protection(hart)
        for _, _, device in self.bus.windows():
            device.reset()
        self.current = 0
        if len(self.harts) > 1:
            self.turn_end = self.steps + self.turns.draw()
        self.at_check_point = False


Board = TypeVar("Board", bound=Virt)


def virt(
    memory: int = MEMORY,
    harts: int = 1,
    *,
    clock: Source = "virtual",
    step_ns: int = 1,
    turn: int = TURN,
    seed: int | None = None,
    engine: Literal["threaded", "reference"] = "threaded",
    console: ConsoleOut | None = None,
    disks: Sequence[Disk] = (),
    links: Sequence[Link] = (),
    shares: Sequence[Share] = (),
    ports: Sequence[Port] = (),
    epoch_ns: int | None = None,
    rng_seed: bytes | None = None,
    tlb: Tlb = "hardware",
    isa: Isa = "base",
) -> Virt:
    """The computer: `memory` bytes of RAM, `harts` harts, its console's output to `console` too, a disk a virtio slot,
    behind those a network device for each link, a file system device for each share and a device for all `ports`.

    `turn` is the length of a hart's turn in steps; with `seed` lengths are drawn between 1 and twice that. `epoch_ns`
    (ns since 1970 at power-on) and `rng_seed` (32 bytes, from which the entropy device's grow too) are fixed by default
    under the virtual clock, and the host's time and entropy under the host clock. With `tlb` "software" the harts do
    not walk page tables, and their TLBs are the guest's to fill; with `isa` "hv" they launch virtual machines. Until a
    program is loaded there is none: see `guest.loader`. Raises `MachineError`, and `OutOfMemory` where the host has no
    room.
    """
    devices = len(disks) + len(links) + len(shares) + bool(ports)
    check(memory, harts, step_ns, turn, devices, clock)
    return assemble(
        Virt,
        Ram(RAM, memory),
        harts,
        engine=_engine(engine),
        clock=clock,
        step_ns=step_ns,
        turn=turn,
        seed=seed,
        console=console,
        disks=disks,
        links=links,
        shares=shares,
        ports=ports,
        epoch_ns=epoch_ns,
        rng_seed=rng_seed,
        tlb=tlb,
        isa=isa,
    )


def assemble(
    kind: type[Board],
    ram: Ram,
    harts: int,
    *,
    engine: Callable[[Computer], Engine],
    clock: Source,
    step_ns: int,
    turn: int,
    seed: int | None,
    console: ConsoleOut | None,
    disks: Sequence[Disk],
    links: Sequence[Link],
    shares: Sequence[Share],
    epoch_ns: int | None,
    rng_seed: bytes | None,
    tlb: Tlb,
    isa: Isa,
    ports: Sequence[Port] = (),
) -> Board:
    """The whole memory map, wired: bare, or a virtual machine with what its monitor gives it. Arguments as `virt`'s,
    and as `check` has passed them.
    """
    if tlb not in get_args(Tlb):
        raise MachineError(f"there is no TLB filled by {tlb!r}: a machine's is filled by {' or '.join(get_args(Tlb))}")
    if isa not in get_args(Isa):
        raise MachineError(f"there is no ISA {isa!r}: a machine's is {' or '.join(get_args(Isa))}")
    if epoch_ns is None:
        epoch_ns = EPOCH_NS if clock == "virtual" else time.time_ns()
    if rng_seed is None and clock == "virtual":
        rng_seed = RNG_SEED
    entropy: Entropy = HostEntropy() if rng_seed is None else SeededEntropy(rng_seed)
    if rng_seed is None:
        rng_seed = os.urandom(32)
    ticks = Clock(clock, step_ns)
    cpus = [Hart(n, memoryview(bytearray(SIZE))) for n in range(harts)]
    board = kind(ram, ticks, cpus, turn=turn, seed=seed)
    macs = tuple(link.mac for link in links)
    tags = tuple(share.tag for share in shares)
    board.inputs = Inputs(ram.size, harts, len(disks), macs, tags, len(ports), rng_seed, epoch_ns, turn, seed, tlb, isa)

    aclint = Aclint(ticks, [HartLine(h, Irq.MSI) for h in cpus], [HartLine(h, Irq.MTI) for h in cpus])
    plic = Plic([HartLine(h, irq) for h in cpus for irq in (Irq.MEI, Irq.SEI)])
    board.console = console if isinstance(console, Console) else Console(console)
    board.console.connect(board)
    board.transcript = board.console.transcript
    uart = Uart16550(ticks, plic.line(UART_SOURCE), board.console)
    rtc = GoldfishRtc(ticks, plic.line(RTC_SOURCE), epoch_ns)
    rom = Rom(b"")
    slots: list[VirtioMmio] = []
    for n in range(SLOTS):
        line = plic.line(1 + n)
        if n < len(disks):
            slots.append(VirtioBlk(ticks, line, ram, disks[n], feed=board.feed if clock == "host" else None))
        elif n < len(disks) + len(links):
            slots.append(_plugged(board, VirtioNet(ticks, line, ram, links[n - len(disks)])))
        elif n < len(disks) + len(links) + len(shares):
            slots.append(Virtio9p(ticks, line, ram, shares[n - len(disks) - len(links)]))
        elif n == len(disks) + len(links) + len(shares) and ports:
            slots.append(_led(board, VirtioConsole(ticks, line, ram, _distinct(ports))))
        else:
            slots.append(NoDevice(ticks, line, ram, 0))

    rng = VirtioRng(ticks, plic.line(RNG_SOURCE), ram, entropy)

    bus = board.bus
    bus.attach(ROM, ROM_SIZE, rom)
    bus.attach(FINISHER, Syscon.WINDOW, Syscon(board))
    bus.attach(RTC, GoldfishRtc.WINDOW, rtc)
    bus.attach(ACLINT, Aclint.WINDOW, aclint)
    bus.attach(PLIC, Plic.WINDOW, plic)
    bus.attach(UART, Uart16550.WINDOW, uart)
    for n, slot in enumerate(slots):
        bus.attach(VIRTIO + n * VIRTIO_STRIDE, VIRTIO_STRIDE, slot)
    bus.attach(RNG, VIRTIO_STRIDE, rng)

    board.aclint, board.plic, board.uart, board.rtc, board.rom = aclint, plic, uart, rtc, rom
    board.slots, board.rng = tuple(slots), rng
    board.memory = Memory(board)
    board.timers = SupervisorTimers(ticks, aclint, cpus)
    board.engine = engine(board)
    board.on_reset = board.hardware_reset
    for hart in cpus:
        hart.pc = ROM
        hart.software_tlb = int(tlb == "software")
        hart.xhv = int(isa == "hv")
    if isa == "hv":
        from ringfence.machine.virtualizer import Virtualizer

        board.virtualizer = Virtualizer(board)
    return board


def _plugged(board: Virt, device: VirtioNet) -> VirtioNet:
    """What comes for it is input of the machine's; what more comes than the machine takes in is lost."""
    coming: deque[bytes] = deque()

    def come(frame: bytes) -> None:
        if len(coming) < COMING:
            coming.append(frame)
            board.feed(lambda: device.receive(coming.popleft()))

    device.link.connect(come)
    return device


def _led(board: Virt, device: VirtioConsole) -> VirtioConsole:
    """What its ports lead to says that it has changed: input of the machine's, however often it does."""
    told = [False]

    def look() -> None:
        told[0] = False
        device.look()

    def changed() -> None:
        if not told[0]:
            told[0] = True
            board.feed(look)

    for port in device.ports:
        port.connect(changed)
    return device


def _distinct(ports: Sequence[Port]) -> Sequence[Port]:
    """Raises MachineError unless each can be known by its name."""
    names = [port.name for port in ports]
    if len(names) > PORTS:
        raise MachineError(f"a machine has at most {PORTS} ports, not {len(names)}")
    for name in names:
        if not name or "\0" in name or len(name.encode(errors="surrogateescape")) > NAME_MOST:
            raise MachineError(f"a port needs a name of at most {NAME_MOST} bytes, not {name!r}")
        if names.count(name) > 1:
            raise MachineError(f"two ports of a machine have the name {name!r}")
    return ports


def check(memory: int, harts: int, step_ns: int, turn: int, devices: int, clock: str) -> None:
    if not 1 <= harts <= HARTS:
        raise MachineError(f"a machine has 1 to {HARTS} harts, not {harts}")
    if memory < MEMORY_LEAST:
        raise MachineError(f"a machine has at least {amount(MEMORY_LEAST)} of memory, not {amount(memory)}")
    if memory % FRAME:
        raise MachineError(f"memory is a multiple of {amount(FRAME)}, which {amount(memory)} is not")
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory > there:
        raise MachineError(f"{amount(memory)} of memory is more than the host's {amount(there // MiB * MiB)}")
    if step_ns < 1 or turn < 1:
        raise MachineError("a step lasts at least 1 ns, and a turn at least 1 step")
    if devices > SLOTS:
        raise MachineError(f"a machine has at most {SLOTS} disks, network devices and shares, not {devices}")
    if clock not in get_args(Source):
        raise MachineError(f"there is no clock {clock!r}: a machine's is {' or '.join(get_args(Source))}")


def _engine(name: str) -> Callable[[Computer], Engine]:
    if name == "reference":
        from ringfence.machine.engine.reference import ReferenceEngine

        return ReferenceEngine
    if name != "threaded":
        raise MachineError(f"there is no engine {name!r}: a machine's is threaded or reference")
    machine = os.uname().machine
    if sys.platform != "linux" or machine != "x86_64":
        raise MachineError(
            f"the threaded engine needs Linux on x86-64, and this is {sys.platform} on {machine}; "
            "the reference engine runs anywhere"
        )
    from ringfence.machine.engine.threaded import Threaded

    def threaded(computer: Computer) -> Engine:
        try:
            return Threaded(computer)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "llvmlite":
                raise
            raise MachineError(
                "the threaded engine needs the package llvmlite; the reference engine does without"
            ) from None

    return threaded


def device_tree(inputs: Inputs, bootargs: str = "", initrd: tuple[int, int] | None = None) -> bytes:
    """The device tree of a virt board, flattened. The bytes depend on the arguments alone.

    Sources: Devicetree Specification 0.4, chapter 3, and the bindings that the `compatible` strings name. Of the virtio
    slots only those with a device are told of: a driver then has nothing to probe in vain.
    """
    root = Node()
    root["#address-cells"] = 2
    root["#size-cells"] = 2
    root["compatible"] = "riscv-virtio"
    root["model"] = "ringfence,virt"
    chosen = root.add("chosen")
    chosen["stdout-path"] = f"/soc/serial@{UART:x}"
    if bootargs:
        chosen["bootargs"] = bootargs
    if initrd is not None:
        chosen["linux,initrd-start"] = U64(initrd[0])
        chosen["linux,initrd-end"] = U64(initrd[1])
    chosen["rng-seed"] = inputs.rng_seed
    memory = root.add(f"memory@{RAM:x}")
    memory["device_type"] = "memory"
    memory["reg"] = [U64(RAM), U64(inputs.memory)]
    controllers = _cpus(root, inputs)
    soc = root.add("soc")
    soc["#address-cells"] = 2
    soc["#size-cells"] = 2
    soc["compatible"] = "simple-bus"
    soc["ranges"] = b""
    plic = _chips(soc, controllers)
    for n in range(inputs.disks + len(inputs.links) + len(inputs.shares) + bool(inputs.ports)):
        _chip(soc, "virtio_mmio", VIRTIO + n * VIRTIO_STRIDE, VIRTIO_STRIDE, "virtio,mmio", (plic, 1 + n))
    _chip(soc, "rng", RNG, VIRTIO_STRIDE, "virtio,mmio", (plic, RNG_SOURCE))
    finisher = soc.find("test")
    for name, value in (("poweroff", PASS), ("reboot", RESET)):
        node = root.add(name)
        node["compatible"] = f"syscon-{name}"
        node["regmap"] = finisher
        node["offset"] = 0
        node["value"] = value
    return flatten(root)


def _cpus(root: Node, inputs: Inputs) -> list[Node]:
    """The harts; returns their interrupt controllers."""
    cpus = root.add("cpus")
    cpus["#address-cells"] = 1
    cpus["#size-cells"] = 0
    cpus["timebase-frequency"] = TIMEBASE_HZ
    extensions = list(EXTENSIONS)
    if inputs.tlb == "software":
        extensions = [*(name for name in EXTENSIONS if name not in WALKING), SOFTWARE_TLB]
    if inputs.isa == "hv":
        extensions.append(XHV)
    controllers = []
    nodes = []
    for n in range(inputs.harts):
        cpu = cpus.add(f"cpu@{n:x}")
        cpu["device_type"] = "cpu"
        cpu["reg"] = n
        cpu["status"] = "okay"
        cpu["compatible"] = "riscv"
        cpu["riscv,isa"] = BASE + "_".join(("".join(extensions[1:6]), *extensions[6:]))
        cpu["riscv,isa-base"] = BASE
        cpu["riscv,isa-extensions"] = extensions
        for operation in ("cbom", "cbop", "cboz"):
            cpu[f"riscv,{operation}-block-size"] = CACHE_BLOCK
        if inputs.tlb == "hardware":
            cpu["mmu-type"] = "riscv,sv57"
        controller = cpu.add("interrupt-controller")
        controller["#address-cells"] = 0
        controller["#interrupt-cells"] = 1
        controller["interrupt-controller"] = b""
        controller["compatible"] = "riscv,cpu-intc"
        nodes.append(cpu)
        controllers.append(controller)
    cluster = cpus.add("cpu-map").add("cluster0")
    for n, cpu in enumerate(nodes):
        cluster.add(f"core{n}")["cpu"] = cpu
    return controllers


def _chips(soc: Node, controllers: list[Node]) -> Node:
    """What every board has; returns the PLIC."""
    finisher = _chip(soc, "test", FINISHER, Syscon.WINDOW, ("sifive,test1", "sifive,test0", "syscon"))
    finisher["reg-io-width"] = 4
    clint = _chip(soc, "clint", ACLINT, Aclint.WINDOW, ("sifive,clint0", "riscv,clint0"))
    clint["interrupts-extended"] = [x for c in controllers for x in (c, Irq.MSI, c, Irq.MTI)]
    plic = _chip(soc, "plic", PLIC, Plic.WINDOW, ("sifive,plic-1.0.0", "riscv,plic0"))
    plic["interrupt-controller"] = b""
    plic["#interrupt-cells"] = 1
    plic["#address-cells"] = 0
    plic["riscv,ndev"] = SOURCES - 1
    plic["interrupts-extended"] = [x for c in controllers for x in (c, Irq.MEI, c, Irq.SEI)]
    uart = _chip(soc, "serial", UART, Uart16550.WINDOW, "ns16550a", (plic, UART_SOURCE))
    uart["clock-frequency"] = CLOCK_HZ
    _chip(soc, "rtc", RTC, GoldfishRtc.WINDOW, "google,goldfish-rtc", (plic, RTC_SOURCE))
    return plic


def _chip(
    soc: Node,
    name: str,
    start: int,
    size: int,
    compatible: str | Sequence[str],
    source: tuple[Node, int] | None = None,
) -> Node:
    node = soc.add(f"{name}@{start:x}")
    node["compatible"] = compatible
    node["reg"] = [U64(start), U64(size)]
    if source is not None:
        node["interrupt-parent"], node["interrupts"] = source
    return node
