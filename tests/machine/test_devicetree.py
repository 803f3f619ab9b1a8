"""Device trees, written and read back."""

from __future__ import annotations

import shutil
import struct
import subprocess

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ringfence.machine.devicetree import DEPTH, U64, DeviceTreeError, Node, Value, flatten, unflatten


def sample() -> Node:
    """A small machine, with every kind of value."""
    root = Node()
    root["#address-cells"] = 2
    root["#size-cells"] = 2
    root["compatible"] = ["test,machine", "riscv-virtio"]
    root["model"] = "test,machine"
    cpus = root.add("cpus")
    cpus["#address-cells"] = 1
    cpus["#size-cells"] = 0
    cpus["timebase-frequency"] = 10_000_000
    cpu = cpus.add("cpu@0")
    cpu["device_type"] = "cpu"
    cpu["reg"] = 0
    cpu["compatible"] = "riscv"
    intc = cpu.add("interrupt-controller")
    intc["#address-cells"] = 0
    intc["#interrupt-cells"] = 1
    intc["interrupt-controller"] = b""
    intc["compatible"] = "riscv,cpu-intc"
    memory = root.add("memory@80000000")
    memory["device_type"] = "memory"
    memory["reg"] = [U64(0x8000_0000), U64(1 << 33)]
    soc = root.add("soc")
    soc["#address-cells"] = 2
    soc["#size-cells"] = 2
    soc["compatible"] = "simple-bus"
    soc["ranges"] = b""
    plic = soc.add("interrupt-controller@c000000")
    plic["compatible"] = ["sifive,plic-1.0.0", "riscv,plic0"]
    plic["reg"] = [U64(0xC00_0000), U64(0x60_0000)]
    plic["#address-cells"] = 0
    plic["#interrupt-cells"] = 1
    plic["interrupt-controller"] = b""
    plic["interrupts-extended"] = [intc, 11, intc, 9]
    plic["riscv,ndev"] = 95
    serial = soc.add("serial@10000000")
    serial["compatible"] = "ns16550a"
    serial["reg"] = [U64(0x1000_0000), U64(0x100)]
    serial["interrupt-parent"] = plic
    serial["interrupts"] = 10
    root.add("chosen")["stdout-path"] = "/soc/serial@10000000"
    return root


@pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")
def test_devicetree_is_accepted_by_dtc_without_a_warning() -> None:
    """dtc reads a sample tree, warns of nothing, and shows its values and references as they were meant."""
    result = subprocess.run(["dtc", "-I", "dtb", "-O", "dts"], input=flatten(sample()), capture_output=True, check=True)
    assert result.stderr == b""
    source = result.stdout.decode()
    assert "reg = <0x00 0x80000000 0x02 0x00>;" in source
    assert "interrupts-extended = <0x01 0x0b 0x01 0x09>;" in source
    assert 'compatible = "sifive,plic-1.0.0\\0riscv,plic0";' in source


def test_devicetree_reads_what_it_wrote() -> None:
    """Values come back by name, with references as the phandles of the nodes they name."""
    root = unflatten(flatten(sample()))
    plic = root.find("/soc/interrupt-controller@c000000")
    intc = root.find("cpus/cpu/interrupt-controller")
    assert plic.strings("compatible") == ("sifive,plic-1.0.0", "riscv,plic0")
    assert plic.cells("reg") == (0, 0xC00_0000, 0, 0x60_0000)
    (phandle,) = intc.cells("phandle")
    assert plic.cells("interrupts-extended") == (phandle, 11, phandle, 9)
    assert root.find("/soc/serial").cells("interrupt-parent") == plic.cells("phandle")
    assert intc["interrupt-controller"] == b""
    assert [node.name for node in root.walk()][:3] == ["", "cpus", "cpu@0"]
    with pytest.raises(KeyError):
        root.find("/soc/ethernet")


def test_devicetree_keeps_a_phandle_that_was_given() -> None:
    """A node with a phandle of its own is referred to by it, and no other node gets that number."""
    root = Node()
    first, second = root.add("first"), root.add("second")
    second["phandle"] = 1
    root["refs"] = [first, second]
    assert unflatten(flatten(root)).cells("refs") == (2, 1)


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789,._+-", min_size=1, max_size=31)
VALUES: st.SearchStrategy[Value] = st.one_of(
    st.binary(max_size=20),
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, (1 << 64) - 1).map(U64),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.lists(st.one_of(st.integers(0, 0xFFFF_FFFF), st.just("text"), st.just(b"\0\1\2")), max_size=5),
)


def bytes_of(value: Value) -> bytes:
    """What the specification says a value's bytes are."""
    if isinstance(value, U64):
        return struct.pack(">Q", value)
    if isinstance(value, int):
        return struct.pack(">I", value)
    if isinstance(value, str):
        return value.encode() + b"\0"
    if isinstance(value, bytes):
        return value
    assert not isinstance(value, Node)
    return b"".join(bytes_of(item) for item in value)


@st.composite
def trees(draw: st.DrawFn) -> Node:
    root = Node()
    nodes = [root]
    for name in draw(st.lists(NAMES, unique=True, max_size=12)):
        nodes.append(draw(st.sampled_from(nodes)).add(name))
    for node in nodes:
        node.properties = draw(st.dictionaries(NAMES.filter(lambda name: name != "phandle"), VALUES, max_size=4))
    return root


def plain(node: Node, expand: bool) -> object:
    properties = [(name, bytes_of(value) if expand else value) for name, value in node.properties.items()]
    return node.name, properties, [plain(child, expand) for child in node.children]


@given(trees())
def test_devicetree_comes_back_as_it_was(root: Node) -> None:
    """Any tree, flattened and read, has the same names, bytes and order, and flattens to the same blob."""
    blob = flatten(root)
    back = unflatten(blob + b"behind it")
    assert plain(back, expand=False) == plain(root, expand=True)
    assert flatten(back) == blob
    assert str(back).count(" {\n") == len(list(root.walk()))


def test_devicetree_is_shown_as_source() -> None:
    """A tree prints in the notation of device tree sources, guessing what bytes mean."""
    root = Node()
    child = root.add("child@1")
    child["flag"] = b""
    child["reg"] = [1, U64(1 << 32)]
    child["mac"] = b"\x02\x54\x00"
    child["names"] = ["a", "b"]
    root["ref"] = child
    assert str(root).splitlines() == [
        "/ {",
        "    ref = <&child@1>;",
        "    child@1 {",
        "        flag;",
        "        reg = <0x1>, <0x1 0x0>;",
        "        mac = [02 54 00];",
        '        names = "a", "b";',
        "    };",
        "};",
    ]
    del root.properties["ref"]
    assert 'names = "a", "b";' in str(unflatten(flatten(root)))


def too_deep() -> Node:
    root = node = Node()
    for _ in range(DEPTH):
        node = node.add("deeper")
    return root


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("x", 1 << 32, "does not fit 4 bytes"),
        ("x", -1, "does not fit"),
        ("x", U64(1 << 64), "does not fit 8 bytes"),
        ("x", "a\0b", "zero byte"),
        ("x", "\ud800", "is no text"),
        ("x", Node("stray"), "stray is referred to from outside its tree"),
        ("a b", 1, "'a b' cannot be a name"),
        ("", 1, "cannot be a name"),
    ],
)
def test_devicetree_refuses_what_cannot_be_written(name: str, value: Value, said: str) -> None:
    """A value or name that the format has no room for is one clear sentence."""
    root = Node()
    root[name] = value
    with pytest.raises(DeviceTreeError, match=said):
        flatten(root)


def test_devicetree_refuses_bad_nodes() -> None:
    """Two children of one name, a name with a slash, and a tree too deep to be read are refused."""
    root = Node()
    root.add("a")
    with pytest.raises(DeviceTreeError, match="two children a"):
        root.add("a")
    root.add("b/c")
    with pytest.raises(DeviceTreeError, match="cannot be a name"):
        flatten(root)
    with pytest.raises(DeviceTreeError, match="deeper than"):
        flatten(too_deep())


def test_devicetree_refuses_views_that_do_not_fit() -> None:
    """Bytes that are no cells or no strings are told so."""
    root = Node()
    root["x"] = b"abc"
    with pytest.raises(DeviceTreeError, match="3 bytes, which are no cells"):
        root.cells("x")
    with pytest.raises(DeviceTreeError, match="no string"):
        root.strings("x")


@given(st.data())
def test_devicetree_reader_survives_damage(data: st.DataObject) -> None:
    """A blob that is cut short or has bytes changed gives a tree or a DeviceTreeError, nothing else."""
    blob = bytearray(flatten(sample()))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(blob)), st.integers(0, len(blob))))
    try:
        str(unflatten(bytes(blob[:cut])))
    except DeviceTreeError as refusal:
        assert str(refusal)


@pytest.mark.parametrize(
    ("blob", "said"),
    [(b"", "damaged"), (bytes(100), "first bytes"), (b"\xd0\x0d\xfe\xed" + bytes(36), "version 0")],
)
def test_devicetree_says_why_it_is_none(blob: bytes, said: str) -> None:
    """What is no device tree is told from one of another version and from a damaged one."""
    with pytest.raises(DeviceTreeError, match=said):
        unflatten(blob)
