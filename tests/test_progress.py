"""Bars are for terminals, lines for logs, and nothing for who asked for quiet."""

import contextlib
import fcntl
import logging
import os
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from bids_examples import t1w_path, write_bids

from bids_lesionfill.app import progress

RUN = Path(__file__).parent.parent / 'run.py'


def open_terminal():
    """Two ends of a terminal of 24 lines and 100 columns, the user's and the program's."""
    keeper, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
    return keeper, end


def read_all(keeper, quiet_s=0.5):
    """All that was drawn. The kernel hands it over in parts, later where the machine is busy: until none comes."""
    parts = []
    while select.select([keeper], [], [], quiet_s)[0]:
        try:
            parts.append(os.read(keeper, 100_000))
        except OSError:  # the other end is closed, and all is read
            break
        if not parts[-1]:
            break
    return b''.join(parts).decode()


@contextlib.contextmanager
def terminal():
    """A terminal in place of stderr; what is yielded is a function that reads what was drawn on it."""
    keeper, end = open_terminal()
    with os.fdopen(end, 'w') as file, contextlib.redirect_stderr(file):

        def drawn():
            file.flush()
            return read_all(keeper)

        yield drawn
    os.close(keeper)


@pytest.fixture
def at_info(caplog):
    caplog.set_level(logging.INFO, 'bids_lesionfill')
    return caplog


def sample(n_all=4):
    with progress.bar(2, 'participants', 'participant') as bar, progress.of_parts('sub-01_T1w') as report:
        for n_done in range(2, n_all + 1, 2):
            report(n_done, n_all)
        bar.update()


def test_a_terminal_shows_a_bar_of_participants_and_one_of_tiles(at_info):
    with terminal() as read:
        sample()
        drawn = read()
    assert 'participants:   0%' in drawn
    assert 'sub-01_T1w:' in drawn
    assert '/4' in drawn


def test_quiet_draws_nothing_on_a_terminal(caplog):
    caplog.set_level(logging.WARNING, 'bids_lesionfill')
    with terminal() as read:
        sample()
        assert read() == ''


def test_without_a_terminal_nothing_is_drawn_and_a_slow_sampling_says_where_it_is(capsys, at_info, monkeypatch):
    with progress.of_parts('sub-01_T1w') as report:
        for n_done, seconds in ((1, 0), (2, 30), (3, 70), (4, 80)):
            monkeypatch.setattr(progress.time, 'monotonic', lambda: seconds)  # noqa: B023
            report(n_done, 10)
    assert capsys.readouterr().err == ''
    assert at_info.messages == ['sub-01_T1w: 3 of 10 tiles, about 3 min left']


@pytest.mark.parametrize(('n_done', 'seconds', 'words'), [
    (0, 0, ''), (2, 600, ', about 15 min left'), (4, 40, ', less than a minute left'),
])  # fmt: skip
def test_time_left_is_told_in_words(monkeypatch, n_done, seconds, words):
    monkeypatch.setattr(progress.time, 'monotonic', lambda: 1000 + seconds)
    assert progress.time_left(1000, n_done, 5) == words


@pytest.mark.slow
def test_the_app_draws_a_bar_below_its_log_lines_and_no_control_character_into_a_file(tmp_path, img):
    bids_dir = write_bids(tmp_path / 'data', {t1w_path(subject): img for subject in ('01', '02')})
    command = [sys.executable, RUN, bids_dir, tmp_path / 'out', 'participant', '--skip-bids-validation']
    keeper, end = open_terminal()
    subprocess.run(command, stderr=end, check=False)
    os.close(end)
    drawn = read_all(keeper)
    os.close(keeper)
    assert 'participants:   0%|' in drawn
    assert drawn.count('INFO sub-01 (1 of 2)') == 1
    lines = subprocess.run(command, stderr=subprocess.PIPE, check=False).stderr.decode()
    assert 'INFO sub-01 (1 of 2)' in lines
    assert 'participants:' not in lines
    assert all(character.isprintable() or character == '\n' for character in lines)
