"""The command line. Everything else is imported inside `main`, so that Ctrl-C is never a traceback."""

from __future__ import annotations

import errno
import os
import sys

USAGE, OURS, INTERRUPTED, PIPE = 2, 125, 130, 141
"""Exit statuses; `ringfence run --help` lists them all."""
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (default: the process's own); exits with its status."""
    try:
        plain_interrupt(True)
        _standard_streams()
        from ringfence.cli.table import ringfence

        status = ringfence.main(arguments, prog_name="ringfence", standalone_mode=False)
        status = status if isinstance(status, int) else 0
        sys.stdout.flush()
    except BaseException as error:
        status = explain(error)
    sys.exit(status)


def plain_interrupt(on: bool) -> None:
    """Whether Ctrl-C simply ends the process, as is right while nothing has to be put back; otherwise it is an
    exception."""
    import signal

    if on and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    elif not on and signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _standard_streams() -> None:
    """Whoever closed a standard stream gets /dev/null in its place, so that nothing of ours takes its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, mode))


def explain(error: BaseException) -> int:
    """Say what went wrong as one sentence on standard error; the status."""
    import click

    from ringfence.errors import RingfenceError

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return _say(error.format_message(), USAGE, "")
    if isinstance(error, click.UsageError):
        return _say(error.format_message().rstrip("."), USAGE)
    if isinstance(error, click.ClickException):
        return _say(error.format_message(), error.exit_code)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        discard_output()
        return PIPE
    if isinstance(error, OSError) and error.errno in _UNWRITTEN and error.filename is None:
        discard_output()
        return _say(f"the output cannot be written: {error.strerror}", OURS)
    if isinstance(error, RingfenceError):
        return _say(str(error), error.status)
    import traceback

    _say("".join(traceback.format_exception(error)), OURS, "")
    return _say("this is a fault of Ringfence's own, which should be reported", OURS)


def printable(text: str) -> str:
    """The text on one line, with escapes for what a terminal might obey: it may be a mirror's, or a file's name."""
    return "".join(c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text)


def _say(text: str, status: int, prefix: str = "ringfence: ") -> int:
    """A sentence of ours; or, without the prefix, lines."""
    try:
        print(prefix + printable(text) if prefix else text, file=sys.stderr, flush=True)
    except OSError:  # nobody listens
        pass
    return status


def discard_output() -> None:
    """So that the interpreter does not complain when it flushes what nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
