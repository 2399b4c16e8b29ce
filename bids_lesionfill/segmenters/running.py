"""Run other programs: without a shell and offline. They end with the run that started them, even if it is killed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GUARD = Path(__file__).with_name('guard.py')
LOG = 'log.txt'
GRACE_SECONDS = 30  # for the guard to end a program
TAIL_LINES, TAIL_LETTERS = 6, 200  # of the end of a log, in a message
CLOSED = 'http://127.0.0.1:9'  # the discard port, on which nothing listens
# Programs download missing weights by urllib, requests or the Hugging Face Hub, which read these variables.
OFFLINE = {
    **dict.fromkeys(('http_proxy', 'https_proxy', 'ftp_proxy', 'all_proxy'), CLOSED),
    'no_proxy': 'localhost,127.0.0.1',
}
OFFLINE |= {name.upper(): value for name, value in OFFLINE.items()}
OFFLINE |= {'HF_HUB_OFFLINE': '1'}


@dataclass(frozen=True)
class Result:
    """Result of a program."""

    code: int  # exit code; -1 after a timeout
    log: str  # both streams
    seconds: float

    @property
    def ending(self) -> str:
        """The way it ended, for a message."""
        minutes = f'{self.seconds / 60:.3g} minutes'
        return f'was ended after {minutes}' if self.code == -1 else f'ended with exit code {self.code}'

    @property
    def tail(self) -> str:
        """The last lines of the log, joined to one line; a sentence if it is empty."""
        # A progress bar overwrites its line; colours are escape sequences.
        lines = [re.sub(r'\x1b\[[0-9;]*m', '', line).rpartition('\r')[2].strip() for line in self.log.split('\n')]
        last = [line[:TAIL_LETTERS] for line in lines if line][-TAIL_LINES:]
        return ' | '.join(last) or 'its log is empty'


def environment(threads: int, allow_download: bool) -> dict[str, str]:
    """Return environment variables of a program: its number of threads and, unless allowed, no downloads."""
    return {'OMP_NUM_THREADS': str(threads)} | ({} if allow_download else OFFLINE)


def run(words: Sequence[str], folder: Path, variables: dict[str, str], timeout_s: float | None = None) -> Result:
    """Run a program in a folder until it ends, or until the timeout.

    It is ended together with its subprocesses when this process ends or is killed: see `guard`.

    Parameters
    ----------
    words : sequence of str
        The program and its arguments.
    folder : path
        The working directory, to which the log is written.
    variables : dict
        Environment variables, added to those of this process.
    timeout_s : float, optional
        Seconds.
    """
    started = time.monotonic()
    program = shutil.which(words[0])
    # Programs installed alongside it (its Python, greedy, hd-bet) take precedence over those of this process.
    beside = [str(Path(program).absolute().parent)] if program else []
    path = os.pathsep.join([*beside, os.environ.get('PATH', os.defpath)])
    with open(folder / LOG, 'wb') as log:
        process = subprocess.Popen(
            [sys.executable, '-S', '-E', str(GUARD), program or words[0], *words[1:]],
            stdin=subprocess.PIPE,  # never written to: when it closes, this process is gone
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | {'PATH': path} | variables,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            process.stdin.close()  # type: ignore[union-attr]
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
    text = (folder / LOG).read_bytes().decode(errors='replace')
    return Result(code, text, time.monotonic() - started)
