"""`ringfence up`: several guests at once, each with a console; a terminal has one of them at a time."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from ringfence.cli import OURS
from ringfence.cli.console import READ_AHEAD, Input, Output, Terminal, is_terminal, report
from ringfence.cli.run import SECONDS
from ringfence.cli.session import JOIN, PANIC, TICK, TIME_LIMIT, Ending, Limits, Watch, unwritable
from ringfence.cli.site import build, read
from ringfence.errors import RingfenceError
from ringfence.machine.exit import Idle, PowerOff
from ringfence.monitor.monitor import Monitor
from ringfence.monitor.vm import VirtualMachine

KEPT = 1 << 14
"""Bytes of a console that are shown again when a terminal comes back to it."""


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
        self.put(b"\r\n[" + self.name.encode() + b"]\r\n" + bytes(self._kept))

    def end(self) -> None:
        """What is left of a line that has not ended."""
        if self._line:
            self.put(self._prefix() + bytes(self._line) + b"\n")
            self._line.clear()

    def _prefix(self) -> bytes:
        return self.name.encode() + b": "


class Switchboard:
    """Runs the guests of a site to their ends, with `terminal` at one console at a time."""

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
        self.monitor, self.guests, self.terminal, self.wall = monitor, guests, terminal, wall
        self.channels = [channels[guest.path] for guest in guests]
        self.keyboard = Input(0, raw=raw, at_end=b"", on_next=self._next)
        limits = Limits(None, None, 0)
        self._watches = [Watch(guest, channel, limits) for guest, channel in zip(guests, self.channels, strict=True)]
        self._active = 0
        self._told: set[int] = set()
        self._ending: Ending | None = None
        self._failure: BaseException | None = None
        self._over = False
        self._fed = threading.Event()

    def run(self) -> int:
        """The exit status: that of the first guest, in the order of the site, whose own is not 0."""
        started = time.monotonic()
        machine = threading.Thread(target=self._work, name="ringfence-machine", daemon=True)
        with self.terminal:
            if self.keyboard.raw:
                self.channels[0].show()
            machine.start()
            ending = self._serve(machine, started)
            self._over = True
            self.monitor.stop()
            self._fed.set()
            machine.join(JOIN)
        for channel in self.channels:
            channel.end()
        if self._failure is not None:
            raise self._failure
        ending = self._ending or ending
        if ending.sentence:
            report(f"ringfence: {ending.sentence}")
        if machine.is_alive():  # it cannot be waited for: nobody takes its output
            os._exit(ending.status)
        return ending.status

    # The main thread

    def _serve(self, machine: threading.Thread, started: float) -> Ending:
        """Input, signals and time, until there is a reason to end."""
        terminal, keyboard = self.terminal, self.keyboard
        tick = time.monotonic() + TICK
        while True:
            if self._ending is not None or self._failure is not None or not machine.is_alive():
                return self._ending or Ending(OURS, "failure")
            if terminal.signal is not None:
                return Ending(128 + terminal.signal, "signal")
            if keyboard.ended_by_user:
                report("")
                return Ending(0, "user")
            for channel in self.channels:
                if channel.error is not None:
                    return unwritable(channel.error)
            now = time.monotonic()
            if self.wall is not None and now - started >= self.wall:
                return Ending(TIME_LIMIT, "wall-timeout", f"the time limit of {self.wall:g} seconds is over")
            if now >= tick:
                tick = now + TICK
                self.monitor.stop()
            guest = self.guests[self._active]
            wanted = keyboard.open and len(guest.uart.waiting) < READ_AHEAD
            wait = tick - now if self.wall is None else min(tick - now, started + self.wall - now)
            if terminal.wait(keyboard.fd if wanted else None, max(wait, 0)):
                if data := keyboard.read():
                    guest = self.guests[self._active]
                    guest.feed(partial(guest.uart.receive, data))
                self._fed.set()

    def _next(self) -> None:
        """The terminal is the next living guest's."""
        count = len(self.guests)
        order = [(self._active + n) % count for n in range(1, count + 1)]
        self.channels[self._active].shown = False
        self._active = next((n for n in order if self.guests[n].ended is None), self._active)
        self.channels[self._active].show()

    # The machine's thread

    def _work(self) -> None:
        try:
            while not self._over and self._ending is None:
                self._machine()
        except BaseException as error:
            self._failure = error
        finally:
            self.terminal.wake()

    def _machine(self) -> None:
        ended = self.monitor.run()
        for number, guest in enumerate(self.guests):
            if guest.ended is None and (verdict := self._watches[number].verdict()):
                guest.ended = Died(verdict.sentence)
            if guest.ended is not None and number not in self._told:
                self._told.add(number)
                self._say(number, guest)
        if len(self._told) == len(self.guests):
            statuses = [_status(guest) for guest in self.guests]
            self._ending = Ending(next((status for status in statuses if status), 0), "ended")
        elif isinstance(ended, Idle):
            if not self.keyboard.open:
                self._ending = Ending(TIME_LIMIT, "input-over", "the guests wait for input, and there is no more")
            self._fed.wait(TICK)
            self._fed.clear()

    def _say(self, number: int, guest: VirtualMachine) -> None:
        self.channels[number].end()
        why = (
            f"has ended with status {_status(guest)}"
            if isinstance(guest.ended, PowerOff)
            else f"is stopped: {guest.ended}"
        )
        report(f"ringfence: {guest.path} {why}")
        if number == self._active and self.keyboard.raw and len(self._told) < len(self.guests):
            self._next()


def _status(guest: VirtualMachine) -> int:
    if isinstance(guest.ended, PowerOff):
        return min(guest.ended.status, 255)
    return guest.ended.status if guest.ended is not None else 0


@click.command()
@click.argument("site", type=click.Path(path_type=Path))
@click.option(
    "--clock",
    type=click.Choice(["virtual", "host"]),
    help="Guest time: counted steps, or the host's. Default: host on a terminal, else virtual.",
)
@click.option("--stats", is_flag=True, help="At the end, what the monitors had to do, on standard error.")
@click.option("--wall-timeout", type=SECONDS, metavar="SECONDS", help="End with status 124 after so long in real time.")
def up(site: Path, clock: str | None, stats: bool, wall_timeout: float | None) -> None:
    """Run the guests that the file SITE describes, each on its share of one machine.

    On a terminal, Ctrl-a n shows the next guest's console, Ctrl-a x ends all, Ctrl-a h helps. Elsewhere every line of
    output begins with its guest's name, and input is the first guest's. Ends with the status of the first guest that
    did not end with 0.
    """
    found = read(site)
    raw = is_terminal()
    terminal = Terminal(0, raw=raw)
    channels: dict[str, Channel] = {}

    def console(path: str) -> Channel:
        channels[path] = Channel(path, terminal.wake, raw=raw)
        return channels[path]

    source = clock or ("host" if sys.stdin is not None and sys.stdin.isatty() else "virtual")
    with ExitStack() as stack:
        monitor, guests = build(found, site.parent, console, "host" if source == "host" else "virtual", stack)
        board = Switchboard(monitor, guests, channels, terminal, raw=raw, wall=wall_timeout)
        status = board.run()
        if stats:
            from ringfence.monitor.stats import lines

            told = {line: None for guest in guests for line in lines(guest)}
            report("\n".join(told))
        click.get_current_context().exit(status)
