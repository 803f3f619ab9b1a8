"""Popek and Goldberg's theorem, decided by execution: what it finds, and that it finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import pytest

from ringfence import virt
from ringfence.isa.csr import CSRS, STATUS_WRITABLE
from ringfence.isa.paging import DIRTY, USER, W
from ringfence.isa.spec import COMPRESSED, ISA
from ringfence.isa.trap import M, S, Status, U
from ringfence.machine.hart import FIELDS, Hart
from ringfence.monitor import virtual_state
from ringfence.monitor.chosen import CLOSED, choose
from ringfence.monitor.instance import Instance, instances
from ringfence.monitor.sensitive_data import IN_MEMORY, Reference, references
from ringfence.monitor.technique.rings import RINGS, Rings, rights_of
from ringfence.monitor.technique.translation import SENSITIVE
from ringfence.monitor.virtual_state import (
    APART,
    AT_REST,
    DATA,
    FORCED,
    HIDDEN,
    MADE,
    TABLE,
    TIME,
    VISIBLE,
    State,
    deprivileged,
)
from ringfence.monitor.virtualizable import Decision, Prepare, Sensitive, decide, machines

SUPERVISOR = {
    "sstatus": "no bit of mstatus makes it trap in S",
    "sie": "nor for what S may see of mie",
    "sip": "nor of mip",
    "stvec": "S's own trap vector",
    "sscratch": "S's own",
    "sepc": "S's own; TSR is for sret alone",
    "scause": "S's own",
    "stval": "S's own",
    "senvcfg": "what S configures for U: no state enable (Smstateen) here",
    "scounteren": "and what S lets U read",
}
"""The CSRs of S that are not gated; satp is by TVM, stimecmp by mcounteren.TM, and those of the refill by TVM."""
NUMBERS = {line.name: number for number, line in CSRS.items()}
FORMS = {name for name, row in ISA.items() if "csr" in row.fields}
FLOATING = {name for name, row in ISA.items() if row.floating} | {
    name for name, row in COMPRESSED.items() if row.insn.floating
}
ALL = (M, S, U)


@cache
def decided(rings: str) -> Decision:
    return decide(RINGS[rings])


def found(decision: Decision) -> dict[str, Sensitive]:
    return {row.name: row for row in decision.sensitive}


def violated(decision: Decision) -> set[str]:
    return {violation.name for violation in decision.violations}


@cache
def every() -> tuple[Instance, ...]:
    return tuple(instances())


def test_user_rings_have_no_violation() -> None:
    """With M, S and U in U all that is sensitive traps, but for floating point where the guest has it on."""
    decision = decided("U")
    assert decision.holds and decision.violations == ()
    assert {row.name for row in decision.sensitive if row.traps != "always"} == FLOATING | {"fflags", "frm", "fcsr"}


def test_supervisor_rings_break_what_does_not_trap_in_s() -> None:
    """With M and S in S just the CSRs of S that nothing gates, in every row that refers to them; sstatus first."""
    decision = decided("S")
    assert not decision.holds
    assert violated(decision) == SUPERVISOR.keys()
    assert decision.violations[0].name == "sstatus"
    assert all(set(violation.rows) == FORMS for violation in decision.violations)
    assert {row.name for row in decision.sensitive if row.traps == "no"} == SUPERVISOR.keys()
    undone = {row.name for row in decision.sensitive if row.traps == "where it must"}
    assert undone - FLOATING - {"fflags", "frm", "fcsr"} == {"sfence.w.inval", "sfence.inval.ir"}


def test_vm_bit_makes_supervisor_rings_enough() -> None:
    """With it what reveals the mode is the virtual hart's, or traps; where VMPSL is another's, that is found."""
    decision = decide(RINGS["S"], partial(deprivileged, vm_bit=True))
    assert decision.holds
    assert {row.name for row in decision.sensitive if row.name in SUPERVISOR and row.traps != "always"} == {"sstatus"}

    def stale(v: State, rings: Rings) -> State:
        return deprivileged(v, rings, vm_bit=True).having(vmpsl=v.field("mstatus") ^ 1 << Status.SPP)

    assert violated(decide(RINGS["S"], stale, names={"sstatus", "sie", "addi"})) == {"sstatus"}


@pytest.mark.parametrize("name", SUPERVISOR)
def test_witness_is_a_read_in_s_and_one_part(name: str) -> None:
    """The smallest: a row that only reads, in virtual S, where one hidden part of the monitor's is another."""
    witness = next(v.witness for v in decided("S").violations if v.name == name)
    assert witness.instruction == f"csrrs a0, {name}, zero"
    assert (witness.mode, witness.real_mode) == (S, S)
    [(_, guest, monitor)] = witness.parts
    assert guest != monitor
    assert witness.bare != witness.real and witness.bare.startswith("a0 = ") and witness.real.startswith("a0 = ")


def test_translation_replaces_what_is_sensitive_in_s() -> None:
    """Neither more CSRs nor fewer."""
    assert {NUMBERS[violation.name] for violation in decided("S").violations} == SENSITIVE


def test_witness_of_sstatus_shows_the_monitors_interrupt_enable() -> None:
    witness = decided("S").violations[0].witness
    assert witness.parts == (("mstatus.SIE", 0, 1),)
    bare, real = (int(said.removeprefix("a0 = "), 16) for said in (witness.bare, witness.real))
    assert bare ^ real == 1 << Status.SIE


def test_rows_are_sensitive_that_ask_for_system_state() -> None:
    """What execution finds is what the rows say that they touch: `h` and CSRs, floating point by FS, nothing else."""
    sensitive = found(decided("U"))
    for name, row in ISA.items():
        if "csr" in row.fields:
            continue
        if row.floating and "h" not in row.params:
            assert sensitive[name].depends == {"mstatus.FS"} and sensitive[name].changes <= {"mstatus.FS"}, name
        else:
            assert (name in sensitive) == ("h" in row.params), name
    for name, short in COMPRESSED.items():
        assert (name in sensitive) == (short.target in sensitive), name
    assert {line.name for line in CSRS.values()} <= sensitive.keys()


def test_innocuous_rows_run_directly_in_every_mode() -> None:
    """The theorem's efficiency; and what is prepared does not trap for nothing."""
    for rings in RINGS:
        assert decided(rings).direct == decided(rings).innocuous > 150


@pytest.mark.parametrize(
    "name,depends,changes",
    [
        ("sret", {"mode", "sepc", "mstatus.TSR"}, {"mode", *(f"mstatus.{b}" for b in ("SIE", "SPIE", "SPP", "MPRV"))}),
        ("mret", {"mode", "mepc"}, {"mode", *(f"mstatus.{b}" for b in ("MIE", "MPIE", "MPP", "MPRV"))}),
        ("wfi", {"mode", "mstatus.TW"}, {"waiting"}),
        ("satp", {"mode", "relocation", "mstatus.TVM"}, {"relocation"}),
        ("sfence.vma", {"mode", "mstatus.TVM"}, {"TLB"}),
        ("sfence.w.inval", {"mode"}, set()),
        ("ecall", {"mode"}, {"exception"}),
        ("ebreak", set(), {"exception"}),
        ("cbo.inval", {"mode", "menvcfg.CBIE", "senvcfg.CBIE"}, set()),
        ("sip", {"mode", "mideleg", "mip", "lines"}, {"mip"}),
        ("time", {"mode", "time", "mcounteren", "scounteren"}, set()),
        ("stimecmp", {"mode", "stimecmp", "mcounteren", "menvcfg.STCE"}, {"stimecmp", "lines"}),
        ("mhartid", {"mode", "mhartid"}, set()),
        ("vmrun", {"mode", "relocation", "mstatus.TVM"}, {"launched", "machines", "memory"}),
        ("vmend", {"mode", "mstatus.TVM"}, {"machines"}),
        ("tlbwr", {"mode", "mstatus.TVM"}, {"TLB", "stlbindex"}),
        ("fcsr", {"mstatus.FS"}, {"mstatus.FS"}),
        ("0x0, no CSR", set(), {"exception"}),
    ],
)
def test_row_is_sensitive_for_what_the_manual_says(name: str, depends: set[str], changes: set[str]) -> None:
    row = found(decided("U"))[name]
    assert row.depends == depends and row.changes == changes


# What is wrong is found


def having(**hidden: int) -> Prepare:
    """The real hart with other values."""
    values = {name.replace("_", "."): value for name, value in hidden.items()}
    return lambda v, rings: deprivileged(v, rings).having(values)


def writable(v: State, rings: Rings) -> State:
    """Every page may be written: the guest's page table too."""
    r = deprivileged(v, rings)
    frames = dict(r.frames)
    for frame in r.tables:
        words = memoryview(bytearray(frames[frame])).cast("Q")
        for n, entry in enumerate(words):
            words[n] = entry | (W if entry & 0xE else 0)
        frames[frame] = bytes(words)
    return replace(r, frames=frames)


def not_the_guests(v: State, rings: Rings) -> State:
    """A page of data has other bytes."""
    r = deprivileged(v, rings)
    frame = r.lies[DATA]
    return replace(r, frames={**r.frames, frame: bytes(len(r.frames[frame]))})


COUNTERS = {"cycle", "time", "instret", "hpmcounter3"}
MUTATIONS: dict[str, tuple[str, Prepare, set[str]]] = {
    "TSR": ("S", having(mstatus_TSR=0), {"sret"}),
    "TW": ("S", having(mstatus_TW=0), {"wfi"}),
    "TVM": (
        "S",
        having(mstatus_TVM=0),
        {"satp", "sfence.vma", "sinval.vma", "tlbwr", "tlbret", "vmrun", "vmend", "stlbvec"},
    ),
    "counters": ("S", having(mcounteren=0xFFFF_FFFF), COUNTERS),
    "counters in U": ("U", having(mcounteren=0xFFFF_FFFF, scounteren=0xFFFF_FFFF), COUNTERS),
    "TM and STCE": ("S", having(mcounteren=2, menvcfg_STCE=1), {"time", "stimecmp"}),
    "CBZE": ("S", having(menvcfg_CBZE=1), {"cbo.zero"}),
    "CBIE in U": ("U", having(menvcfg_CBIE=1, senvcfg_CBIE=1), {"cbo.inval"}),
    "FS": ("U", having(mstatus_FS=3), {"fadd.s", "fsw", "frm", "c.fld"}),
    "MXR": ("U", having(mstatus_MXR=1), {"ld", "lr.w", "c.lw", "flw"}),
    "page table": ("U", writable, {"sb", "sd", "c.sd", "amoadd.d", "fsd"}),
    "memory": ("U", not_the_guests, {"ld", "lr.w", "c.lw", "flw", "sb", "sd", "c.sd", "amoadd.d", "fsd"}),
    "ring": ("U", lambda v, rings: deprivileged(v, {**rings, S: S}), {"sstatus", "sscratch", "sie"}),
}
OTHERS = {"addi", "jalr", "beq", "fence.i", "mret", "ecall", "misa", "mepc", "fmul.d"}
"""What is not concerned by any of them."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_trap_that_is_taken_away_is_found(name: str) -> None:
    """A real hart that is prepared wrongly, in one thing: what does not trap for it any more is a violation."""
    rings, prepare, expected = MUTATIONS[name]
    names = expected | (OTHERS - {"fmul.d"} if name == "FS" else OTHERS)
    assert decide(RINGS[rings], names=names).holds
    assert violated(decide(RINGS[rings], prepare, names)) == expected


@pytest.mark.parametrize("name", ["mepc", "sscratch", "mcycle", "pmpaddr3", "menvcfg"])
def test_csr_that_users_can_reach_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number says the lowest privilege: with another one the CSR shows the monitor's in U."""
    number = NUMBERS[name]
    line = CSRS[number]
    assert decide(RINGS["U"], names={name}).holds
    monkeypatch.delitem(CSRS, number)
    monkeypatch.setitem(CSRS, number & 0xFF | 0x800, line)
    decision = decide(RINGS["U"], names={name})
    assert violated(decision) == {name}
    assert set(decision.violations[0].rows) == FORMS


def test_mixed_translation_is_not_run_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MPRV lends U's translation to M, a map that is M's own would grant what U's tables do not."""
    names = {"ld", "sd", "addi"}
    assert decide(RINGS["U"], names=names).holds
    granted = virtual_state.granted

    def without_mprv(v: State, hart: Hart, page: int, rings: Rings) -> int:
        alone = v.having({"mstatus.MPRV": 0})
        return granted(alone, alone.hart(), page, rings)

    monkeypatch.setattr(virtual_state, "granted", without_mprv)
    decision = decide(RINGS["U"], names=names)
    assert violated(decision) == {"ld", "sd"}
    assert all(violation.witness.mode == M for violation in decision.violations)


@pytest.mark.parametrize(
    "name,rights,mode",
    [
        ("SUM", lambda entry, mode: rights_of(entry, mode | 1 << 2 if mode & 3 == S else mode), S),
        ("D", lambda entry, mode: rights_of(entry | DIRTY, mode), S),
        ("U", lambda entry, mode: rights_of(entry | USER if mode & 3 == U else entry, mode), U),
    ],
)
def test_shadow_that_grants_too_much_is_found(
    name: str, rights: Callable[[int, int], int], mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its witness shows the guest's entry."""
    monkeypatch.setattr(virtual_state, "rights_of", rights)
    decision = decide(RINGS["U"], names={"sd", "add"})
    [violation] = decision.violations
    assert (violation.name, violation.witness.mode) == ("sd", mode)
    assert violation.witness.bare == "store page exception"
    assert any(part.startswith("the entry of ") for part, *_ in violation.witness.parts)


def test_witness_tells_of_a_write_that_lands_in_the_monitors_hart() -> None:
    """Where what is read is the same."""

    def alike(v: State, rings: Rings) -> State:
        return deprivileged(v, rings).having({"sscratch": v.hidden()["sscratch"]})

    [violation] = decide(RINGS["S"], alike, {"sscratch"}).violations
    assert violation.witness.bare.startswith("sscratch = ")
    assert violation.witness.real == f"the monitor's {violation.witness.bare}"
    assert set(violation.rows) == {name for name in FORMS if not name.startswith("csrr.")} - {"csrr"}


# The states


@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize("mode", ALL)
def test_deprivileged_state_has_what_is_visible_and_nothing_else(mode: int, rings: str) -> None:
    """Registers and memory are the guest's; the mode is the ring's, and no hidden part is the guest's unless it has to
    have a value.
    """
    chosen = choose(mode)
    for v in (*chosen.hardware, *chosen.software, *chosen.moved, *chosen.more, *chosen.odd):
        r = deprivileged(v, RINGS[rings])
        assert r.field("priv") == RINGS[rings][mode]
        for start, end in (("x", "priv"), ("fflags", "pmpcfg0")):
            part = slice(FIELDS[start].offset, FIELDS[end].offset)
            assert r.words[part] == v.words[part]
        assert {p: r.frames[f] for p, f in r.lies.items()} == {p: v.frames[f] for p, f in v.lies.items()}
        guest, monitor = v.hidden(), r.hidden()
        assert {name: monitor[name] for name in FORCED} == FORCED
        free = HIDDEN.keys() - FORCED.keys() - {"mstatus.FS", "mstatus.SUM", "mstatus.MXR"}
        assert not [name for name in free if guest[name] == monitor[name]]
        dirty = guest["mstatus.FS"] == 3
        assert monitor["mstatus.FS"] == (3 if dirty else 0)
        shared = rings == "S"  # S and U are told apart there as the guest has it
        for name in ("mstatus.SUM", "mstatus.MXR"):
            assert monitor[name] == (guest[name] if shared else 0)
        assert r.field("satp") != v.field("satp")


def test_deprivileged_state_does_not_depend_on_the_instruction() -> None:
    """So it is prepared once for all that are tried."""
    for mode in ALL:
        for v in (choose(mode).hardware[1], choose(mode).odd[0]):
            for instance in every()[::300]:
                assert deprivileged(instance.within(v), RINGS["S"]) == instance.within(deprivileged(v, RINGS["S"]))


def test_trial_is_the_same_in_place() -> None:
    """An instruction that is put into a state comes to what the state with the instruction does."""
    bare, _ = machines()
    for mode in ALL:
        v = choose(mode).hardware[0]
        for instance in every()[::40]:
            assert bare.run(v, instance) == bare.run(instance.within(v))


def test_every_field_of_the_hart_is_visible_or_hidden() -> None:
    """And every bit of mstatus that can be written."""
    whole = {name.partition(".")[0] for name in HIDDEN}
    sorted_out = [*VISIBLE, *APART, *AT_REST, *MADE]
    assert not whole & set(sorted_out) and len(set(sorted_out)) == len(sorted_out)
    assert whole | set(sorted_out) == FIELDS.keys() - {"pmpaddr"} | {"time"}
    bits = sum(((1 << h.width) - 1) << h.shift for h in HIDDEN.values() if h.name.startswith("mstatus."))
    assert bits == STATUS_WRITABLE


def test_hidden_values_are_what_the_hart_can_hold() -> None:
    """What M-mode writes is there."""
    board = virt(4 << 20, engine="reference", tlb="software")
    hart = board.harts[0]
    for part in HIDDEN.values():
        name = part.name.partition(".")[0]
        hart.reset()
        if name in NUMBERS and name not in ("time", "mhartid", "mcycle", "minstret", "pmpcfg2"):
            for value in part.values:
                board.reference.write_csrs(hart, [(NUMBERS[name], value << part.shift)])
                assert hart[name] >> part.shift & (1 << part.width) - 1 == value, part.name
    assert all(len(set(part.values)) == len(part.values) > 1 for part in HIDDEN.values())
    assert max(part.index for part in HIDDEN.values()) == TIME >> 3


def test_every_row_is_tried_with_every_csr() -> None:
    rows = {instance.row for instance in every()}
    assert rows == ISA.keys() | COMPRESSED.keys()
    for name in [*NUMBERS, "0x0, no CSR"]:
        assert {instance.row for instance in every() if instance.name == name} >= FORMS
    assert CLOSED.keys() == HIDDEN.keys() and TABLE not in choose(S).hardware[0].lies


# Sensitive data structures

STORES = "the kernel: a store to its page table", "the kernel: a store that clears them", "the walk sets them"
"""What changes a guest's page table: its own stores, and the hart."""


@cache
def referred(rings: str) -> list[Reference]:
    return references(RINGS[rings], "trap" if rings == "U" else None)


def test_data_are_answered_in_user_rings() -> None:
    """By a trap, a copy, or memory that is the guest's own; and under `trap` all ends as on the bare machine."""
    for reference in referred("U"):
        assert reference.holds and "the real hart" not in reference.answers, reference.who
        assert reference.monitor is not None and reference.monitor.filled > 0
    answers = {(r.structure.split()[0], r.who.removeprefix("the kernel: ")): r.answers for r in referred("U")}
    assert answers["U", "walks for load, store and fetch"] == ("a copy",)
    assert answers["U", "a process: a walk for a kernel's page"] == ("a trap",)
    assert answers["U", "a load from its page table"] == ("own memory",)
    assert answers["U", "a store to its page table"] == ("a trap",)
    assert answers["A", "the walk sets them"] == ("a trap",)
    assert answers["SPP", "sret"] == ("a trap",)


def test_monitor_sees_each_store_to_a_page_table() -> None:
    """And just those trap of the programs that only refer to memory."""
    stores = {r.who: r.monitor.table_writes for r in referred("U") if r.monitor is not None}
    assert [who for who, count in stores.items() if count] == list(STORES[:2])
    applied = {r.who: r.monitor.applied for r in referred("U") if r.monitor is not None}
    assert applied["the kernel: walks for load, store and fetch"] == 0
    assert applied["the kernel: sstatus, written before sret"] == 2


def test_saved_spp_is_the_real_one_in_supervisor_rings() -> None:
    """And so it is where the guest saves it; page tables are answered as in the others."""
    broken = [r for r in referred("S") if not r.holds]
    assert {r.structure for r in broken} == {"SPP saved in the hart", IN_MEMORY}
    assert all(r.answers[0] == "the real hart" for r in broken if r.structure != IN_MEMORY)
    assert [r.who for r in referred("S") if r.holds and "SPP" in r.structure] == ["the kernel: sret"]
    assert [r[:4] for r in referred("S") if "SPP" not in r.structure] == [
        r[:4] for r in referred("U") if "SPP" not in r.structure
    ]


WRONG: dict[str, tuple[str, Prepare, Callable[[Reference], bool]]] = {
    "page table": ("U", writable, lambda r: r.who in STORES),
    "TSR": ("S", having(mstatus_TSR=0), lambda r: r.who.endswith("sret")),
}


@pytest.mark.parametrize("name", WRONG)
def test_reference_that_is_not_answered_is_found(name: str) -> None:
    rings, prepare, expected = WRONG[name]
    before = {r.who for r in referred(rings) if not r.holds}
    found = {r.who for r in references(RINGS[rings], prepare=prepare) if not r.holds}
    assert found - before == {r.who for r in referred(rings) if expected(r)} - before != set()
