"""Physical memory protection, 16 entries (privileged manual, section "Physical Memory Protection").

Written over Python ints: the engine derives per-frame permissions from it whenever a PMP register changes.
"""

from __future__ import annotations

from collections.abc import Sequence

ENTRIES = 16
R, W, X, A, L = 1, 2, 4, 3 << 3, 1 << 7
OFF, TOR, NA4, NAPOT = 0 << 3, 1 << 3, 2 << 3, 3 << 3
ADDRESS_BITS = 56


def entries_of(words: Sequence[int], cfg: int, addr: int) -> list[tuple[int, int, int]]:
    """`ranges` of registers in a hart's state: pmpcfg0 and pmpcfg2 from index `cfg`, 16 addresses from `addr`."""
    configuration = [words[cfg + n // 8] >> 8 * (n % 8) & 0xFF for n in range(ENTRIES)]
    return ranges(configuration, words[addr : addr + ENTRIES])


def ranges(cfg: Sequence[int], addr: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first byte, last byte + 1, configuration) of each entry that is on, the one that decides first in front."""
    found = []
    for i in range(ENTRIES):
        mode = cfg[i] & A
        if mode == TOR:
            start, end = addr[i - 1] << 2 if i else 0, addr[i] << 2
        elif mode == NA4:
            start, end = addr[i] << 2, (addr[i] << 2) + 4
        elif mode == NAPOT:
            size = 8 << ((~addr[i] & addr[i] + 1).bit_length() - 1)
            start = (addr[i] << 2) & ~(size - 1)
            end = start + size
        else:
            continue
        if start < end:
            found.append((start, end, cfg[i]))
    return found


def permission(entries: Sequence[tuple[int, int, int]], pa: int, size: int, machine: bool) -> int:
    """R, W and X bits for `size` bytes at `pa`, in M-mode or below. An access that an entry covers only in part has
    none.
    """
    for start, end, cfg in entries:
        if start < pa + size and pa < end:
            if pa < start or end < pa + size:
                return 0
            return R | W | X if machine and not cfg & L else cfg & 7
    return R | W | X if machine else 0


def legal_cfg(old: int, new: int) -> int:
    """One pmpcfg byte after a write: locked ones keep, R=0 W=1 is reserved and clears W (WARL)."""
    if old & L:
        return old
    new &= R | W | X | A | L
    return new & ~W if new & (R | W) == W else new
