"""Frames in a file are those that went through, both ways, with the guest's time."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from test_device_net import Cable

from ringfence import MachineError
from ringfence.machine.device.capture import Capture, Captured


def test_all_frames_are_in_the_file_in_order(tmp_path: Path) -> None:
    rng = random.Random(4)
    cable, came, expected = Cable(), list[bytes](), list[tuple[int, bytes]]()
    file = Capture(tmp_path / "frames.pcap")
    capture = Captured(cable, file)
    capture.connect(came.append)
    assert capture.mac == cable.mac
    time = 0
    file.now = lambda: time
    for _ in range(50):
        time += rng.randrange(3_000_000_000)
        frame = rng.randbytes(rng.randrange(14, 1515))
        if rng.random() < 0.5:
            capture.send(frame)
            assert cable.sent[-1] == frame
        else:
            cable.receive(frame)
            assert came[-1] == frame
        expected.append((time, frame))
    file.close()
    capture.send(bytes(60))  # of nobody's interest any more
    data = (tmp_path / "frames.pcap").read_bytes()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 1514, 1)
    at, found = 24, []
    while at < len(data):
        seconds, nanoseconds, kept, length = struct.unpack_from("<IIII", data, at)
        assert kept == length
        found.append((seconds * 1_000_000_000 + nanoseconds, data[at + 16 : at + 16 + kept]))
        at += 16 + kept
    assert found == expected


def test_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="frames cannot be written to .*: No such file or directory"):
        Capture(tmp_path / "none" / "frames.pcap")


def test_full_disk_stops_the_file_and_not_the_guest() -> None:
    cable = Cable()
    capture = Captured(cable, Capture(Path("/dev/full")))
    capture.send(bytes(60))
    assert cable.sent == [bytes(60)] and capture.capture.lost
