"""Whether this machine can be virtualized by trapping, decided by execution.

Popek and Goldberg, "Formal Requirements for Virtualizable Third Generation Architectures" (1974): there is a monitor
where every sensitive instruction is privileged. Here each row of isa/, with each CSR, runs in the reference reading

- from pairs of states that are alike in what is visible, and differ in a hidden part: where the outcome differs the row
  is behaviour sensitive; where it changes a hidden part it is control sensitive; else it is innocuous;
- from the state that a monitor prepares for direct execution in its rings: there it traps, or it gives just what the
  bare machine gives and changes nothing hidden, of the guest or of the monitor. What does neither is a violation.

The first is about a row, the second about a row in a state, as their proof of theorem 1 needs it: where it is not
sensitive a row may run directly. docs/virtualizable.md tells it in full.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

from ringfence.isa.paging import ACCESSED, DIRTY, USER, V
from ringfence.isa.spec import F_NAMES, X_NAMES
from ringfence.isa.trap import Cause, M, S, U
from ringfence.machine.board import MEMORY_LEAST
from ringfence.monitor.chosen import CLOSED, HARDWARE, SOFTWARE, choose
from ringfence.monitor.instance import Instance, elsewhere, instances
from ringfence.monitor.technique.rings import Rings
from ringfence.monitor.technique.shadow import RIGHTS
from ringfence.monitor.trial import Outcome, Seen, Trial, affected, visible
from ringfence.monitor.virtual_state import HIDDEN, State, deprivileged, leaf

Prepare = Callable[[State, Rings], State]
"""The real state for a virtual one (`virtual_state.deprivileged`)."""
Traps = Literal["always", "where it must", "no"]
TOGETHER = 8
"""Hidden parts that are changed at once, to see whether any of them matters."""
MODES = S, M, U
"""In the order in which a witness is sought."""


class Sensitive(NamedTuple):
    """A row, or a CSR under every row that refers to it."""

    name: str
    depends: frozenset[str]
    """Parts of the hidden state that make its outcome another."""
    changes: frozenset[str]
    """Parts that it changes; "exception": it takes one in every state."""
    traps: Traps


class Witness(NamedTuple):
    """The smallest state in which a row neither traps nor does what it does on the bare machine."""

    instruction: str
    mode: int
    real_mode: int
    parts: tuple[tuple[str, int, int], ...]
    """What of the hidden state, or which page-table entries, it is about: the guest's value and the monitor's."""
    bare: str
    """What the bare machine gives."""
    real: str
    """And the hart that the monitor has prepared."""


class Violation(NamedTuple):
    name: str
    rows: tuple[str, ...]
    witness: Witness


@dataclass(frozen=True)
class Decision:
    """What was found of all rows."""

    instructions: int
    """Rows, those of CSR instructions with each CSR."""
    tried: int
    """States in which one ran, on the bare machine and deprivileged."""
    innocuous: int
    """Rows that are not sensitive."""
    direct: int
    """Those of them that run directly in every virtual mode: the theorem's efficiency."""
    sensitive: tuple[Sensitive, ...]
    violations: tuple[Violation, ...]

    @property
    def holds(self) -> bool:
        return not self.violations


@dataclass
class _Row:
    """What is known of a row, or a CSR."""

    depends: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)
    completes = False
    """On the bare machine, in some state."""
    direct: set[int] = field(default_factory=set)
    """Virtual modes in which it does so deprivileged."""
    breaches: dict[str, tuple[tuple[int, int, int], Instance, State]] = field(default_factory=dict)
    """By row: the first state found, with its rank."""


@cache
def machines() -> tuple[Trial, Trial]:
    """The bare machine, and the one that a monitor has, which is larger."""
    return Trial(MEMORY_LEAST), Trial(2 * MEMORY_LEAST)


def breaks(bare: Seen, changed: Set[str], real: Seen, real_changed: Set[str]) -> bool:
    """The condition. Of a hart that did not trap: whether what comes of it is not what the bare machine does, or the
    hidden part changes there, or the monitor's here.
    """
    return bare != real or bool(changed) or bool(real_changed)


class _Examination:
    """Of all rows; state by state, so that what a state takes to be put there is done once."""

    def __init__(self, rings: Rings, prepare: Prepare, chosen: Sequence[Instance]) -> None:
        self._rings, self._prepare, self._instances = rings, prepare, chosen
        self._bare, self._host = machines()
        self.rows = {instance.name: _Row() for instance in chosen}
        self.tried = 0

    def run(self) -> None:
        memory = [i for i in self._instances if i.memory]
        memory += [other for i in memory for other in elsewhere(i)]
        alike: dict[int, list[list[Seen]]] = {}
        for mode in MODES:
            states = choose(mode)
            alike[mode] = []
            for group in (states.hardware, states.software):
                outcomes = [self._each(self._instances, v) for v in group]
                self._name(group, outcomes)
                alike[mode] += outcomes
            moved = [self._each(self._instances, v) for v in states.moved]
            self._differ("relocation", [alike[mode][0], *moved])
            for v in states.more:
                self._each(self._instances, v)
            for v in states.odd:
                self._each(memory, v, changes=False)
        for n, hidden in enumerate((*HARDWARE, *SOFTWARE)):
            if not hidden["mstatus.MPRV"]:  # which M-mode alone has
                self._differ("mode", [outcomes[n] for outcomes in alike.values()])

    def _each(self, chosen: Sequence[Instance], v: State, changes: bool = True) -> list[Seen]:
        """What is visible of each instruction on the bare machine; and whether it runs so deprivileged. `changes`: what
        it changes counts for what it is.
        """
        r, mode = self._prepare(v, self._rings), MODES.index(v.field("priv"))
        found = []
        for instance in chosen:
            row = self.rows[instance.name]
            bare, real = self._bare.run(v, instance), self._host.run(r, instance)
            seen, parts = visible(v, bare), affected(v, bare)
            found.append(seen)
            row.completes |= bare.trapped is None
            if changes:
                row.changes |= parts
            if real.trapped is None:
                row.direct.add(v.field("priv"))
                monitors = affected(r, real)
                if breaks(seen, parts, visible(r, real), monitors):
                    rank = int(bool(parts or monitors)), instance.operands, mode
                    if instance.row not in row.breaches or rank < row.breaches[instance.row][0]:
                        row.breaches[instance.row] = rank, instance, v
        self.tried += len(chosen)
        return found

    def _differ(self, part: str, outcomes: Sequence[list[Seen]]) -> None:
        """States differ in this part alone."""
        for instance, *seen in zip(self._instances, *outcomes, strict=True):
            if any(other != seen[0] for other in seen):
                self.rows[instance.name].depends.add(part)

    def _name(self, states: Sequence[State], outcomes: Sequence[list[Seen]]) -> None:
        """Where outcomes differ: the hidden parts each of which alone makes the outcome another."""
        differing: dict[str, int] = {}
        for n, (first, *seen) in enumerate(zip(*outcomes, strict=True)):
            if any(other != first for other in seen):
                differing.setdefault(self._instances[n].name, n)
        for v, was in zip(states[:2], outcomes, strict=False):
            hidden, parts = v.hidden(), list(HIDDEN)
            if v.field("priv") != M or hidden["mstatus.MPP"] != M:  # memory would not be alike
                parts.remove("mstatus.MPRV")
            elif hidden["mstatus.MPRV"]:
                parts.remove("mstatus.MPP")
            known = {name: (self._instances[n], was[n]) for name, n in differing.items()}
            for at in range(0, len(parts), TOGETHER):
                some = parts[at : at + TOGETHER]
                suspect = self._others(v, hidden, some, known)
                for part in some:
                    for name in self._others(v, hidden, [part], suspect):
                        self.rows[name].depends.add(part)

    def _others(
        self, v: State, hidden: Mapping[str, int], parts: Sequence[str], known: Mapping[str, tuple[Instance, Seen]]
    ) -> dict[str, tuple[Instance, Seen]]:
        """Of instructions and their outcomes in a state, those that have another where these parts are others."""
        changed = v.having({part: HIDDEN[part].other(hidden[part]) for part in parts})
        others = {}
        for name, (instance, was) in known.items():
            found = self._bare.run(changed, instance)
            self.rows[name].changes |= affected(changed, found)
            if visible(changed, found) != was:
                others[name] = instance, was
        return others

    # Witnesses

    def witness(self, row: _Row) -> Witness:
        _, instance, template = min(row.breaches.values(), key=lambda found: found[0])
        v = instance.within(template)
        r = self._prepare(v, self._rings)
        for name, value in v.hidden().items():
            if value != CLOSED[name]:
                smaller = v.having({name: CLOSED[name]})
                prepared = self._prepare(smaller, self._rings)
                if self._breaks(smaller, prepared):
                    v, r = smaller, prepared
        guest = v.hidden()
        for name, value in reversed(r.hidden().items()):
            if value != guest[name] and self._breaks(v, closer := r.having({name: guest[name]})):
                r = closer
        bare, real = self._bare.run(v), self._host.run(r)
        monitor = r.hidden()
        parts = [name for name in HIDDEN if guest[name] != monitor[name]]
        parts = parts or sorted((affected(v, bare) | affected(r, real)) & HIDDEN.keys())
        values = [(name, guest[name], monitor[name]) for name in parts]
        return Witness(
            str(instance),
            v.field("priv"),
            r.field("priv"),
            tuple(values or unusual(v, r)),
            told(v, bare, r, real),
            told(r, real, v, bare, "the monitor's "),
        )

    def _breaks(self, v: State, r: State) -> bool:
        bare, real = self._bare.run(v), self._host.run(r)
        return real.trapped is None and breaks(visible(v, bare), affected(v, bare), visible(r, real), affected(r, real))


def unusual(v: State, r: State) -> Iterator[tuple[str, int, int]]:
    """The flags of page-table entries that do not grant all that the mode can have, the guest's and the monitor's."""
    for page in v.lies if v.field("satp") else ():
        flags, real = ((leaf(state, page) or 0) & 0xFF for state in (v, r))
        if flags & ~USER != V | RIGHTS | ACCESSED | DIRTY or (flags & USER == 0) == (v.field("priv") == U):
            yield f"the entry of {page << 12:#x}", flags, real


def told(v: State, found: Outcome, other: State, beside: Outcome, whose: str = "") -> str:
    """What an outcome has that another has not: in words."""
    if found.trapped is not None:
        return f"{Cause(found.trapped[0]).name.lower().replace('_', ' ')} exception"
    after, before = (
        State(o.words + s.words[len(o.words) :], {}, {}, frozenset()).hart() for o, s in ((found, v), (beside, other))
    )
    registers = (*X_NAMES, *F_NAMES, "pc", "fflags")
    said = [f"{name} = {after[name]:#x}" for name in registers if after[name] != before[name]]
    pages = [{p: o.changed[f] for p, f in s.lies.items() if f in o.changed} for s, o in ((v, found), (other, beside))]
    if pages[0] != pages[1]:
        said.append("memory")
    hidden = State(found.words + v.words[len(found.words) :], {}, {}, frozenset()).hidden()
    for name in sorted(affected(v, found)):
        said.append(f"{whose}{name}" + (f" = {hidden[name]:#x}" if name in hidden else ""))
    return ", ".join(said) or "nothing"


def decide(rings: Rings, prepare: Prepare = deprivileged, names: Collection[str] | None = None) -> Decision:
    """Try every row in every mode, or those of these names, and CSRs. `prepare` makes the state in which it runs
    deprivileged.
    """
    chosen = [instance for instance in instances() if names is None or instance.name in names]
    examination = _Examination(rings, prepare, chosen)
    examination.run()
    sensitive, violations, innocuous = [], [], []
    for name, row in examination.rows.items():
        if not row.completes:
            row.changes.add("exception")
        traps: Traps = "no" if row.breaches else "where it must" if row.direct else "always"
        if row.depends or row.changes:
            sensitive.append(Sensitive(name, frozenset(row.depends), frozenset(row.changes), traps))
        else:
            innocuous.append(row.direct == set(MODES))
        if row.breaches:
            violations.append(Violation(name, tuple(row.breaches), examination.witness(row)))
    instructions = len({(instance.name, instance.row) for instance in chosen})
    return Decision(
        instructions, examination.tried, len(innocuous), sum(innocuous), tuple(sensitive), tuple(violations)
    )
