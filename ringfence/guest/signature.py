"""Whether an archive's index was signed by a key that is trusted.

Source: the cleartext signature framework of OpenPGP, RFC 9580 section 7. The text is taken apart here and put back
together in its canonical form; only that form is handed to the verifier and only that form is used, so what stands
around it in the file has no say.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from ringfence.errors import MirrorError

_CLEARSIGNED = re.compile(
    r"-----BEGIN PGP SIGNED MESSAGE-----[ \t]*\n(?:Hash:[^\n]*\n)+[ \t]*\n"
    r"(?P<text>.*)\n"
    r"(?P<signature>-----BEGIN PGP SIGNATURE-----[ \t]*\n.*\n-----END PGP SIGNATURE-----)\s*",
    re.DOTALL,
)


def _gpgv(program: str, keyring: Path, signature: Path, text: Path) -> bool:
    options = [
        "--status-fd",
        "1",
        "--weak-digest",
        "SHA1",
        "--homedir",
        str(text.parent),
        "--keyring",
        str(keyring),
    ]
    done = subprocess.run([program, *options, str(signature), str(text)], capture_output=True, check=False)
    # An index is signed with several keys, of which an older keyring lacks some, so the exit status says too little.
    status = {line.split()[1] for line in done.stdout.splitlines() if line.startswith(b"[GNUPG:] ")}
    return {b"GOODSIG", b"VALIDSIG"} <= status and b"BADSIG" not in status


def _sqv(program: str, keyring: Path, signature: Path, text: Path) -> bool:
    command = [program, str(signature), str(text), "--keyring", str(keyring)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# What apt itself verifies with, of which every Debian host has one.
VERIFIERS: dict[str, Callable[[str, Path, Path, Path], bool]] = {"gpgv": _gpgv, "sqv": _sqv}


def signed_text(data: bytes, keyring: Path, what: str) -> str:
    """The text of a clear-signed file, once a key of `keyring` is seen to have signed it; else MirrorError.

    `what` names the file in the sentence that refuses it.
    """
    try:
        match = _CLEARSIGNED.fullmatch(data.decode("utf-8").replace("\r\n", "\n"))
    except UnicodeDecodeError:
        match = None
    if match is None or "\n-----" in "\n" + match["text"]:
        raise MirrorError(f"{what} is not a signed index")
    lines = [line.removeprefix("- ").rstrip(" \t\r") for line in match["text"].split("\n")]
    text = "\n".join(lines)
    for name, verify in VERIFIERS.items():  # noqa: B007
        if program := shutil.which(name):
            break
    else:
        raise MirrorError("nothing on this host can check the archive's signature: install the package gpgv")
    with tempfile.TemporaryDirectory(prefix="ringfence-") as directory:
        signature_file, text_file = Path(directory, "signature"), Path(directory, "text")
        signature_file.write_text(match["signature"] + "\n")
        # OpenPGP signs a text with its lines ended so.
        text_file.write_bytes("\r\n".join(lines).encode())
        if not verify(program, keyring.absolute(), signature_file, text_file):
            raise MirrorError(f"{what} is not signed by a key in {keyring}: the mirror is not to be trusted")
    return text
