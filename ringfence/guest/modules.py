"""Kernel modules: which ones a guest needs, and the index files by which modprobe finds them.

Source: the `.modinfo` section of a module, NUL-terminated `key=value` texts (include/linux/module.h), and
modules.dep(5). The archive's kernel packages ship no index, so it is made here from the modules themselves.
"""

import io
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ringfence.errors import ImageError


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module: its object file, what must be loaded before it, and the names that ask for it."""

    name: str
    file: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]

    def packed(self, path: str, data: bytes) -> "Module":
        """The same module with the contents of the package's file at `path`, compressed or not."""
        return replace(self, file=self.name + path[path.rindex(".ko") :], data=data)


def module_name(path: str) -> str:
    """The name of the module in the file `path`, as modinfo and lsmod have it."""
    return posixpath.basename(path).partition(".ko")[0].replace("-", "_")


def read_module(path: str, data: bytes) -> Module:
    """The module in a file of a kernel package, plain (.ko) or compressed (.ko.xz); ImageError if it is none."""
    import lzma

    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        if path.endswith(".xz"):
            data = lzma.decompress(data)
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    except (lzma.LZMAError, ELFError) as error:
        raise ImageError(f"the kernel module {path} is damaged: {error}") from error
    if section is None:
        raise ImageError(f"{path} is no kernel module")
    pairs = [text.decode().partition("=")[::2] for text in section.data().split(b"\0") if text]
    # Soft dependencies are left out: the kernel itself asks for what they name, by alias, when it needs it.
    depends = [name for key, value in pairs if key == "depends" for name in value.split(",") if name]
    aliases = tuple(value for key, value in pairs if key == "alias")
    needs = tuple(name.replace("-", "_") for name in depends)
    return Module(module_name(path), f"{module_name(path)}.ko", data, needs, aliases)


def load_order(wanted: Iterable[str], read: Callable[[str], Module | None]) -> list[Module]:
    """The wanted modules and all that they depend on, each behind its dependencies.

    `read` gives a module by name, or None where the kernel has it built in or not at all.
    """
    order: dict[str, Module] = {}
    started: set[str] = set()

    def visit(name: str) -> None:
        if name in started:
            return
        started.add(name)
        module = read(name)
        if module is not None:
            for other in module.depends:
                visit(other)
            order[name] = module

    for name in wanted:
        visit(name.replace("-", "_"))
    return list(order.values())


def dependency_index(modules: Iterable[Module]) -> str:
    """The text of modules.dep for modules, in load order, whose files lie beside it."""
    needs: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    lines: list[str] = []
    for module in modules:
        direct = [name for name in module.depends if name in needs]
        closure = {name for other in direct for name in (other, *needs[other])}
        # The last name is loaded first.
        needs[module.name] = [name for name in reversed(needs) if name in closure]
        files[module.name] = module.file
        lines.append(" ".join([f"{module.file}:", *(files[name] for name in needs[module.name])]) + "\n")
    return "".join(lines)


def alias_index(modules: Iterable[Module]) -> str:
    """The text of modules.alias."""
    return "".join(f"alias {alias} {module.name}\n" for module in modules for alias in module.aliases)
