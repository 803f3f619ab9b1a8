"""Hostile drivers of every virtio device of a board: a million cases of the same are a long run."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from virtio_fuzz import Fuzz, shared

from ringfence.machine.clock import Source
from ringfence.machine.device import virtio_mmio as mmio
from ringfence.machine.device.device import AccessFault

CASES = {"virtual": 12_000, "host": 4_000}


@pytest.mark.parametrize("clock", get_args(Source))
@pytest.mark.parametrize("seed", [0, 3])
def test_a_hostile_driver_harms_no_other(seed: int, clock: Source, tmp_path: Path) -> None:
    """No exception, no case that takes long, no growth; other devices serve theirs, and its own do after a reset.
    Seed 3 has a disk that is only read.
    """
    fuzz = Fuzz(seed, clock, shared(tmp_path))
    try:
        report = fuzz.run(CASES[clock])
    finally:
        fuzz.close()
    assert report.served > report.cases // 10  # it gets through to the devices


def test_a_hostile_driver_sees_the_same_each_time() -> None:
    """By the virtual clock nothing of what it does has another end in another run."""
    digests = set()
    for _ in range(2):
        fuzz = Fuzz(1)
        fuzz.run(1500)
        digests.add(fuzz.board.digest())
        fuzz.close()
    assert len(digests) == 1


def test_the_fuzzer_finds_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a transport that takes a ring to be in RAM."""

    def load(self: mmio.VirtioMmio, pa: int, length: int) -> bytes:
        return self.memory.read(pa, length)

    with monkeypatch.context() as patch:
        patch.setattr(mmio.VirtioMmio, "_load", load)
        fuzz = Fuzz(1, "virtual", shared(tmp_path))
        with pytest.raises(AccessFault):
            fuzz.run(3000)
        fuzz.close()
