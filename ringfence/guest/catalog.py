"""The guest images that can be made, as suite and package names: what `catalog.toml` says, typed."""

import msgspec

from ringfence.errors import NoSuchImage
from ringfence.guest.program import EMBEDDED, MONITOR


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One image: the suite it comes from, its packages and modules, and its kernel's command lines."""

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


def catalog() -> dict[str, Entry]:
    """Every entry by name."""
    from importlib.resources import files

    text = files("ringfence.guest").joinpath("catalog.toml").read_bytes()
    return msgspec.toml.decode(text, type=dict[str, Entry])


def entry(name: str) -> Entry:
    """The entry of that name, or NoSuchImage, which says which names there are."""
    known = catalog()
    built_in = EMBEDDED, MONITOR
    if name in built_in:
        raise NoSuchImage(f"{name} is built in: there is nothing to pull or to delete")
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, [*built_in, *known], 1)
        there = f"there are {', '.join(known)} and, built in, {' and '.join(built_in)}"
        hint = f"did you mean {near[0]}" if near else there
        raise NoSuchImage(f"no image is called {name!r}: {hint}")
    return known[name]
