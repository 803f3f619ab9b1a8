"""What `ringfence image build` refuses before it begins, in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback_archive import Mirror

from ringfence.cli.image import image
from ringfence.guest.catalog import system
from ringfence.guest.installation import CORE, TOOLS


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["--hostname", "-x"], 2, "'-x' is no host name"),
        (["--hostname", "a b"], 2, "'a b' is no host name"),
        (["--user", "Me"], 2, "'Me' is no name for a user"),
        (["--user", "me:x"], 2, "'me:x' is no name for a user"),
        (["--size", "1000M"], 2, "a Debian needs a disk of at least 1024 MiB"),
        (["--key", "none.pub"], 125, "the key none.pub cannot be read: No such file or directory"),
        (["--key", "private"], 125, "a public key is asked for, and this is none"),
        (["-o", "there.img"], 125, "there.img is there already"),
        (["-o", "none/x.img"], 125, "nothing can be stored in none: there is no such directory"),
        (["--packages", "bc,none-such"], 2, "the archive has no package none-such"),
    ],
)
def test_what_cannot_be_built_is_refused(
    words: list[str], status: int, why: str, debian_mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.img").write_text("what was there")
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    for name in (*CORE, *TOOLS, *system("debian").system, "bc"):
        debian_mirror.add(name, "1", {})
    debian_mirror.publish()
    served = ["--mirror", debian_mirror.address, "--keyring", str(debian_mirror.keys.keyring)]
    output = [] if "-o" in words else ["-o", "new.img"]
    result = CliRunner().invoke(image, ["build", "debian", *served, *output, *words], prog_name="ringfence image")
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    assert result.stderr.splitlines()[-1].startswith(f"ringfence: {why}")
    assert (tmp_path / "there.img").read_text() == "what was there"
    assert {path.name for path in tmp_path.iterdir() if path.name.endswith(".img")} == {"there.img"}
