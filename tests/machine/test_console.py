"""The console in a program's hands, and the machine as it is used from Python."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ringfence
from ringfence import (
    CORRAL,
    Budget,
    Console,
    ConsoleError,
    Idle,
    MachineError,
    MiB,
    RingfenceError,
    Stopped,
    Virt,
    load,
    virt,
)
from ringfence.machine.board import RAM


def corral(engine: str = "threaded", harts: int = 1, console: Console | None = None) -> Virt:
    board = virt(16 * MiB, harts, engine=engine, console=console)  # type: ignore[arg-type]
    load(board, CORRAL)
    return board


def test_expect_stops_at_the_matching_byte() -> None:
    """The machine stops behind the instruction that sends the last byte of the match: the text ends with it."""
    board = corral()
    match = board.console.expect(r"(\d+) hart")
    assert match[1] == "1"
    assert board.console.text.endswith("\n1 hart")
    assert board.console.read() == ""


def test_expect_is_the_same_in_every_engine() -> None:
    """The same steps, and the same state of the machine, whatever runs it."""
    states = []
    for engine in ("threaded", "reference"):
        board = corral(engine)
        board.console.send("uptime\n")
        board.console.expect(r"up 0\.\d+ s")
        states.append(board.digest())
    assert states[0] == states[1]


def test_expect_changes_nothing_for_the_guest() -> None:
    """A run that is stopped at many matches ends in the state of one that was not."""
    plain, stopped = corral(), corral()
    for board in (plain, stopped):
        board.console.send("help\nuptime\n")
    while True:
        try:
            stopped.console.expect("[a-z]")
        except ConsoleError:
            break
    assert isinstance(plain.run(), Idle)
    assert plain.digest() == stopped.digest()
    assert plain.console.text == stopped.console.text


def test_expect_finds_what_is_there_already() -> None:
    """Without a step, in the order in which it was printed; what is behind a match stays for the next."""
    board = corral()
    board.run()
    steps = board.steps
    assert board.console.expect("Corral")[0] == "Corral"
    assert board.console.expect("corral> $")[0] == "corral> "
    assert board.steps == steps
    with pytest.raises(ConsoleError):
        board.console.expect("Corral")


def test_send_is_a_conversation() -> None:
    """Every command is answered, with groups for what is to be known."""
    board = corral()
    console = board.console
    for number in (3, 4):
        console.expect("corral> ")
        console.send(f"run primes {number}\n".encode())
        assert console.expect(r"run primes (\d)\r?\n")[1] == str(number)
    console.expect("corral> ")


def test_expect_times_out_in_guest_time() -> None:
    """At the deadline by the machine's clock; the error shows the last lines. In every engine at the same step."""
    ends = []
    for engine in ("threaded", "reference"):
        board = corral(engine)
        board.console.send("run count\n")
        with pytest.raises(ConsoleError, match=r"'xyzzy' within 8e-05 seconds of guest time(.|\n)*Corral") as caught:
            board.console.expect("xyzzy", timeout=80e-6)
        assert isinstance(caught.value, RingfenceError)
        assert 80_000 <= board.clock.now() < 83_000
        ends.append(board.digest())
    assert ends[0] == ends[1]


def test_expect_says_that_the_guest_waits() -> None:
    """Where nothing is to come, waiting longer is vain."""
    with pytest.raises(ConsoleError, match="before it waited for input"):
        corral().console.expect("xyzzy")


def test_expect_says_that_the_guest_is_off() -> None:
    """With the status."""
    board = corral()
    board.console.send("poweroff\n")
    with pytest.raises(ConsoleError, match="switched off with status 0"):
        board.console.expect("xyzzy")


def test_expect_says_that_it_met_a_breakpoint() -> None:
    """With the address."""
    board = corral()
    board.breakpoints.add(0x8020_0000)
    with pytest.raises(ConsoleError, match="stopped at 0x80200000; it has printed nothing"):
        board.console.expect("xyzzy")


@pytest.mark.parametrize("engine", ["threaded", "reference"])
def test_expect_times_out_in_real_time(engine: str) -> None:
    """A guest that gets on by traps alone takes ages for a second of its own; runs after that are as ever."""
    board = virt(4 * MiB, engine=engine)  # type: ignore[arg-type]
    board.harts[0].pc = RAM
    with pytest.raises(ConsoleError, match=r"within 0\.1 seconds of real time; it has printed nothing"):
        board.console.expect("x", timeout=1e-3, wall_timeout=0.1)
    assert isinstance(board.run(10), Budget)
    for seconds in (float("nan"), -1):
        with pytest.raises(MachineError, match="0 to 1e"):
            board.console.expect("x", seconds)


@pytest.mark.parametrize(
    "run", [Virt.run, lambda board: board.run(1), lambda board: board.console.expect("x", 1)], ids=["", "1", "expect"]
)
def test_machine_without_a_program_does_not_run(run: Callable[[Virt], object]) -> None:
    """One that nothing was loaded into says so at once."""
    with pytest.raises(MachineError, match=r"nothing to run: load\(machine, kernel\)"):
        run(virt(4 * MiB, 2))


def test_console_hands_on_and_keeps_the_last() -> None:
    """The machine's own console gets every byte; what is kept is bounded."""

    class Out:
        def __init__(self) -> None:
            self.count = 0

        def write(self, data: bytes) -> None:
            self.count += len(data)

    out = Out()
    console = Console(out)
    for _ in range(400):
        console.write(b"0123456789abcdef\n" * 1000)
    assert out.count == 400 * 17000
    assert 1 << 20 <= len(console.text) <= 1 << 21
    assert len(console.read()) <= 1 << 21
    assert console.lines(2) == ["0123456789abcdef"] * 2


def test_console_shows_any_bytes() -> None:
    """Half a character, control sequences and noise are no error, in the text or in the representation."""
    console = Console()
    console.write(bytes(range(256)) * 3 + b"caf\xc3")
    assert console.read().endswith("caf")
    console.write(b"\xa9!")
    assert console.read() == "\xe9!"
    repr(console)


def test_machine_is_looked_into_by_name_and_slice() -> None:
    """Registers, CSRs, memory and code can be read and set."""
    board = corral()
    board.console.expect("corral> ")
    hart = board.harts[0]
    assert hart["sp"] == hart["x2"] == hart.x[2]
    assert board.csr("sstatus") & 1 << 33
    assert board.csr("instret") == board.steps
    code = CORRAL.read_bytes()[0x1000:0x1010]
    assert board.memory[0x8020_0000:0x8020_0010] == code
    assert board.virtual()[0x8020_0000:0x8020_0010] == code
    assert board.memory[0x8020_0000] == code[0]
    board.memory[0x8100_0000 - 4 : 0x8100_0000] = b"\x13\0\0\0"
    assert repr(board.disassemble(0x8100_0000 - 4, 5)).endswith("addi zero, zero, 0")
    assert len(board.disassemble()) == 8
    assert repr(board).startswith("<virt: 16 MiB, 1 hart, ")
    assert isinstance(board.run(1000), Budget | Idle)


@pytest.mark.parametrize("where", [slice(0x1000_0000, 0x1000_0001), slice(0, 4), slice(0x80FF_FFFF, 0x8100_0001)])
def test_machine_memory_refuses_what_is_none(where: slice) -> None:
    """Devices, holes and what is behind the end: an error that says so, and nothing is written."""
    board = corral()
    with pytest.raises(MachineError, match="there is no memory at"):
        board.memory[where]
    with pytest.raises(MachineError, match="there is no RAM"):
        board.memory[where] = bytes(where.stop - where.start)
    with pytest.raises(MachineError, match="first address"):
        board.memory[:10]
    with pytest.raises(MachineError, match="do not fit"):
        board.memory[0x8000_0000:0x8000_0002] = b"x"


@pytest.mark.parametrize("name", ["nosuch", "x", "x32", ""])
def test_machine_names_the_register_that_it_has_not(name: str) -> None:
    """Read or set, by the hart or as a CSR."""
    board = corral()
    hart = board.harts[0]
    for use in (lambda: hart[name], lambda: hart.__setitem__(name, 1), lambda: board.csr(name)):
        with pytest.raises(MachineError, match=f"called {name!r}$"):
            use()


README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize(
    "text", [README.partition("```python\n")[2].partition("```")[0], inspect.getdoc(ringfence)], ids=["README", "help"]
)
def test_ringfence_does_what_its_example_says(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of so many steps takes just so many."""
    monkeypatch.chdir(Path(__file__).parents[2])
    names: dict[str, object] = {}
    runs = 0
    for line in text.splitlines():
        if line.strip().startswith("m.run("):
            runs += 1
            assert isinstance(eval(line.strip(), names), Budget)
        elif re.match(r" *(from|m = |load\(|m\.)", line):
            exec(line.strip(), names)
    assert runs == 1


def test_pause_returns_behind_the_instruction() -> None:
    """What is called in a running machine can make it stand, once."""
    board = corral()
    board.feed(board.pause)
    assert isinstance(board.run(), Stopped)
    assert board.steps < 5000
    assert isinstance(board.run(), Idle)


def test_ringfence_names_what_it_promises() -> None:
    """Every name of `__all__` is there."""
    for name in ringfence.__all__:
        assert getattr(ringfence, name) is not None
    assert set(ringfence.__all__) <= set(dir(ringfence))
    with pytest.raises(AttributeError):
        ringfence.nothing  # noqa: B018


def test_import_ringfence_loads_nothing() -> None:
    """The machine is imported when it is used."""
    code = (
        "import sys, ringfence; sys.exit(any(m.startswith(('ringfence.', 'llvmlite', 'numpy')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
