"""Start and end of the programs of the command line."""

import os
import sys
from collections.abc import Callable


def end_quietly(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a program and return its exit code; that its output is read no further (`| head -1`) is no error of it."""
    try:
        try:
            return main(argv)
        finally:
            if sys.stdout is not None:  # it is None where the shell closed it
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 0
