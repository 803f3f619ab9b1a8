"""Ringfence: a virtual machine monitor in Python.

    from ringfence import CORRAL, MiB, load, virt

    m = virt(memory=64 * MiB)
    load(m, CORRAL)
    m.console.expect("corral> ")
    m.console.send("ps\\n")
    m.run(1_000)
    m.harts[0]["a0"], m.memory[0x8020_0000:0x8020_0010], m.disassemble()

What is named here is imported when it is used, so that `import ringfence` costs nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"
TYPE_CHECKING = False  # typing's own takes milliseconds, in which Ctrl-C would be a traceback

if TYPE_CHECKING:
    from ringfence.errors import ConsoleError, MachineError, NotBootable, RingfenceError
    from ringfence.guest.image import Image, Store
    from ringfence.guest.loader import load
    from ringfence.guest.program import CORRAL, VMM
    from ringfence.isa.spec import disassemble
    from ringfence.machine.board import GiB, MiB, Virt, virt
    from ringfence.machine.console import Console
    from ringfence.machine.device.disk import RawDisk
    from ringfence.machine.device.disk_image import open_disk
    from ringfence.machine.device.ninep import Share
    from ringfence.machine.exit import Break, Budget, Deadline, Exit, Idle, PowerOff, Stopped
    from ringfence.machine.gdb import Debugger
    from ringfence.machine.stops import Watch
    from ringfence.monitor.monitor import Monitor, nested
    from ringfence.monitor.vdevice.extent import Extent
    from ringfence.monitor.vm import VirtualMachine

_WHERE = {
    "ringfence.errors": ("ConsoleError", "MachineError", "NotBootable", "RingfenceError"),
    "ringfence.guest.image": ("Image", "Store"),
    "ringfence.guest.loader": ("load",),
    "ringfence.guest.program": ("CORRAL", "VMM"),
    "ringfence.isa.spec": ("disassemble",),
    "ringfence.machine.board": ("GiB", "MiB", "Virt", "virt"),
    "ringfence.machine.console": ("Console",),
    "ringfence.machine.device.disk": ("RawDisk",),
    "ringfence.machine.device.disk_image": ("open_disk",),
    "ringfence.machine.device.ninep": ("Share",),
    "ringfence.machine.exit": ("Break", "Budget", "Deadline", "Exit", "Idle", "PowerOff", "Stopped"),
    "ringfence.machine.gdb": ("Debugger",),
    "ringfence.machine.stops": ("Watch",),
    "ringfence.monitor.monitor": ("Monitor", "nested"),
    "ringfence.monitor.vdevice.extent": ("Extent",),
    "ringfence.monitor.vm": ("VirtualMachine",),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "CORRAL",
    "VMM",
    "Break",
    "Budget",
    "Console",
    "ConsoleError",
    "Deadline",
    "Debugger",
    "Exit",
    "Extent",
    "GiB",
    "Idle",
    "Image",
    "MachineError",
    "MiB",
    "Monitor",
    "NotBootable",
    "PowerOff",
    "RawDisk",
    "RingfenceError",
    "Share",
    "Stopped",
    "Store",
    "Virt",
    "VirtualMachine",
    "Watch",
    "disassemble",
    "load",
    "nested",
    "open_disk",
    "virt",
]


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'ringfence' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
