"""What a monitor learns without its guest's help is so, and looking changes nothing."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from idioms import put
from platter import Platter
from test_equivalence import Engine
from test_explain import levels
from test_minidisk import answer

from ringfence import CORRAL, Extent, Idle, Image, MiB, Monitor, RawDisk, Virt, VirtualMachine, load, nested, virt
from ringfence.isa.csr import CBZE
from ringfence.isa.paging import ACCESSED, DIRTY, MODES, R, V, W, X
from ringfence.isa.trap import S
from ringfence.machine.board import RAM, VIRTIO, Tlb
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.virtio_blk import SECTOR, T_IN, T_OUT
from ringfence.machine.hart import SIZE
from ringfence.machine.memory import FRAME
from ringfence.monitor.inference import SPACES, Learned
from ringfence.monitor.monitor import Technique
from ringfence.monitor.stats import lines

TECHNIQUES: tuple[Technique, ...] = ("virtualizer", "trap", "vm-bit")
COUNTERS = 3
"""Programs that never give the hart away."""
MEMORY = 16 * MiB
SV39 = 8 << 60


def make(depth: int, technique: Technique = "virtualizer", tlb: Tlb = "hardware") -> VirtualMachine:
    """A machine that has all its memory, so no VM-fault interrupts it."""
    host = nested(depth - 1, 40 * MiB, technique=technique, tlb=tlb)
    return Monitor(host).create("guest", MEMORY, technique=technique, resident=MEMORY)


def learned(machine: Virt) -> Learned:
    assert isinstance(machine, VirtualMachine)
    return machine.monitor.learned(machine)


def counting(machine: Virt, rounds: int = 100) -> None:
    """Corral, with programs that take turns."""
    load(machine, CORRAL)
    machine.console.expect("corral> ")
    for _ in range(COUNTERS):
        machine.console.send(f"run count {rounds} &\n")
    machine.console.send("wait\n")


# Who zeroes what


def zeroing(pages: list[tuple[str, int]]) -> list[int]:
    """M-mode code that zeroes pages by CBO.ZERO, or writes into them, and ends in a loop."""
    code = []
    for what, page in pages:
        code += [put("lui", rd=5, imm=page * FRAME), put("add", rd=5, rs1=5, rs2=10)]
        if what == "zero":
            code += [put("addi", rd=6, rs1=0, imm=64), put("cbo.zero", rs1=5), put("addi", rd=5, rs1=5, imm=64)]
            code += [put("addi", rd=6, rs1=6, imm=-1), put("bne", rs1=6, rs2=0, imm=-12)]
        else:
            code += [put("sd", rs1=5, rs2=10), put("sd", rs1=5, rs2=10, imm=2040)]
    return [*code, put("jal", rd=0, imm=0)]


FAR, NEXT = 1024, 1025
"""Pages in a superpage that nobody has touched."""
ZEROING: list[list[Technique]] = [
    ["virtualizer"],
    ["trap"],
    ["translation"],
    ["virtualizer"] * 2,
    ["virtualizer", "trap"],
]


@pytest.mark.parametrize("engine", ["threaded", "reference"])
@pytest.mark.parametrize("techniques", ZEROING, ids="-".join)
def test_zeroing_what_nothing_backs_takes_no_frame(techniques: list[Technique], engine: Engine) -> None:
    """And what is backed later is zeroed again when it is to be."""
    first = zeroing([("zero", FAR), ("zero", NEXT), ("zero", FAR)])[:-1]
    # The reference takes the last 2,048 steps of a run, so that much is waited for behind what native code is to do.
    wait = [put("lui", rd=7, imm=4096), put("addi", rd=7, rs1=7, imm=-1), put("bne", rs1=7, rs2=0, imm=-4)]
    code = [*first, *wait, *zeroing([("write", NEXT), ("write", FAR), ("zero", FAR), ("zero", NEXT + 1)])]
    depth = len(techniques)
    bare, vm = virt(MEMORY, engine=engine), nested(depth, MEMORY, technique=techniques, engine=engine)
    assert isinstance(vm, VirtualMachine)
    for board in (bare, vm):
        board.ram.write(RAM, b"".join(word.to_bytes(4, "little") for word in code))
        board.harts[0].pc, board.harts[0].x[10] = RAM, RAM
    held = vm.held
    for board in (bare, vm):
        board.run(3 * (3 + 64 * 4) + 4096)
    assert RAM + 4 * len(first) <= vm.harts[0].pc < RAM + 4 * (len(first) + len(wait))
    zeroed = learned(vm).zeroed
    assert (zeroed.by_guest, zeroed.by_both, zeroed.no_frame) == (3, 0, 3)
    assert vm.held == held and vm.ram.f.vacant(FAR * FRAME)
    for board in (bare, vm):
        board.run(12_000)
    assert vm.harts[0].pc == RAM + 4 * (len(code) - 1) and not any(vm.ram.peek(FAR * FRAME, FRAME))
    zeroed = learned(vm).zeroed
    assert (zeroed.by_guest, zeroed.by_both, zeroed.no_frame) == (5, 1, 3)
    assert bare.digest() == vm.digest()
    assert "5 by the guest, 1 of them again, 3 without a frame" in "\n".join(lines(vm))


@pytest.mark.parametrize("techniques", ZEROING, ids="-".join)
def test_protection_counts_where_nothing_backs(techniques: list[Technique]) -> None:
    """CBO.ZERO of a page that S may not write is an access fault, whether there is a frame or not."""
    code = zeroing([("zero", FAR)])
    bare, vm = virt(MEMORY), nested(len(techniques), MEMORY, technique=techniques)
    for board in (bare, vm):
        board.ram.write(RAM, b"".join(word.to_bytes(4, "little") for word in code))
        hart = board.harts[0]
        hart.pc, hart.priv, hart.x[10], hart.menvcfg, hart.mtvec = RAM, S, RAM, 1 << CBZE, RAM + 4 * (len(code) - 1)
        hart.pmpaddr0, hart.pmpaddr1 = (RAM + FAR * FRAME | FRAME // 2 - 1) >> 2, (1 << 54) - 1
        hart.pmpcfg0 = 0x1F19  # of that page it may read, of all else do anything
        board.protection(hart)
        board.run(10_000)  # the reference takes the last steps of a run
    assert bare.csr("mcause") == 7 and bare.digest() == vm.digest()


# Which process runs


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("tlb", ["hardware", "software"])
def test_address_spaces_are_those_of_the_processes(tlb: Tlb, technique: Technique, depth: int) -> None:
    """At each slice's end the steps since the last go to the space that a bare machine is in at the same step; there
    are as many as processes, and the kernel's.
    """
    bare, vm = virt(MEMORY, tlb=tlb), make(depth, technique, tlb)
    for machine in (bare, vm):
        counting(machine)
    vm.inference.forget()
    draw, expected, modes = random.Random(1), Counter[int](), set()
    first: dict[int, int] = {}
    for _ in range(100):
        steps = draw.randrange(1, 60_000)
        for machine in (bare, vm):
            machine.run(steps)
        hart, found = bare.harts[0], learned(vm)
        satp = hart.satp if tlb == "hardware" else hart.satp % (1 << 60)
        expected[satp] += steps
        first.setdefault(satp, bare.steps)
        modes.add("US"[hart.priv])
        assert found.running is not None
        assert (found.mode, found.running.satp, found.running.last) == ("US"[hart.priv], satp, bare.steps)
    assert vm.digest() == bare.digest() and modes == {"U", "S"}
    assert {space.satp: space.steps for space in found.spaces} == expected
    assert {space.satp: space.first for space in found.spaces} == first
    assert sum(space.samples for space in found.spaces) == 100
    assert found.steps == sum(expected.values())
    assert [space.steps for space in found.spaces] == sorted(expected.values(), reverse=True)
    assert len([space for space in found.spaces if space.steps > 100_000]) == COUNTERS
    assert not any(space.over for space in found.spaces)


def test_address_space_is_over_when_its_process_is() -> None:
    """What it had for tables counts no more; a process that gets them later does."""
    vm = make(1)
    counting(vm, 1)
    while not isinstance(vm.run(20_000), Idle):
        living = [space.root for space in learned(vm).spaces if not space.over]
        assert len(set(living)) == len(living)
    found = learned(vm)
    assert [space.over for space in found.spaces if space.root != walked_root(vm)] == [True] * COUNTERS
    assert found.running is not None and not found.running.over
    assert found.tables == walk(vm, vm.harts[0].satp)
    vm.console.send("run cat\n")
    vm.run()
    assert [space.root for space in learned(vm).spaces if not space.over].count(walked_root(vm)) == 1


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_vm_fault_shows_what_runs(technique: Technique) -> None:
    """In the middle of a slice: of its address spaces those are seen in which the monitor was asked for memory."""
    vm = Monitor(virt(64 * MiB)).create("guest", MEMORY, technique=technique)
    root = SV39 | RAM + FRAME >> 12
    vm.ram.write(RAM + FRAME + 16, (RAM >> 2 | V | R | W | X | ACCESSED | DIRTY).to_bytes(8, "little"))
    code = [put("csrrw", rd=0, rs1=20, csr=0x180), put("sd", rs1=10, rs2=0), put("add", rd=20, rs1=20, rs2=21)]
    code = [*code, put("csrrw", rd=0, rs1=20, csr=0x180), put("add", rd=20, rs1=20, rs2=21)]
    code = [*code, put("add", rd=10, rs1=10, rs2=22), put("jal", rd=0, imm=-4 * len(code) - 4)]
    vm.ram.write(RAM, b"".join(word.to_bytes(4, "little") for word in code))
    hart = vm.harts[0]
    hart.pc, hart.priv = RAM, S
    hart["x10"], hart["x20"], hart["x21"], hart["x22"] = RAM + 2 * MiB, root, 1 << 44, 2 * MiB
    hart["pmpaddr0"], hart.pmpcfg0 = (1 << 54) - 1, 0x1F
    vm.protection(hart)
    before = vm.account.faults
    vm.run(7 * 6 + 4)
    found = learned(vm)
    assert vm.account.faults - before == 7
    assert {space.asid: space.samples for space in found.spaces} == dict.fromkeys((0, 2, 4, 6, 8, 10, 12, 13), 1)
    assert found.steps == 7 * 6 + 4 and sum(space.steps for space in found.spaces) == found.steps
    assert {space.asid: space.first for space in found.spaces}[4] == 2 * 7 + 1
    assert {space.asid: space.steps for space in found.spaces}[4] == 7


def test_machine_that_begins_anew_is_seen_anew() -> None:
    """Nothing of what ran before is told."""
    vm = make(1)
    counting(vm)
    vm.run(200_000)
    before = learned(vm)
    vm.reset()
    vm.run(3000)
    assert len(before.spaces) > 1 and before.steps > 200_000
    assert learned(vm).spaces == () and learned(vm).running is None
    assert 0 < learned(vm).steps < 10_000


def test_address_spaces_are_forgotten_in_turn() -> None:
    """So many are kept: the last seen. The steps of the others count in what there was in all."""
    vm = make(1)
    vm.ram.write(RAM, put("jal", rd=0).to_bytes(4, "little"))
    vm.ram.write(RAM + FRAME + 16, (RAM >> 2 | V | R | X | ACCESSED).to_bytes(8, "little"))
    hart, root = vm.harts[0], SV39 | RAM + FRAME >> 12
    hart.pc, hart.priv = RAM, S
    hart["pmpaddr0"], hart.pmpcfg0 = (1 << 54) - 1, 0x1F
    vm.protection(hart)
    for n in (*range(SPACES), 0, *range(SPACES, SPACES + 10)):  # the first once more
        hart.satp = root | n << 44
        vm.run(10)
    found = learned(vm)
    assert {space.asid for space in found.spaces} == {0, *range(11, SPACES + 10)}
    assert found.steps == 10 * (SPACES + 11) > sum(space.steps for space in found.spaces)


def test_machine_without_translation_has_no_address_space() -> None:
    """In M-mode, whatever satp holds."""
    vm = make(1)
    vm.ram.write(RAM, put("jal", rd=0).to_bytes(4, "little"))
    vm.harts[0].pc, vm.harts[0].satp = RAM, SV39 | RAM >> 12
    vm.run(100)
    found = learned(vm)
    assert (found.spaces, found.running, found.mode, found.steps) == ((), None, "M", 100)
    assert not found.tables and not found.page_cache and found.complete


# When it is idle


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_idle_time_is_seen(technique: Technique) -> None:
    """A machine that sleeps for most of its time; and one that works."""
    vm = make(1, technique)
    load(vm, CORRAL)
    vm.console.expect("corral> ")
    assert learned(vm).idle < 0.01 and not learned(vm).waits
    vm.console.send("run tick\n")
    vm.console.expect("corral> ")
    found = learned(vm)
    assert found.idle == 1 - vm.steps / vm.clock.now() > 0.9
    vm.run()
    assert learned(vm).waits
    vm.console.send("run count\n")
    vm.run(100_000)
    assert not learned(vm).waits


# Which frames are page tables


def walk(machine: Virt, satp: int) -> set[int]:
    """The physical addresses of the tables of an address space, as the manual says."""

    def below(table: int, level: int) -> set[int]:
        found = {table}
        for n in range(512 if level else 0):
            at = table + 8 * n
            pte = int.from_bytes(machine.memory[at : at + 8], "little")  # type: ignore[arg-type]
            if pte & V and not pte & (R | X):
                found |= below((pte >> 10) % (1 << 44) * FRAME, level - 1)
        return found

    return below(walked_root(machine, satp), MODES[satp >> 60] - 1)


def walked_root(machine: Virt, satp: int | None = None) -> int:
    return (machine.harts[0].satp if satp is None else satp) % (1 << 44) * FRAME


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("depth", [1, 3])
def test_page_tables_are_those_of_the_guest(depth: int, technique: Technique) -> None:
    """Of all address spaces that a bare machine was in, at the same steps."""
    bare, vm = virt(MEMORY), make(depth, technique)
    for machine in (bare, vm):
        counting(machine)
    spaces = set()
    for _ in range(60):
        for machine in (bare, vm):
            machine.run(20_000)
        spaces.add(bare.harts[0].satp)
    found = learned(vm)
    assert len(spaces) >= COUNTERS
    assert found.tables == set().union(*(walk(bare, satp) for satp in spaces)) and found.complete
    assert all(len(walk(bare, satp)) < len(found.tables) for satp in spaces)


def test_page_tables_of_linux_are_found(debian: Image) -> None:
    """Each process's, and none twice; a walk of what runs now agrees."""
    vm = nested(1, 128 * MiB)
    load(vm, debian.kernel, initrd=[debian.initrd], append=debian.append())
    vm.console.expect(":~# ", timeout=2)
    vm.console.send("while :; do ls >/dev/null; done\n")
    seen = set()
    for _ in range(40):
        vm.run(300_000)
        seen.add(walked_root(vm))
    found = learned(vm)
    assert walk(vm, vm.harts[0].satp) <= found.tables
    living = [space.root for space in found.spaces if not space.over]
    assert len(set(living)) == len(living) and len(living) >= 3
    assert seen <= {space.root for space in found.spaces}


@pytest.mark.parametrize("kind", ["loop", "outside", "everywhere", "noise"])
@pytest.mark.parametrize("mode", sorted(MODES))
def test_hostile_tables_are_walked_in_bounds(mode: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that lead to themselves, outside memory, from every entry to every frame, or anywhere: each is looked at
    once a level, no more than so many, and none is outside.
    """
    vm = make(1)
    count, rng = MEMORY // FRAME, random.Random(3)
    every = b"".join((RAM + n * FRAME >> 2 | V).to_bytes(8, "little") for n in range(count))
    outside = 0, RAM - FRAME, RAM + MEMORY, 1 << 55
    table = {
        "loop": (RAM + FRAME >> 2 | V).to_bytes(8, "little") * 512,
        "outside": b"".join((pa >> 2 | V).to_bytes(8, "little") for pa in outside) * 128,
    }
    for n in range(1, count):
        default = rng.randbytes(FRAME) if kind == "noise" else every[(n * FRAME) % len(every) :][:FRAME]
        vm.ram.write(RAM + n * FRAME, table.get(kind, default))
    hart = vm.harts[0]
    vm.ram.write(RAM, put("jal", rd=0).to_bytes(4, "little"))
    hart.pc, hart.priv, hart.satp = RAM, S, mode << 60 | RAM + FRAME >> 12
    vm.inference.at_fault()
    looked = Counter[int]()
    look = vm.ram.look

    def counted(at: int) -> bytes:
        looked[at] += 1
        return look(at)

    monkeypatch.setattr(vm.ram, "look", counted)
    for most in (1 << 15, 100):
        monkeypatch.setattr("ringfence.monitor.inference.TABLES", most)
        vm.inference._spaces[next(iter(vm.inference._spaces))].pc = None  # not taken for one that is over
        looked.clear()
        found = learned(vm)
        assert found.tables <= {RAM + n * FRAME for n in range(count)}
        assert max(looked.values()) <= MODES[mode] and looked.total() <= most
        assert found.complete == (kind in ("loop", "outside", "noise") or most > count * MODES[mode])
        if kind == "everywhere":
            assert len(found.tables) > (most > 100) * 1000 + 20
        elif kind != "noise":
            assert found.tables == {RAM + FRAME}


# Which frames are its page cache's

QUEUE, HEADERS, DATA = RAM + MiB, RAM + MiB + FRAME, RAM + 4 * MiB


class Driver:
    """A guest's, of the disk in slot 0; between requests its hart waits."""

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm, self.done = vm, 0
        wait = [put("wfi"), put("jal", rd=0, imm=-4)]
        vm.ram.write(RAM, b"".join(word.to_bytes(4, "little") for word in wait))
        vm.harts[0].pc = RAM
        registers = {mmio.QUEUE_DESC_LOW: QUEUE, mmio.QUEUE_DRIVER_LOW: QUEUE + 256, mmio.QUEUE_DEVICE_LOW: QUEUE + 512}
        for register, value in (
            (mmio.STATUS, 3),
            (mmio.DRIVER_FEATURES_SEL, 1),
            (mmio.DRIVER_FEATURES, 1),
            (mmio.STATUS, 11),
            (mmio.QUEUE_NUM, 16),
            *registers.items(),
            (mmio.QUEUE_READY, 1),
            (mmio.STATUS, 15),
        ):
            vm.bus.write(VIRTIO + register, 4, value)

    def request(self, kind: int, offset: int, data: list[tuple[int, int]]) -> int:
        """Its status."""
        ram, flag = self.vm.ram, 2 * (kind == T_IN)
        ram.write(HEADERS, kind.to_bytes(8, "little") + (offset // SECTOR).to_bytes(8, "little") + b"\xff")
        rows = [(HEADERS, 16, 1), *((pa, n, 1 | flag) for pa, n in data), (HEADERS + 16, 1, 2)]
        for n, (pa, length, flags) in enumerate(rows):
            words = pa.to_bytes(8, "little"), length.to_bytes(4, "little"), flags.to_bytes(2, "little")
            ram.write(QUEUE + 16 * n, b"".join((*words, (n + 1).to_bytes(2, "little"))))
        self.done += 1
        ram.write(QUEUE + 256 + 2, self.done.to_bytes(2, "little"))
        self.vm.bus.write(VIRTIO + mmio.QUEUE_NOTIFY, 4, 0)
        self.vm.run(1000)
        assert int.from_bytes(ram.read(QUEUE + 512 + 2, 2), "little") == self.done
        return ram.read(HEADERS + 16, 1)[0]


def with_disk(depth: int, technique: Technique, engine: Engine) -> tuple[Driver, Platter]:
    """The disk is sectors 40 to 239 of a platter, at any depth."""
    platter = Platter(280)
    bare = virt(96 * MiB, engine=engine, disks=[platter])
    monitor = Monitor(bare)
    extent = Extent(40 * SECTOR, 200 * SECTOR)
    for level in range(depth - 1):
        middle = monitor.create("middle", (72 - 24 * level) * MiB, disks=[monitor.minidisk(extent)])
        monitor, extent = Monitor(middle), Extent(0, 200 * SECTOR)
    return Driver(monitor.create("guest", MEMORY, disks=[monitor.minidisk(extent)], technique=technique)), platter


@pytest.mark.parametrize("engine", ["threaded", "reference"])
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("depth", [1, 3])
def test_page_cache_is_what_the_disk_has_too(depth: int, technique: Technique, engine: Engine) -> None:
    """Frames that were read or written; not those that have changed since, here or on the disk; again those that are
    as they were again. What is on the paging disk counts as what is in memory.
    """
    driver, platter = with_disk(depth, technique, engine)
    vm, ram = driver.vm, driver.vm.ram
    frames = [DATA + n * FRAME for n in range(10)]
    assert driver.request(T_IN, 0, [(frames[0], 8 * FRAME)]) == 0
    ram.write(frames[8], random.Random(1).randbytes(2 * FRAME))
    assert driver.request(T_OUT, 96 * SECTOR, [(frames[9], FRAME), (frames[8], FRAME)]) == 0

    def cached() -> dict[int, int]:
        return {pa: block.offset for pa, block in learned(vm).page_cache.items()}

    everything = {pa: n * FRAME for n, pa in enumerate(frames[:8])} | {frames[9]: 12 * FRAME, frames[8]: 13 * FRAME}
    assert cached() == everything
    assert all((b.disk, b.inside, b.length) == (0, 0, FRAME) for b in learned(vm).page_cache.values())
    ram.write(frames[1] + 77, b"x")
    ram.write(frames[2], ram.read(frames[2], FRAME))
    old = platter.data[(40 + 3 * 8) * SECTOR]
    platter.data[(40 + 3 * 8) * SECTOR] ^= 1
    ram.write(frames[9] + FRAME - 1, bytes([ram.read(frames[9] + FRAME - 1, 1)[0] ^ 1]))
    for at in (frames[4], frames[5]):
        assert vm.monitor.page_out(vm, at - RAM)
    changed = {frames[1], frames[3], frames[9]}
    assert cached() == {pa: offset for pa, offset in everything.items() if pa not in changed}
    assert len(vm.paged) == 2
    platter.data[(40 + 3 * 8) * SECTOR] = old
    assert cached().keys() == everything.keys() - {frames[1], frames[9]}
    assert driver.request(T_OUT, 12 * FRAME, [(frames[1], FRAME)]) == 0  # now it is that block's
    expected = {pa: offset for pa, offset in everything.items() if pa != frames[9]} | {frames[1]: 12 * FRAME}
    assert cached() == expected
    platter.fails = lambda _: True
    assert cached() == {}
    platter.fails = lambda _: False
    vm.ram.clear()
    assert cached() == {}


def test_page_cache_of_smaller_blocks_is_the_last_that_moved() -> None:
    """Pieces that follow each other in the frame and on the disk are one."""
    driver, _ = with_disk(1, "virtualizer", "threaded")

    def block() -> tuple[int, int, int] | None:
        found = learned(driver.vm).page_cache.get(DATA)
        return (found.offset, found.inside, found.length) if found else None

    assert driver.request(T_IN, 0, [(DATA, 1024)]) == 0 and block() == (0, 0, 1024)
    assert driver.request(T_IN, 1024, [(DATA + 1024, 512)]) == 0 and block() == (0, 0, 1536)
    assert driver.request(T_IN, 8192, [(DATA + 1536, 1024)]) == 0 and block() == (8192, 1536, 1024)
    driver.vm.ram.write(DATA, bytes(512))
    assert block() == (8192, 1536, 1024)
    driver.vm.ram.write(DATA + 1536, b"no")
    assert block() is None
    assert driver.request(T_IN, 0, [(DATA - 512, 1024), (DATA + 600, 512), (DATA + 2048, 512)]) == 0
    assert block() == (1536, 2048, 512)
    assert learned(driver.vm).page_cache[DATA - FRAME].inside == FRAME - 512


def test_request_that_fails_moves_nothing() -> None:
    """Behind the end, outside memory, of a broken disk."""
    driver, platter = with_disk(1, "virtualizer", "threaded")
    assert driver.request(T_IN, 199 * SECTOR, [(DATA, 1024)]) == 1
    assert driver.request(T_OUT, 0, [(RAM + MEMORY - 512, 1024)]) == 1
    platter.fails = lambda _: True
    assert driver.request(T_IN, 0, [(DATA, 1024)]) == 1
    platter.fails = lambda _: False
    assert learned(driver.vm).page_cache == {}


@pytest.mark.parametrize("seed", range(4))
def test_page_cache_at_random_is_what_a_model_says(seed: int) -> None:
    """Requests of any frames, writes to memory and to the disk, and frames that are taken."""
    driver, platter = with_disk(1 + seed % 3, TECHNIQUES[seed % 3], "threaded")
    vm, draw = driver.vm, random.Random(seed)
    model: dict[int, int] = {}
    seen = 0
    for _ in range(150):
        pa, at = DATA + draw.randrange(12) * FRAME, draw.randrange(25) * FRAME
        match draw.choice(("read", "read", "write", "change", "disk", "page")):
            case "change":
                vm.ram.write(pa + draw.randrange(FRAME), draw.randbytes(1))
            case "disk":
                platter.data[40 * SECTOR + at + draw.randrange(FRAME)] ^= draw.randrange(2)
            case "page":
                vm.monitor.page_out(vm, pa - RAM)
            case kind:
                frames = [(DATA + draw.randrange(12) * FRAME, FRAME) for _ in range(draw.randrange(1, 4))]
                offset = min(at, (25 - len(frames)) * FRAME)
                assert driver.request(T_IN if kind == "read" else T_OUT, offset, frames) == 0
                model |= {pa: offset + n * FRAME for n, (pa, _) in enumerate(frames)}
        disk = platter.data[40 * SECTOR :]
        expected = {pa: at for pa, at in model.items() if vm.ram.read(pa, FRAME) == disk[at : at + FRAME]}
        found = learned(vm).page_cache
        assert {pa: block.offset for pa, block in found.items()} == expected
        seen += 0 < len(found) < len(model)
    assert seen > 50


@pytest.mark.parametrize("technique", ["virtualizer", "trap"])
def test_page_cache_of_linux(technique: Technique, debian: Image, tmp_path: Path) -> None:
    """What it reads of its disk is in its page cache; what it writes there is not the disk's, until it is synced."""
    path = tmp_path / "disk"
    path.write_bytes(random.Random(4).randbytes(4 * MiB))
    with RawDisk(path) as disk:
        monitor = Monitor(virt(160 * MiB, disks=[disk]))
        vm = monitor.create("guest", 128 * MiB, disks=monitor.full_packs(), technique=technique)
        load(vm, debian.kernel, initrd=[debian.initrd], append=debian.append())
        vm.console.expect(":~# ", timeout=2)
        answer(vm, "exec 3</dev/vda")  # the last to close a device drops its cache
        answer(vm, "dd if=/dev/vda of=/dev/null bs=4096 count=200")

        def cached() -> set[int]:
            """Numbers of blocks of 4 KiB that are in a frame."""
            found = learned(vm).page_cache
            whole = {pa: block for pa, block in found.items() if block.length == FRAME}
            content = path.read_bytes()
            for pa, block in whole.items():
                assert vm.memory[pa : pa + FRAME] == content[block.offset : block.offset + FRAME]
            return {block.offset // FRAME for block in whole.values()}

        assert cached() >= set(range(200))
        answer(vm, "dd if=/dev/urandom of=/dev/vda bs=4096 count=4 seek=10 conv=notrunc")
        assert set(range(200)) - cached() == {10, 11, 12, 13}
        answer(vm, "sync")
        assert cached() >= set(range(200))
        (told,) = (line for line in lines(vm) if "seen from outside" in line)
        assert "address space" in told and "of page cache" in told


# Who looks


CONFIGURATIONS: list[list[Technique]] = [["virtualizer"], ["trap"], ["virtualizer"] * 2, ["trap"] * 2, ["vm-bit"] * 3]


@pytest.mark.parametrize("techniques", CONFIGURATIONS, ids="-".join)
@pytest.mark.parametrize("engine", ["threaded", "reference"])
def test_looking_changes_nothing(engine: Engine, techniques: list[Technique]) -> None:
    """Not the machine, none beneath it, no frame's place, nor what is known to be used lately; and a machine that was
    looked at goes on as one that was not.
    """
    machines = [nested(len(techniques), MEMORY, technique=techniques, engine=engine) for _ in range(2)]
    pieces = 8 if engine == "threaded" else 3
    for machine in machines:
        load(machine, CORRAL)
        machine.console.expect("corral> ")
        machine.console.send("run count & ; run heap\n")
    for n in range(pieces):
        for machine in machines:
            machine.run(6_000)
            for level in levels(machine):
                if isinstance(level, VirtualMachine) and n == 1:  # and what is not there is looked at where it is
                    for at in [at for at, _, _, _ in level.ram.f.pages()][::3]:
                        level.monitor.page_out(level, at)
        machine = machines[0]
        virtual = [level for level in levels(machine) if isinstance(level, VirtualMachine)]

        def state(virtual: list[VirtualMachine] = virtual, machine: Virt = machine) -> list[object]:
            composed = [bytes(vm.ram.composed or b"") for vm in virtual]
            told = [(vm.monitor.faults, vm.held, dict(vm.paged), vm.steps) for vm in virtual]
            return [*composed, *told, machine.harts[0].block[:SIZE].tobytes()]

        before = state()
        found = learned(machine)
        assert found.tables and found == learned(machine)
        assert state() == before
    assert len({machine.digest() for machine in machines}) == 1
    assert len({levels(machine)[-1].digest() for machine in machines}) == 1


def test_machine_with_a_monitor_on_it_is_seen_by_none_but_its_own() -> None:
    """Whose own program is no guest program; and the monitor on it sees its machine."""
    outer = Monitor(virt(64 * MiB)).create("outer", 48 * MiB)
    inner = Monitor(outer).create("inner", MEMORY)
    counting(inner)
    inner.run(100_000)
    assert learned(outer).steps == 0 and learned(outer).spaces == ()
    assert len(learned(inner).spaces) > 1
    assert [line.split(" (")[0] for line in lines(inner) if "(" in line and "steps" in line][:1] == ["outer"]
    assert sum("seen from outside" in line for line in lines(inner)) == 1


def test_bare_machine_is_seen_by_nobody() -> None:
    """There is no monitor."""
    assert lines(virt(MEMORY)) == []
