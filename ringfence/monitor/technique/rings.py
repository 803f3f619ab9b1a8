"""Ring compression: the real mode that each virtual mode runs in.

U   all of them in user mode, as VM/370 (Goldberg 1973)
S   M and S in supervisor mode, U in user mode, as the VAX VMM, which puts two modes into one (Hall and Robinson,
    "Virtualizing the VAX Architecture", 1991), and as Disco, whose guests' kernels run in supervisor mode
"""

from __future__ import annotations

from collections.abc import Mapping

from ringfence.isa.trap import M, S, U

Rings = Mapping[int, int]
"""By virtual mode: the real one."""

RINGS: dict[str, Rings] = {
    "U": {M: U, S: U, U: U},
    "S": {M: S, S: S, U: U},
}
