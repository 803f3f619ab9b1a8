"""f: what one map says, and what maps composed say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence import MiB, virt
from ringfence.machine.map import SUPERPAGE
from ringfence.machine.memory import FRAME, READ
from ringfence.monitor.monitor import Monitor, nested
from ringfence.monitor.vm import VirtualMachine


def test_map_composes_the_figure_of_ostep() -> None:
    """Pages 0, 2 and 3 in frames 10, 3 and 8 of the guest, which are machine frames 5, 6 and 10 (OSTEP, appendix B)."""
    phi = {0: 10, 2: 3, 3: 8}
    machine = virt(16 * MiB)
    guest = Monitor(machine).create("guest", 4 * MiB)
    for frame, to in {3: 6, 8: 10, 10: 5}.items():
        guest.ram.f.set(frame * FRAME, to * FRAME)
    assert {page: guest.ram.place(frame * FRAME) // FRAME for page, frame in phi.items()} == {0: 5, 2: 6, 3: 10}


pages = st.integers(12 * 512, 12 * 512 + 3) | st.integers(13 * 512, 13 * 512 + 3)
"""Of the monitors' own tables there are none in these superpages, at any level."""
changes = st.lists(
    st.tuples(st.sampled_from(["set", "superpage", "clear"]), st.integers(0, 7), pages, pages), max_size=30
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 8), changes, st.lists(pages, min_size=1, max_size=10))
def test_maps_compose_one_address_at_a_time(
    depth: int, what: list[tuple[str, int, int, int]], looked: list[int]
) -> None:
    """After any changes, at any level, a place is what going through every f in turn says."""
    top = nested(depth, 32 * MiB)
    levels: list[VirtualMachine] = []
    machine = top
    while isinstance(machine, VirtualMachine):
        levels.append(machine)
        machine = machine.monitor.machine
    model: list[dict[int, int]] = [{} for _ in levels]
    for vm, known in zip(levels, model, strict=True):
        for first in (12 * 512, 13 * 512):
            vm.ram.give(first * FRAME, first * FRAME, size=SUPERPAGE)
            known.update({first + n: first + n for n in range(512)})

    def expected(frame: int) -> int | None:
        """Through the model's maps, from the top down."""
        at: int | None = frame
        for level in model:
            at = None if at is None else level.get(at)
        return at

    def agree() -> None:
        for frame in looked:
            wanted = expected(frame)
            if wanted is not None:
                assert top.ram.place(frame * FRAME, READ) == wanted * FRAME

    for kind, number, page, to in what:
        level = number % depth
        ram, known = levels[level].ram, model[level]
        if kind == "set":
            ram.give(page * FRAME, to * FRAME)
            known[page] = to
        elif kind == "superpage":
            first, target = page & ~511, to & ~511
            ram.give(first * FRAME, target * FRAME, size=SUPERPAGE)
            known.update({first + n: target + n for n in range(512)})
        else:
            ram.take(page * FRAME)
            known.pop(page, None)
        agree()
