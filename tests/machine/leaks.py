"""What a writer left of a qcow2 image."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.machine.device import qcow2_leaks
from ringfence.machine.device.qcow2 import Qcow2Disk


def leaks(path: Path) -> int:
    """How many refcounts are too high."""
    found: list[int] = []
    check = qcow2_leaks.give_leaks_back

    def counted(*given: object) -> int:
        found.append(check(*given))  # type: ignore[arg-type]
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ringfence.machine.device.qcow2.give_leaks_back", counted)
        Qcow2Disk(path).close()
    return found[0]
