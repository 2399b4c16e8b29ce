"""The app in processes of its own that start at once: they are forks of a server that has imported what is heavy.

A fork of the tests' own process would hang where torch used its threads before; the server has used none.
"""

import multiprocessing
import os
import sys

from bids_lesionfill.app import cli
from bids_lesionfill.report import pictures

PRELOADED = [
    *('SimpleITK', 'bids', 'diffusers', 'nibabel.processing', 'jinja2'),
    *('bids_lesionfill.app.participant', 'bids_lesionfill.app.workflow', 'bids_lesionfill.diffusion.unet'),
    'bids_lesionfill.report.pictures',
]
CONTEXT = multiprocessing.get_context('forkserver')


def start(arguments, log_file, before=None):
    """Start `run.py arguments`; the process.

    Parameters
    ----------
    arguments : sequence of str or path
    log_file : path
        For what it says on the screen.
    before : callable, optional
        Is called in the process first: a function of a module, or a `functools.partial` of one.
    """
    CONTEXT.set_forkserver_preload(PRELOADED)
    process = CONTEXT.Process(target=run_app, args=([str(word) for word in arguments], str(log_file), before))
    process.start()
    return process


def run_app(arguments, log_file, before=None):
    """What such a process does."""
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    pictures.draw_panels = no_picture
    if before is not None:
        before()
    sys.exit(cli.main([*arguments, '--skip-bids-validation']))


def no_picture(*_):
    """Drawing takes most of the time of a small run, and has tests of its own."""
    return b'a picture'


def run(arguments, log_file, before=None):
    """Run the app to its end; the exit code, negative if a signal ended it."""
    process = start(arguments, log_file, before)
    process.join()
    return process.exitcode
