"""Speed beside QEMU, and what monitors cost: `python -m benchmarks [--only TABLE] [--runs N]`."""

from __future__ import annotations

import argparse

from benchmarks.devices import devices
from benchmarks.monitors import GROUPS, monitors
from benchmarks.programs import programs
from benchmarks.qemu import WORKLOADS, beside_qemu
from benchmarks.shell import check

TABLES = ("qemu", "programs", "devices", "monitors")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed beside QEMU; what monitors cost.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=TABLES, help="One of the tables.")
    known = [*(w.name for w in WORKLOADS), *GROUPS]
    parser.add_argument("names", nargs="*", choices=[[], *known], metavar="NAME", help=", ".join(known))
    options = parser.parse_args()
    named = set(options.names)
    wanted = set(TABLES if options.only is None else [options.only])
    if wanted & {"programs", "devices"} and not named:
        check()
    if "qemu" in wanted and (not named or named & {w.name for w in WORKLOADS}):
        beside_qemu(named, options.runs)
    if "programs" in wanted and not named:
        programs(options.runs)
    if "devices" in wanted and not named:
        devices(options.runs)
    if "monitors" in wanted and (not named or named & set(GROUPS)):
        monitors(named, options.runs)


if __name__ == "__main__":
    main()
