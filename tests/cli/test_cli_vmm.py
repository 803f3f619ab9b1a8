"""`ringfence run vmm`: the monitor that is a guest, on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ringfence import CORRAL


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ringfence", "run", *arguments]
    return subprocess.run(command, input="", capture_output=True, text=True, timeout=120, check=False)


def test_run_vmm_runs_itself_in_itself() -> None:
    """So many monitors as the command line says; the status is that of the guest at the bottom."""
    done = run("vmm", "--append", "depth=3 -- run primes; poweroff 3", "--stats")
    assert done.returncode == 3, done.stderr
    assert "vmm 3: 496 MiB" in done.stdout and "2262 primes" in done.stdout
    assert "guest/1/1/1 (launched)" in done.stderr


def test_run_vmm_takes_another_program() -> None:
    """An initrd that is an ELF file is what runs at the bottom."""
    done = run("vmm", "--initrd", str(CORRAL), "--append", "-- run hello", "-m", "64M")
    assert done.returncode == 0 and "vmm 1: the program is off with status 0" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["vmm", "--isa", "base"], 1, "no Hardware Virtualizer: --isa hv"),
        (["vmm", "-m", "12M"], 1, "12 MiB are too few"),
        (["vmm", "--bios", "none"], 2, "vmm begins in S-mode"),
        (["vmm", "--", "ls"], 2, "runs no command"),
        (["--isa", "x86"], 2, "'x86' is not one of 'base', 'hv'"),
    ],
)
def test_run_vmm_refuses_in_a_sentence(arguments: list[str], status: int, said: str) -> None:
    """What cannot be is said, with a status."""
    done = run(*arguments)
    assert done.returncode == status and said in done.stdout + done.stderr


def test_run_vmm_waits_for_input_that_comes_late() -> None:
    """Every hart waits, but what is typed would wake the guest at the bottom: it is not taken for dead."""
    command = [sys.executable, "-m", "ringfence", "run", "vmm", "--append", "depth=2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        shown = b""
        while b"corral> " not in shown:
            shown += os.read(process.stdout.fileno(), 4096)
        time.sleep(0.3)
        assert process.poll() is None
        out, _ = process.communicate(b"run hello\n", timeout=60)
    assert process.returncode == 0 and b"Hello from process 1" in out
