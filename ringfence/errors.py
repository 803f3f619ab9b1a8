"""What can go wrong for a user, as one tree.

    RingfenceError      125  our own failure
      ImageError        125  an image cannot be made or read
        MirrorError     125  the mirror cannot be reached, or must not be believed
          BadAddress    2    what was given as a mirror is no address of one
        NoSuchImage     127  no image has that name
        BadSystem       2    a system cannot be installed as asked
        DamagedImage    125  an image's files are not those that were made
      MachineError      2    a machine cannot be made as asked
      NotBootable       126  what was given cannot be booted
      ConsoleError      125  a guest did not print what was expected of it
      WildMap           125  a virtual machine's map leads out of the machine that it is on
      OutOfMemory       125  the host, or a machine, has no memory left for a machine that runs on it

An error's text is the one sentence that the user reads, with neither prefix nor full stop; `status` is the exit
status of the command line that ends on it.
"""

from typing import ClassVar


class RingfenceError(Exception):
    """A failure that its text explains to the user."""

    status: ClassVar[int] = 125


class ImageError(RingfenceError):
    """A guest image, or a package of one, cannot be made, read or stored."""


class MirrorError(ImageError):
    """The package mirror cannot be reached, or what it sent is not what the archive signed."""


class BadAddress(MirrorError):
    """What was given as a mirror is not the address of a web server."""

    status: ClassVar[int] = 2


class NoSuchImage(ImageError):
    """Neither the catalog nor the cache directory has an image of that name."""

    status: ClassVar[int] = 127


class BadSystem(ImageError):
    """What was asked for cannot be installed."""

    status: ClassVar[int] = 2


class DamagedImage(ImageError):
    """An image is on this host, and its files are not those that were made."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the image {name} is damaged: `ringfence image pull {name}` makes it again")


class MachineError(RingfenceError):
    """A machine cannot be made as asked."""

    status: ClassVar[int] = 2


class NotBootable(RingfenceError):
    """A kernel, firmware or initrd that a machine cannot begin with."""

    status: ClassVar[int] = 126


class ConsoleError(RingfenceError):
    """A guest did not print what was expected of it."""


class OutOfMemory(RingfenceError):
    """The host, or a monitor's machine, has no memory left that a machine on it needs: `machine`."""

    machine: object = None


class WildMap(RingfenceError):
    """A virtual machine's map leads out of the memory of the machine that it is on."""
