"""A million cases of hostile drivers (tests/machine/virtio_fuzz.py), from seeds that the tests do not have."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pytest
from virtio_fuzz import Fuzz, Report, shared

from ringfence.machine.clock import Source

pytestmark = pytest.mark.long

RUNS = 8
VIRTUAL, HOST = 100_000, 25_000
"""Cases of a run by each clock."""


def run(seed: int, clock: Source, cases: int, directory: Path) -> Report:
    fuzz = Fuzz(seed, clock, shared(directory))
    try:
        return fuzz.run(cases)
    finally:
        fuzz.close()


def test_a_million_cases_of_hostile_drivers_harm_nobody(tmp_path: Path) -> None:
    """What must hold of a few thousand holds of a million."""
    clocks: tuple[tuple[Source, int], ...] = (("virtual", VIRTUAL), ("host", HOST))
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(run, 100 + seed, clock, cases, tmp_path / f"{seed}{clock}")
            for seed in range(RUNS)
            for clock, cases in clocks
        ]
        reports = []
        for job in as_completed(jobs):
            reports.append(job.result())
            print(reports[-1], flush=True)
    assert sum(report.cases for report in reports) == 1_000_000
    seconds, served = sum(report.seconds for report in reports), sum(report.served for report in reports)
    slowest, growth = max(report.slowest for report in reports), max(report.growth for report in reports)
    checks = sum(report.checks for report in reports)
    print(f"{seconds:.0f} s, {served} buffers, {checks} checks; at most {slowest:.3f} s a case, {growth} bytes more")
