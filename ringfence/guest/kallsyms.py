"""The symbols of a Linux kernel, from the table that it keeps for its own messages; and an ELF file with them, for gdb.

Source: Linux 6.12, scripts/kallsyms.c: num_syms, names, markers, token_table, token_index, offsets and relative_base
lie in this order, each at a multiple of 8. A name is a length and so many tokens; every 256th name has a marker.
"""

from __future__ import annotations

from struct import Struct, error, unpack_from

from ringfence.errors import ImageError

_DIGITS = b"".join(b"%d\0" % n for n in range(10))
"""A token that is one character has that character's number."""
_LINKED_AT = 0xFFFF_FFFF_8000_0000
"""Where a riscv64 kernel is linked; a relocatable one does not say so in its table."""
_MOST = 1 << 22

_EHDR = Struct("<16sHHIQQQIHHHHHH")
_SHDR = Struct("<IIQQQQIIQQ")
_SYM = Struct("<IBBHQQ")
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_NOBITS, _SYMTAB, _STRTAB, _ALLOC, _EXECUTE = 8, 2, 3, 2, 4
_GLOBAL, _FUNCTION, _OBJECT = 1, 2, 1
_ABSOLUTE = 0xFFF1


def symbols(kernel: bytes) -> list[tuple[int, str, str]]:
    """(address, type as in nm, name), by address. Raises ImageError where the kernel has no such table."""
    try:
        return _symbols(kernel)
    except (IndexError, ValueError, error):
        raise ImageError("the kernel has no table of symbols") from None


def _symbols(kernel: bytes) -> list[tuple[int, str, str]]:
    table, tokens = _tokens(kernel)
    markers = _markers(kernel, table)
    names, count = _names(kernel, table - 4 * len(markers) & -8, markers)
    after = table + sum(len(token) + 1 for token in tokens)
    offsets_at = _aligned(_aligned(after) + 512)
    offsets = unpack_from(f"<{count}I", kernel[offsets_at : offsets_at + 4 * count])
    base = int.from_bytes(kernel[_aligned(offsets_at + 4 * count) :][:8], "little") or _LINKED_AT
    found = []
    for offset in offsets:
        length = kernel[names]
        names += 1
        if length & 0x80:
            length = length & 0x7F | kernel[names] << 7
            names += 1
        text = b"".join([tokens[n] for n in kernel[names : names + length]]).decode("ascii", "replace")
        names += length
        found.append((base + offset, text[0], text[1:]))
    return found


def _aligned(at: int) -> int:
    return at + 7 & -8


def _tokens(kernel: bytes) -> tuple[int, list[bytes]]:
    """Where the token table is, and the 256 tokens: found by the digits, proved by the index behind it."""
    at = -1
    while (at := kernel.find(_DIGITS, at + 1)) >= 0:
        start = at
        for _ in range(ord("0")):
            start = kernel.rfind(b"\0", 0, start - 1) + 1
        tokens = kernel[start : start + 65536].split(b"\0", 256)[:256]
        index = _aligned(start + sum(len(token) + 1 for token in tokens))
        if len(kernel) < index + 512:
            break
        expected = [0]
        for token in tokens[:-1]:
            expected.append(expected[-1] + len(token) + 1)
        if list(unpack_from("<256H", kernel, index)) == expected:
            return start, tokens
    raise ValueError


def _markers(kernel: bytes, end: int) -> list[int]:
    """The offsets of every 256th name, which end at the token table; the first is 0."""
    found: list[int] = []
    at = end - 4
    if not any(kernel[at : at + 4]):  # padding
        at -= 4
    while not found or found[-1]:
        found.append(int.from_bytes(kernel[at : at + 4], "little"))
        if (len(found) > 1 and found[-1] >= found[-2]) or len(found) > _MOST:
            raise ValueError
        at -= 4
    return found[::-1]


def _names(kernel: bytes, markers_at: int, markers: list[int]) -> tuple[int, int]:
    """Where the names begin, and how many there are: 8 bytes before them is their number, which fits the markers."""
    least, most = 256 * (len(markers) - 1), 256 * len(markers)
    for start in range(markers_at - markers[-1] & -8, max(markers_at - markers[-1] - (1 << 20), 8), -8):
        count = int.from_bytes(kernel[start - 8 : start], "little")
        if least < count <= most:
            at = start
            for _ in range(256 * min(len(markers) - 1, 4)):
                length = kernel[at]
                at += 1 + length if length < 0x80 else 2 + (length & 0x7F | kernel[at + 1] << 7)
            if at - start == markers[min(len(markers) - 1, 4)]:
                return start, count
    raise ValueError


def symbol_file(kernel: bytes) -> bytes:
    """An ELF file with the kernel's symbols and none of its code, for gdb. Raises ImageError as `symbols` does."""
    found = symbols(kernel)
    names, entries = bytearray(1), bytearray(_SYM.size * (len(found) + 1))
    for n, (address, kind, name) in enumerate(found, 1):
        info = _GLOBAL << 4 | (_FUNCTION if kind in "tTwW" else _OBJECT)
        section = 1 if kind not in "aA" else _ABSOLUTE
        _SYM.pack_into(entries, n * _SYM.size, len(names), info, 0, section, address, 0)
        names += name.encode() + b"\0"
    titles = b"\0.text\0.symtab\0.strtab\0"
    at = _EHDR.size
    start, end = found[0][0] & -4096, found[-1][0] + 4096
    sections = [
        bytes(_SHDR.size),
        _SHDR.pack(titles.index(b".text"), _NOBITS, _ALLOC | _EXECUTE, start, at, end - start, 0, 0, 4096, 0),
        _SHDR.pack(titles.index(b".symtab"), _SYMTAB, 0, 0, at, len(entries), 3, 1, 8, _SYM.size),
        _SHDR.pack(titles.index(b".strtab"), _STRTAB, 0, 0, at + len(entries), len(names), 0, 0, 1, 0),
        _SHDR.pack(titles.index(b".strtab"), _STRTAB, 0, 0, at + len(entries) + len(names), len(titles), 0, 0, 1, 0),
    ]
    table = at + len(entries) + len(names) + len(titles)
    header = _EHDR.pack(
        _IDENT, 2, 243, 1, 0, 0, table, 0, _EHDR.size, 0, 0, _SHDR.size, len(sections), len(sections) - 1
    )
    return b"".join([header, entries, names, titles, *sections])
