"""What a process asks for, as a table of who does what: OSTEP's, appendix B, from a run of the embedded guest.

syscall    `hello` asks who it is
read       `cat` waits for a line from the console, which comes
tlb-miss   a load of `hello`'s finds no entry in the TLB, on harts that do not walk
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ringfence.guest.loader import load
from ringfence.guest.program import CORRAL
from ringfence.guest.symbols import Symbols
from ringfence.isa.spec import disassemble
from ringfence.isa.trap import Cause, Irq, S, U
from ringfence.machine.board import MiB, Tlb, Virt
from ringfence.machine.device.uart16550 import RBR, Uart16550
from ringfence.machine.exit import Idle
from ringfence.machine.memory import FRAME
from ringfence.monitor.flow import Event, watch
from ringfence.monitor.monitor import nested
from ringfence.monitor.vm import VirtualMachine

Technique = Literal["bare", "virtualizer", "trap"]
PROCESS, SYSTEM, MONITOR, HARDWARE = "Process", "Operating system", "Virtual machine monitor", "Hardware"
PROMPT = "corral> "
MEMORY = 16 * MiB
LOADS = {"lb", "lh", "lw", "ld", "lbu", "lhu", "lwu"}
HANDLERS = {Cause.TLB_REFILL: "OS TLB handler"}


@dataclass(frozen=True)
class Flow:
    """The first trap for `cause` of the program that a command runs. `typed`: once it waits for input."""

    subject: str
    command: str
    typed: str = ""
    cause: Cause = Cause.ECALL_U
    begins: str = "System call: trap to the OS"
    ends: str = "Resumes behind the trap"
    span: str = "from the call to the instruction behind it"


FLOWS = {
    "syscall": Flow("a system call: getpid by hello", "run hello"),
    "read": Flow("a read of the console: by cat, where a line is typed when all wait", "run cat", "\n"),
    "tlb-miss": Flow(
        "a TLB miss: a load by hello, on harts whose TLB software fills",
        "run hello",
        cause=Cause.TLB_REFILL,
        begins="Load: TLB miss, trap to the OS",
        ends="Resumes at the load: it is tried again, TLB hit",
        span="from the miss to the load that hits",
    ),
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
    """`length`: the machine's steps over the flow's span. `entered`: how often the monitor was in between."""

    columns: tuple[str, ...]
    steps: tuple[Step, ...]
    length: int
    entered: int


def table(flow: Flow, technique: Technique) -> Table:
    """From a run in the reference engine, on the bare machine or on one monitor."""
    tlb: Tlb = "software" if flow.cause is Cause.TLB_REFILL else "hardware"
    if technique == "bare":
        machine = nested(0, MEMORY, engine="reference", tlb=tlb)
    else:
        machine = nested(1, MEMORY, engine="reference", technique=technique, tlb=tlb)
    events = _record(machine, flow)
    steps = _steps(events, flow, technique, machine)
    used = {step.who for step in steps} | ({MONITOR} if technique != "bare" else set())
    columns = tuple(who for who in (PROCESS, SYSTEM, MONITOR, HARDWARE) if who in used)
    entered = sum(_enters(event, technique) for event in events)
    return Table(columns, tuple(steps), events[-1].steps - events[0].steps, entered)


class _Recorder:
    """Keeps the events from a process's trap to its next instruction, and stops the machine there."""

    def __init__(self, machine: Virt, flow: Flow) -> None:
        self.machine, self.flow = machine, flow
        self.events: list[Event] = []
        self.begun = self.over = False

    def __call__(self, event: Event) -> None:
        if self.over:
            return
        events = self.events
        if not self.begun:
            self.begun = self._begins(event)
            del events[:-1]  # before a call that the monitor sees the hart has left for it
            if events and events[0].pc != event.pc:
                events.clear()
        elif event.priv == U and event.cause is None:
            self.over = True
            self.machine.stop()
        elif event.pc == events[0].pc and isinstance(event.cause, Cause) and event.after[0] == S:
            self.begun = False  # tried again, it is refused
        events.append(event)

    def _begins(self, event: Event) -> bool:
        if event.priv != U or event.cause is not self.flow.cause or event.after[0] != S:
            return False
        return self.flow.cause is Cause.ECALL_U or disassemble(event.bits).split()[0] in LOADS


def _record(machine: Virt, flow: Flow) -> list[Event]:
    load(machine, CORRAL)
    machine.console.expect(PROMPT)
    recorder = _Recorder(machine, flow)
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


def _steps(events: list[Event], flow: Flow, technique: Technique, machine: Virt) -> list[Step]:
    """The process's first and last, what `_turn` finds between them, and all else as the operating system's."""
    first, *between, last = events
    symbols = Symbols(CORRAL)
    typed = next((e for e in events if e.transfer and e.transfer[:3] == (Uart16550.__name__, RBR, False)), None)
    steps = [Step(PROCESS, flow.begins, (_code(first),), first.steps)]
    before, since = first, []
    for event in between:
        turn = _turn(event, technique, event is typed) or _filled(event, machine)
        if turn is None:
            since.append(event)
            continue
        steps += [*_system(before, since, symbols), Step(*turn, _codes(event), event.steps)]
        before, since = event, []
    resumed = Step(PROCESS, flow.ends, (_code(last),), last.steps)
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
    if event.by_monitor and event.cause is Cause.TLB_REFILL:
        return MONITOR, "TLB miss: call the OS's TLB handler, at reduced privilege"
    if event.by_monitor and event.priv == S and event.after[0] == U:
        return MONITOR, "OS tried to return from trap: do the real return"
    return None


def _filled(event: Event, machine: Virt) -> tuple[str, str] | None:
    """An entry of the guest's, and what the monitor has made of it."""
    if not event.by_monitor or event.entry is None:
        return None
    assert isinstance(machine, VirtualMachine)
    page, frame = event.entry
    real = machine.monitor.machine.ram.base + machine.ram.place(frame * FRAME - machine.ram.base) >> 12
    return MONITOR, f"OS tried to update the TLB with page {page:#x}, frame {frame:#x}: do it with frame {real:#x}"


def _system(before: Event, events: list[Event], symbols: Symbols) -> list[Step]:
    """What the operating system does, behind an event that led to it."""
    done = [event for event in events if event.cause is None]
    if not done:
        return []
    begun = (
        "OS goes on"
        if before.cause is None
        else "OS interrupt handler"
        if isinstance(before.cause, Irq)
        else HANDLERS.get(before.cause, "OS trap handler")
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
