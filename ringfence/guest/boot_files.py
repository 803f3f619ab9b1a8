"""A guest's kernel and first file system, from the archive's packages."""

import hashlib
from contextlib import suppress
from pathlib import Path

import msgspec

from ringfence.errors import ImageError
from ringfence.guest import catalog, deb
from ringfence.guest.initramfs import initramfs
from ringfence.guest.kallsyms import symbol_file
from ringfence.guest.modules import Module, load_order, module_name, read_module


def recipe(entry: catalog.Entry) -> str:
    """A digest of how an image is made, apart from the packages."""
    from importlib.resources import files

    script = files("ringfence.guest").joinpath("init").read_bytes()
    return hashlib.sha256(msgspec.json.encode(entry) + script).hexdigest()


def boot_files(
    entry: catalog.Entry, kernel_package: Path, busybox_package: Path, *, unpacked: bool = False
) -> dict[str, bytes]:
    """The files of an image, from those of its two packages. `unpacked`: all modules are, which is for a system on a
    disk: it gives the memory back when it goes on from there.
    """
    kernel_files = deb.files(kernel_package, lambda path: path.startswith("boot/vmlinux-") or ".ko" in path)
    kernels = [path for path in kernel_files if path.startswith("boot/")]
    busybox = deb.files(busybox_package, lambda path: path.endswith("bin/busybox"))
    if len(kernels) != 1 or len(busybox) != 1:
        raise ImageError(f"the packages {entry.kernel} and {entry.busybox} do not have one kernel and one busybox")
    paths = {module_name(path): path for path in kernel_files if path not in kernels}

    def module(name: str) -> Module | None:
        return read_module(paths[name], kernel_files[paths[name]]) if name in paths else None

    plain = {found.name for found in load_order([*entry.drivers, *(entry.on_demand if unpacked else ())], module)}
    modules = load_order([*entry.drivers, *entry.on_demand], module)
    stored = [
        found if found.name in plain else found.packed(path := paths[found.name], kernel_files[path])
        for found in modules
    ]
    release = kernels[0].removeprefix("boot/vmlinux-")
    kernel = kernel_files[kernels[0]]
    made = {"kernel": kernel, "initrd": initramfs(next(iter(busybox.values())), release, stored)}
    with suppress(ImageError):
        made["symbols.elf"] = symbol_file(kernel)
    return made
