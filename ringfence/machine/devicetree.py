"""Flattened device trees: the form in which a guest is told what its machine has.

Source: Devicetree Specification 0.4, chapter 5, version 17 of the format; sections 2.2 and 2.3 for names and values.

    root = Node()
    root["#address-cells"] = 2
    plic = root.add("soc").add("plic@c000000")
    plic["reg"] = [U64(0xC000000), U64(0x600000)]
    root.add("serial@10000000")["interrupts-extended"] = [plic, 10]
    blob = flatten(root)
    print(unflatten(blob).find("/soc"))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from re import fullmatch
from struct import Struct
from struct import error as StructError
from typing import TypeAlias

from ringfence.errors import RingfenceError

MAGIC = 0xD00D_FEED
BEGIN_NODE, END_NODE, PROP, NOP, END = 1, 2, 3, 4, 9
VERSION, LAST_COMPATIBLE_VERSION = 17, 16
DEPTH = 64
"""Nodes within nodes that are read and written."""

_HEADER = Struct(">10I")
_RESERVATIONS_END = bytes(16)
_CELL = Struct(">I")
_PROP = Struct(">2I")
_NODE_NAME = r"[0-9a-zA-Z,._+-]+(@[0-9a-zA-Z,._+-]+)?"
_PROPERTY_NAME = r"[0-9a-zA-Z,._+?#-]+"

Item: TypeAlias = "int | str | bytes | Node"
Value: TypeAlias = "Item | Sequence[Item]"


class DeviceTreeError(RingfenceError):
    """A device tree cannot be flattened, or bytes are none."""


class U64(int):
    """A number of two cells."""


class Node:
    """A node: a name, properties by name, and children, each in order; the root's name is empty.

    A property's value is an int (one cell, or two as `U64`), a `Node` (its phandle), a str, bytes (b"" for what is
    true by being there), or a sequence of those. A node that is referred to gets a phandle when the tree is
    flattened, unless it has one. In a tree that was read, every value is bytes: `cells` and `strings` decode them.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.properties: dict[str, Value] = {}
        self.children: list[Node] = []

    def add(self, name: str) -> Node:
        """A new last child; raises `DeviceTreeError` if there is one of that name."""
        if any(child.name == name for child in self.children):
            raise DeviceTreeError(f"device tree node {self.name or '/'} has two children {name}")
        self.children.append(Node(name))
        return self.children[-1]

    def __setitem__(self, name: str, value: Value) -> None:
        self.properties[name] = value

    def __getitem__(self, name: str) -> Value:
        return self.properties[name]

    def __contains__(self, name: str) -> bool:
        return name in self.properties

    def find(self, path: str) -> Node:
        """The node at `path` below this one; an address may be left out. Raises `KeyError` if there is none."""
        node = self
        for part in path.split("/"):
            if part:
                matches = [child for child in node.children if part in (child.name, child.name.partition("@")[0])]
                if not matches:
                    raise KeyError(path)
                node = matches[0]
        return node

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents before children."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def cells(self, name: str) -> tuple[int, ...]:
        """A property's 32-bit cells. Raises `KeyError`, and `DeviceTreeError` if its bytes are not cells."""
        data = _encode(self.properties[name], {})
        if len(data) % 4:
            raise DeviceTreeError(f"device tree property {name} has {len(data)} bytes, which are no cells")
        return tuple(cell for (cell,) in _CELL.iter_unpack(data))

    def strings(self, name: str) -> tuple[str, ...]:
        """A property's strings. Raises `KeyError`, and `DeviceTreeError` if its bytes are not strings."""
        data = _encode(self.properties[name], {})
        if data and data[-1]:
            raise DeviceTreeError(f"device tree property {name} is no string")
        return tuple(part.decode(errors="replace") for part in data.split(b"\0")[:-1])

    def __str__(self) -> str:
        """The tree in the notation of device tree sources; the types of what was read are guessed."""
        return "\n".join(_source(self, ""))


def flatten(root: Node, boot_cpu: int = 0) -> bytes:
    """The tree as a blob, `boot_cpu` being the number of the hart that boots it.

    The bytes depend on the tree alone. Raises `DeviceTreeError` for a number that does not fit its cells, a name or
    string that cannot be written, or a reference to a node outside the tree.
    """
    phandles = _phandles(root)
    struct = bytearray()
    names: dict[str, int] = {}
    strings = bytearray()

    def put(name: str, data: bytes) -> None:
        if name not in names:
            names[name] = len(strings)
            strings.extend(_name(name, _PROPERTY_NAME))
        struct.extend(_CELL.pack(PROP) + _PROP.pack(len(data), names[name]) + _padded(data))

    def begin(node: Node, depth: int) -> None:
        if depth > DEPTH:
            raise DeviceTreeError(f"device tree is deeper than {DEPTH} nodes")
        struct.extend(_CELL.pack(BEGIN_NODE) + _padded(_name(node.name, _NODE_NAME if depth > 1 else "")))
        for name, value in node.properties.items():
            put(name, _encode(value, phandles))
        if node in phandles and "phandle" not in node:
            put("phandle", _CELL.pack(phandles[node]))
        for child in node.children:
            begin(child, depth + 1)
        struct.extend(_CELL.pack(END_NODE))

    begin(root, 1)
    struct.extend(_CELL.pack(END))
    struct_at = _HEADER.size + len(_RESERVATIONS_END)
    strings_at = struct_at + len(struct)
    header = _HEADER.pack(
        MAGIC,
        strings_at + len(strings),
        struct_at,
        strings_at,
        _HEADER.size,
        VERSION,
        LAST_COMPATIBLE_VERSION,
        boot_cpu,
        len(strings),
        len(struct),
    )
    return header + _RESERVATIONS_END + struct + strings


def unflatten(blob: bytes) -> Node:
    """The root of the tree in `blob`, which may be longer than the tree; raises `DeviceTreeError` if it is none."""
    try:
        return _parse(blob)
    except (StructError, IndexError, ValueError) as fault:
        raise DeviceTreeError("device tree is damaged or incomplete") from fault


def _parse(blob: bytes) -> Node:
    magic, total, struct_at, strings_at, _, version, compatible, _, strings_size, struct_size = _HEADER.unpack_from(
        blob
    )
    if magic != MAGIC:
        raise DeviceTreeError("not a device tree: its first bytes are not d00dfeed")
    if version < VERSION or compatible > VERSION:
        raise DeviceTreeError(f"device tree has version {version}, which is not {VERSION}")
    if total > len(blob) or max(struct_at + struct_size, strings_at + strings_size) > total:
        raise IndexError
    struct = bytes(blob[struct_at : struct_at + struct_size])
    strings = bytes(blob[strings_at : strings_at + strings_size])
    path: list[Node] = []
    at = 0
    while True:
        (token,) = _CELL.unpack_from(struct, at)
        at += 4
        if token == BEGIN_NODE:
            end = struct.index(b"\0", at)
            node = Node(struct[at:end].decode("ascii"))
            at = end + 4 & ~3
            if len(path) >= DEPTH:
                raise DeviceTreeError(f"device tree is deeper than {DEPTH} nodes")
            if path:
                path[-1].children.append(node)
            path.append(node)
        elif token == PROP:
            length, name_at = _PROP.unpack_from(struct, at)
            at += _PROP.size
            if at + length > len(struct):
                raise IndexError
            name = strings[name_at : strings.index(b"\0", name_at)].decode("ascii")
            path[-1][name] = struct[at : at + length]
            at = at + length + 3 & ~3
        elif token == END_NODE:
            node = path.pop()
            if not path:
                return node
        elif token != NOP:
            raise IndexError


def _phandles(root: Node) -> Mapping[Node, int]:
    """A phandle for every node that has one or is referred to."""
    phandles: dict[Node, int] = {}
    referred: dict[Node, None] = {}
    for node in root.walk():
        if "phandle" in node:
            (phandles[node],) = node.cells("phandle")
        for value in node.properties.values():
            items = value if isinstance(value, Sequence) else (value,)
            referred.update((item, None) for item in items if isinstance(item, Node))
    taken = set(phandles.values())
    free = (number for number in range(1, 1 << 32) if number not in taken)
    inside = set(root.walk())
    for node in referred:
        if node not in inside:
            raise DeviceTreeError(f"device tree node {node.name} is referred to from outside its tree")
        if node not in phandles:
            phandles[node] = next(free)
    return phandles


def _encode(value: Value, phandles: Mapping[Node, int]) -> bytes:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bytes):
        return value
    if isinstance(value, Node):
        if value not in phandles:
            raise DeviceTreeError(f"device tree node {value.name} has no phandle before its tree is flattened")
        return _CELL.pack(phandles[value])
    if isinstance(value, int):
        size = 8 if isinstance(value, U64) else 4
        if not 0 <= value < 1 << 8 * size:
            raise DeviceTreeError(f"{value} does not fit {size} bytes of a device tree")
        return value.to_bytes(size, "big")
    return b"".join(_encode(item, phandles) for item in value)


def _string(text: str) -> bytes:
    if "\0" in text:
        raise DeviceTreeError(f"device tree string {text!r} has a zero byte in it")
    try:
        return text.encode("utf-8", "surrogateescape") + b"\0"
    except UnicodeEncodeError:
        raise DeviceTreeError(f"device tree string {text!r} is no text") from None


def _name(name: str, pattern: str) -> bytes:
    if not fullmatch(pattern, name):
        raise DeviceTreeError(f"{name!r} cannot be a name in a device tree")
    return _string(name)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _source(node: Node, indent: str) -> Iterator[str]:
    yield f"{indent}{node.name or '/'} {{"
    inner = indent + "    "
    for name, value in node.properties.items():
        items = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
        shown = ", ".join(filter(None, map(_show, items)))
        yield f"{inner}{name} = {shown};" if shown else f"{inner}{name};"
    for child in node.children:
        yield from _source(child, inner)
    yield f"{indent}}};"


def _show(item: Item) -> str:
    if isinstance(item, Node):
        return f"<&{item.name}>"
    if isinstance(item, str):
        return f'"{item}"'
    if isinstance(item, U64):
        return f"<{item >> 32:#x} {item & 0xFFFF_FFFF:#x}>"
    if isinstance(item, int):
        return f"<{item:#x}>"
    parts = item.split(b"\0")
    if parts[-1] == b"" and all(part and part.isascii() and part.decode().isprintable() for part in parts[:-1]):
        return ", ".join(f'"{part.decode()}"' for part in parts[:-1])
    if len(item) % 4 == 0:
        return "<" + " ".join(f"{cell:#x}" for (cell,) in _CELL.iter_unpack(item)) + ">"
    return f"[{item.hex(' ')}]"
