"""Call programs of others: without a shell, offline, with an end even if the run that called them is killed."""

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
LOG = 'said.txt'
GRACE_SECONDS = 30  # for the guard to end a program
TAIL_LINES, TAIL_LETTERS = 6, 200  # of what a program said last, in a message
CLOSED = 'http://127.0.0.1:9'  # discard: nobody listens there
# Programs fetch weights that they do not find, by urllib, requests or the Hub of Hugging Face; all read these.
OFFLINE = {
    **dict.fromkeys(('http_proxy', 'https_proxy', 'ftp_proxy', 'all_proxy'), CLOSED),
    'no_proxy': 'localhost,127.0.0.1',
}
OFFLINE |= {name.upper(): value for name, value in OFFLINE.items()}
OFFLINE |= {'HF_HUB_OFFLINE': '1'}


@dataclass(frozen=True)
class Answer:
    """End of a program."""

    code: int  # exit code; -1 if it took too long
    text: str  # what it said, both streams
    seconds: float

    @property
    def ending(self) -> str:
        """The end in words."""
        minutes = f'{self.seconds / 60:.3g} minutes'
        return f'was ended after {minutes}' if self.code == -1 else f'ended with exit code {self.code}'

    @property
    def tail(self) -> str:
        """The last lines that it said, in one line."""
        # A bar of progress writes over its line; colours are escape sequences.
        lines = [re.sub(r'\x1b\[[0-9;]*m', '', line).rpartition('\r')[2].strip() for line in self.text.split('\n')]
        return ' | '.join(line[:TAIL_LETTERS] for line in [line for line in lines if line][-TAIL_LINES:])


def environment(threads: int, allow_download: bool) -> dict[str, str]:
    """Return variables for a program: how many threads it may use, and that it must not fetch anything."""
    return {'OMP_NUM_THREADS': str(threads)} | ({} if allow_download else OFFLINE)


def run(words: Sequence[str], folder: Path, variables: dict[str, str], timeout_s: float | None = None) -> Answer:
    """Run a program in a folder, until it ends or takes too long.

    It is ended, with all that it started, when this process ends, however that ends: see `guard`.

    Parameters
    ----------
    words : sequence of str
        The program and its arguments.
    folder : path
        The working directory, in which a file holds what the program says.
    variables : dict
        Of the environment, added to that of this process.
    timeout_s : float, optional
        Seconds.
    """
    started = time.monotonic()
    program = shutil.which(words[0])
    # What is installed beside a program (its Python, greedy, hd-bet) comes before what this process has.
    beside = [str(Path(program).absolute().parent)] if program else []
    path = os.pathsep.join([*beside, os.environ.get('PATH', os.defpath)])
    with open(folder / LOG, 'wb') as log:
        process = subprocess.Popen(
            [sys.executable, '-S', '-E', str(GUARD), program or words[0], *words[1:]],
            stdin=subprocess.PIPE,  # nothing is written: its end tells the guard that this process is gone
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
    return Answer(code, text, time.monotonic() - started)
