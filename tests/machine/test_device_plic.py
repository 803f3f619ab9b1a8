"""The PLIC against the specification's rules, told as a small model."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ringfence.machine.device.plic import Plic


class Wire:
    level = False

    def set(self, level: bool) -> None:
        assert level != self.level
        self.level = level


def priority(source: int) -> int:
    return 4 * source


def enable(context: int, source: int) -> int:
    return 0x2000 + 0x80 * context + source // 32 * 4


def threshold(context: int) -> int:
    return 0x20_0000 + 0x1000 * context


def claim(context: int) -> int:
    return threshold(context) + 4


class Model:
    """The specification read literally: sets, and a search of all sources."""

    def __init__(self, contexts: int) -> None:
        self.high: set[int] = set()
        self.pending: set[int] = set()
        self.served: set[int] = set()
        self.priority: dict[int, int] = {}
        self.enabled: list[set[int]] = [set() for _ in range(contexts)]
        self.threshold = [0] * contexts

    def forward(self) -> None:
        self.pending |= self.high - self.served

    def best(self, context: int) -> int:
        found = [(-self.priority.get(source, 0), source) for source in self.pending & self.enabled[context]]
        return min((pair for pair in found if pair[0]), default=(0, 0))[1]

    def output(self, context: int) -> bool:
        best = self.best(context)
        return best != 0 and self.priority[best] > self.threshold[context]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["line", "priority", "enable", "threshold", "claim", "complete", "snapshot", "reset"]),
        st.integers(0, 3),
        st.sampled_from([1, 2, 31, 32, 33, 95]),
        st.integers(0, 7),
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=300)
@given(OPERATIONS)
def test_plic_agrees_with_the_specification(operations: list[tuple[str, int, int, int]]) -> None:
    """Pending bits, claims and the contexts' lines are those of the specification after any sequence of accesses."""
    wires = [Wire() for _ in range(4)]
    plic = Plic(wires)
    model = Model(4)
    for name, context, source, value in operations:
        if name == "line":
            plic.line(source).set(bool(value & 1))
            (model.high.add if value & 1 else model.high.discard)(source)
        elif name == "priority":
            plic.write(priority(source), 4, value)
            model.priority[source] = value
        elif name == "enable":
            old = plic.read(enable(context, source), 4)
            plic.write(enable(context, source), 4, old ^ 1 << source % 32)
            model.enabled[context] ^= {source}
        elif name == "threshold":
            plic.write(threshold(context), 4, value)
            model.threshold[context] = value
        elif name == "claim":
            best = model.best(context)
            assert plic.read(claim(context), 4) == best
            if best:
                model.pending.discard(best)
                model.served.add(best)
        elif name == "complete":
            plic.write(claim(context), 4, source)
            if source in model.enabled[context]:
                model.served.discard(source)
        elif name == "snapshot":
            plic.restore(plic.snapshot())
        elif value == 0:
            plic.reset()
            high = model.high
            model = Model(4)
            model.high = high
        model.forward()
        shown = {
            bit + 32 * word for word in range(3) for bit in range(32) if plic.read(0x1000 + 4 * word, 4) >> bit & 1
        }
        assert shown == model.pending
        assert [wire.level for wire in wires] == [model.output(context) for context in range(4)]


def test_plic_keeps_a_request_whose_line_fell() -> None:
    """A level that ends before the claim leaves its request, and one that holds is forwarded again at completion."""
    wire = Wire()
    plic = Plic([wire])
    line = plic.line(10)
    plic.write(priority(10), 4, 1)
    plic.write(enable(0, 10), 4, 1 << 10)
    line.set(True)
    line.set(False)
    assert wire.level
    assert plic.read(claim(0), 4) == 10
    assert not wire.level
    line.set(True)
    assert not wire.level
    assert plic.read(claim(0), 4) == 0
    plic.write(claim(0), 4, 10)
    assert wire.level


def test_plic_has_no_source_0_and_no_priority_above_7() -> None:
    """Source 0 cannot be enabled or given a priority; priorities and thresholds keep three bits."""
    plic = Plic([Wire()])
    plic.write(0, 4, 7)
    plic.write(4, 4, 0xFFFF_FFFF)
    plic.write(enable(0, 0), 8, (1 << 64) - 1)
    plic.write(threshold(0), 4, 0xFF)
    assert plic.read(0, 8) == 7 << 32
    assert plic.read(enable(0, 0), 8) == (1 << 64) - 2
    assert plic.read(threshold(0), 4) == 7


@pytest.mark.parametrize("source", [-1, 0, 96])
def test_plic_refuses_a_line_to_no_source(source: int) -> None:
    """Sources are 1 to 95."""
    with pytest.raises(ValueError, match="1 to 95"):
        Plic([]).line(source)
