"""A kernel's symbols, out of the table that it keeps itself."""

from io import BytesIO
from struct import pack

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given
from hypothesis import strategies as st

from ringfence.errors import ImageError
from ringfence.guest.kallsyms import symbol_file, symbols

BASE = 0xFFFF_FFFF_8000_0000


def kernel(found: list[tuple[int, str]], base: int = BASE) -> bytes:
    """Something like an Image: code, then a table as the kernel's build writes it, then more."""

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 8)

    tokens = [bytes([n]) if 0x20 < n < 0x7F else b"tok%d" % n for n in range(256)]
    names, markers = bytearray(), []
    for n, (_, name) in enumerate(found):
        if n % 256 == 0:
            markers.append(len(names))
        length = len(name)
        names += bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])
        names += name.encode()
    starts = [sum(len(t) + 1 for t in tokens[:n]) for n in range(256)]
    return b"".join(
        [
            b"\x13\0\0\0" * 1000,
            pack("<Q", len(found)),
            padded(bytes(names)),
            padded(pack(f"<{len(markers)}I", *markers)),
            padded(b"".join(t + b"\0" for t in tokens)),
            pack("<256H", *starts),
            padded(pack(f"<{len(found)}I", *(address - BASE for address, _ in found))),
            pack("<Q", base),
            b"\x13\0\0\0" * 100,
        ]
    )


SOME = [(BASE + 16 * n, f"{'tTdb'[n % 4]}symbol_{n}{'_long' * (n % 40)}") for n in range(1500)]


@pytest.mark.parametrize("base", [BASE, 0])
def test_symbols_are_those_of_the_table(base: int) -> None:
    """Addresses, types and names come out as they went in, be the kernel relocatable or not."""
    assert symbols(kernel(SOME, base)) == [(address, name[0], name[1:]) for address, name in SOME]


def test_symbols_are_refused_where_there_is_no_table() -> None:
    """A kernel without a table, or with half of one, is told from one that has it."""
    whole = kernel(SOME)
    for data in (b"", bytes(10000), whole[:4000], whole[: len(whole) // 2], whole[20000:]):
        with pytest.raises(ImageError, match="no table of symbols"):
            symbols(data)


@given(st.data())
def test_symbols_of_a_damaged_kernel_are_refused_or_read(data: st.DataObject) -> None:
    """Whatever bytes are changed, there is an answer or an ImageError."""
    image = bytearray(kernel(SOME[:300]))
    for _ in range(data.draw(st.integers(1, 20))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    try:
        symbols(bytes(image))
    except ImageError:
        pass


def test_symbol_file_is_an_elf_file_with_the_symbols() -> None:
    """An independent reader finds each symbol at its address."""
    table = ELFFile(BytesIO(symbol_file(kernel(SOME)))).get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    assert [(s["st_value"], s.name) for s in table.iter_symbols()][1:] == [(a, n[1:]) for a, n in SOME]
