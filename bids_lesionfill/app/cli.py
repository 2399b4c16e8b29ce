"""Arguments in, exit code out. Heavy libraries are imported after the arguments are understood."""

import errno
import logging
import os
import signal
import sys
import threading

from ..layout import errors
from ..layout.errors import UsageError
from ..thickness import engine
from . import config, entry, exit_codes, validation
from . import parser as app_parser

logger = logging.getLogger('bids_lesionfill')

NO_ROOM_OR_RIGHT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def parse(argv, config_file=None):
    """Arguments and what is unknown among them; a configuration file stands for defaults.

    Raises
    ------
    UsageError
        See `config.defaults_from`.
    """
    parser = app_parser.build_parser()
    if config_file is not None:
        parser.set_defaults(**config.defaults_from(config_file, app_parser.build_parser()))
    return parser.parse_known_args(argv)


def start(arguments, options):
    """Run the participant level, in one process or as nodes of nipype; return the exit code."""
    from . import participant

    if arguments.boilerplate_only:
        participant.write_citation(options)
        return exit_codes.OK
    if options.nprocs == 1 and options.plugin_file is None:
        return participant.run(options)
    from . import workflow

    if arguments.clean_workdir and options.work_dir is not None:
        workflow.clean(options.work_dir)
    return workflow.run(options)


class Terminated(KeyboardInterrupt):
    """A signal asked the run to end, which it does as if it was interrupted: workers end, nothing is left behind."""


def terminate(number, frame):
    """Handle a signal that asks to end."""
    raise Terminated(number)


def main(argv):
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
        logger.error('ended by %s; the same command goes on where it stopped', name)
        return 128 + error.args[0]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(argv):
    """Do what arguments say; return the exit code."""
    arguments, unknown = parse(argv)
    logging.basicConfig(
        format='%(asctime)s %(levelname)s %(message)s',
        datefmt='%H:%M:%S',
        stream=sys.stderr,
        level=logging.WARNING if arguments.quiet else max(logging.DEBUG, logging.INFO - 10 * arguments.verbose),
    )
    for noisy in ('matplotlib', 'PIL', 'bids', 'filelock', 'urllib3', 'httpx'):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if unknown:
        logger.error('unknown argument(s): %s', ' '.join(unknown))
        return exit_codes.UNKNOWN_ARGUMENT
    try:
        if arguments.config_file is not None:
            arguments, _ = parse(argv, arguments.config_file)
        options = validation.options_of(arguments, argv)
    except UsageError as error:
        logger.error('%s', error)
        return exit_codes.USAGE
    unread = arguments.skip_bids_validation or arguments.boilerplate_only or options.reports_only
    if arguments.analysis_level == 'participant' and not (unread or validation.is_valid(options)):
        return exit_codes.INVALID
    if arguments.omp_nthreads:
        os.environ['OMP_NUM_THREADS'] = str(arguments.omp_nthreads)  # read when torch is imported
    elif options.nprocs > 1:
        os.environ['OMP_NUM_THREADS'] = '1'
    try:
        if arguments.analysis_level == 'group':
            from . import group

            return group.run(options)
        return start(arguments, options)
    except UsageError as error:
        logger.error('%s', error)
        return exit_codes.USAGE
    except engine.EngineUnavailable as error:
        logger.error('%s', error)
        return exit_codes.ENGINE_UNAVAILABLE
    except Terminated:
        raise
    except KeyboardInterrupt:
        logger.error('interrupted; the same command goes on where it stopped')
        return exit_codes.INTERRUPTED
    except Exception as error:
        if getattr(error, 'errno', None) in NO_ROOM_OR_RIGHT:
            logger.error('%s cannot be read or written: %s', error.filename, error.strerror)
            return exit_codes.USAGE
        if errors.lacks_memory(error):
            logger.error('%s', errors.in_words(error))
        else:
            logger.exception('internal error')
        return exit_codes.INTERNAL


def script():
    """Console script `bids_lesionfill`; also `run.py` and `python -m bids_lesionfill`."""
    sys.exit(entry.end_quietly(main, sys.argv[1:]))
