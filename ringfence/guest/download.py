"""Downloads over HTTP: small files whole, large ones resumable and only ever in place when their checksum holds."""

import base64
import errno
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from ringfence.errors import ImageError, MirrorError
from ringfence.guest.file import have_regular

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from ringfence.guest.pace import Pace

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes of it that are here, and the bytes that there will be."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TIMEOUT = 30.0
"""Seconds without a byte after which a mirror counts as gone."""

_BLOCK = 1 << 18
_ATTEMPTS = 4
_BRIEF = 100


class _Missing(MirrorError):
    """The mirror answers, and does not have the file."""


class _Broken(Exception):
    """The connection ended before the file did."""


class _NoSuchPart(Exception):
    """The mirror will not send the file from that place on."""


def silent(name: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def host(address: str) -> str:
    """The part of an address that a sentence names: neither user nor password."""
    return urlsplit(address).netloc.rpartition("@")[2]


def read(address: str, limit: int) -> bytes | None:
    """A small file, or None where the mirror has none; MirrorError if it is larger than `limit` bytes."""
    try:
        with _network(address), _open(address, 0, _pace(address)) as response:
            data = response.read(limit + 1)
            if response.length and len(data) <= limit:
                raise _Broken
    except _Missing:
        return None
    except (_Broken, _NoSuchPart):
        raise MirrorError(f"the mirror {host(address)} broke off in {_name(address)}") from None
    if len(data) > limit:
        raise MirrorError(f"the mirror {host(address)} sends more than {limit} bytes for {_name(address)}")
    return data


def download(address: str, place: Path, *, size: int, sha256: str, progress: Progress = silent) -> None:
    """Brings the file to `place`; what is there already, or partly in a `.part` beside it, is not sent again.

    Raises MirrorError if the mirror cannot be reached or sends anything but the `size` bytes with that SHA-256 (the
    part is then gone), ImageError if there is no room for it. Any other end leaves the part for the next call.
    """
    if have_regular(place) and place.stat().st_size == size and _checksum(place).hexdigest() == sha256:
        progress(_name(address), size, size)
        return
    part = place.with_name(place.name + ".part")
    resumed = have_regular(part)
    _fetch(address, part, size, progress)
    if _checksum(part).hexdigest() != sha256 and resumed:
        # The part may have been spoilt on this host, so the mirror gets to send all of it once.
        part.unlink()
        _fetch(address, part, size, progress)
    if _checksum(part).hexdigest() != sha256:
        part.unlink()
        raise MirrorError(f"the mirror {host(address)} sent a {_name(address)} that is not the one the archive signed")
    part.replace(place)


def _fetch(address: str, part: Path, size: int, progress: Progress) -> None:
    """Fills the part up to `size` bytes, over several connections if they make headway."""
    idle = furthest = 0
    pace = _pace(address)
    while (before := part.stat().st_size if part.exists() else 0) != size:
        if before > size:
            part.unlink()
            continue
        try:
            with _network(address), _open(address, before, pace) as response:
                _receive(response, part, address, size, progress)
        except (_Broken, _NoSuchPart) as error:
            if isinstance(error, _NoSuchPart):
                part.unlink(missing_ok=True)
            reached = part.stat().st_size if part.exists() else 0
            idle = 0 if reached > furthest else idle + 1
            furthest = max(furthest, reached, before)
            if idle == _ATTEMPTS:
                raise MirrorError(
                    f"the mirror {host(address)} breaks off in {_name(address)}: try again later to go on from there"
                ) from None
        except _Missing:
            raise MirrorError(f"the mirror {host(address)} does not have {urlsplit(address).path}") from None
    progress(_name(address), size, size)


def _receive(response: "HTTPResponse", part: Path, address: str, size: int, progress: Progress) -> None:
    resumes = response.status == HTTPStatus.PARTIAL_CONTENT
    try:
        file = part.open("ab" if resumes else "wb")
        with file:
            done = file.tell()
            if resumes and not (response.getheader("Content-Range") or "").startswith(f"bytes {done}-"):
                raise MirrorError(f"the mirror {host(address)} sends another part of {_name(address)} than asked for")
            while done < size:
                progress(_name(address), done, size)
                # Inside, an error is the network's; outside, the disk's.
                with _network(address):
                    data = response.read1(min(_BLOCK, size - done))
                if not data:
                    raise _Broken
                file.write(data)
                done += len(data)
    except OSError as error:
        if error.errno in NO_ROOM:
            part.unlink(missing_ok=True)
        raise ImageError(unwritable(part.parent, error)) from error


def unwritable(directory: Path, error: OSError) -> str:
    """The sentence for a directory in which nothing can be stored."""
    if error.errno in NO_ROOM:
        return f"there is no room in {directory}: {error.strerror}"
    return f"nothing can be stored in {directory}: {error.strerror or error}"


@contextmanager
def _network(address: str) -> Iterator[None]:
    """Turns what the network and the mirror do wrong into a sentence."""
    import http.client
    from urllib.error import HTTPError, URLError

    try:
        yield
    except HTTPError as error:
        if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise _Missing(f"the mirror {host(address)} does not have {urlsplit(address).path}") from None
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _NoSuchPart from None
        raise MirrorError(f"the mirror {host(address)} answers {error.code} {_brief(error.reason)}") from None
    except (http.client.IncompleteRead, ConnectionResetError, TimeoutError) as error:
        raise _Broken from error
    except URLError as error:
        reason = error.reason.strerror if isinstance(error.reason, OSError) else error.reason
        raise MirrorError(f"the mirror {host(address)} cannot be reached: {_brief(reason or error.reason)}") from None
    except (http.client.HTTPException, OSError, ValueError) as error:  # ValueError: where it redirects to
        raise MirrorError(f"the mirror {host(address)} does not speak HTTP: {_brief(error)}") from None


@contextmanager
def _open(address: str, start: int, pace: "Pace") -> "Iterator[HTTPResponse]":
    from urllib.request import Request

    parts = urlsplit(address)
    user, at, netloc = parts.netloc.rpartition("@")
    headers = {"User-Agent": "ringfence", "Accept-Encoding": "identity"}
    if at:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(user).encode()).decode()
    if start:
        headers["Range"] = f"bytes={start}-"
    request = Request(urlunsplit(parts._replace(netloc=netloc)), headers=headers)
    with pace.open(request, TIMEOUT) as response:
        yield response


def _pace(address: str) -> "Pace":
    from ringfence.guest.pace import FLOOR, Pace

    return Pace(
        f"the mirror {host(address)} sends {_name(address)} at less than {FLOOR} bytes a second:"
        " try again later, or name another with --mirror"
    )


def _brief(what: object) -> str:
    """What a mirror said may be as long as it likes."""
    text = str(what)
    return text if len(text) <= _BRIEF else text[:_BRIEF] + "..."


def _checksum(path: Path) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _name(address: str) -> str:
    return unquote(urlsplit(address).path.rpartition("/")[2])
