"""What a process asks for, as a table of who does what: OSTEP's, appendix B, from a run of the embedded guest.

syscall    `hello` asks who it is
read       `cat` waits for a line from the console, which comes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ringfence.guest.loader import load
from ringfence.guest.program import CORRAL
from ringfence.guest.symbols import Symbols
from ringfence.isa.spec import disassemble
from ringfence.isa.trap import Cause, Irq, S, U
from ringfence.machine.board import MiB, Virt
from ringfence.machine.device.uart16550 import RBR, Uart16550
from ringfence.machine.exit import Idle
from ringfence.monitor.flow import Event, watch
from ringfence.monitor.monitor import nested

Technique = Literal["bare", "virtualizer", "trap"]
PROCESS, SYSTEM, MONITOR, HARDWARE = "Process", "Operating system", "Virtual machine monitor", "Hardware"
PROMPT = "corral> "
MEMORY = 16 * MiB


@dataclass(frozen=True)
class Flow:
    """The first system call of the program that a command runs. `typed`: once it waits for input."""

    subject: str
    command: str
    typed: str = ""


FLOWS = {
    "syscall": Flow("a system call: getpid by hello", "run hello"),
    "read": Flow("a read of the console: by cat, where a line is typed when all wait", "run cat", "\n"),
}


@dataclass(frozen=True)
class Step:
    """`code`: the instructions with which it begins and ends, and where they lead. `at`: the step of the machine."""

    who: str
    what: str
    code: tuple[str, ...]
    at: int


@dataclass(frozen=True)
class Table:
    """`length`: the machine's steps from the call to the instruction behind it. `entered`: how often the monitor was
    in between.
    """

    columns: tuple[str, ...]
    steps: tuple[Step, ...]
    length: int
    entered: int


def table(flow: Flow, technique: Technique) -> Table:
    """From a run in the reference engine, on the bare machine or on one monitor."""
    if technique == "bare":
        machine = nested(0, MEMORY, engine="reference")
    else:
        machine = nested(1, MEMORY, engine="reference", technique=technique)
    events = _record(machine, flow)
    steps = _steps(events, technique, Symbols(CORRAL))
    used = {step.who for step in steps} | ({MONITOR} if technique != "bare" else set())
    columns = tuple(who for who in (PROCESS, SYSTEM, MONITOR, HARDWARE) if who in used)
    entered = sum(_enters(event, technique) for event in events)
    return Table(columns, tuple(steps), events[-1].steps - events[0].steps, entered)


class _Recorder:
    """Keeps the events from a process's system call to its next instruction, and stops the machine there."""

    def __init__(self, machine: Virt) -> None:
        self.machine = machine
        self.events: list[Event] = []
        self.begun = self.over = False

    def __call__(self, event: Event) -> None:
        if self.over:
            return
        events = self.events
        if not self.begun:
            self.begun = event.cause is Cause.ECALL_U and event.after[0] == S
            del events[:-1]  # before a call that the monitor sees the hart has left for it
            if events and events[0].pc != event.pc:
                events.clear()
        elif event.priv == U and event.cause is None:
            self.over = True
            self.machine.stop()
        events.append(event)


def _record(machine: Virt, flow: Flow) -> list[Event]:
    load(machine, CORRAL)
    machine.console.expect(PROMPT)
    recorder = _Recorder(machine)
    watch(machine, recorder)
    machine.console.send(flow.command + "\n")
    if isinstance(machine.run(), Idle):
        machine.console.send(flow.typed)
        machine.run()
    assert recorder.over, machine.console
    return recorder.events


def _left(event: Event) -> bool:
    """Direct execution has ended there, for the monitor."""
    return event.cause is not None and event.after == (event.priv, event.pc)


def _waits(event: Event) -> bool:
    return event.cause is None and disassemble(event.bits) == "wfi"


def _enters(event: Event, technique: Technique) -> bool:
    """The monitor is entered for it."""
    if technique == "trap":
        return _left(event) or isinstance(event.cause, Irq)
    return technique == "virtualizer" and (event.transfer is not None or _waits(event))


def _steps(events: list[Event], technique: Technique, symbols: Symbols) -> list[Step]:
    """The process's first and last, what `_turn` finds between them, and all else as the operating system's."""
    first, *between, last = events
    typed = next((e for e in events if e.transfer and e.transfer[:3] == (Uart16550.__name__, RBR, False)), None)
    steps = [Step(PROCESS, "System call: trap to the OS", (_code(first),), first.steps)]
    before, since = first, []
    for event in between:
        turn = _turn(event, technique, event is typed)
        if turn is None:
            since.append(event)
            continue
        steps += [*_system(before, since, symbols), Step(*turn, _codes(event), event.steps)]
        before, since = event, []
    resumed = Step(PROCESS, "Resumes behind the trap", (_code(last),), last.steps)
    return [*steps, *_system(before, since, symbols), resumed]


def _turn(event: Event, technique: Technique, typed: bool) -> tuple[str, str] | None:
    """Who does something for the guest's operating system or process there, and what. Other sensitive instructions of
    the operating system count as its own.
    """
    if isinstance(event.cause, Irq):
        if event.by_monitor:
            return MONITOR, f"Virtual interrupt {event.cause.name}: call the OS's trap handler, at reduced privilege"
        return HARDWARE, f"Interrupt {event.cause.name}: trap to the OS"
    if _waits(event):
        if technique == "bare":
            return HARDWARE, "The hart waits for an interrupt"
        return MONITOR, "OS waits: the hart is for others until an interrupt"
    if typed and event.transfer is not None:
        device = f"{event.transfer.device}'s register {event.transfer.offset:#x}"
        if technique == "bare":
            return HARDWARE, f"{device} is read: {event.transfer.value:#x}"
        return MONITOR, f"OS reached a device: the virtual {device} is read: {event.transfer.value:#x}"
    if event.by_monitor and event.cause is Cause.ECALL_U:
        return MONITOR, "Process trapped: call the OS's trap handler, at reduced privilege"
    if event.by_monitor and event.priv == S and event.after[0] == U:
        return MONITOR, "OS tried to return from trap: do the real return"
    return None


def _system(before: Event, events: list[Event], symbols: Symbols) -> list[Step]:
    """What the operating system does, behind an event that led to it."""
    done = [event for event in events if event.cause is None]
    if not done:
        return []
    begun = (
        "OS interrupt handler" if isinstance(before.cause, Irq) else "OS trap handler" if before.cause else "OS goes on"
    )
    names = dict.fromkeys(name for event in done if (name := symbols.function(event.pc)))
    applied = sum(event.by_monitor for event in done)
    devices = sum(event.transfer is not None for event in done)
    counts = [f"{len(done)} instruction{'s' if len(done) > 1 else ''}"]
    counts += [f"{devices} of them at devices"] if devices else []
    counts += [f"{applied} of them by the monitor, behind a trap"] if applied else []
    code = dict.fromkeys(_code(event) for event in (done[0], events[-1]))
    return [Step(SYSTEM, f"{begun}: {', '.join(names)} ({'; '.join(counts)})", tuple(code), done[0].steps)]


def _code(event: Event) -> str:
    return f"{event.pc:#x} {disassemble(event.bits, event.pc)}" if event.bits else f"{event.pc:#x}"


def _codes(event: Event) -> tuple[str, ...]:
    """With where it leads, if that is a handler or another mode."""
    priv, pc = event.after
    mode = f"{'virtual ' if event.by_monitor else ''}{'US?M'[priv]}-mode"
    led = (f"-> {mode}, {pc:#x}",) if event.cause is not None or priv != event.priv else ()
    return (_code(event), *led)
