"""A stock Debian talks over two ports at once, at any depth."""

from __future__ import annotations

import random
from hashlib import md5

from ringfence import Image, MiB, nested
from ringfence.guest.image import command_archive
from ringfence.guest.loader import load
from ringfence.machine.device.ports import ScriptPort
from ringfence.machine.exit import Deadline, PowerOff

WORK = """
cd /sys/class/virtio-ports
for p in *; do eval "$(cat $p/name)=/dev/$p"; done
(head -c 150000 <&3 | md5sum >&3; head -c 4 <&3) 3<>$one &
(head -c 150000 <&3 | md5sum >&3; seq 1 20000 >&3; head -c 4 <&3) 3<>$two &
wait
echo; cat /sys/class/tty/hvc0/dev; echo to the console > /dev/hvc0
sleep 1
"""


def talk(debian: Image, depth: int) -> str:
    """The machine's digest at the end."""
    rng = random.Random(7)
    one, two, console = ScriptPort("one"), ScriptPort("two"), ScriptPort("three", console=True)
    machine = nested(depth, 96 * MiB, ports=[one, two, console])
    command = command_archive(["sh", "-c", WORK])
    load(machine, debian.kernel, initrd=(debian.initrd, command), append=debian.append(command=True))
    machine.on_reset = lambda: machine.power_off(0)
    sent = rng.randbytes(150_000), rng.randbytes(150_000)
    one.send(sent[0])
    two.send(sent[1])
    got: dict[ScriptPort, bytes] = {one: b"", two: b"", console: b""}
    done = False
    while True:
        ended = machine.run(until=machine.clock.now() + 100_000_000)
        for port in got:
            got[port] += port.received()
        if not done and got[one].count(b"\n") == 1 and got[two].count(b"\n") == 20_001:
            done = True
            one.send(b"ends")
            two.send(b"meet")
        if not isinstance(ended, Deadline):
            break
        assert machine.clock.now() < 60_000_000_000, machine.console.text
    assert isinstance(ended, PowerOff), machine.console.text
    sums = [md5(data).hexdigest().encode() + b"  -\n" for data in sent]
    assert got[one] == sums[0]
    assert got[two] == sums[1] + b"".join(b"%d\n" % n for n in range(1, 20_001))
    assert got[console].replace(b"\r", b"") == b"to the console\n"
    lines = machine.console.lines()
    assert lines[-2] in ("endsmeet", "meetends") and lines[-1].partition(":")[0].isdigit()
    return machine.digest()


def test_debian_talks_over_ports_as_well_on_two_monitors(debian: Image) -> None:
    """Both ways over two at once, more than waits anywhere, and over a third that is its hvc0; with one digest."""
    assert talk(debian, 0) == talk(debian, 2)
