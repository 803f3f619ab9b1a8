"""Several guests at once, as a site file describes them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from test_cli import Person, ringfence, sentence

CORRAL = '[guests.{}]\nimage = "corral"\nmemory = "64M"\n'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site.toml"


def test_up_runs_guests_side_by_side(site: Path) -> None:
    """Each line has its guest's name, input is the first's, and so is the status; a machine on a machine runs too."""
    site.write_text(
        CORRAL.format("one")
        + CORRAL.format("two")
        + 'technique = "trap"\nshare = 3\n'
        + CORRAL.format("outer.guests.inner")
    )
    found = ringfence("up", str(site), "--stats", stdin=b"selftest\npoweroff 3\n")
    text = found.stdout.decode()
    assert "one: selftest: " in text and " 0 failed" in text
    assert "two: corral> \n" in text and "outer/inner: corral> \n" in text
    told = found.stderr.decode()
    assert "ringfence: one has ended with status 3\n" in told
    assert found.returncode == 124 and "the guests wait for input, and there is no more" in told
    for path in ("one (virtualizer)", "two (trap)", "outer (virtualizer)", "outer/inner (virtualizer)"):
        assert f"{path}: " in told
    assert "rows applied natively" in told and "machine switches" in told


def test_up_ends_with_the_first_status_that_is_not_zero(site: Path) -> None:
    """A guest that dies is stopped with the reason, and the others go on to their ends."""
    dead = 'kernel = "dead"\nbios = "none"\nmemory = "64M"\n'
    site.with_name("dead.s").write_text("")
    site.write_text("[guests.dead]\n" + dead + CORRAL.format("one"))
    from struct import pack

    code = (0).to_bytes(4, "little")
    head = pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 243, 1, 1 << 31, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    site.with_name("dead").write_bytes(head + pack("<IIQQQQQQ", 1, 7, 120, 1 << 31, 1 << 31, 4, 4096, 8) + code)
    found = ringfence("up", str(site))
    told = found.stderr.decode()
    assert "dead is stopped: the guest is dead" in told
    assert "one: corral> " in found.stdout.decode()


WRONG = {
    "no file": (None, "cannot be read: No such file"),
    "no TOML": ("guests = [", "is not as it should be"),
    "no guests": ("harts = 1", "missing required field `guests`"),
    "none of the guests": ("[guests]", "has no guests"),
    "unknown key": ('[guests.a]\nimage = "corral"\nmemoy = "64M"', "unknown field `memoy`"),
    "unknown key of the site": ('colour = "red"\n' + CORRAL.format("a"), "unknown field `colour`"),
    "name given twice": (CORRAL.format("a") + CORRAL.format("a"), "is not as it should be"),
    "name with a slash": (CORRAL.format('"a/b"'), "a name of its own without a slash"),
    "no such image": ('[guests.a]\nimage = "nosuch"', "no image is called 'nosuch'"),
    "no such kernel": ('[guests.a]\nkernel = "nosuch"', "does not exist"),
    "odd memory": ('[guests.a]\nimage = "corral"\nmemory = "much"', "'much' is no amount of memory"),
    "machine too small": ('memory = "64M"\n' + CORRAL.format("a") + 'resident = "64M"', "of resident memory"),
    "too little for a map": ('memory = "1M"\n' + CORRAL.format("a"), "memory"),
    "share": (CORRAL.format("a") + "share = 0", "a share is at least 1"),
    "too much reserved": (
        CORRAL.format("a") + "reservation = 0.7\n" + CORRAL.format("b") + "reservation = 0.7",
        "more than the 1",
    ),
    "no such disk": (CORRAL.format("a") + 'minidisks = [{size = "1M"}]', "disk"),
    "program beside a monitor": ('[guests.a]\nimage = "corral"\n' + CORRAL.format("a.guests.b"), "guests of its own"),
}


@pytest.mark.parametrize("name", WRONG)
def test_up_says_what_is_wrong_with_a_site(name: str, site: Path) -> None:
    """In one sentence."""
    text, why = WRONG[name]
    if text is not None:
        site.write_text(text)
    found = ringfence("up", str(site))
    assert found.returncode in (2, 126, 127)
    assert why in sentence(found)


def test_up_refuses_minidisks_that_overlap(site: Path) -> None:
    """And gives those that do not."""
    (site.parent / "disk.img").write_bytes(bytes(1 << 20))
    disk = 'minidisks = [{{ start = "{}K", size = "64K" }}]\n'
    for start, overlaps in ((32, True), (64, False)):
        site.write_text(
            'disks = ["disk.img"]\n' + CORRAL.format("a") + disk.format(0) + CORRAL.format("b") + disk.format(start)
        )
        found = ringfence("up", str(site))
        assert (found.returncode == 2) == overlaps
        assert ("overlaps disk 0 of a" in found.stderr.decode()) == overlaps


def test_up_shows_one_console_at_a_time(site: Path) -> None:
    """Ctrl-a n goes on to the next guest, and shows what it has printed; Ctrl-a x ends all."""
    site.write_text(CORRAL.format("one") + CORRAL.format("two"))
    person = Person("up", str(site), run=False)
    person.until(b"[one]")
    person.until(b"corral> ")
    person.type(b"echo first\r")
    person.until(b"\ncorral> ")
    person.type(b"\x01n")
    person.until(b"[two]")
    person.until(b"corral> ")
    assert b"first" not in person.seen
    person.type(b"poweroff 5\r")
    person.until(b"two has ended with status 5")
    person.until(b"[one]")
    person.until(b"\ncorral> ")
    person.type(b"\x01x")
    assert person.end() == 0


def test_up_ends_on_a_signal(site: Path) -> None:
    site.write_text(CORRAL.format("one"))
    person = Person("up", str(site), run=False)
    person.until(b"corral> ")
    os.kill(person.pid, signal.SIGTERM)
    assert person.end() == 143
