"""Run a program, and end it with all that it started when nobody waits for it any more; by itself, as a script.

Its standard input is a pipe that nobody writes to: it ends when the run that started the guard closes it, or is gone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10  # between the request to end and the end


def main(words: list[str]) -> int:
    """Run the program of some words; return its exit code, 128 and more if a signal ended it."""
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f'{words[0]}: {error.strerror}', file=sys.stderr)
        return 127
    threading.Thread(target=end_when_left, args=(process,), daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


def end_when_left(process: subprocess.Popen) -> None:
    """Wait for the end of the standard input, then end a program and its group."""
    while os.read(0, 1):  # not by `sys.stdin`, whose lock a thread must not hold when Python ends
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)  # what the program left of its group


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
