"""The command line as its user meets it: statuses, sentences, pipes and terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from struct import pack

import pytest

import ringfence as package
from ringfence.errors import MachineError
from ringfence.isa.spec import ISA
from ringfence.machine import board

COMMAND = [sys.executable, "-m", "ringfence"]
KERNEL = 0x8020_0000
UART, FINISHER = 0x1000_0000, 0x10_0000
T0, T1 = 5, 6
LINUX_PANIC = "---[ end Kernel panic - not syncing: no init ]---\n"


def ringfence(*arguments: str, stdin: bytes = b"", seconds: float = 60) -> subprocess.CompletedProcess[bytes]:
    found = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=seconds)
    assert b"Traceback" not in found.stderr, found.stderr.decode()
    return found


def sentence(found: subprocess.CompletedProcess[bytes]) -> str:
    """What was said, where just one sentence was."""
    lines = found.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ringfence: "), lines
    return lines[0].removeprefix("ringfence: ")


def asm(name: str, **operands: int) -> int:
    return ISA[name].encode(**operands)


SPIN = asm("jal", rd=0, imm=0)
WFI = asm("wfi")


def say(text: str) -> list[int]:
    put = [[asm("addi", rd=T0, rs1=0, imm=ord(c)), asm("sb", rs1=T1, rs2=T0, imm=0)] for c in text]
    return [asm("lui", rd=T1, imm=UART), *(word for pair in put for word in pair)]


def leave(value: int) -> list[int]:
    """Write `value` to the test finisher."""
    return [
        asm("lui", rd=T1, imm=FINISHER),
        asm("lui", rd=T0, imm=(value + 0x800) & 0xFFFF_F000),
        asm("addi", rd=T0, rs1=T0, imm=(value & 0xFFF) - (value & 0x800) * 2),
        asm("sw", rs1=T1, rs2=T0, imm=0),
        SPIN,
    ]


def write_kernel(path: Path, *words: int) -> str:
    """An ELF file that begins with these instructions in S-mode."""
    code = b"".join(word.to_bytes(4, "little") for word in words)
    head = pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 243, 1, KERNEL, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    path.write_bytes(head + pack("<IIQQQQQQ", 1, 7, 120, KERNEL, KERNEL, len(code), 4096 + len(code), 8) + code)
    return str(path)


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[..., str]:
    return partial(write_kernel, tmp_path / "kernel")


@pytest.mark.parametrize(
    "arguments,status,why",
    [
        (["runn"], 2, "No such command 'runn'"),
        (["run", "--nothing"], 2, "--nothing"),
        (["run", "-m", "0"], 2, "at least 4 MiB of memory, not 0 bytes"),
        (["run", "-m", "3M"], 2, "at least 4 MiB of memory, not 3 MiB"),
        (["run", "-m", "1P"], 2, "1 PiB of memory is more than the host's"),
        (["run", "-m", "many"], 2, "'many' is no amount of memory"),
        (["run", "-m", "-5M"], 2, "is no amount of memory"),
        (["run", "--harts", "0"], 2, "1 to 8 harts, not 0"),
        (["run", "--harts", "1000"], 2, "1 to 8 harts, not 1000"),
        (["run", "--harts", "two"], 2, "'two' is not a valid integer"),
        (["run", "--timeout", "0"], 2, "--timeout"),
        (["run", "--trace", "insn,foo"], 2, "'foo' is none of insn, trap, csr, io"),
        (["run", "--trace", "insn", "--engine", "threaded"], 2, "only the reference engine"),
        (["run", "--depth", "0", "--technique", "trap"], 2, "a technique is a monitor's, and at depth 0 there is none"),
        (
            ["run", "--technique", "trap,vmx"],
            2,
            "'vmx' is none of virtualizer, trap, trap-s, vm-bit, para, translation",
        ),
        (["run", "-p", "22"], 2, "'22' is no pair of ports, as 2222:22, 0.0.0.0:2222:22 or 5353:53/udp is"),
        (["run", "-p", "70000:22"], 2, "'70000:22' is no pair of ports"),
        (["run", "--network", "none", "-p", "2222:22"], 2, "--network none says that it has none"),
        (["run", "--technique", "trap,"], 2, "'' is none of virtualizer, trap, trap-s, vm-bit, para, translation"),
        (["run", "--technique", "trap,trap"], 2, "2 techniques are given for a depth of 1"),
        (["run", "--depth", "3", "--technique", "trap,trap"], 2, "give one for all monitors, or one for each"),
        (["run", "--disk", "/nowhere/fs.img"], 2, "/nowhere/fs.img cannot be opened"),
        (["run", "--initrd", "x"], 2, "--initrd needs a --kernel"),
        (["run", "debian", "--kernel", "x"], 2, "do not go together"),
        (["run", "corral", "--", "ls"], 2, "runs no command"),
        (
            ["run", "nosuch"],
            127,
            "no image is called 'nosuch': there are debian, debian-full and, built in, corral and vmm",
        ),
        (["run", "coral"], 127, "did you mean corral"),
        (["run", "--kernel", ""], 2, "'--kernel': a file has a name, and this is empty"),
        (["run", "--dump-dtb", ""], 2, "'--dump-dtb': a file has a name, and this is empty"),
        (["run", "--kernel", "/nowhere/Image"], 126, "/nowhere/Image does not exist"),
        (["run", "--kernel", "/"], 126, "is a directory"),
        (["run", "--kernel", "/bin/sh"], 126, "not for RISC-V"),
        (["run", "--kernel", "/etc/passwd"], 126, "neither a RISC-V ELF file nor a RISC-V Linux Image"),
        (["run", "--bios", "/bin/sh"], 126, "firmware /bin/sh is for"),
        (["run", "--dump-dtb", "/nowhere/x.dtb"], 125, "cannot be written to /nowhere/x.dtb"),
        (["image", "path", "nosuch"], 127, "no image is called 'nosuch'"),
        (["image", "rm", "corral"], 127, "corral is built in"),
        (["image", "pull", "debian", "--mirror", ""], 2, "a mirror's address is"),
        (["image", "pull", "debian", "--mirror", "http://a.invalid", "--keyring", "~nosuchuser/x"], 125, "no keyring"),
        (["image", "pull", "debian", "--mirror", "http://a.invalid", "--keyring", "\x1b[2J\n"], 125, r"\x1b[2J"),
    ],
)
def test_cli_says_what_is_wrong(arguments: list[str], status: int, why: str) -> None:
    """Every wrong use is one sentence on standard error, with its status, and nothing on standard output."""
    found = ringfence(*arguments)
    assert why in sentence(found)
    assert (found.returncode, found.stdout) == (status, b"")


def test_cli_helps() -> None:
    """The list of commands, and each command's options and statuses."""
    assert b"run" in ringfence("--help").stdout
    text = ringfence("run", "--help").stdout.decode()
    assert all(word in text for word in ("--timeout", "--trace", "Ctrl-a x", "124", "132"))
    assert ringfence().returncode == 2


def test_cli_knows_the_embedded_guest_as_an_image() -> None:
    """The name that `run` takes is in the list, leads to a file, and is not fetched."""
    assert b"corral        built in" in ringfence("image", "list").stdout
    assert Path(ringfence("image", "path", "corral").stdout.decode().strip()).read_bytes()[:4] == b"\x7fELF"
    assert ringfence("image", "pull", "corral").stdout == b"corral is built in\n"


SHORT = [["--help"], ["--version"], ["run", "--help"], ["image", "list"], ["image", "path", "corral"]]


@pytest.mark.parametrize("arguments", SHORT, ids=" ".join)
def test_cli_says_that_output_cannot_be_written(arguments: list[str]) -> None:
    """On a full device every command ends with a sentence and status 125; where nobody reads, with 141 and no word."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=30)
    assert done.returncode == 125
    assert sentence(done) == "the output cannot be written: No space left on device"
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb") as pipe:
        done = subprocess.run([*COMMAND, *arguments], stdout=pipe, stderr=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stderr) == (141, b"")


def test_cli_imports_little_for_help() -> None:
    """Neither the machine nor a library for tables is imported to show help."""
    code = (
        "import sys; from ringfence.cli.table import ringfence;"
        "ringfence(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert not {"rich", "llvmlite", "numpy", "ringfence.machine.machine", "ringfence.isa"} & set(names)


@pytest.mark.parametrize("value,status", [(0x5555, 0), (42 << 16 | 0x3333, 42), (300 << 16 | 0x3333, 255)])
def test_run_ends_with_the_guests_status(kernel: Callable[..., str], value: int, status: int) -> None:
    """What the guest tells the test finisher is the exit status; more than 255 is 255."""
    found = ringfence("run", "--kernel", kernel(*leave(value)))
    assert (found.returncode, found.stdout, found.stderr) == (status, b"", b"")


def test_run_boots_the_embedded_guest_on_pipes() -> None:
    """Piped input is typed, output streams, and the end of input ends the shell."""
    found = ringfence("run", stdin=b"echo some words\n")
    assert found.returncode == 0
    assert b"some words\r\n" in found.stdout
    assert found.stdout.count(b"corral> ") == 2


def test_run_repeats_itself() -> None:
    """By the virtual clock two runs with the same piped input take the same steps and print the same."""
    first, second = (ringfence("run", "--json", "--harts", "2", stdin=b"ps\nuptime\n") for _ in range(2))
    facts = [json.loads(found.stderr) for found in (first, second)]
    for fact in facts:
        del fact["wall_seconds"]
    assert facts[0] == facts[1]
    assert first.stdout == second.stdout
    assert facts[0]["reason"] == "power-off"


DEAD = {
    "nowhere": ([asm("jalr", rd=0, rs1=0, imm=0)], "the guest is dead"),
    "fault in the handler": (
        [asm("auipc", rd=T0, imm=0), asm("addi", rd=T0, rs1=T0, imm=12), asm("csrrw", rd=0, rs1=T0, csr=0x105), 0],
        "the guest is dead",
    ),
    "fault behind the handler's start": (
        [
            *say("hello\n"),
            asm("auipc", rd=T0, imm=0),
            asm("addi", rd=T0, rs1=T0, imm=16),
            asm("csrrw", rd=0, rs1=T0, csr=0x105),
            0,
            asm("addi", rd=T0, rs1=0, imm=1),
            0,
        ],
        "the guest is dead",
    ),
    "halted": ([WFI, SPIN], "the guest has halted"),
    "halted with a word": ([*say("bye\n"), WFI, SPIN], "the guest has halted"),
    "Linux panics": ([*say("[    1.234567] " + LINUX_PANIC), SPIN], "the guest panicked"),
    "xv6 panics": ([*say("xv6\n\npanic: sched locks\n"), SPIN], "the guest panicked"),
    "firmware's word": (leave(132 << 16 | 0x3333), "the guest says that it failed"),
}


@pytest.mark.parametrize("name", DEAD)
def test_run_recognizes_a_dead_guest(kernel: Callable[..., str], name: str) -> None:
    """Status 132 with a sentence, the console's last lines and where the harts stand."""
    words, why = DEAD[name]
    found = ringfence("run", "--kernel", kernel(*words), "--harts", "2")
    text = found.stderr.decode()
    assert found.returncode == 132
    assert text.startswith(f"ringfence: {why}")
    assert "hart 0: pc 0x" in text and "hart 1: pc 0x" in text
    if found.stdout:
        assert "  " + found.stdout.decode().rstrip().splitlines()[-1] in text


def test_run_does_not_take_words_for_a_panic(kernel: Callable[..., str]) -> None:
    """A guest that prints the words and then goes on is alive."""
    found = ringfence("run", "--kernel", kernel(*say(LINUX_PANIC + "no, really\n"), SPIN), "--timeout", "0.5")
    assert found.returncode == 124


def test_run_ends_a_silent_boot(kernel: Callable[..., str]) -> None:
    """A guest that prints nothing ends with 132 after the time that --silence gives; with 0 it may go on."""
    path = kernel(SPIN)
    found = ringfence("run", "--kernel", path, "--silence", "0.02")
    assert found.returncode == 132
    assert "has printed nothing in 0.02 seconds" in found.stderr.decode()
    assert ringfence("run", "--kernel", path, "--silence", "0", "--timeout", "0.1").returncode == 124


def test_run_ends_silent_resets(kernel: Callable[..., str]) -> None:
    """A guest that resets the machine for ever takes hardly any steps: real time ends it."""
    found = ringfence("run", "--kernel", kernel(*leave(0x7777)), "--silence", "0.1")
    assert found.returncode == 132
    assert "has printed nothing" in found.stderr.decode()


def test_run_notices_a_guest_that_died_under_firmware() -> None:
    """OpenSBI with no kernel behind it hands the supervisor a fault at 0, and at 0 is its next one."""
    firmware = Path("/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_jump.elf")
    if not firmware.exists():
        pytest.skip("Debian's opensbi is not installed")
    found = ringfence("run", "--bios", str(firmware))
    assert found.returncode == 132
    assert b"OpenSBI" in found.stdout and b"the guest is dead" in found.stderr


@pytest.mark.parametrize("option", ["--timeout", "--wall-timeout"])
def test_run_ends_at_a_time_limit(kernel: Callable[..., str], option: str) -> None:
    """Status 124, by guest time and by real time, with where the hart stands."""
    found = ringfence("run", "--kernel", kernel(*say("hello\n"), SPIN), option, "0.3")
    assert (found.returncode, found.stdout) == (124, b"hello\n")
    assert "time limit of 0.3" in found.stderr.decode() and "hart 0: pc 0x" in found.stderr.decode()


def test_run_waits_for_input_that_comes_late() -> None:
    """With the virtual clock an idle guest's time stands still until input comes; a guest time limit does not end
    it."""
    with subprocess.Popen(
        [*COMMAND, "run", "--timeout", "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        time.sleep(1)
        process.stdin.write(b"poweroff 9\n")
        process.stdin.flush()
        assert process.wait(30) == 9


def test_run_ends_where_input_has_ended(kernel: Callable[..., str]) -> None:
    """A guest that listens on its UART and waits, with no input to come, ends with 124 and says why."""
    listen = [*say("? "), asm("addi", rd=T0, rs1=0, imm=1), asm("sb", rs1=T1, rs2=T0, imm=1), WFI, SPIN]
    found = ringfence("run", "--kernel", kernel(*listen))
    assert (found.returncode, found.stdout) == (124, b"? ")
    assert "waits for input, and there is no more" in found.stderr.decode()


def test_run_writes_json() -> None:
    """One object on standard error: status, reason, steps, times and harts."""
    found = ringfence("run", "--json", stdin=b"panic\n")
    facts = json.loads(found.stderr)
    assert facts["status"] == found.returncode == 132
    assert facts["console_last"][-1] == "corral: panic: as you wish"
    assert facts["harts"][0]["mode"] == "S" and facts["steps"] > 1000


def test_run_dumps_the_device_tree(tmp_path: Path) -> None:
    """The tree that the guest would get, to a file or to standard output, and nothing is run."""
    append = os.fsdecode(b"hello \xff there")  # as it was typed, where it is no UTF-8
    to_file = ringfence("run", "--dump-dtb", str(tmp_path / "x.dtb"), "--append", append)
    to_output = ringfence("run", "--dump-dtb", "-", "--append", append)
    assert (to_file.returncode, to_output.returncode) == (0, 0)
    assert (tmp_path / "x.dtb").read_bytes() == to_output.stdout
    assert to_output.stdout.startswith(b"\xd0\x0d\xfe\xed") and b"hello \xff there\0" in to_output.stdout


def test_run_says_that_the_host_has_no_memory() -> None:
    """Which is no wrong use: status 125."""
    found = subprocess.run(
        [*COMMAND, "run", "-m", "2G", "--depth", "0"],
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30)),
    )
    assert found.returncode == 125 and sentence(found).startswith("the host does not give 2 GiB of memory: ")


@pytest.mark.parametrize(
    "name,only_read", [("fs.img", 0), ("fs.img:ro", 1), ("odd:ro", 0), ("odd:ro:ro", 1), ("fs.img:snapshot", 0)]
)
def test_run_tells_the_guest_that_a_disk_is_only_read(
    kernel: Callable[..., str], tmp_path: Path, name: str, only_read: int
) -> None:
    """VIRTIO_BLK_F_RO is offered for FILE:ro alone, which is a file itself where there is one of that name."""
    for file in ("fs.img", "odd:ro"):
        (tmp_path / file).write_bytes(bytes(512))
    status = [
        asm("lui", rd=T1, imm=0x1000_1000),
        asm("lw", rd=T0, rs1=T1, imm=0x10),
        asm("andi", rd=T0, rs1=T0, imm=1 << 5),
        asm("slli", rd=T0, rs1=T0, shamt=11),
        asm("lui", rd=T1, imm=0x3000),
        asm("addi", rd=T1, rs1=T1, imm=0x333),
        asm("add", rd=T0, rs1=T0, rs2=T1),
        asm("lui", rd=T1, imm=FINISHER),
        asm("sw", rs1=T1, rs2=T0, imm=0),
    ]
    found = ringfence("run", "--kernel", kernel(*status, SPIN), "--disk", str(tmp_path / name))
    assert found.returncode == only_read, found.stderr


@pytest.mark.parametrize(
    "names,status", [("ww", 2), ("wr", 2), ("rw", 2), ("rr", 0), ("ws", 2), ("sw", 2), ("rs", 0), ("ss", 0)]
)
def test_run_shares_a_disk_that_is_only_read(
    kernel: Callable[..., str], tmp_path: Path, names: str, status: int
) -> None:
    """With itself, a snapshot too; otherwise who gives it twice is told so."""
    (tmp_path / "fs.img").write_bytes(bytes(512))
    (tmp_path / "link").symlink_to("fs.img")
    modes = {"w": "", "r": ":ro", "s": ":snapshot"}
    files = [f"{tmp_path}/{file}{modes[how]}" for file, how in zip(("fs.img", "link"), names, strict=True)]
    found = ringfence("run", "--kernel", kernel(*leave(0x5555)), "--disk", files[0], "--disk", files[1])
    assert found.returncode == status
    if status:
        assert sentence(found) == f"disk image {tmp_path}/link is given twice, which needs :ro or :snapshot both times"


@pytest.mark.parametrize("mode", [":snapshot:ro", ":ro:snapshot"])
def test_run_takes_one_mode_of_a_disk(tmp_path: Path, mode: str) -> None:
    """Wrong use, in one sentence, unless there is a file of that name."""
    (tmp_path / "fs.img").write_bytes(bytes(512))
    found = ringfence("run", "-d", f"{tmp_path}/fs.img{mode}")
    assert found.returncode == 2
    assert "is given with" in sentence(found)
    (tmp_path / f"fs.img{mode.rpartition(':')[0]}").write_bytes(bytes(512))
    assert ringfence("run", "-d", f"{tmp_path}/fs.img{mode}", "--dump-dtb", "-").returncode == 0


def test_run_traces_to_standard_error() -> None:
    """A disassembled line an instruction."""
    found = ringfence("run", "--trace", "insn", "--timeout", "0.000001")
    lines = found.stderr.decode().splitlines()
    assert found.returncode == 124
    assert lines[0].startswith("insn 0 0 S 0000000080200000 ") and "auipc" in lines[0]


@pytest.mark.parametrize("number,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_run_ends_on_a_signal(kernel: Callable[..., str], number: int, status: int) -> None:
    """Even while the guest never leaves native code; nothing but the guest's output is printed."""
    path = kernel(*say("up\n"), SPIN)
    with subprocess.Popen(
        [*COMMAND, "run", "--kernel", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(3) == b"up\n"
        process.send_signal(number)
        assert process.wait(10) == status
        assert process.stderr.read() == b""


def test_cli_ends_on_ctrl_c_at_any_moment() -> None:
    """Whenever the signal comes, from the first import on: no traceback, and the status is 130 or the signal's own."""
    ours = os.fsencode(os.path.dirname(package.__file__) + os.sep)
    met = 0
    for delay in (0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.6):
        with subprocess.Popen(
            [*COMMAND, "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            status = process.wait(10)
            assert process.stderr is not None
            errors = process.stderr.read()
        if b"Traceback" in errors and ours not in errors:
            continue  # on a busy host the interpreter itself is still starting, and finding us
        met += 1
        assert status in (130, -signal.SIGINT), (delay, errors.decode())
        assert b"Traceback" not in errors and b"Exception ignored" not in errors, (delay, errors.decode())
    assert met


def test_run_ends_quietly_where_nobody_reads() -> None:
    """A closed pipe ends the machine with 141 and not a word."""
    with subprocess.Popen(
        [*COMMAND, "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        process.stdin.write(b"help\n" * 10)
        process.stdin.flush()
        assert process.wait(20) == 141
        assert process.stderr.read() == b""


def test_run_does_without_standard_streams() -> None:
    """Closed standard input is the end of input; closed output goes nowhere."""
    for redirection in ("<&-", "<&- >&-", "<&- >&- 2>&-"):
        done = subprocess.run(f"{' '.join(COMMAND)} run {redirection}", shell=True, capture_output=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, b""), redirection


def test_run_waits_for_a_reader_that_is_slow(kernel: Callable[..., str]) -> None:
    """Output is a pipe that whoever has its other end set not to block."""
    path = kernel(*say("x" * 200 + "\n") * 400, *leave(0x5555))
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    with subprocess.Popen([*COMMAND, "run", "--kernel", path], stdin=subprocess.DEVNULL, stdout=write_end) as process:
        os.close(write_end)
        time.sleep(1.5)  # it is full
        os.set_blocking(read_end, True)
        with open(read_end, "rb") as stream:
            assert len(stream.read()) == 201 * 400
        assert process.wait(30) == 0


def test_run_says_that_output_cannot_be_written() -> None:
    """A full device is a sentence and status 125."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "run"], stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=30
        )
    assert done.returncode == 125
    assert b"console's output cannot be written" in done.stderr and b"Traceback" not in done.stderr


def test_engine_names_the_hosts_that_it_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another platform one sentence says which are supported."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(MachineError, match=r"Linux on x86-64.*reference engine runs anywhere"):
        board.virt(board.MEMORY_LEAST, engine="threaded")


class Person:
    """`ringfence run`, or another command, at a terminal of its own."""

    def __init__(self, *arguments: str, run: bool = True) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(COMMAND[0], [*COMMAND, *(["run"] if run else []), *arguments])
        self.seen = b""
        self.before = termios.tcgetattr(self.fd)

    def until(self, text: bytes, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 4096)

    def type(self, keys: bytes) -> None:
        self.seen = b""
        os.write(self.fd, keys)

    def raw(self) -> bool:
        return not termios.tcgetattr(self.fd)[3] & termios.ICANON

    def end(self, seconds: float = 10) -> int:
        """The exit status; the terminal is as it was."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.fd, 4096)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                assert termios.tcgetattr(self.fd) == self.before
                assert b"Traceback" not in self.seen
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(self.seen)

    def close(self, seconds: float = 10) -> int:
        """The exit status, where the terminal goes away."""
        os.close(self.fd)
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("it still runs")


@contextmanager
def no_hangup() -> Iterator[None]:
    """A person who comes meanwhile gets no signal when their terminal goes away."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_terminal_is_raw_and_ctrl_a_x_ends() -> None:
    """Keys reach the guest one by one, Ctrl-a h helps, Ctrl-a Ctrl-a is a key, Ctrl-a x ends with 0 and the terminal
    as it was."""
    person = Person()
    person.until(b"corral> ")
    assert person.raw()
    person.type(b"ps")
    person.until(b"ps")
    person.type(b"\r")
    person.until(b"shell")
    person.type(b"\x01h")
    person.until(b"ends the machine")
    person.type(b"\x03")  # the guest's, not ours
    person.until(b"corral> ")
    person.type(b"\x01\x01\x01x")
    assert person.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_terminal_is_restored_after_a_signal(number: int) -> None:
    """A signal ends the machine, with the terminal as it was."""
    person = Person()
    person.until(b"corral> ")
    os.kill(person.pid, number)
    assert person.end() == 128 + number


def test_terminal_is_restored_while_suspended() -> None:
    """SIGTSTP leaves the terminal as it was; SIGCONT makes it raw again, and the guest goes on."""
    person = Person()
    person.until(b"corral> ")
    os.kill(person.pid, signal.SIGTSTP)
    # An orphaned group of processes is not stopped by it (POSIX, section 11.1.4), so it may go on at once.
    end = time.monotonic() + 5
    while person.raw() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(person.pid, signal.SIGCONT)
    while not person.raw():
        assert time.monotonic() < end + 5
        time.sleep(0.01)
    person.type(b"poweroff 5\r")
    assert person.end() == 5


def test_terminal_that_closes_ends_the_machine() -> None:
    """When the terminal goes away so do we."""
    person = Person()
    person.until(b"corral> ")
    assert person.close() in (129, -signal.SIGHUP)


def test_terminal_that_closes_ends_a_machine_that_waits_for_gdb() -> None:
    """Without a signal too: nothing of the guest's would ever meet the end of output."""
    with no_hangup():
        person = Person("--gdb", "0", "-S")
    person.until(b"symbol-file")
    while not person.raw():
        time.sleep(0.01)
    assert person.close() == 129


def test_terminal_shows_a_guests_panic_below_its_output() -> None:
    """The report begins on a line of its own."""
    person = Person()
    person.until(b"corral> ")
    person.type(b"panic\r")
    person.until(b"ringfence: the guest says that it failed")
    person.until(b"hart 0: pc")
    assert person.end() == 132


def test_run_under_trap_is_a_run_on_the_bare_machine(kernel: Callable[..., str]) -> None:
    """The technique shows in nothing that the guest does."""
    path = kernel(*say("user mode\n"), *leave(7 << 16 | 0x3333))
    found = [
        ringfence("run", "--kernel", path, "--json", *more) for more in (["--depth", "0"], ["--technique", "trap"])
    ]
    assert {run.returncode for run in found} == {7} and {run.stdout for run in found} == {b"user mode\n"}
    accounts = [{**json.loads(run.stderr), "wall_seconds": 0} for run in found]
    assert accounts[0] == accounts[1]


def test_run_takes_a_technique_for_each_monitor(kernel: Callable[..., str]) -> None:
    """The outermost first; one name is for all of them."""
    path = kernel(*leave(0x5555))
    for names, told in (("virtualizer,trap", ["virtualizer", "trap"]), ("trap", ["trap", "trap"])):
        found = ringfence("run", "--kernel", path, "--depth", "2", "--technique", names, "--stats")
        assert found.returncode == 0
        assert re.findall(r"^[\w/]+ \((\w+)\): ", found.stderr.decode(), re.M) == told


def test_run_on_monitors_is_a_run_on_the_bare_machine(kernel: Callable[..., str]) -> None:
    """Output, status and the machine's own account are the same at any depth."""
    path = kernel(*say("deep\n"), *leave(7 << 16 | 0x3333))
    found = [ringfence("run", "--kernel", path, "--json", "--depth", str(depth)) for depth in (0, 1, 5)]
    assert {run.returncode for run in found} == {7} and {run.stdout for run in found} == {b"deep\n"}
    accounts = [{**json.loads(run.stderr), "wall_seconds": 0} for run in found]
    assert accounts[0] == accounts[1] == accounts[2]


@pytest.mark.parametrize("option", ["--timeout", "--wall-timeout", "--silence"])
@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300"])
def test_run_refuses_a_time_that_no_clock_counts(option: str, seconds: str) -> None:
    """A usage error, in one sentence."""
    found = ringfence("run", option, seconds)
    assert found.returncode == 2 and "is not a time" in sentence(found)
