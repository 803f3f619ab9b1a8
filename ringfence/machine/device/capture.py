"""Frames of links in a file, as tcpdump and Wireshark read it.

Source: "PCAP Capture File Format" (IETF draft-ietf-opsawg-pcap), with times in nanoseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from struct import Struct

from ringfence.errors import MachineError
from ringfence.machine.device.virtio_net import FRAME_MOST, Link

ETHERNET = 1
_FILE, _FRAME = Struct("<IHHiIII"), Struct("<IIII")
_MAGIC = 0xA1B2_3C4D
_SECOND = 1_000_000_000


class Capture:
    """A file of frames. `now`: the time that each is told with (ns)."""

    def __init__(self, path: Path) -> None:
        """Raises MachineError where the file cannot be written."""
        self.now: Callable[[], int] = lambda: 0
        self._lock = threading.Lock()
        self._lost = False
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise MachineError(f"frames cannot be written to {path}: {error.strerror}") from None
        self._write(_FILE.pack(_MAGIC, 2, 4, 0, 0, FRAME_MOST, ETHERNET))

    @property
    def lost(self) -> bool:
        """The file could not take all: the guest goes on, and nothing more is written."""
        return self._lost

    def close(self) -> None:
        with self._lock:
            self._file.close()
            self._lost = True

    def take(self, frame: bytes) -> None:
        """One frame more."""
        when, length = self.now(), len(frame)
        self._write(_FRAME.pack(when // _SECOND, when % _SECOND, length, length) + frame)

    def _write(self, data: bytes) -> None:
        with self._lock:
            if self._lost:
                return
            try:
                self._file.write(data)
                self._file.flush()
            except OSError:
                self._lost = True


class Captured:
    """A link through which all frames of another go, both ways, and into a file."""

    def __init__(self, link: Link, capture: Capture) -> None:
        self.mac, self._link, self.capture = link.mac, link, capture

    def connect(self, receive: Callable[[bytes], None]) -> None:
        def come(frame: bytes) -> None:
            self.capture.take(frame)
            receive(frame)

        self._link.connect(come)

    def send(self, frame: bytes) -> None:
        self.capture.take(frame)
        self._link.send(frame)
