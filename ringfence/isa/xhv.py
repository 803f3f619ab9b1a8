"""Xhv, the Hardware Virtualizer's instructions (docs/xhv.md; Goldberg 1973): for harts that are made with it."""

from __future__ import annotations

from ringfence.isa.effects import System
from ringfence.isa.spec import insn
from ringfence.isa.trap import S, Status
from ringfence.word import Word


def _manage(h: System) -> None:
    """Illegal below S, in S under TVM, and on other harts."""
    h.when((h.xhv == 0) | (h.priv < S) | (h.priv == S) & h.mstatus.bit(Status.TVM), h.illegal)


@insn("vmrun 1001111 00001 rs1 000 00000 1110011")
def vmrun(h: System, rs1: Word) -> None:
    _manage(h)
    h.launch(rs1)


@insn("vmend 1001111 00010 rs1 000 00000 1110011")
def vmend(h: System, rs1: Word) -> None:
    _manage(h)
    h.end(rs1)
