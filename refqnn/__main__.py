"""`python -m refqnn` and the console script."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from refqnn import extras
from refqnn.errors import MissingExtra

_signals: list[int] = []  # that have come


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds as Ctrl-C does, so that temporary files are removed."""
    _signals.append(number)
    signal.setitimer(signal.ITIMER_REAL, 1.0)  # and again: some libraries swallow the exception
    raise KeyboardInterrupt


def _ignored(unraisable: sys.UnraisableHookArgs) -> None:
    """An interrupt inside of a callback goes nowhere; the timer brings it again."""
    if not (_signals and issubclass(unraisable.exc_type, KeyboardInterrupt)):
        sys.__unraisablehook__(unraisable)


def main() -> None:
    """Run the command line; without the `cli` extra, say how to get it.

    A command that a signal ends exits with 128 + its number, as shells have it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error does
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _ignored
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _interrupt)
    try:
        extras.require("cli")
        from refqnn.commands.cli import refqnn

        refqnn()
    except MissingExtra as error:
        print(error, file=sys.stderr)
        sys.exit(2)  # as the commands' own errors: 1 says that something differs
    except BaseException:
        # Libraries turn an interrupt into errors of their own; the signal is what counts.
        if not _signals:
            raise
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        with suppress(OSError):  # whoever read the output may be gone
            print("interrupted; no file was left half-written", file=sys.stderr, flush=True)
            sys.stdout.flush()
        os._exit(128 + _signals[0])  # libraries that were cut short may fail to end


if __name__ == "__main__":
    main()
