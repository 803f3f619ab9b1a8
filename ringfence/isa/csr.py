"""The CSRs: one line each (privileged manual, tables of CSR addresses).

A line gives the number, the name, how it reads and how it writes, over words. The checks of access come from the
number (bits 11:10 read-only, 9:8 lowest privilege) and from `illegal`, which says under which state the CSR is not
accessible. `rare` lines are the reference's: native code leaves for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ringfence.isa import pmp, tlb
from ringfence.isa.effects import System
from ringfence.isa.paging import ADUE, MODES, PBMTE
from ringfence.isa.trap import Irq, M, S, Status
from ringfence.word import Int, Word, low, select, zext

SSTATUS = 0x100
Read = Callable[[System], Word]
Write = Callable[[System, Word], None]


@dataclass(frozen=True)
class Csr:
    number: int
    name: str
    read: Read
    write: Write
    illegal: Callable[[System], Word] | None
    modify: Read | None
    rare: bool


CSRS: dict[int, Csr] = {}


def csr(
    number: int,
    name: str,
    read: Read | int,
    write: Write | None = None,
    *,
    illegal: Callable[[System], Word] | None = None,
    modify: Read | None = None,
    rare: bool = False,
) -> None:
    """`modify`: what CSRRS and CSRRC start from, where that differs from what is read. `rare`: writes are the
    reference's.
    """
    value = read if callable(read) else lambda h: Int(read)
    CSRS[number] = Csr(number, name, value, write or (lambda h, v: None), illegal, modify, rare)


def register(number: int, name: str, mask: int = -1, *, rare: bool = False) -> None:
    """A field of the hart's state of the same name, of which the bits in `mask` can be written."""

    def write(h: System, v: Word) -> None:
        setattr(h, name, v if mask == -1 else getattr(h, name) & ~mask | v & mask)

    csr(number, name, lambda h: getattr(h, name), write, rare=rare)


def csr_read(h: System, number: Word, write: bool) -> Word:
    """The value a CSR instruction reads, after the checks of access."""
    return _line(h, number, write).read(h)


def csr_modify(h: System, number: Word, old: Word) -> Word:
    """What CSRRS and CSRRC change, where they read `old`."""
    assert isinstance(number, Int)
    line = CSRS[number.value]
    return line.modify(h) if line.modify else old


def csr_write(h: System, number: Word, value: Word) -> None:
    """Write what is WARL as its line says. Access was checked by `csr_read`."""
    assert isinstance(number, Int)
    CSRS[number.value].write(h, value)


def _line(h: System, number: Word, write: bool) -> Csr:
    if not isinstance(number, Int):
        h.rare()
    assert isinstance(number, Int)
    line = CSRS.get(number.value)
    if line is None or (write and number.value >> 10 == 3):
        h.illegal()
    lowest = number.value >> 8 & 3
    refused = h.priv < lowest
    if lowest == S and (write or number.value != SSTATUS):
        refused = refused | (h.priv == S) & (h.vm != 0)
    if line.illegal is not None:
        refused = refused | line.illegal(h)
    h.when(refused, h.illegal)
    if write and line.rare:
        h.rare()
    return line


# Machine information and trap setup

STATUS_WRITABLE = (
    sum(1 << b for b in (Status.SIE, Status.MIE, Status.SPIE, Status.MPIE, Status.SPP, Status.MPRV, Status.SUM))
    | sum(1 << b for b in (Status.MXR, Status.TVM, Status.TW, Status.TSR))
    | 3 << Status.MPP
    | 3 << Status.FS
)
STATUS_FIXED = 2 << Status.UXL | 2 << Status.SXL
STATUS_S = (
    sum(1 << b for b in (Status.SIE, Status.SPIE, Status.SPP, Status.SUM, Status.MXR, Status.SD))
    | 3 << Status.FS
    | 3 << Status.UXL
)
_TRANSLATION = 1 << Status.SUM | 1 << Status.MXR | 1 << Status.MPRV | 3 << Status.MPP


def _status(h: System, status: Word) -> Word:
    dirty = (status >> Status.FS & 3) == 3
    return status | zext(dirty) << Status.SD


def _set_status(h: System, v: Word, writable: int) -> None:
    old = h.mstatus
    new = old & ~writable | v & writable
    if writable & 3 << Status.MPP:  # MPP is WARL: 2 is no mode, the old one stays
        legal = (new >> Status.MPP & 3) != 2
        new = select(legal, new, new & ~(3 << Status.MPP) | old & 3 << Status.MPP)
    h.mstatus = new
    h.when(((old ^ new) & _TRANSLATION) != 0, h.regime)
    h.when(((old ^ new) & 3 << Status.FS) != 0, h.float_state)
    h.check_point()


MISA = 2 << 62 | sum(1 << ord(c) - ord("A") for c in "ABCDFIMSU")


def _sstatus(h: System) -> Word:
    own = select((h.priv == S) & (h.vm != 0), h.vmpsl, h.mstatus)
    return _status(h, own) & STATUS_S


csr(0x300, "mstatus", lambda h: _status(h, h.mstatus), lambda h, v: _set_status(h, v, STATUS_WRITABLE))
csr(SSTATUS, "sstatus", _sstatus, lambda h, v: _set_status(h, v, STATUS_S & STATUS_WRITABLE))
csr(0x301, "misa", MISA)
csr(0xF11, "mvendorid", 0)
csr(0xF12, "marchid", 0)
csr(0xF13, "mimpid", 0)
csr(0xF14, "mhartid", lambda h: h.mhartid)
csr(0xF15, "mconfigptr", 0)

S_IRQS = 1 << Irq.SSI | 1 << Irq.STI | 1 << Irq.SEI
ALL_IRQS = S_IRQS | 1 << Irq.MSI | 1 << Irq.MTI | 1 << Irq.MEI
STCE = 63


def _set_mask(name: str, mask: int) -> Write:
    def write(h: System, v: Word) -> None:
        setattr(h, name, v & mask)
        h.check_point()

    return write


def _stce(h: System) -> Word:
    return h.menvcfg.bit(STCE)


def _set_mip(h: System, v: Word) -> None:
    """MSIP, MTIP and MEIP are the devices'; so is STIP while the hart's own compare register drives it."""
    mask = select(_stce(h), Int(S_IRQS & ~(1 << Irq.STI)), Int(S_IRQS))
    h.mip = h.mip & ~mask | v & mask
    h.check_point()


def _set_sie(h: System, v: Word) -> None:
    h.mie = h.mie & ~h.mideleg | v & h.mideleg
    h.check_point()


def _set_sip(h: System, v: Word) -> None:
    mask = h.mideleg & 1 << Irq.SSI
    h.mip = h.mip & ~mask | v & mask
    h.check_point()


register(0x302, "medeleg", 0xB3FF)
csr(0x303, "mideleg", lambda h: h.mideleg, _set_mask("mideleg", S_IRQS))
csr(0x304, "mie", lambda h: h.mie, _set_mask("mie", ALL_IRQS))
csr(0x344, "mip", lambda h: h.mip | h.lines, _set_mip, modify=lambda h: h.mip)
csr(0x104, "sie", lambda h: h.mie & h.mideleg, _set_sie)
csr(0x144, "sip", lambda h: (h.mip | h.lines) & h.mideleg, _set_sip)


def _vector(name: str) -> Write:
    """MODE is direct or vectored; a write of a reserved mode keeps the old one."""

    def write(h: System, v: Word) -> None:
        setattr(h, name, select(v.bit(1), v & ~3 | getattr(h, name) & 3, v))

    return write


csr(0x305, "mtvec", lambda h: h.mtvec, _vector("mtvec"))
csr(0x105, "stvec", lambda h: h.stvec, _vector("stvec"))
register(0x340, "mscratch")
register(0x341, "mepc", ~1 & (1 << 64) - 1)
register(0x342, "mcause")
register(0x343, "mtval")
register(0x140, "sscratch")
register(0x141, "sepc", ~1 & (1 << 64) - 1)
register(0x142, "scause")
register(0x143, "stval")

# Address translation


def _satp_illegal(h: System) -> Word:
    return (h.priv == S) & h.mstatus.bit(Status.TVM)


def _mode_there(v: Word) -> Word:
    mode = v >> 60
    there: Word = mode == 0
    for number in MODES:
        there = there | (mode == number)
    return there


def _set_satp(h: System, v: Word) -> None:
    """A write of a mode that is not there has no effect at all."""
    h.satp = select(_mode_there(v), v, h.satp)
    h.regime()
    h.refetch()


csr(0x180, "satp", lambda h: h.satp, _set_satp, illegal=_satp_illegal)

# The software-filled TLB (docs/software-tlb.md)

_STLBSTATUS = 15 << 60 | 1 << Status.SPP | 1 << Status.SPIE


def _set_stlbstatus(h: System, v: Word) -> None:
    h.stlbstatus = select(_mode_there(v), v, v & ~(15 << 60) | h.stlbstatus & 15 << 60) & _STLBSTATUS


def _stlb(number: int, name: str, mask: int = -1, write: Write | None = None) -> None:
    def masked(h: System, v: Word) -> None:
        setattr(h, name, v & mask)

    def illegal(h: System) -> Word:
        return (h.software_tlb == 0) | _satp_illegal(h)

    csr(number, name, lambda h: getattr(h, name), write or masked, illegal=illegal)


_stlb(0x5C0, "stlbvec", ~3 & (1 << 64) - 1)
_stlb(0x5C1, "stlbepc", ~1 & (1 << 64) - 1)
_stlb(0x5C2, "stlbval")
_stlb(0x5C3, "stlbstatus", write=_set_stlbstatus)
_stlb(0x5C4, "stlbscratch")
_stlb(0x5C5, "stlbindex", tlb.ENTRIES - 1)

# Environment configuration

FIOM, CBIE, CBCFE, CBZE = 0, 4, 6, 7
_SENVCFG = 1 << FIOM | 3 << CBIE | 1 << CBCFE | 1 << CBZE
_MENVCFG = _SENVCFG | 1 << ADUE | 1 << PBMTE | 1 << STCE
# M-mode software older than a translation extension leaves its bit alone, so those are on, as on QEMU's board.
ENVCFG_RESET = 1 << ADUE | 1 << PBMTE


def _legal_cbie(old: Word, new: Word) -> Word:
    return select((new >> CBIE & 3) == 2, new & ~(3 << CBIE) | old & 3 << CBIE, new)


def _set_menvcfg(h: System, v: Word) -> None:
    h.menvcfg = _legal_cbie(h.menvcfg, v & _MENVCFG)
    h.timer()
    h.protection()


def _set_senvcfg(h: System, v: Word) -> None:
    h.senvcfg = _legal_cbie(h.senvcfg, v & _SENVCFG)


csr(0x30A, "menvcfg", lambda h: h.menvcfg, _set_menvcfg, rare=True)
csr(0x10A, "senvcfg", lambda h: h.senvcfg, _set_senvcfg)

# Counters and timers


def _counted(name: str, bit: int) -> Read:
    """The field holds what to add to the steps, or the counter itself while it is inhibited."""
    return lambda h: getattr(h, name) + select((h.mcountinhibit & bit) == 0, h.steps(), Int(0))


def _set_counter(name: str, bit: int) -> Write:
    """The value is what the next instruction reads."""

    def write(h: System, v: Word) -> None:
        setattr(h, name, v - select((h.mcountinhibit & bit) == 0, h.steps() + 1, Int(0)))

    return write


def _set_inhibit(h: System, v: Word) -> None:
    old, new = h.mcountinhibit, v & 5
    for name, bit in (("mcycle", 1), ("minstret", 4)):
        count = getattr(h, name) + select((old & bit) == 0, h.steps() + 1, Int(0))
        setattr(h, name, count - select((new & bit) == 0, h.steps() + 1, Int(0)))
    h.mcountinhibit = new


def _counter_illegal(bit: int) -> Callable[[System], Word]:
    """mcounteren gates S and U, scounteren U."""

    def illegal(h: System) -> Word:
        below_m = (h.priv < M) & (h.mcounteren.bit(bit) ^ 1)
        return below_m | (h.priv < S) & (h.scounteren.bit(bit) ^ 1)

    return illegal


def _set_stimecmp(h: System, v: Word) -> None:
    h.stimecmp = v
    h.timer()


def _stimecmp_illegal(h: System) -> Word:
    return (h.priv < M) & ((h.mcounteren.bit(1) & _stce(h)) ^ 1)


register(0x306, "mcounteren", 0xFFFFFFFF)
register(0x106, "scounteren", 0xFFFFFFFF)
csr(0x320, "mcountinhibit", lambda h: h.mcountinhibit, _set_inhibit, rare=True)
csr(0xB00, "mcycle", _counted("mcycle", 1), _set_counter("mcycle", 1))
csr(0xB02, "minstret", _counted("minstret", 4), _set_counter("minstret", 4))
csr(0xC00, "cycle", _counted("mcycle", 1), illegal=_counter_illegal(0))
csr(0xC01, "time", lambda h: h.time(), illegal=_counter_illegal(1))
csr(0xC02, "instret", _counted("minstret", 4), illegal=_counter_illegal(2))
csr(0x14D, "stimecmp", lambda h: h.stimecmp, _set_stimecmp, illegal=_stimecmp_illegal, rare=True)
for _n in range(3, 32):  # Zihpm: there, and count nothing
    csr(0xB00 + _n, f"mhpmcounter{_n}", 0)
    csr(0x320 + _n, f"mhpmevent{_n}", 0)
    csr(0xC00 + _n, f"hpmcounter{_n}", 0, illegal=_counter_illegal(_n))

# Triggers (RISC-V Debug Specification, "Sdtrig"): one place, and none in it

for _n, _name, _value in ((0, "tselect", 0), (1, "tdata1", 0), (2, "tdata2", 0), (3, "tdata3", 0), (4, "tinfo", 1)):
    csr(0x7A0 + _n, _name, _value)

# Floating point


def _float_off(h: System) -> Word:
    return (h.mstatus & 3 << Status.FS) == 0


def _set_float(h: System, fflags: Word | None, frm: Word | None) -> None:
    if fflags is not None:
        h.fflags = fflags & 31
    if frm is not None:
        h.frm = frm & 7
    h.mstatus = h.mstatus | 3 << Status.FS
    h.float_state()


csr(0x001, "fflags", lambda h: h.fflags, lambda h, v: _set_float(h, v, None), illegal=_float_off)
csr(0x002, "frm", lambda h: h.frm, lambda h, v: _set_float(h, None, v), illegal=_float_off)
csr(
    0x003,
    "fcsr",
    lambda h: h.frm << 5 | h.fflags,
    lambda h, v: _set_float(h, v, zext(low(v >> 5, 3))),
    illegal=_float_off,
)

# Physical memory protection: 16 entries


def _set_pmpcfg(n: int) -> Write:
    def write(h: System, v: Word) -> None:
        old, new = getattr(h, f"pmpcfg{n}"), v
        assert isinstance(old, Int) and isinstance(new, Int)
        value = 0
        for shift in range(0, 64, 8):
            value |= pmp.legal_cfg(old.value >> shift & 0xFF, new.value >> shift & 0xFF) << shift
        setattr(h, f"pmpcfg{n}", Int(value))
        h.protection()

    return write


def pmp_cfg(h: System) -> list[int]:
    """The 16 configuration bytes, from known words."""
    both = (h.pmpcfg0, h.pmpcfg2)
    return [w.value >> shift & 0xFF for w in both if isinstance(w, Int) for shift in range(0, 64, 8)]


def _set_pmpaddr(n: int) -> Write:
    """Locked by its own entry, or by a locked TOR entry above it."""

    def write(h: System, v: Word) -> None:
        cfg = pmp_cfg(h)
        above = cfg[n + 1] if n + 1 < pmp.ENTRIES else 0
        if cfg[n] & pmp.L or (above & pmp.L and above & pmp.A == pmp.TOR):
            return
        setattr(h, f"pmpaddr{n}", v & (1 << pmp.ADDRESS_BITS - 2) - 1)
        h.protection()

    return write


for _n in (0, 2):
    csr(0x3A0 + _n, f"pmpcfg{_n}", lambda h, n=_n: getattr(h, f"pmpcfg{n}"), _set_pmpcfg(_n), rare=True)  # type: ignore[misc]
for _n in range(pmp.ENTRIES):
    csr(0x3B0 + _n, f"pmpaddr{_n}", lambda h, n=_n: getattr(h, f"pmpaddr{n}"), _set_pmpaddr(_n), rare=True)  # type: ignore[misc]
