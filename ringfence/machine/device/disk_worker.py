"""Work on disks beside the machine: a thread for a disk, which does one task after the other.

The machine's thread hands a task over and goes on; a host's read, write or flush holds up neither native code nor
Python. Who needs a task done does what is left before it in the thread's place, so that tasks are always done in the
order in which they came, whoever does them, and nobody waits for a thread to wake up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol
from weakref import finalize

IDLE = 2.0
"""Seconds without a task after which the thread ends."""
SLOW = 200e-6
"""Seconds of a task from which on it pays to wake the thread up for it, where somebody will wait for it anyway."""


class Task(Protocol):
    """What is to be done on a disk."""

    done: bool
    """It has been."""

    def try_now(self) -> bool:
        """Does it if that takes no time worth speaking of; returns whether."""

    def carry_out(self) -> None:
        """Does it, in any thread; raises nothing, and sets `done` at last."""


class Worker:
    """The tasks of one disk, in order."""

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()
        self._turn = threading.Lock()
        """Held by who does a task."""
        self._bell = threading.Lock()
        """Held but for the moment at which there is something new."""
        self._bell.acquire()
        self._hiring = threading.Lock()
        self._thread: threading.Thread | None = None
        self._usual = 0.0
        """Seconds that tasks take, the last counting most."""

    def give(self, task: Task, *, alone: bool) -> None:
        """It is done behind all that were given before. `alone`: nobody asks `finish` for it."""
        if alone and self._at_once(task):
            return
        self._tasks.append(task)
        if alone or self._usual > SLOW:
            with self._hiring:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="ringfence-disk", daemon=True)
                    self._thread.start()
            self._ring()

    def finish(self, task: Task) -> None:
        """Returns when the task is done, which was given."""
        while not task.done:
            self._next()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """All that was given is done, and nothing is done meanwhile."""
        with self._turn:
            while self._tasks:
                self._do()
            yield

    def _next(self) -> None:
        with self._turn:
            if self._tasks:
                self._do()

    def _do(self) -> None:
        began = time.monotonic()
        self._tasks.popleft().carry_out()
        self._usual += (time.monotonic() - began - self._usual) / 4

    def _at_once(self, task: Task) -> bool:
        if self._tasks or not self._turn.acquire(blocking=False):
            return False
        try:
            return not self._tasks and task.try_now()
        finally:
            self._turn.release()

    def _ring(self) -> None:
        if self._bell.locked():
            try:
                self._bell.release()
            except RuntimeError:  # somebody else was quicker
                pass

    def _work(self) -> None:
        while True:
            if not self._bell.acquire(timeout=IDLE):
                with self._hiring:
                    if not self._tasks:
                        self._thread = None
                        return
            while self._tasks:
                self._next()


_workers: dict[int, Worker] = {}
"""By identity of a disk that is no share of others."""


def worker_of(disk: object) -> Worker:
    """Whose tasks a disk's are. Disks that are shares of the same disk have the same worker: a share says by `beneath`
    on which disk it lies, or on one of which, as `join` has been told of them all.
    """
    while (beneath := getattr(disk, "beneath", None)) is not None:
        disk = beneath
    worker = _workers.get(id(disk))
    if worker is None:
        worker = _workers[id(disk)] = Worker()
        finalize(disk, _workers.pop, id(disk), None).atexit = False
    return worker


def join(disks: Iterable[object]) -> None:
    """From now on one worker does the tasks of all these disks."""
    workers = list(dict.fromkeys(map(worker_of, disks)))
    for worker in workers[1:]:
        with workers[0].alone(), worker.alone():
            for key in [key for key, known in _workers.items() if known is worker]:
                _workers[key] = workers[0]


@contextmanager
def quiet(*disks: object) -> Iterator[None]:
    """All that was to be done on these disks is done, and nothing else is meanwhile."""
    with ExitStack() as stack:
        for worker in sorted(set(map(worker_of, disks)), key=id):
            stack.enter_context(worker.alone())
        yield
