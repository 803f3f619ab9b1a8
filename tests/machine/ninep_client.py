"""What a guest's file system sends, for the tests of shares: requests by name, and the values of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ringfence.machine.device.ninep import MSIZE, Session
from ringfence.machine.device.ninep_message import (
    HEADER,
    IO_HEADER,
    NAMED,
    NOFID,
    NOTAG,
    VERSION,
    Value,
    decode,
    encode,
    entries,
    message,
)

ROOT = 0
TAG = 7


class Refused(Exception):
    """Rlerror."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Client:
    """A session, attached at fid ROOT."""

    def __init__(self, session: Session, msize: int = MSIZE) -> None:
        self.session = session
        self.next_fid = ROOT
        self.ask("version", msize, VERSION)
        self.ask("attach", ROOT, NOFID, b"root", b"", 0)

    def ask(self, name: str, *values: Value, room: int = MSIZE) -> list[Any]:
        """The values of the answer. Raises `Refused`."""
        row = NAMED[name]
        tag = NOTAG if name == "version" else TAG
        answer = self.session.answer(message(row.number, tag, encode(row.request, values)), room)
        size, number, told = HEADER.unpack_from(answer)
        assert size == len(answer) <= max(room, IO_HEADER) and told == tag
        body = answer[HEADER.size :]
        if number == NAMED["lerror"].number + 1:
            (code,) = decode(NAMED["lerror"].reply, body)
            assert isinstance(code, int) and code > 0
            raise Refused(code)
        assert number == row.number + 1
        return list(decode(row.reply, body))

    def do(self, name: str, *values: Value) -> None:
        """A request whose answer says nothing more."""
        self.ask(name, *values)

    def walk(self, *names: bytes, start: int = ROOT) -> int:
        """A new fid. Raises `Refused` (with 0 where only some names were found)."""
        self.next_fid += 1
        (qids,) = self.ask("walk", start, self.next_fid, list(names))
        if len(qids) != len(names):
            raise Refused(0)
        return self.next_fid

    def clunk(self, fid: int) -> None:
        self.ask("clunk", fid)

    def read(self, *names: bytes) -> bytes:
        """A whole small file."""
        fid = self.walk(*names)
        try:
            self.ask("lopen", fid, 0)
            (data,) = self.ask("read", fid, 0, 100_000)
            return bytes(data)
        finally:
            self.clunk(fid)

    def write(self, data: bytes, *names: bytes) -> None:
        """A new file."""
        fid = self.walk(*names[:-1])
        try:
            self.ask("lcreate", fid, names[-1], 0o1102, 0o644, 0)
            self.ask("write", fid, 0, data)
        finally:
            self.clunk(fid)

    def list(self, fid: int, count: int = MSIZE) -> Sequence[bytes]:
        """Names in a directory that is opened, as they come, with . and .. first."""
        found: list[bytes] = []
        offset = 0
        while True:
            (data,) = self.ask("readdir", fid, offset, count)
            part = entries(data)
            if not part:
                return found
            found += [name for _, _, _, name in part]
            offset = part[-1][1]
