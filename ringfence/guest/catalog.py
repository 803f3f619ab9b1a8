"""The guest images that can be made, as suite and package names: what `catalog.toml` says, typed."""

import msgspec

from ringfence.errors import NoSuchImage
from ringfence.guest.program import EMBEDDED, MONITOR


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One image: the suite it comes from, its packages and modules, and its kernel's command lines; and what is
    installed on a disk where one is made of it.
    """

    summary: str
    suite: str
    component: str
    architecture: str
    kernel: str
    busybox: str
    drivers: tuple[str, ...]
    on_demand: tuple[str, ...]
    append: str
    append_command: str
    system: tuple[str, ...]
    append_system: str


class Installed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image with a disk: which entry's system it is, and with what packages."""

    summary: str
    system: str
    packages: tuple[str, ...]
    size: int
    hostname: str


class Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every image, by name."""

    images: dict[str, Entry]
    installed: dict[str, Installed]

    @property
    def summaries(self) -> dict[str, str]:
        """What each image is."""
        images = {name: entry.summary for name, entry in self.images.items()}
        return images | {name: entry.summary for name, entry in self.installed.items()}


def catalog() -> Catalog:
    """What `catalog.toml` says."""
    from importlib.resources import files

    return msgspec.toml.decode(files("ringfence.guest").joinpath("catalog.toml").read_bytes(), type=Catalog)


def entry(name: str) -> Entry | Installed:
    """The entry of that name, or NoSuchImage, which says which names there are."""
    known = catalog()
    if name in known.images:
        return known.images[name]
    if name in known.installed:
        return known.installed[name]
    built_in = EMBEDDED, MONITOR
    if name in built_in:
        raise NoSuchImage(f"{name} is built in: there is nothing to pull or to delete")
    from difflib import get_close_matches

    near = get_close_matches(name, [*built_in, *known.summaries], 1)
    there = f"there are {', '.join(known.summaries)} and, built in, {' and '.join(built_in)}"
    hint = f"did you mean {near[0]}" if near else there
    raise NoSuchImage(f"no image is called {name!r}: {hint}")


def system(name: str) -> Entry:
    """The entry of that name where it can be installed; NoSuchImage."""
    found = entry(name)
    if isinstance(found, Installed):
        raise NoSuchImage(f"{name} is installed from {found.system}: give that")
    return found
