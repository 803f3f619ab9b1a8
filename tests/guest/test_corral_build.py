"""The embedded guest's image: what it is built from, and what is in it."""

from importlib import metadata
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from ringfence.guest.program import build


def require_compiler() -> None:
    """Skip, with the reason, where the compiler of the image is not installed."""
    try:
        found = metadata.version("ziglang")
    except metadata.PackageNotFoundError:
        pytest.skip(f"ziglang {build.ZIGLANG} is not installed")
    if found != build.ZIGLANG:
        pytest.skip(f"the image is built with ziglang {build.ZIGLANG}, and {found} is installed")


def test_corral_image_is_what_its_sources_make(tmp_path: Path) -> None:
    """A new build gives the shipped image, byte for byte."""
    require_compiler()
    image = tmp_path / "corral.elf"
    build.build(image)
    assert image.read_bytes() == build.IMAGE.read_bytes(), "run python -m ringfence.guest.program.build"


def test_corral_build_depends_on_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that lie elsewhere, under a name of another length, give the same image."""
    require_compiler()
    elsewhere = tmp_path / "a directory with a longer name"
    for source in build.SOURCE.rglob("*"):
        if source.is_file():
            target = elsewhere / source.relative_to(build.SOURCE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCE", elsewhere)
    monkeypatch.setenv("CPATH", str(tmp_path))
    image = tmp_path / "corral.elf"
    build.build(image)
    assert image.read_bytes() == build.IMAGE.read_bytes()


def test_corral_build_names_the_compiler_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another version of the compiler the build stops, and says which one it wants."""
    monkeypatch.setattr(metadata, "version", lambda _: "0.0.1")
    with pytest.raises(build.BuildError, match=rf"needs ziglang {build.ZIGLANG}, found 0\.0\.1"):
        build.require_compiler()


def test_corral_build_reports_what_the_compiler_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that does not compile is an error with the compiler's own message, and leaves no image."""
    require_compiler()
    (tmp_path / "corral" / "user").mkdir(parents=True)
    for name in build.LIBRARY:
        (tmp_path / "corral" / name).write_text("nonsense\n")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "corral")
    monkeypatch.setattr(build, "IMAGE", tmp_path / "corral.elf")
    assert build.main([]) == 1
    assert not build.IMAGE.exists()


def test_corral_image_lies_where_firmware_jumps() -> None:
    """The image is for RISC-V, begins at 0x80200000 and keeps symbols but nothing of the build."""
    data = build.IMAGE.read_bytes()
    elf = ELFFile(BytesIO(data))
    assert elf["e_machine"] == "EM_RISCV"
    assert elf["e_entry"] == 0x80200000
    loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
    assert [segment["p_flags"] for segment in loads] == [5, 4, 6]  # no segment is writable and executable
    assert loads[0]["p_paddr"] == elf["e_entry"]
    symbols = elf.get_section_by_name(".symtab")
    assert isinstance(symbols, SymbolTableSection)
    assert symbols.get_symbol_by_name("trap_entry")
    assert not elf.has_dwarf_info()
    assert len(data) < 128 * 1024
    assert str(Path.cwd()).encode() not in data
