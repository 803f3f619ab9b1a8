"""Speed beside QEMU, and what monitors cost: `python -m benchmarks [--only qemu|monitors] [--runs N]`."""

from __future__ import annotations

import argparse

from benchmarks.monitors import GROUPS, monitors
from benchmarks.qemu import WORKLOADS, beside_qemu


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed beside QEMU; what monitors cost.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=["qemu", "monitors"], help="One of the two tables.")
    known = [*(w.name for w in WORKLOADS), *GROUPS]
    parser.add_argument("names", nargs="*", choices=[[], *known], metavar="NAME", help=", ".join(known))
    options = parser.parse_args()
    named = set(options.names)
    if options.only != "monitors" and (not named or named & {w.name for w in WORKLOADS}):
        beside_qemu(named, options.runs)
    if options.only != "qemu" and (not named or named & set(GROUPS)):
        monitors(named, options.runs)


if __name__ == "__main__":
    main()
