"""What a meaning may touch beside its operands: the effects that a reading hands it.

A reading (the reference over known words, the threaded one over LLVM values) implements all three. Methods that do
not return leave the instruction with nothing done: a row finishes all that can trap before its first effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar

from ringfence.word import Word

Value = TypeVar("Value", bound="Word | tuple[Word, ...] | None")


class Control(Protocol):
    """Control flow inside a meaning."""

    def when(self, condition: Word, then: Callable[[], Value], otherwise: Callable[[], Value] | None = None) -> Value:
        """Run one of two closures. Over known words one is run; over LLVM values both become blocks, and results are
        merged.
        """
        ...

    def trap(self, cause: Word | int, tval: Word | int = 0) -> NoReturn:
        """Take a synchronous exception (privileged manual, table of mcause values)."""
        ...

    def illegal(self) -> NoReturn:
        """Take the illegal-instruction exception; tval is the instruction."""
        ...


class Memory(Control, Protocol):
    """`m`: memory and control flow. Addresses are virtual, 64 bits."""

    def load(self, va: Word, bits: int) -> Word:
        """`bits` at va: 8, 16, 32 or 64, misaligned or not."""
        ...

    def store(self, va: Word, value: Word) -> None:
        """Store the value's width at va."""
        ...

    def amo(self, va: Word, bits: int, change: Callable[[Word], Word]) -> Word:
        """Replace the aligned word at va by change(word), atomically; the old one is returned."""
        ...

    def load_reserved(self, va: Word, bits: int) -> Word: ...

    def store_conditional(self, va: Word, value: Word) -> Word:
        """0 where the reservation held and the value was stored, else 1."""
        ...

    def zero_block(self, va: Word) -> None:
        """Zero the 64 bytes around va."""
        ...

    def touch(self, va: Word) -> None:
        """Fault where neither a load nor a store of the 64 bytes around va is permitted, as a store would; do nothing
        else.
        """
        ...

    def branch(self, offset: Word, when: Word | None = None) -> None:
        """Go to pc + offset, where `when` is 1."""
        ...

    def jump(self, target: Word) -> None:
        """Go to a computed address."""
        ...


class Float(Control, Protocol):
    """`f`: floating-point state and rounding arithmetic.

    Operands are words of 32 or 64 bits in IEEE 754 interchange format; results have canonical NaNs; accrued flags are
    raised. `rm` is the instruction's 3-bit field, 7 meaning frm; a reserved one is an illegal instruction.
    """

    def mode(self, rm: Word) -> Word:
        """The rounding mode meant by the field, 3 bits: 0 to 4."""
        ...

    def raise_flags(self, flags: Word) -> None:
        """Accrue 5 bits: NV DZ OF UF NX, NX the least significant."""
        ...

    def add(self, a: Word, b: Word, rm: Word) -> Word: ...
    def sub(self, a: Word, b: Word, rm: Word) -> Word: ...
    def mul(self, a: Word, b: Word, rm: Word) -> Word: ...
    def div(self, a: Word, b: Word, rm: Word) -> Word: ...
    def sqrt(self, a: Word, rm: Word) -> Word: ...
    def fma(self, a: Word, b: Word, c: Word, rm: Word) -> Word:
        """a * b + c, rounded once."""
        ...

    def narrow(self, a: Word, rm: Word) -> Word:
        """A 64-bit value as a 32-bit one."""
        ...


class System(Control, Protocol):
    """`h`: the hart's other state. Its fields (machine.hart) are attributes."""

    def __getattr__(self, name: str) -> Word: ...
    def __setattr__(self, name: str, value: Word) -> None: ...

    def rare(self) -> None:
        """This path is the reference's: a reading in native code leaves here, with nothing done yet."""
        ...

    def jump(self, target: Word) -> None: ...

    def regime(self) -> None:
        """Privilege, satp or a bit of mstatus that translation depends on has changed."""
        ...

    def refetch(self) -> None:
        """The next instruction's fetch is translated anew."""
        ...

    def float_state(self) -> None:
        """mstatus.FS or frm has changed."""
        ...

    def check_point(self) -> None:
        """Interrupts are taken behind this instruction."""
        ...

    def environment_call(self) -> NoReturn:
        """ECALL: an exception by privilege; or, from S, a service of the machine's built-in SBI."""
        ...

    def wait(self) -> None:
        """Wait for an interrupt."""
        ...

    def launch(self, pa: Word) -> None:
        """The hart runs the virtual machine that the control block at a physical address describes (Xhv)."""
        ...

    def end(self, vmid: Word) -> None:
        """The machine of that number, launched by this one, is no more."""
        ...

    def timer(self) -> None:
        """A timer's compare register or enable has changed."""
        ...

    def protection(self) -> None:
        """Physical memory protection has changed."""
        ...

    def time(self) -> Word:
        """mtime, in ticks of 100 ns."""
        ...

    def steps(self) -> Word:
        """Steps of the machine, up to and without this instruction."""
        ...

    def find(self, name: str, *words: Word) -> Word:
        """The number of the first word of an array of the state that is one of `words`; how many there are, where none
        is.
        """
        ...

    def element(self, name: str, n: Word) -> Word:
        """Word `n` of an array of the state."""
        ...

    def set_element(self, name: str, n: Word, value: Word) -> None: ...

    def replace(self, name: str, change: Callable[[Word], Word]) -> None:
        """Replace each word of an array of the state by change(word)."""
        ...

    def retranslate(self, page: Word | None = None) -> None:
        """What the software-filled TLB says of the page at this address, or of any, is about to change."""
        ...

    def last_table(self, va: Word, satp: Word) -> Word:
        """The physical address of the last table on the way of `va` under a satp, where a walk has kept it and the
        upper levels are as they were; else 0.
        """
        ...

    def keep_table(self, va: Word, satp: Word, table: Word) -> None:
        """A walk has come to the last table on the way of `va`."""
        ...

    def load_pte(self, pa: Word, va: Word, level: int, access: int) -> Word:
        """The page-table entry at a physical address, on a walk for `va`; traps with the access fault of `access`."""
        ...

    def store_pte(self, pa: Word, value: Word, va: Word, access: int) -> None:
        """Write back accessed and dirty bits."""
        ...
