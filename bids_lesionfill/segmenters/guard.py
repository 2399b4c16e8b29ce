"""Run a program, and end it with its subprocesses when the run that started it is gone. A script, run by its path.

Its standard input is a pipe that is never written to. It closes when that run closes it, ends or is killed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10  # between SIGTERM and SIGKILL


def main(words: list[str]) -> int:
    """Run a command; return its exit code, 128 plus its number if a signal ended it."""
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f'{words[0]}: {error.strerror}', file=sys.stderr)
        return 127
    threading.Thread(target=end_when_closed, args=(process,), daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


def end_when_closed(process: subprocess.Popen) -> None:
    """Wait until the standard input closes, then end a program and its process group."""
    while os.read(0, 1):  # not by `sys.stdin`, whose lock a thread must not hold when Python ends
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)  # subprocesses that remain


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
