"""Equal frames of several machines: one for all, which nobody writes (Disco; by contents: Waldspurger 2002)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

from ringfence.machine.memory import EXECUTE, FRAME, READ, Ram
from ringfence.monitor.vm import VirtualMachine

SHARED = READ | EXECUTE
_NOTHING = bytes(FRAME)


class Place(NamedTuple):
    """A frame that a machine has."""

    vm: VirtualMachine
    at: int
    """Its offset in the machine's memory."""
    to: int
    """And in the host's."""


def alike(guests: list[VirtualMachine], host: Ram) -> Iterator[tuple[Place, Place | None]]:
    """Frames that their machines need not have: with another, of an earlier machine, that has the same bytes; None:
    they are all zero, which is what memory on demand is.

    No frame of the host is a machine's twice, so an f stays one to one. Not among them: resident memory, and page
    tables that have shadows, and shadows, which are written on the way.
    """
    kept: defaultdict[bytes, list[Place]] = defaultdict(list)
    offered: set[int] = set()
    for vm in guests:
        own = list(frames(vm))
        has = {place.to for place in own}
        offers: dict[bytes, Iterator[Place]] = {}
        more: list[tuple[bytes, Place]] = []
        for place in own:
            if place.to in offered:
                continue
            data = host.look(place.to)
            if data == _NOTHING:
                yield place, None
                continue
            key = blake2b(data, digest_size=16).digest()
            rest = offers.setdefault(key, iter(kept.get(key, ())))
            other = next((offer for offer in rest if offer.to not in has), None)
            if other is not None and host.look(other.to) == data:
                yield place, other
            else:
                more.append((key, place))
        for key, place in more:
            kept[key].append(place)
            offered.add(place.to)


def frames(vm: VirtualMachine) -> Iterator[Place]:
    """What of a machine's memory may be shared. Raises WildMap."""
    pinned = vm.ram.pinned()
    for first, to, _, size in vm.ram.f.pages():
        vm.ram.f.inside(to, size)
        for inside in range(0, size, FRAME):
            at = first + inside
            if vm.resident <= at < vm.ram.size and at not in pinned:
                yield Place(vm, at, to + inside)
