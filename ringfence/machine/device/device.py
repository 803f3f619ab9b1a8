"""What every chip is: registers at offsets, and a declared table of state.

    Device    the base of all chips               Field        one row of a chip's state
    Line      where a chip's interrupt goes       Clock        guest time, and events due at a point of it
    Memory    the machine's RAM, for DMA          AccessFault  the bus's answer where nothing answers

A chip's whole state is its table: nothing lives in a closure, a generator or a thread, and an event to come is data
of the clock's: (time, device, kind, number). So `restore(snapshot())` changes nothing, and it drives no line: what
is at a line's other end has state of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

Kind = Literal["u8", "u16", "u32", "u64", "u96", "bool", "bytes"]


class AccessFault(Exception):
    """Nothing answers at this address: for a hart an access fault, for a device's DMA a bus error."""


class Line(Protocol):
    """An interrupt wire, level-triggered."""

    def set(self, level: bool) -> None:
        """Drives the wire; driving the level that it has changes nothing."""


class Clock(Protocol):
    """The machine's clock. A pending event is (time, device, kind, number)."""

    def now(self) -> int:
        """Guest time in nanoseconds since power-on."""

    def at(self, time_ns: int, device: Device, kind: str, number: int) -> None:
        """Calls `device.event(kind, number)` when `time_ns` is reached; replaces the pending event of that name."""

    def cancel(self, device: Device, kind: str, number: int) -> None:
        """Drops the pending event of that name, if there is one."""


class Memory(Protocol):
    """RAM as a device reaches it. `pa` is any integer from 0."""

    def read(self, pa: int, length: int) -> bytes:
        """`length` bytes at `pa`; raises `AccessFault` unless all of them are RAM."""

    def write(self, pa: int, data: bytes) -> None:
        """Stores `data` at `pa`; raises `AccessFault`, having stored nothing, unless all of it is RAM."""


@dataclass(frozen=True, slots=True)
class Field:
    """A row of a chip's state: an attribute of that name, of that kind, with its value at reset.

    With a `count` the attribute is a list of so many. A count that is a string names an attribute which the chip's
    constructor sets, for what depends on wiring, such as the number of harts. A `bytes` attribute is a `bytearray`.
    """

    name: str
    kind: Kind
    count: int | str | None = None
    reset: int = 0

    def check(self, value: object) -> object:
        """`value` as an element of this field; raises `ValueError` if it does not fit."""
        if self.kind == "bytes":
            if isinstance(value, bytes | bytearray):
                return bytearray(value)
        elif self.kind == "bool":
            if isinstance(value, bool):
                return value
        elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << int(self.kind[1:]):
            return value
        raise ValueError(f"{self.name} is no {self.kind}: {value!r}")


class Device:
    """A chip. A subclass declares `STATE`, sets its wiring, then calls this constructor, which sets the state.

    The bus calls `read` and `write` with offsets inside the chip's window of `WINDOW` bytes, any size of 1, 2, 4
    and 8, aligned or not: what the hardware ignores is ignored here and reads as 0, and nothing raises.
    """

    STATE: ClassVar[tuple[Field, ...]] = ()
    WINDOW: ClassVar[int]

    def __init__(self) -> None:
        Device.reset(self)

    def read(self, offset: int, size: int) -> int:
        """The `size` bytes at `offset`, little-endian."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Stores `value`, `size` bytes wide, at `offset`."""

    def event(self, kind: str, number: int) -> None:
        """An event that this device gave to the clock came due."""

    def settle(self) -> None:
        """Returns when all that it has given a thread to do is done."""

    def reset(self) -> None:
        """Sets every field to its reset value. A chip that drives lines or has events pending settles them too."""
        for field in self.STATE:
            setattr(self, field.name, self._initial(field))

    def snapshot(self) -> dict[str, object]:
        """The state by field name: integers, booleans, bytes and lists of them, none shared with the device."""
        state: dict[str, object] = {}
        for field in self.STATE:
            value = getattr(self, field.name)
            if isinstance(value, bytearray):
                value = bytes(value)
            state[field.name] = list(value) if isinstance(value, list) else value
        return state

    def restore(self, state: Mapping[str, object]) -> None:
        """Takes the state that `snapshot` gave; raises `ValueError`, changing nothing, if it is not this chip's."""
        if set(state) != {field.name for field in self.STATE}:
            raise ValueError(f"not the state of a {type(self).__name__}: {sorted(state)}")
        values: dict[str, object] = {}
        for field in self.STATE:
            value = state[field.name]
            count = self._count(field)
            if count is None:
                values[field.name] = field.check(value)
            elif isinstance(value, list) and len(value) == count:
                values[field.name] = [field.check(element) for element in value]
            else:
                raise ValueError(f"{field.name} is no list of {count}: {value!r}")
        for name, checked in values.items():
            setattr(self, name, checked)

    def _count(self, field: Field) -> int | None:
        return int(getattr(self, field.count)) if isinstance(field.count, str) else field.count

    def _initial(self, field: Field) -> object:
        if field.kind == "bytes":
            return bytearray()
        value = bool(field.reset) if field.kind == "bool" else field.reset
        count = self._count(field)
        return value if count is None else [value] * count
