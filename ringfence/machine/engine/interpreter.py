"""The rows that trap in user mode, applied to the virtual hart of a hart that is lent to a monitor.

Each is its row once more, with the fields of the hart's state read and written in the virtual hart's block, but for
those that the lent hart holds while it runs. What else is asked of it is the monitor's.
"""

from __future__ import annotations

from ringfence.isa import trap
from ringfence.isa.paging import Access, effective_privilege
from ringfence.isa.trap import Cause, M, S, Status
from ringfence.machine.engine.emit import OFFSETS, SIGNATURE, Ended, Handler
from ringfence.machine.engine.layout import SPACE_STATUS, SPACES, Action, Geometry
from ringfence.machine.hart import FIELDS
from ringfence.machine.launch import DIRECT_STATUS
from ringfence.word import Int, Word, select, zext

OWN = ("x", "f", "pc", "fflags", "frm", "reservation")
"""What the lent hart holds."""


class Interpreter(Handler):
    """The handler of a row for the virtual hart."""

    moved: bool

    def begin(self, length: int, near: str = "far", twin: str | None = None) -> None:
        super().begin(length, near, twin)
        self.moved = False

    def take_over(self) -> None:
        """Where the lent hart has the guest's state of S, the virtual hart follows."""

        def follow() -> None:
            own = e_peek("mstatus")
            self.poke(self.pointer(self.holder("priv"), OFFSETS["priv"]), e_peek("priv"))
            self.set_field("mstatus", self.mstatus & ~DIRECT_STATUS | own & DIRECT_STATUS)

        def e_peek(name: str) -> Word:
            return self.peek(self.pointer("%state", OFFSETS[name]))

        self.when(e_peek("medeleg") != 0, follow)

    def holder(self, name: str) -> str:
        return self.address(self.lent("virtual")) if name in FIELDS and name not in OWN else "%state"

    def lent(self, name: str) -> Word:
        return super().field(name)

    def set_lent(self, name: str, value: Word) -> None:
        super().set_field(name, value)

    def field(self, name: str) -> Word:
        return self.peek(self.pointer(self.holder(name), OFFSETS[name]))

    def set_field(self, name: str, value: Word) -> None:
        if name == "mstatus":
            self.set_lent("vmpsl", value)
        self.poke(self.pointer(self.holder(name), OFFSETS[name]), value)

    # What is asked of it

    def leave(self, action: int) -> None:  # type: ignore[override]
        """Privileged instructions are illegal in user mode."""
        self.set_field("action", Int(Action.LENT))
        self.set_field("cause", Int(Cause.ILLEGAL))
        self.set_field("tval", Int(0))
        self.tail("@leave")

    def trap(self, cause: Word | int, tval: Word | int = 0) -> None:  # type: ignore[override]
        self.set_field("cause", cause if isinstance(cause, Word) else Int(int(cause)))
        self.set_field("tval", tval if isinstance(tval, Word) else Int(tval))
        self.set_field("pc", self.pc())
        self.tail("@virtual_trap")

    def regime(self) -> None:
        self.moved = True

    def retranslate(self, page: Word | None = None) -> None:
        """The monitor has filled the lent hart's TLB by the virtual hart's."""
        self.rare()

    def float_state(self) -> None:
        self.b.emit("call void @virtual_float_state(ptr %state)")

    # Going on

    def finish(self) -> None:
        self.set_lent("applied", self.lent("applied") + 1)
        kind, word = self.transfer
        steps = self.steps() + 1
        if kind != "jump" and not (self.check or self.again or self.moved):
            self._next(steps)
        if kind == "jump":
            assert word is not None
            self.set_field("pc", word)
        else:
            self.set_field("pc", self.pc() + self.length)
        if self.moved:
            self.b.emit("call void @space(ptr %state)")
        if not self.check and kind != "jump":
            entered = (self.field("pc") & 4095) < self.length
            self.when(entered ^ 1, lambda: self.tail("@virtual_next", steps=steps))
        self.tail("@virtual_check", steps=steps)


def functions(g: Geometry) -> str:
    return "\n".join([_space(g), _float_state(g), _trap(g), _check(g), _next(g)])


def _space(g: Geometry) -> str:
    """The mode and page tables that the monitor has for the virtual hart's mode; where it has told none, `space_key`
    stays to be seen to.
    """
    e = Interpreter(g, 0)
    priv, status = e.priv, e.mstatus
    translated = select(priv == M, Int(0), e.space(e.satp))
    access = select(priv == S, status & 1 << Status.SUM, Int(0)) | status & 1 << Status.MXR
    mixed = zext(effective_privilege(e, Access.LOAD) != priv)  # type: ignore[arg-type]
    key = translated | priv << 44 | access << 28 | mixed << 48 | 1 << 49
    e.set_lent("space_key", key)
    keys, spaces, codes, modes, lent = (
        e.pointer("%state", OFFSETS[name]) for name in ("space_keys", "spaces", "code_spaces", "space_modes", "mstatus")
    )

    def look(at: Word) -> None:
        def found() -> None:
            mode = e.peek(e.pointer(modes, at))
            words = e.peek(e.pointer(spaces, at)), e.peek(e.pointer(codes, at)), mode & 3
            for name, value in zip(("satp", "isatp", "priv"), words, strict=True):
                e.poke(e.pointer("%state", OFFSETS[name]), value)
            e.poke(lent, e.peek(lent) & ~SPACE_STATUS | mode & SPACE_STATUS)
            e.set_lent("space_key", Int(0))
            e.b.emit("call void @regime(ptr %state)")
            e.b.emit("ret void")
            raise Ended

        e.when(e.peek(e.pointer(keys, at)) == key, found)

    e.loop(Int(0), Int(8 * SPACES), 8, look)
    e.b.emit("ret void")
    return e.text("internal void @space(ptr %state) noinline nounwind")


def _float_state(g: Geometry) -> str:
    """The lent hart has floating point while the virtual hart's is dirty already: so it has nothing to tell of it."""
    e = Interpreter(g, 0)
    dirty = (e.mstatus >> Status.FS & 3) == 3
    place = e.pointer("%state", OFFSETS["mstatus"])
    own = e.peek(place) & ~(3 << Status.FS)
    e.poke(place, select(dirty, own | 3 << Status.FS, own))
    e.b.emit("call void @float_state(ptr %state)")
    e.b.emit("ret void")
    return e.text("internal void @virtual_float_state(ptr %state) noinline nounwind")


def _handler(g: Geometry, name: str, body: str) -> str:
    h = Interpreter(g, 0)
    return h.define(f"internal preserve_nonecc i64 @{name}{SIGNATURE} noinline nounwind", lambda: _BODIES[body](h))


def _trap(g: Geometry) -> str:
    """The virtual hart takes the exception at `pc`."""
    return _handler(g, "virtual_trap", "trap")


def _check(g: Geometry) -> str:
    """A check point at `pc`."""
    return _handler(g, "virtual_check", "check")


def _next(g: Geometry) -> str:
    """On at `pc`."""
    return _handler(g, "virtual_next", "next")


def _take(h: Interpreter) -> None:
    trap.enter(h, h.field("cause"), h.field("tval"), h.field("pc"), False)  # type: ignore[arg-type]
    h.finish()


def _leave(h: Interpreter, action: int) -> None:
    h.set_field("action", Int(action))
    h.set_field("steps", h.steps())
    h.b.emit("ret i64 0")
    raise Ended


def _at_check_point(h: Interpreter) -> None:
    def interrupted() -> None:
        h.when(trap.pending(h) != 0, lambda: _leave(h, Action.DEADLINE))  # type: ignore[arg-type]

    h.when(h.steps() >= h.field("limit"), lambda: _leave(h, Action.DEADLINE))
    h.when(((h.mip | h.lines) & h.mie) != 0, interrupted)
    _go_on(h)


def _go_on(h: Interpreter) -> None:
    h.when(h.field("space_key") != 0, lambda: _leave(h, Action.SPACE))
    h.tail("@fetch")


_BODIES = {"trap": _take, "check": _at_check_point, "next": _go_on}
