"""A Debian archive in a directory, signed by a key of its own, behind a web server that can be told to lie."""

import gzip
import hashlib
import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


def ar(members: dict[str, bytes]) -> bytes:
    """An `ar` file, as dpkg-deb writes them."""
    parts = [b"!<arch>\n"]
    for name, data in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        parts += [header.encode(), data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def tar(files: dict[str, bytes]) -> bytes:
    """A tar of regular files, each path after "./"."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def deb(files: dict[str, bytes], suffix: str = ".xz", compress: Callable[[bytes], bytes] = lzma.compress) -> bytes:
    """A binary package with these files."""
    data = {f"data.tar{suffix}": compress(tar(files))}
    return ar({"debian-binary": b"2.0\n", "control.tar.gz": gzip.compress(tar({})), **data})


def kernel_module(depends: str = "", *aliases: str) -> bytes:
    """An ELF object for RISC-V whose one section of its own is `.modinfo`."""
    pairs = [f"depends={depends}", *(f"alias={alias}" for alias in aliases), "license=GPL"]
    modinfo = b"".join(pair.encode() + b"\0" for pair in pairs)
    names = b"\0.modinfo\0.shstrtab\0"
    start = 64
    sections = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, start, len(modinfo), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, start + len(modinfo), len(names), 0, 0, 1, 0),
    ]
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    table = start + len(modinfo) + len(names)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 1, 243, 1, 0, 0, table, 0, 64, 0, 0, 64, len(sections), 2)
    return header + modinfo + names + b"".join(sections)


RELEASE = "6.12.0+deb13-riscv64"
BUSYBOX = b"\x7fELF program text[\0[[\0ash\0busybox\0cat\0sh\0uname\0\0more text"
MODULES = {
    "drivers/virtio/virtio_mmio": kernel_module("", "of:N*T*Cvirtio,mmio"),
    "drivers/block/virtio_blk": kernel_module("", "virtio:d00000002v*"),
    "net/core/failover": kernel_module(),
    "drivers/net/net_failover": kernel_module("failover"),
    "drivers/net/virtio_net": kernel_module("net_failover", "virtio:d00000001v*"),
    "drivers/char/hw_random/virtio-rng": kernel_module("", "virtio:d00000004v*"),
    "fs/jbd2/jbd2": kernel_module(),
    "fs/ext4/ext4": kernel_module("jbd2", "fs-ext4"),
    "sound/unwanted": kernel_module(),
}


@dataclass
class Keys:
    """A signing key of gpg's, and the keyring with its public half."""

    home: Path
    keyring: Path

    def sign(self, text: str) -> bytes:
        command = [
            "gpg",
            "--homedir",
            str(self.home),
            "--batch",
            "--quiet",
            "--clearsign",
            "--digest-algo",
            "SHA256",
        ]
        return subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout


def make_keys(name: str) -> Iterator[Keys]:
    """A key pair, deleted at the end; skips where there is no gpg."""
    if shutil.which("gpg") is None or not (shutil.which("gpgv") or shutil.which("sqv")):
        pytest.skip("signing an archive needs gpg, and checking it gpgv: one is not installed")
    # Not below pytest's directory: the agent's socket has to have a short path.
    home = Path(tempfile.mkdtemp(prefix="keys-"))
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet"]
    identity = f"{name} <{name}@example.invalid>"
    make = ["--passphrase", "", "--quick-gen-key", identity, "rsa2048", "sign", "never"]
    subprocess.run([*gpg, *make], check=True, capture_output=True)
    keyring = home / "keyring.gpg"
    subprocess.run([*gpg, "--output", str(keyring), "--export"], check=True, capture_output=True)
    yield Keys(home, keyring)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)
    shutil.rmtree(home, ignore_errors=True)


@dataclass
class Faults:
    """What the web server is to do wrong; paths are matched by how they end."""

    cut: dict[str, list[int]] = field(default_factory=dict)
    """How many bytes of the body to send, in answer after answer, before the connection breaks."""
    stall: dict[str, int] = field(default_factory=dict)
    """After how many bytes to send nothing more, and say so by `stalled`."""
    status: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    """What stands behind such a status."""
    ranges: bool = True
    stalled: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)


class Mirror:
    """A Debian archive in `root`, served at `address`; `requests` has each path with the first byte asked for."""

    def __init__(self, root: Path, keys: Keys) -> None:
        self.root = root
        self.keys = keys
        self.faults = Faults()
        self.requests: list[tuple[str, int]] = []
        self.debs: dict[str, tuple[dict[str, str], bytes]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}/debian"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, name: str, version: str, files: dict[str, bytes], depends: str = "") -> None:
        """Puts a package into the pool, in place of an older one."""
        path = f"pool/{name}_{version.replace(':', '_')}_riscv64.deb"
        fields = {"Package": name, "Version": version, "Architecture": "riscv64", "Filename": path}
        if depends:
            fields["Depends"] = depends
        self.debs[name] = (fields, deb(files))

    def add_debian(self, version: str = "6.12.0-1") -> None:
        """The packages of the image `debian`, small."""
        image = f"linux-image-{RELEASE}"
        place = f"usr/lib/modules/{RELEASE}/kernel"
        modules = {f"{place}/{path}.ko.xz": lzma.compress(data) for path, data in MODULES.items()}
        # Noise, so that the package stays large enough to be cut anywhere.
        kernel = b"".join(hashlib.sha256(b"%d %s" % (i, version.encode())).digest() for i in range(20_000))
        self.add("linux-image-riscv64", version, {}, f"{image} (= {version})")
        self.add(image, version, {f"boot/vmlinux-{RELEASE}": kernel, **modules}, "kmod, linux-base (>= 4.12~)")
        self.add("busybox-static", "1:1.37.0-6", {"usr/bin/busybox": BUSYBOX})

    def publish(self, *, keys: Keys | None = None, suite: str = "trixie", fields: dict[str, str] | None = None) -> None:
        """Writes pool, index and signature; `fields` are the release's, an empty one is left out."""
        stanzas = []
        for package, data in self.debs.values():
            path = self.root / package["Filename"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            sums = {"Size": str(len(data)), "SHA256": hashlib.sha256(data).hexdigest()}
            stanzas.append("".join(f"{key}: {value}\n" for key, value in {**package, **sums}.items()))
        index = lzma.compress("\n".join(stanzas).encode())
        checksum = hashlib.sha256(index).hexdigest()
        directory = self.root / "dists" / "trixie"
        by_hash = directory / "main/binary-riscv64/by-hash/SHA256" / checksum
        by_hash.parent.mkdir(parents=True, exist_ok=True)
        by_hash.write_bytes(index)
        release = {
            "Suite": "stable",
            "Codename": suite,
            "Version": "13.0",
            "Date": format_datetime(datetime.now(UTC) - timedelta(hours=1)),
            "Acquire-By-Hash": "yes",
            **(fields or {}),
        }
        text = "".join(f"{key}: {value}\n" for key, value in release.items() if value)
        text += f"SHA256:\n {checksum} {len(index)} main/binary-riscv64/Packages.xz\n"
        (directory / "InRelease").write_bytes((keys or self.keys).sign(text))

    def package(self, name: str) -> Path:
        """Where the file of a package is served from."""
        return self.root / self.debs[name][0]["Filename"]

    def starts(self, end: str) -> list[int]:
        """The first bytes that were asked for, of the file whose path ends so."""
        return [start for path, start in self.requests if path.endswith(end)]

    def close(self) -> None:
        self.faults.resume.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(mirror) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                faults = mirror.faults
                end = self.path.rpartition("/")[2]
                wanted = self.headers.get("Range", "bytes=0-") if faults.ranges else "bytes=0-"
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                mirror.requests.append((self.path, start))
                file = mirror.root / self.path.removeprefix("/debian/")
                if end in faults.status or not file.is_file():
                    self.send_error(faults.status.get(end, 404), faults.reason)
                    return
                data = file.read_bytes()
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.end_headers()
                body = data[start:]
                if faults.cut.get(end):
                    body = body[: faults.cut[end].pop(0)]
                if end in faults.stall:
                    self.wfile.write(body[: faults.stall[end]])
                    faults.stalled.set()
                    faults.resume.wait(30)
                    return
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
