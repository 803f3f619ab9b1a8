"""Guest programs of our own: their sources and their built images."""

from pathlib import Path

EMBEDDED = "corral"
"""The embedded guest, by the name that the command line takes."""
CORRAL = Path(__file__).parent / "corral.elf"
"""The embedded guest, an ELF file with symbols."""
MONITOR = "vmm"
"""The monitor that is a guest, by the name that the command line takes."""
VMM = Path(__file__).parent / "vmm.elf"
"""An ELF file with symbols, for machines with Xhv."""
