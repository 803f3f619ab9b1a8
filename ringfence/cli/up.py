"""`ringfence up`: several guests at once, each with a console; a terminal has one of them at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from ringfence.cli import options as cli
from ringfence.cli import site as sites
from ringfence.cli.console import Input, Output, Terminal, is_terminal, report
from ringfence.cli.session import LAST_LINES, TICK, Session
from ringfence.cli.watch import PANIC, TIME_LIMIT, Ending, Limits, Watch, describe
from ringfence.errors import RingfenceError
from ringfence.machine.clock import Source
from ringfence.machine.exit import Idle, PowerOff
from ringfence.monitor.monitor import Monitor
from ringfence.monitor.stats import lines, path
from ringfence.monitor.vm import VirtualMachine

KEPT = 1 << 14
"""Bytes of a console that are shown again when a terminal comes back to it."""
_QUESTION = re.compile(rb"\x1b\[[0-9;?>=]*[cn]")
"""What a guest asked a terminal, which would answer once more: device status and attributes (ECMA-48, DSR and DA)."""


class Died(RingfenceError):
    """A guest that cannot go on."""

    status = PANIC


class Channel(Output):
    """The console of one guest. On a terminal it shows while it has that; elsewhere each line begins with its name."""

    def __init__(self, name: str, closed: Callable[[], None], *, raw: bool) -> None:
        super().__init__(1, closed)
        self.name, self.raw, self.shown = name, raw, False
        self._kept = bytearray()
        self._line = bytearray()

    def write(self, data: bytes) -> None:
        self.note(data)
        if not self.raw:
            self._line += data
            *lines, self._line = self._line.split(b"\n")
            self.put(b"".join(self._prefix() + line.rstrip(b"\r") + b"\n" for line in lines))
            return
        self._kept += data
        del self._kept[:-KEPT]
        if self.shown:
            self.put(data)

    def show(self) -> None:
        """The terminal is this console's."""
        self.shown = True
        self.put(b"\r\n[" + self.name.encode() + b"]\r\n" + _QUESTION.sub(b"", self._kept))

    def end(self) -> None:
        """What is left of a line that has not ended."""
        if self._line:
            self.put(self._prefix() + bytes(self._line) + b"\n")
            self._line.clear()

    def _prefix(self) -> bytes:
        return self.name.encode() + b": "


class Switchboard(Session):
    """The guests of a site, with the terminal at one console at a time; elsewhere input is the first guest's."""

    def __init__(
        self,
        monitor: Monitor,
        guests: list[VirtualMachine],
        channels: dict[str, Channel],
        terminal: Terminal,
        *,
        raw: bool,
        wall: float | None,
    ) -> None:
        self.guests = guests
        self.channels = [channels[guest.path] for guest in guests]
        keyboard = Input(0, raw=raw, at_end=b"", on_next=self._next, on_list=self._list)
        super().__init__(monitor, terminal, keyboard, self.channels, wall=wall)
        limits = Limits(None, None, 0)
        self._watches = [Watch(guest, channel, limits) for guest, channel in zip(guests, self.channels, strict=True)]
        self._active = 0
        self._to_show = raw
        self._told: set[int] = set()

    @property
    def listener(self) -> VirtualMachine:
        return self.guests[self._active]

    def begin(self) -> None:
        pass

    def _next(self, typed: bytes) -> None:
        """The terminal is the next living guest's; what was typed before that was the last one's."""
        self.give(typed)
        count = len(self.guests)
        order = [(self._active + n) % count for n in range(1, count + 1)]
        self._active = next((n for n in order if n not in self._told), self._active)
        self._to_show = True
        self.machine.stop()

    def _list(self) -> None:
        lines = []
        for n, guest in enumerate(self.guests):
            marks = [guest.technique, *(["impure"] if guest.impure else []), *(["ended"] if n in self._told else [])]
            here = "*" if n == self._active else " "
            lines.append(f"{here} {guest.path} ({', '.join(marks)}): {guest.steps:,} steps")
        report("\n" + "\n".join(lines))

    def work(self) -> Ending | None:
        try:
            while not self.over:
                self._show()
                input_over = self.input_over
                ended = self.machine.run()
                self._look()
                if len(self._told) == len(self.guests):
                    return Ending(next(filter(None, map(_status, self.guests)), 0), "ended")
                if isinstance(ended, Idle):
                    if input_over or self._active in self._told:
                        return Ending(TIME_LIMIT, "input-over", "the guests wait for input, and there is no more")
                    self.fed.wait(TICK)
                    self.fed.clear()
            return None
        finally:
            for channel in self.channels:
                channel.end()

    def _show(self) -> None:
        """Consoles write in this thread alone."""
        if self._to_show:
            self._to_show = False
            for channel in self.channels:
                channel.shown = False
            self.channels[self._active].show()

    def _look(self) -> None:
        """Say which guests have ended since the last look."""
        for number, guest in enumerate(self.guests):
            if number in self._told:
                continue
            if _ended(guest) is None and (verdict := self._watches[number].verdict()):
                guest.ended = Died(verdict.sentence)
                guest.on_end()
            if (ended := _ended(guest)) is not None:
                self._told.add(number)
                self._say(number, ended)

    def _say(self, number: int, ended: PowerOff | RingfenceError) -> None:
        channel = self.channels[number]
        channel.end()
        status = min(ended.status, 255)
        why = f"has ended with status {status}" if isinstance(ended, PowerOff) else f"is stopped: {ended}"
        report(f"ringfence: {channel.name} {why}")
        if status and channel.raw and not channel.shown and (last := channel.lines(LAST_LINES)):
            report("\n".join(["the last lines of its console:", *(f"  {line}" for line in last)]))
        if number == self._active and channel.raw and len(self._told) < len(self.guests):
            self._next(b"")

    def where(self) -> list[str]:
        return [line for guest in self.guests for line in (guest.path, *describe(guest))]

    def tell(self, ending: Ending, seconds: float) -> None:
        if ending.reason == "user":
            report("")  # whatever comes next begins a line
        if ending.sentence:
            report(f"ringfence: {ending.sentence}")


def _ended(guest: VirtualMachine) -> PowerOff | RingfenceError | None:
    """Why it runs no more: it has ended, or a machine that it is on."""
    return next((vm.ended for vm in reversed(path(guest)) if vm.ended is not None), None)


def _status(guest: VirtualMachine) -> int:
    ended = _ended(guest)
    return 0 if ended is None else min(ended.status, 255)


def _shown(text: str) -> str:
    """For click's help, which is to keep the lines of an example."""
    return "\n\n".join(f"\b\n{part}" if part[0] == " " else part for part in text.strip().split("\n\n"))


@click.command(epilog=_shown(sites.__doc__ or ""))
@click.argument("site", type=click.Path(path_type=Path))
@cli.clock
@cli.stats
@cli.wall_timeout
def up(site: Path, clock: Source, stats: bool, wall_timeout: float | None) -> None:
    """Run the guests that the file SITE describes, each on its share of one machine.

    On a terminal, Ctrl-a n shows the next guest's console, Ctrl-a l lists all, Ctrl-a x ends all, Ctrl-a h helps.
    Elsewhere every line of output begins with its guest's name, and input is the first guest's. Ends with the status of
    the first guest that did not end with 0.
    """
    found = sites.read(site)
    raw = is_terminal()
    terminal = Terminal(0, raw=raw)
    channels: dict[str, Channel] = {}

    def console(path: str) -> Channel:
        channels[path] = Channel(path, terminal.wake, raw=raw)
        return channels[path]

    with ExitStack() as stack:
        monitor, guests = sites.build(found, site.parent, console, clock, stack)
        board = Switchboard(monitor, guests, channels, terminal, raw=raw, wall=wall_timeout)
        status = board.run()
        if stats:
            told = {line: None for guest in guests for line in lines(guest)}
            report("\n".join(told))
        click.get_current_context().exit(status)
