"""Arguments in, exit code out. Heavy libraries are imported after the arguments are understood."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..layout import errors
from ..layout.errors import UsageError
from ..thickness import engine
from . import config, entry, exit_codes, log, validation
from . import parser as app_parser

if TYPE_CHECKING:
    import argparse
    from types import FrameType

    from .options import Options

logger = logging.getLogger('bids_lesionfill')

NO_ROOM_OR_RIGHT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def parse(argv: list[str], config_file: str | Path | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return arguments and what is unknown among them; a configuration file stands for defaults.

    Raises
    ------
    UsageError
        See `config.defaults_from`.
    """
    parser = app_parser.build_parser(app_parser.called_as())
    if config_file is not None:
        parser.set_defaults(**config.defaults_from(config_file, app_parser.build_parser()))
    return parser.parse_known_args(argv)


def start(options: Options) -> int:
    """Run the participant level, in one process or as nodes of nipype; return the exit code."""
    from . import participant

    if options.boilerplate_only:
        participant.write_citation(options)
        return exit_codes.OK
    if options.nprocs == 1 and options.plugin_file is None:
        return participant.run(options)
    from . import workflow

    if options.clean_workdir and options.work_dir is not None:
        workflow.clean(options.work_dir)
    return workflow.run(options)


class Terminated(KeyboardInterrupt):
    """A signal asked the run to end, which it does as if it was interrupted: workers end, nothing is left behind."""


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle a termination signal."""
    raise Terminated(number)


def main(argv: list[str]) -> int:
    """Run the app; return the exit code."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # under nohup it is ignored, and stays so
                handlers[number] = signal.signal(number, terminate)
    try:
        return run(argv)
    except Terminated as error:
        name = signal.Signals(error.args[0]).name
        logger.error('ended by %s; the same command resumes', name)
        return 128 + error.args[0]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(argv: list[str]) -> int:
    """Run the app with command-line arguments; return the exit code."""
    unknown = app_parser.unknown_words(argv)
    if not unknown:
        arguments, others = parse(argv)
        unknown = others and f'unknown argument {" ".join(others)}'
    if unknown:
        name = app_parser.called_as()
        print(f'{name}: {unknown} (see {name} --help)', file=sys.stderr)
        return exit_codes.UNKNOWN_ARGUMENT
    log.set_up(arguments)
    try:
        validation.check_level(arguments)
        if arguments.config_file is not None:
            arguments, _ = parse(argv, arguments.config_file)
        options = validation.options_of(arguments, argv)
        limit_threads(options)
        if options.analysis_level == 'participant':
            validation.check_device(options)
    except UsageError as error:
        logger.error('%s', error)
        return exit_codes.USAGE
    unread = options.skip_bids_validation or options.boilerplate_only or options.reports_only
    if options.analysis_level == 'participant' and not (unread or validation.is_valid(options)):
        return exit_codes.INVALID
    return work(options)


def limit_threads(options: Options) -> None:
    """Set the number of threads of each process; it is read when torch is imported."""
    if options.omp_nthreads:
        os.environ['OMP_NUM_THREADS'] = str(options.omp_nthreads)
    elif options.nprocs > 1:
        os.environ['OMP_NUM_THREADS'] = '1'


def work(options: Options) -> int:
    """Run an analysis level; return the exit code."""
    try:
        if options.analysis_level == 'group':
            from . import group

            return group.run(options)
        return start(options)
    except UsageError as error:
        logger.error('%s', error)
        return exit_codes.USAGE
    except engine.EngineUnavailable as error:
        logger.error('%s', error)
        return exit_codes.ENGINE_UNAVAILABLE
    except Terminated:
        raise
    except KeyboardInterrupt:
        logger.error('interrupted; the same command resumes')
        return exit_codes.INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM_OR_RIGHT:
            logger.error('%s cannot be read or written: %s', error.filename, error.strerror)
            return exit_codes.USAGE
        if errors.lacks_memory(error):
            logger.error('%s', errors.in_words(error))
        else:
            logger.exception('internal error')
        return exit_codes.INTERNAL


def script() -> int:
    """Run the console script `bids_lesionfill`, `run.py` or `python -m bids_lesionfill`."""
    sys.exit(entry.end_quietly(main, sys.argv[1:]))
