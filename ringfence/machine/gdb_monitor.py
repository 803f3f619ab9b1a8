"""gdb's `monitor` commands: what its own have no words for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ringfence.errors import MachineError
from ringfence.machine.look import Look, Memory, VirtualMemory, listing

if TYPE_CHECKING:
    from ringfence.machine.hart import Hart
    from ringfence.machine.machine import Computer

_ALL = (1 << 64) - 1
_BYTES, _LINES = 1024, 64
"""The most that one command shows."""

Command = Callable[["Hart", "Computer", list[str]], list[str]]


def answer(hart: Hart, computer: Computer, line: str) -> str:
    """What a command says of the machine, or of the hart that is looked at."""
    name, *words = line.split() or ["help"]
    if name not in COMMANDS:
        return f"no command is called {name!r}: try help\n"
    usage, command = COMMANDS[name]
    try:
        lines = command(hart, computer, words)
    except MachineError as error:
        lines = [str(error)]
    except (ValueError, IndexError):
        lines = [f"usage: monitor {usage}"]
    return "".join(f"{line}\n" for line in lines)


def describe(hart: Hart) -> str:
    """What a hart does, in a few words."""
    state = "stopped" if hart.stopped else "waiting" if hart.waiting else "running"
    return f"hart {hart.number}, {'US?M'[hart.priv]}-mode, {state}"


def _count(words: list[str], default: int, most: int) -> int:
    count = min(int(words[1], 0), most) if len(words) > 1 else default
    if count < 1:
        raise ValueError
    return count


def _named(hart: Hart, computer: Computer, words: list[str]) -> Hart:
    """The hart that the words name, or the one that is looked at: gdb need not have told yet of the thread that its
    user chose last.
    """
    number = int(words[0], 0) if words else hart.number
    if not 0 <= number < len(computer.harts):
        raise MachineError(f"there is no hart {number}: the last is {len(computer.harts) - 1}")
    return computer.harts[number]


def _help(hart: Hart, computer: Computer, words: list[str]) -> list[str]:
    return [f"monitor {usage}" for usage, _ in COMMANDS.values()]


def _machine(hart: Hart, computer: Computer, words: list[str]) -> list[str]:
    clock = computer.clock
    harts = [f"{describe(each)}, pc {each.pc:#x}" for each in computer.harts]
    return [*harts, f"{clock.steps} steps, {clock.now() / 1e9:.9f} s"]


def _physical(hart: Hart, computer: Computer, words: list[str]) -> list[str]:
    address = int(words[0], 0)
    data = Memory(computer).read(address, _count(words, 16, _BYTES))
    rows = [f"{address + n:#x}: {data[n : n + 16].hex(' ')}" for n in range(0, len(data), 16)]
    return rows or [f"there is no memory at {address:#x}"]


def _translate(hart: Hart, computer: Computer, words: list[str]) -> list[str]:
    va = int(words[0], 0) & _ALL
    hart = _named(hart, computer, words[1:])
    pa = Look(computer, hart).translate(va)
    return [f"{describe(hart)}: {va:#x} is {'not mapped' if pa is None else f'at {pa:#x}'}"]


def _code(hart: Hart, computer: Computer, words: list[str]) -> list[str]:
    count = _count(words, 8, _LINES)
    hart = _named(hart, computer, words[2:])
    pc = int(words[0], 0) & _ALL if words else hart.pc
    lines = listing(VirtualMemory(computer, hart), pc, count)
    return [f"{describe(hart)}:", *lines] if lines else [f"{describe(hart)}: there is no code at {pc:#x}"]


def _reset(hart: Hart, computer: Computer, words: list[str]) -> list[str]:
    computer.reset()
    return ["the machine begins again when it goes on"]


COMMANDS: dict[str, tuple[str, Command]] = {
    "help": ("help", _help),
    "machine": ("machine: where the harts stand, and the time", _machine),
    "phys": ("phys ADDRESS [BYTES]: physical memory", _physical),
    "translate": ("translate ADDRESS [HART]: the physical address of a virtual one", _translate),
    "code": ("code [ADDRESS [COUNT [HART]]]: instructions", _code),
    "reset": ("reset: as the reset button", _reset),
}
