"""The remote protocol: what gdb asks, and what the machine does for it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import example, given
from hypothesis import strategies as st

from ringfence import (
    CORRAL,
    Break,
    Deadline,
    Debugger,
    Idle,
    MachineError,
    MiB,
    PowerOff,
    Stopped,
    Virt,
    load,
    virt,
)
from ringfence.guest.image import Lock
from ringfence.isa.spec import ISA
from ringfence.isa.trap import U
from ringfence.machine import gdb_monitor
from ringfence.machine.board import RAM, UART
from ringfence.machine.gdb_packets import LONGEST, Packets, Signal, frame
from ringfence.machine.gdb_stub import COMMANDS, EVERYBODY, Stub

Serve = Callable[..., "Client"]


def symbol(name: str) -> int:
    with CORRAL.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        found = table.get_symbol_by_name(name)
        assert found
        return int(found[0]["st_value"])


def corral(harts: int = 1, commands: bytes = b"", **options: object) -> Virt:
    board = virt(16 * MiB, harts, **options)  # type: ignore[arg-type]
    load(board, CORRAL)
    board.uart.receive(commands)
    return board


def loop(count: int = 1) -> Virt:
    """Every hart counts in t0, for ever."""
    board = virt(4 * MiB, count, turn=500)
    program = ISA["addi"].encode(rd=5, rs1=5, imm=1), ISA["jal"].encode(rd=0, imm=-4)
    board.ram.write(RAM, b"".join(word.to_bytes(4, "little") for word in program))
    for hart in board.harts:
        hart.pc = RAM
    return board


class Client:
    """A gdb of a few lines, connected to `debugger`, whose machine runs in a thread."""

    def __init__(self, debugger: Debugger) -> None:
        self.debugger, self.board = debugger, debugger.computer
        self.ends: list[object] = []
        self._over = False
        self._machine = threading.Thread(target=self._run)
        self._machine.start()
        self.connect()

    def _run(self) -> None:
        while not self._over and not isinstance(ended := self.debugger.run(), PowerOff):
            if isinstance(ended, Idle):
                time.sleep(0.005)
        self.ends.append(None if self._over else ended)

    def connect(self) -> None:
        self.socket = socket.create_connection(self.debugger.address, timeout=10)
        self._packets = Packets()
        self._replies: list[bytes] = []
        assert self.ask(b"QStartNoAckMode") == b"OK"

    def send(self, payload: bytes) -> None:
        self.socket.sendall(frame(payload))

    def reply(self) -> bytes:
        while not self._replies:
            data = self.socket.recv(4096)
            assert data, "the connection is closed"
            self._replies += [event for event in self._packets.feed(data) if isinstance(event, bytes)]
        return self._replies.pop(0)

    def ask(self, payload: bytes) -> bytes:
        self.send(payload)
        return self.reply()

    def go(self, how: bytes = b"vCont;c") -> bytes:
        """Resume; the stop reply."""
        return self.ask(how)

    def interrupt(self) -> bytes:
        self.socket.sendall(b"\x03")
        return self.reply()

    def register(self, number: int) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(b"p%x" % number).decode()), "little")

    def document(self, name: bytes) -> bytes:
        whole = b""
        while True:
            piece = self.ask(b"qXfer:%s:%x,200" % (name, len(whole)))
            whole += piece[1:]
            if piece[:1] == b"l":
                return whole

    def monitor(self, command: str) -> str:
        return bytes.fromhex(self.ask(b"qRcmd," + command.encode().hex().encode()).decode()).decode()

    def join(self) -> object:
        """Why the machine's run ended."""
        self._machine.join(10)
        assert self.ends
        return self.ends[0]

    def close(self) -> None:
        self._over = True
        self.socket.close()
        self.debugger.close()
        while self._machine.is_alive():
            self.board.stop()
            self._machine.join(0.05)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A client of a machine that stands at its first instruction."""
    clients = []

    def start(board: Virt) -> Client:
        client = Client(Debugger(board, wait=True))
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.close()


def test_gdb_reads_and_writes_registers(serve: Serve) -> None:
    """By number and all at once; x0 stays 0, the pc even, and a CSR takes what it can hold."""
    board = loop()
    client, hart = serve(board), board.harts[0]
    hart["a0"], hart["ft1"] = 0x1122_3344_5566_7788, 0x3FF0 << 48
    whole = bytes.fromhex(client.ask(b"g").decode())
    assert len(whole) == 33 * 8
    assert whole[80:88] == bytes.fromhex("8877665544332211") and whole[256:] == RAM.to_bytes(8, "little")
    assert client.register(10) == hart["a0"] and client.register(34) == 0x3FF0 << 48
    assert client.ask(b"P0=ffffffffffffffff") == client.ask(b"P5=0500000000000000") == b"OK"
    assert hart["t0"] == 5 and hart.x[0] == 0
    assert client.ask(b"G" + (whole[:80] + bytes(8) + whole[88:]).hex().encode()) == b"OK"
    assert hart["a0"] == 0 and hart["t0"] == 0
    assert client.ask(b"P41=0500000000000000") == b"E01"
    mepc, mcycle, mhartid = (65 + number for number in (0x341, 0xB00, 0xF14))
    assert client.ask(b"P%x=ff00000000000000" % mepc) == b"OK" and client.register(mepc) == 0xFE
    assert client.ask(b"P%x=ff00000000000000" % mcycle) == b"OK" and client.register(mcycle) == 0xFF
    assert client.ask(b"P%x=ff00000000000000" % mhartid) == b"OK" and client.register(mhartid) == 0
    assert client.ask(b"P1041=0000000000000000") == b"OK" and hart.priv == U
    assert client.ask(b"P1041=0200000000000000") == b"OK" and hart.priv == U


def test_gdb_target_description_names_every_register(serve: Serve) -> None:
    """It is XML with the features that gdb knows; each register in it can be read."""
    board = corral()
    client = serve(board)
    root = ET.fromstring(client.document(b"features:read:target.xml"))
    assert [(part.tag, part.text) for part in root][:2] == [("architecture", "riscv:rv64"), ("osabi", "none")]
    assert [f.get("name") for f in root.iter("feature")] == [
        f"org.gnu.gdb.riscv.{part}" for part in ("cpu", "fpu", "csr", "virtual")
    ]
    registers = {reg.get("name"): int(reg.get("regnum", "")) for reg in root.iter("reg")}
    assert len(registers) > 150
    for name, number in registers.items():
        assert client.register(number) >= 0, name
    assert client.register(registers["sstatus"]) == board.csr("sstatus")
    assert client.register(registers["satp"]) == 0


def test_gdb_reads_and_writes_memory(serve: Serve) -> None:
    """RAM and ROM, in part where it ends; neither a device nor a hole."""
    board = corral()
    client = serve(board)
    code = CORRAL.read_bytes()[0x1000:0x1010]
    assert bytes.fromhex(client.ask(b"m80200000,10").decode()) == code
    assert client.ask(b"m80fffffe,10") == b"0000"
    assert client.ask(b"m%x,1" % UART) == client.ask(b"m0,8") == client.ask(b"mffffffffffffffff,2") == b"E0e"
    assert client.ask(b"M80300000,4:00010203") == b"OK" and board.memory[0x8030_0000:0x8030_0004] == bytes(range(4))
    assert client.ask(b"X80300000,3:}$#") == b"OK" and board.memory[0x8030_0000:0x8030_0003] == b"}$#"
    assert client.ask(b"M80ffffff,2:0000") == client.ask(b"M%x,1:00" % UART) == b"E0e"
    assert client.ask(b"M80300000,4:00") == b"E01"
    assert client.monitor("phys 0x80200000 8") == f"0x80200000: {code[:8].hex(' ')}\n"


def test_gdb_memory_is_the_harts_or_physical(serve: Serve) -> None:
    """In a process its own pages are there, the kernel's are too, and a look sets no bit of an entry."""
    board = corral(commands=b"run count\n")
    while board.harts[0].priv != U:
        board.run(100)
    pc = board.harts[0].pc
    client = serve(board)
    before = board.digest()
    code = client.ask(b"m%x,8" % pc)
    found = re.fullmatch(rf"hart 0, U-mode, running: {pc:#x} is at (0x\w+)\n", client.monitor(f"translate {pc:#x}"))
    assert found
    physical = int(found[1], 16)
    assert physical != pc and board.memory[physical : physical + 8] == bytes.fromhex(code.decode())
    assert client.ask(b"m%x,8" % physical) != code
    assert client.ask(b"Qqemu.PhyMemMode:1") == b"OK" and client.ask(b"qqemu.PhyMemMode") == b"1"
    assert client.ask(b"m%x,8" % physical) == code
    assert client.ask(b"m%x,8" % pc) == b"E0e"
    assert client.ask(b"Qqemu.PhyMemMode:0") == b"OK" and client.ask(b"m%x,8" % pc) == code
    assert client.monitor("translate 0x7000000000") == "hart 0, U-mode, running: 0x7000000000 is not mapped\n"
    assert board.digest() == before


def test_gdb_breakpoints_stop_and_change_nothing(serve: Serve) -> None:
    """Each time the instruction comes; removed they are not met, and the guest ends as one that nobody looked at."""
    plain = corral(commands=b"run hello\n")
    plain.run()
    board = corral(commands=b"run hello\n")
    client = serve(board)
    assert client.ask(b"?") == b"T05thread:1;"
    for n, name in enumerate(("kernel_main", "put_number")):
        assert client.ask(b"Z%d,%x,2" % (n, symbol(name))) == b"OK"
        assert client.go() == b"T05thread:1;" and board.harts[0].pc == symbol(name)
    assert client.go(b"c") == b"T05thread:1;" and board.harts[0].pc == symbol("put_number")
    for n, name in enumerate(("kernel_main", "put_number")):
        assert client.ask(b"z%d,%x,2" % (n, symbol(name))) == b"OK"
    client.send(b"vCont;c")
    wait(lambda: board.steps == plain.steps)
    assert client.interrupt() == b"T02thread:1;"
    assert board.digest() == plain.digest()


def test_gdb_watchpoints_tell_what_was_touched(serve: Serve) -> None:
    """A write, a read and either, at the first byte of theirs; a ninth page is refused."""
    board = corral(commands=b"run hello\n" * 3)
    client, last_pid = serve(board), symbol("last_pid")
    assert client.ask(b"Z2,%x,4" % last_pid) == b"OK"
    for _ in range(2):  # it is cleared, then written
        assert client.go() == client.ask(b"?") == b"T05thread:1;watch:%x;" % last_pid
    assert int.from_bytes(board.memory[last_pid : last_pid + 4], "little") == 1  # type: ignore[arg-type]
    assert client.ask(b"z2,%x,4" % last_pid) == client.ask(b"Z3,%x,4" % (last_pid + 2)) == b"OK"
    assert client.go() == b"T05thread:1;rwatch:%x;" % (last_pid + 2)
    assert client.ask(b"z3,%x,4" % (last_pid + 2)) == client.ask(b"Z4,%x,4" % last_pid) == b"OK"
    assert client.go() == b"T05thread:1;awatch:%x;" % last_pid
    assert client.ask(b"Z2,80300000,7000") == b"OK"
    assert client.ask(b"Z2,80400000,1") == client.ask(b"Z2,80300000,0") == b"E1c"
    assert client.ask(b"Z2,0,ffffffffffffffff") == b"E1c"
    assert client.ask(b"Z5,80300000,1") == b""


def test_gdb_steps_one_instruction(serve: Serve) -> None:
    """At a breakpoint too, which stays."""
    board = loop()
    client = serve(board)
    assert client.ask(b"Z0,%x,4" % RAM) == b"OK"
    for n in range(1, 5):
        assert client.go(b"vCont;s:1" if n % 2 else b"s") == b"T05thread:1;"
        assert board.steps == n
    assert board.harts[0]["t0"] == 2
    assert client.go() == b"T05thread:1;" and board.steps == 6


def test_gdb_steps_the_hart_that_it_names(serve: Serve) -> None:
    """At once, in one step of the machine. The others take their turns when its turn is over."""
    board = loop(3)
    client = serve(board)
    for step, number in enumerate((3, 1, 2, 2), 1):
        before = board.harts[number - 1].pc
        assert client.go(b"vCont;s:%x;c" % number) == b"T05thread:%x;" % number
        assert board.steps == step and board.harts[number - 1].pc != before
    for _ in range(499):
        assert client.go(b"vCont;s:2;c") == b"T05thread:2;"
    assert board.harts[0]["t0"] > 200 and board.harts[2]["t0"] > 200 and board.harts[1].pc == RAM + 4


def test_gdb_holds_harts_that_no_action_names(serve: Serve) -> None:
    """The first action that names a hart counts; one that none names stands still, though breakpoints are ahead."""
    board = loop(3)
    client = serve(board)

    def moved(action: bytes, said: bytes) -> list[int]:
        before = [(hart.pc, hart["t0"]) for hart in board.harts]
        assert client.go(action) == said
        return [n for n, hart in enumerate(board.harts, 1) if (hart.pc, hart["t0"]) != before[n - 1]]

    assert moved(b"vCont;s:3", b"T05thread:3;") == [3]
    assert client.ask(b"Z0,%x,4" % (RAM + 4)) == b"OK"
    assert moved(b"vCont;c:2", b"T05thread:2;") == [2]
    assert moved(b"vCont;c:2", b"T05thread:2;") == [2] and board.harts[1]["t0"] == 2
    assert moved(b"vCont;s:2;c:2", b"T05thread:2;") == [2]
    assert moved(b"vCont;c:1;s:2;c", b"T05thread:2;") == [2]
    assert client.ask(b"z0,%x,4" % (RAM + 4)) == b"OK"
    client.send(b"vCont;c:1;c:3")
    wait(lambda: running(board) > 100_000)
    stands = board.harts[1].pc, board.harts[1]["t0"]
    assert client.interrupt() in (b"T02thread:1;", b"T02thread:3;")
    assert (board.harts[1].pc, board.harts[1]["t0"]) == stands
    assert min(board.harts[0]["t0"], board.harts[2]["t0"]) > 10_000
    assert client.ask(b"vCont;c:4") == client.ask(b"vCont;t:1") == client.ask(b"vCont;") == b"E01"


def test_gdb_stops_a_hart_that_waits_alone(serve: Serve) -> None:
    """It is the one that is named, though another had the turn."""
    board = loop(2)
    board.harts[1].stopped = 1
    client = serve(board)
    for action in (b"vCont;c:2", b"vCont;s:2"):
        client.send(action)
        assert client.interrupt() == b"T02thread:2;"
    assert board.steps == 0


def test_gdb_threads_are_harts(serve: Serve) -> None:
    """Listed, described and selected one by one."""
    board = corral(3)
    client = serve(board)
    board.harts[2]["a0"] = 77
    assert client.ask(b"qfThreadInfo") == b"m1,2,3" and client.ask(b"qsThreadInfo") == b"l"
    assert client.ask(b"qC") == b"QC1"
    assert client.ask(b"T3") == b"OK" and client.ask(b"T4") == client.ask(b"T0") == b"E01"
    assert client.ask(b"Hg3") == b"OK" and client.register(10) == 77
    assert client.ask(b"Hg9") == b"E01" and client.ask(b"Hc-1") == b"OK"
    assert bytes.fromhex(client.ask(b"qThreadExtraInfo,2").decode()) == b"hart 1, S-mode, stopped"
    names = [thread.text for thread in ET.fromstring(client.document(b"threads:read:")).iter("thread")]
    assert names == ["hart 0, S-mode, running", "hart 1, S-mode, stopped", "hart 2, S-mode, stopped"]
    assert client.monitor("machine").startswith("hart 0, S-mode, running, pc 0x80200000\n")


@pytest.mark.parametrize("clock", ["virtual", "host"])
def test_gdb_stops_a_running_machine_and_its_clock(serve: Serve, clock: str) -> None:
    """Ctrl-C halts it wherever it is; until it goes on neither steps nor time pass."""
    board = corral(commands=b"run primes\n", clock=clock)
    client = serve(board)
    client.send(b"vCont;c")
    wait(lambda: board.steps > 1000)
    assert client.interrupt() == b"T02thread:1;"
    stands = board.steps, board.clock.now()
    time.sleep(0.05)
    assert client.ask(b"qC") == b"QC1"
    assert (board.steps, board.clock.now()) == stands
    client.send(b"vCont;c")
    wait(lambda: "corral> " in board.console.text[-10:])


def test_gdb_stops_a_machine_that_waits(serve: Serve) -> None:
    """Where every hart waits for input, which then still comes."""
    board = corral()
    client = serve(board)
    client.send(b"vCont;c")
    wait(lambda: board.console.text.endswith("corral> "))
    assert client.interrupt() == b"T02thread:1;"
    client.send(b"vCont;c")
    board.console.send("uptime\n")
    wait(lambda: "up 0." in board.console.text)


def test_gdb_detaches_and_another_comes(serve: Serve) -> None:
    """Its breakpoints are gone, those of others stay; the next gdb finds the machine halted."""
    board = loop()
    client = serve(board)
    board.breakpoints.add(RAM + 0x100)
    assert client.ask(b"Z0,%x,4" % RAM) == client.ask(b"Z2,%x,4" % RAM) == b"OK"
    assert client.ask(b"D") == b"OK"
    wait(lambda: running(board) > 100_000)
    client.connect()
    steps = board.steps
    assert client.ask(b"?").startswith(b"T05") and board.steps == steps
    assert board.breakpoints == {RAM + 0x100} and not board.watchpoints
    client.socket.close()
    wait(lambda: running(board) > steps + 100_000)


def test_gdb_kills_the_machine(serve: Serve) -> None:
    """It is off, with status 0."""
    client = serve(loop())
    assert client.ask(b"vKill;1") == b"OK"
    ended = client.join()
    assert isinstance(ended, PowerOff) and ended.status == 0


def test_gdb_is_told_that_the_machine_is_off(serve: Serve) -> None:
    """With the guest's status."""
    client = serve(corral(commands=b"poweroff\n"))
    assert client.go() == b"W00"
    assert isinstance(client.join(), PowerOff)


def test_gdb_resets_the_machine(serve: Serve) -> None:
    """It begins again, and stops at its breakpoints."""
    board = corral()
    client, main = serve(board), symbol("kernel_main")
    assert client.ask(b"Z0,%x,2" % main) == b"OK"
    for _ in range(2):
        assert client.go() == b"T05thread:1;" and board.harts[0].pc == main
        assert client.monitor("reset").startswith("the machine begins again")


def test_gdb_monitor_answers_any_command(serve: Serve) -> None:
    """With help, or with what would be right."""
    client = serve(corral())
    assert client.monitor("help").count("monitor ") == 6 == client.monitor("").count("monitor ")
    assert client.monitor("code 0x80200000 2").count("\n0x8020000") == 2
    assert client.monitor("phys") == client.monitor("phys here").replace("here", "") != ""
    assert client.monitor("phys 0 4") == client.monitor("phys -1 4").replace("-0x1", "0x0") != ""
    assert client.monitor("frobnicate") == "no command is called 'frobnicate': try help\n"


def test_gdb_monitor_names_the_hart_that_it_speaks_of(serve: Serve) -> None:
    """The one that gdb has selected, or the one that is asked for."""
    board = corral(2, commands=b"run count\n")
    while board.harts[0].priv != U:
        board.run(100)
    client, pc = serve(board), board.harts[0].pc
    for select, hart in ((b"Hg1", ""), (b"Hg2", " 0")):
        assert client.ask(select) == b"OK"
        assert client.monitor(f"translate {pc:#x}{hart}").startswith(f"hart 0, U-mode, running: {pc:#x} is at 0x80")
        assert client.monitor(f"code {pc:#x} 1{hart}").startswith(f"hart 0, U-mode, running:\n{pc:#x}  ")
    assert client.monitor(f"translate {pc:#x}") == f"hart 1, S-mode, stopped: {pc:#x} is at {pc:#x}\n"
    assert client.monitor("code 0 3") == "hart 1, S-mode, stopped: there is no code at 0x0\n"
    for command in ("translate 0 2", "code 0 1 2"):
        assert client.monitor(command) == "there is no hart 2: the last is 1\n"


@given(st.text(st.sampled_from("0123x- é"), max_size=30), st.sampled_from([*gdb_monitor.COMMANDS, ""]))
def test_gdb_monitor_always_says_something(words: str, command: str) -> None:
    """Whatever is asked: an empty answer means to gdb that there is no such command."""
    said = gdb_monitor.answer(_BOARD.harts[1], _BOARD, f"{command} {words}")
    assert said.strip() and said.endswith("\n")


def test_debugger_gives_back_what_is_not_gdbs() -> None:
    """Limits of the caller, a stop, and breakpoints where no gdb is there end its run as the machine's own."""
    board = loop()
    debugger = Debugger(board)
    try:
        assert not debugger.attached
        assert debugger.run(1000).steps == 1000
        assert isinstance(debugger.run(until=board.clock.now() + 5000), Deadline)
        board.stop()
        assert isinstance(debugger.run(), Stopped)
        board.breakpoints.add(RAM)
        assert isinstance(debugger.run(), Break)
        with pytest.raises(MachineError, match=r"gdb cannot be waited for at 127\.0\.0\.1:"):
            Debugger(board, port=debugger.address[1])
        with pytest.raises(MachineError, match="cannot be waited for"):
            Debugger(board, port=70000)
    finally:
        debugger.close()


def test_debugger_that_waits_is_let_go_by_gdb_alone(serve: Serve) -> None:
    """A gdb that goes before it says so, and whoever only tries the port, leave the machine where it stands."""
    board = loop()
    client = serve(board)
    client.socket.close()
    for said in (b"", b"GET / HTTP/1.0\r\n\r\n"):
        with socket.create_connection(client.debugger.address, timeout=10) as visitor:
            visitor.sendall(said)
        time.sleep(0.05)
    client.connect()
    assert client.ask(b"?") == b"T05thread:1;" and board.steps == 0
    assert client.ask(b"D") == b"OK"
    wait(lambda: running(board) > 1000)


@pytest.mark.parametrize(
    ("host", "why"), [("é..x", "é..x:5: that is no name of a host"), ("::1%nosuch", r"\[::1%nosuch\]:5: [A-Z][a-z ]+$")]
)
def test_debugger_says_what_is_wrong_with_a_host(host: str, why: str) -> None:
    """In the words of whoever looked it up."""
    with pytest.raises(MachineError, match=why) as caught:
        Debugger(_BOARD, host, 5)
    assert "Unknown" not in str(caught.value)


def test_debugger_that_waits_heeds_a_stop() -> None:
    """A machine that waits for gdb can still be ended."""
    board = loop()
    debugger = Debugger(board, wait=True)
    threading.Timer(0.1, board.stop).start()
    assert isinstance(debugger.run(), Stopped) and board.steps == 0
    debugger.close()


# Packets


def test_packets_are_cut_anywhere() -> None:
    """However the bytes come in, the packets are the same; damage is told."""
    stream = b"+" + frame(b"m1,2") + b"\x03-" + frame(b"X}$#*\x03") + b"$abc#00" + b"junk" + frame(b"")
    expected = [b"m1,2", Signal.INTERRUPT, Signal.AGAIN, b"X}$#*\x03", Signal.DAMAGED, b""]
    assert list(Packets().feed(stream)) == expected
    for size in (1, 2, 3, 7):
        packets = Packets()
        pieces = [stream[n : n + size] for n in range(0, len(stream), size)]
        assert [event for piece in pieces for event in packets.feed(piece)] == expected


def test_packets_of_any_length_are_bounded() -> None:
    """One that never ends is dropped, and the next is read."""
    packets = Packets()
    events = list(packets.feed(b"$" + b"a" * 10 * LONGEST)) + list(packets.feed(b"#00" + frame(b"g")))
    assert Signal.DAMAGED in events and events[-1] == b"g"
    assert len(packets._buffer) <= LONGEST + 2


@given(st.binary(max_size=300))
def test_packets_of_any_bytes_are_no_error(data: bytes) -> None:
    """Noise yields packets or nothing."""
    list(Packets().feed(data))


_NUMBERS = st.sampled_from(
    [b"0", b"1", b"2", b"-1", b"80200000", b"ffffffffffffffff", b"10000000000000000", b"zz", b""]
)
_REST = st.lists(
    st.one_of(_NUMBERS, st.sampled_from([b",", b":", b";", b"=", b"target.xml"]), st.binary(max_size=6)),
    max_size=7,
)
_BOARD = loop(2)


@given(st.lists(st.tuples(st.sampled_from([*COMMANDS, b"qQ", b"v", b"\xff"]), _REST), max_size=8))
@example([(b"qRcmd", [b",", b"7068797320", b"2d31"])])
@example(
    [
        (b"Z", [b"2,0,ffffffffffffffff"]),
        (b"m", [b"0,ffffffffffffffff"]),
        (b"H", [b"g2"]),
        (b"vCont", [b";s:2;c"]),
    ]
)
def test_stub_answers_any_packet(packets: list[tuple[bytes, list[bytes]]]) -> None:
    """With a reply that can be sent, or by going on; the machine still runs then."""
    stub = Stub(_BOARD)
    for command, rest in packets:
        reply = stub.answer(command + b"".join(rest))
        assert reply is None or len(frame(reply)) < 2 * LONGEST
        assert len(stub.stopped(5, stub.resume or EVERYBODY)) < 40
    going = stub.resume or EVERYBODY
    stub.clear()
    _BOARD.status = None
    _BOARD.run(10, harts=going.harts, step=going.step)


def test_debugger_survives_a_hostile_client(serve: Serve) -> None:
    """Noise, half a packet, a flood and a sudden end; the next client is served."""
    client = serve(loop())
    for noise in (
        b"\xff" * 5000,
        b"$" * 70000,
        b"-" * 2000,
        b"$g#00" * 500,
        b"\x03" * 1000,
        frame(b"g") * 300,
        b"$m",
    ):
        connection = socket.create_connection(client.debugger.address, timeout=10)
        if client.socket.fileno() >= 0:
            client.socket.close()
        try:
            connection.sendall(noise)
        except OSError:
            pass
        connection.close()
    client.connect()
    assert client.ask(b"qC").startswith(b"QC")


@pytest.mark.parametrize(("option", "host"), [("0", "127.0.0.1"), ("[::1]:0", "::1")])
def test_run_lets_gdb_in(option: str, host: str) -> None:
    """`ringfence run --gdb 0 -S` says where, and where its symbols are, waits, and goes on when gdb detaches; its
    status is the guest's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError:
        pytest.skip(f"this host has no {host}")
    process = subprocess.Popen(
        [sys.executable, "-m", "ringfence", "run", "--gdb", option, "-S"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        said = process.stderr.readline().decode()
        found = re.fullmatch(r"waiting for gdb: target remote (\S*):(\d+)\n", said)
        assert found and found[1] == option[:-2], said
        connection = socket.create_connection((host, int(found[2])), timeout=10)
        connection.sendall(frame(b"?") + frame(b"D"))
        process.stdin.write(b"poweroff\n")
        process.stdin.close()
        output, rest = process.stdout.read(), process.stderr.read()
        assert process.wait(30) == 0 and b"Corral" in output
        assert rest.decode() == f"the guest's symbols: symbol-file {CORRAL}\n"
        assert b"+$T05thread:1;#" in connection.recv(4096)
        connection.close()
    finally:
        process.kill()


@pytest.mark.parametrize("symbols", [True, False])
def test_run_says_where_an_images_symbols_are(symbols: bool, tmp_path: Path) -> None:
    """By the name that lasts, as a command of gdb's; of an image without any, nothing."""
    images = tmp_path / "ringfence" / "images"
    made = images / ".debian.made"
    made.mkdir(parents=True)
    (images / "debian").symlink_to(made.name)
    lock = Lock("debian", "trixie", "13", datetime.now(UTC), (), "", "", "", {"kernel": "", "initrd": ""})
    (made / "lock.json").write_bytes(msgspec.json.encode(lock))
    (made / "kernel").write_bytes(CORRAL.read_bytes())
    (made / "initrd").write_bytes(b"initrd")
    if symbols:
        (made / "symbols.elf").touch()
    found = subprocess.run(
        [sys.executable, "-m", "ringfence", "run", "debian", "--gdb=0", "--timeout=1e-6", "--engine=reference"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    told = [line for line in found.stderr.splitlines() if "symbol-file" in line]
    assert found.returncode == 124
    assert told == [f"the guest's symbols: symbol-file {images}/debian/symbols.elf"] * symbols


@pytest.mark.parametrize(
    "wrong", [["-S"], ["--gdb", "here"], ["--gdb", "99999"], ["--gdb=localhost:x"], ["--gdb=::1:5"], ["--gdb=é..x:5"]]
)
def test_run_refuses_what_is_no_address(wrong: list[str]) -> None:
    """With one sentence and status 2."""
    found = subprocess.run([sys.executable, "-m", "ringfence", "run", *wrong], capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and "gdb" in found.stderr


def running(board: Virt) -> int:
    """The steps of a machine that may be in native code, which keeps them to itself until it is kicked."""
    board.feed(lambda: None)
    return board.steps


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
