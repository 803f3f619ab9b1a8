"""Several guests at once, as a site file describes them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_cli import COMMAND, DEAD, Person, asm, no_hangup, ringfence, sentence, write_kernel

from ringfence import Console
from ringfence.cli.site import Guest, Minidisk, Site, build, read
from ringfence.machine.board import UART

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
    write_kernel(site.with_name("dead"), *DEAD["nowhere"][0])
    site.write_text('[guests.dead]\nkernel = "dead"\nmemory = "64M"\n' + CORRAL.format("one"))
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
    "share": (CORRAL.format("a") + "share = 0", "guest a: a share is at least 1"),
    "too much reserved": (
        CORRAL.format("a") + "reservation = 0.7\n" + CORRAL.format("b") + "reservation = 0.7",
        "more than the 1",
    ),
    "no such disk": (CORRAL.format("a") + 'minidisks = [{size = "1M"}]', "guest a: the host machine has no disk 0"),
    "no such disk, all of it": (CORRAL.format("a") + "minidisks = [{disk = 1}]", "has no disk 1"),
    "no room for a program": (
        'memory = "4M"\npaging = "0"\n' + "".join(CORRAL.format(f"a{n}") for n in range(12)),
        ": memory is used up, and the paging disk is full",
    ),
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


def test_up_helps_with_every_key() -> None:
    """Whatever a site can say is in the help."""
    text = ringfence("up", "--help").stdout.decode()
    keys = {key for table in (Site, Guest, Minidisk) for key in table.__struct_fields__}
    assert keys <= set(re.findall(r"\w+", text))


def test_minidisk_of_no_size_goes_to_the_end_of_its_disk(site: Path) -> None:
    """Which may be its beginning too."""
    (site.parent / "disk.img").write_bytes(bytes(1 << 20))
    site.write_text('disks = ["disk.img"]\n' + CORRAL.format("a") + 'minidisks = [{size = "64K"}, {start = "64K"}]')
    with ExitStack() as stack:
        _, (guest,) = build(read(site), site.parent, lambda path: Console(), "virtual", stack)
        assert [disk.size for disk in guest.disks] == [64 << 10, (1 << 20) - (64 << 10)]


def test_by_the_hosts_clock_guests_get_the_processors_time(site: Path) -> None:
    """One that polls a device for ever has half of it beside one that is busy, and not most."""
    poll = [asm("lui", rd=5, imm=UART), asm("lbu", rd=6, rs1=5, imm=5), asm("jal", rd=0, imm=-4)]
    write_kernel(site.with_name("polls"), *poll)
    write_kernel(site.with_name("busy"), asm("addi", rd=5, rs1=5, imm=1), asm("jal", rd=0, imm=-4))
    site.write_text("".join(f'[guests.{name}]\nkernel = "{name}"\nmemory = "64M"\n' for name in ("polls", "busy")))
    with ExitStack() as stack:
        monitor, guests = build(read(site), site.parent, lambda path: Console(), "host", stack)
        before = time.thread_time_ns()
        monitor.run(until=400_000_000)
        took = time.thread_time_ns() - before
    assert [guest.account.time for guest in guests] == pytest.approx([took / 2, took / 2], rel=0.15)


def test_up_shows_why_a_guest_died_that_was_not_shown(site: Path) -> None:
    """Nobody could see its console any more."""
    write_kernel(site.with_name("dead"), *DEAD["xv6 panics"][0])
    site.write_text(CORRAL.format("one") + '[guests.two]\nkernel = "dead"\nmemory = "64M"\n')
    person = Person("up", str(site), run=False)
    person.until(b"two is stopped: the guest panicked")
    person.until(b"the last lines of its console:")
    person.until(b"  panic: sched locks")
    person.until(b"corral> ")
    person.type(b"poweroff\r")
    assert person.end() == 132


def test_up_shows_one_console_at_a_time(site: Path) -> None:
    """Ctrl-a n goes on to the next guest, and shows what it has printed; Ctrl-a l lists them; Ctrl-a x ends all."""
    site.write_text(CORRAL.format("one") + CORRAL.format("two") + 'technique = "para"\n')
    person = Person("up", str(site), run=False)
    person.until(b"[one]")
    person.until(b"corral> ")
    person.type(b"echo first\r")
    person.until(b"\ncorral> ")
    person.type(b"\x01n")
    person.until(b"[two]")
    person.until(b"corral> ")
    assert b"first" not in person.seen
    person.type(b"\x01l")
    person.until(b"  one (virtualizer): ")
    person.until(b"* two (para, impure): ")
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


def test_up_ends_where_its_terminal_closes(site: Path) -> None:
    """Without a signal too, and though no guest prints anything."""
    site.write_text(CORRAL.format("one"))
    with no_hangup():
        person = Person("up", str(site), run=False)
    person.until(b"corral> ")
    assert person.close() == 129


def test_up_gives_keys_to_the_console_that_was_shown(site: Path) -> None:
    """What is typed before Ctrl-a n is the last guest's, and what comes behind it the next one's, however fast."""
    site.write_text(CORRAL.format("one") + CORRAL.format("two"))
    person = Person("up", str(site), run=False)
    person.until(b"corral> ")
    person.type(b"echo for one\r\x01npoweroff 2\r")
    person.until(b"two has ended with status 2")
    person.until(b"echo for one\r\r\nfor one\r\r\n")
    person.type(b"poweroff\r")
    assert person.end() == 2


def test_up_does_not_wait_for_input_that_nobody_takes(site: Path) -> None:
    """Input is the first guest's: when that has ended, nothing can wake another that waits, though more may come."""
    site.write_text(CORRAL.format("one") + CORRAL.format("two"))
    with subprocess.Popen(
        [*COMMAND, "up", str(site)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(b"poweroff\n")
        process.stdin.flush()
        assert process.wait(30) == 124
        assert b"the guests wait for input, and there is no more" in process.stderr.read()


HUNGRY = 'append = "-- run heap; run heap &; run heap &; run heap &; wait; selftest; run heap"\n'
HUNGRY_MEMORY = "32M"


def test_up_stops_the_guest_that_memory_has_no_room_for(site: Path) -> None:
    """With the reason, when the paging disk is full too; the others, which then have what was its, print what each
    does alone.
    """
    names = ("one", "two", "outer.guests.inner", "four")
    guests = "".join(f'[guests.{name}]\nimage = "corral"\nmemory = "{HUNGRY_MEMORY}"\n{HUNGRY}' for name in names)
    site.write_text('memory = "8M"\npaging = "256K"\n' + guests)
    found = ringfence("up", str(site))
    alone = ringfence("run", "-m", HUNGRY_MEMORY, "--append", HUNGRY.split('"')[1]).stdout.decode().replace("\r", "")
    stopped = ended = 0
    for name in names:
        path = name.replace(".guests.", "/")
        printed = "".join(re.findall(rf"^{path}: (.*\n)", found.stdout.decode(), re.M))
        if f"{path} is stopped: memory is used up, and the paging disk is full\n" in found.stderr.decode():
            stopped += 1
            assert alone.startswith(printed.rstrip("\n"))
        else:
            ended += 1
            assert printed == alone
            assert f"{path} has ended with status 0\n" in found.stderr.decode()
    assert stopped and ended and found.returncode == 125
