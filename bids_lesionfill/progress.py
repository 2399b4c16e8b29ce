"""How far a run is: bars on a terminal, lines in a log, nothing for those who asked for quiet."""

import contextlib
import logging
import sys
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LINE_EVERY_S = 60  # of a sampling, in a log

logger = logging.getLogger('bids_lesionfill')


@contextlib.contextmanager
def bar(n_all, name, unit):
    """A bar on stderr, below the lines of the log; only if that is a terminal, and never with `--quiet`.

    Yields
    ------
    tqdm
        `disable` says that nothing is drawn.
    """
    drawn = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
    with contextlib.ExitStack() as stack:
        if drawn:
            stack.enter_context(logging_redirect_tqdm())
        yield stack.enter_context(
            tqdm(total=n_all, desc=name, unit=unit, file=sys.stderr, disable=not drawn, leave=False, dynamic_ncols=True)
        )


@contextlib.contextmanager
def of_sampling(name):
    """What `fill.fill` and `synth.paint` call with (tiles done, all tiles): a bar, or a line every minute.

    The bar begins with the first tiles, so that its estimate is theirs.
    """
    with contextlib.ExitStack() as stack:
        tiles, started, said = None, 0, 0

        def report(n_done, n_all):
            nonlocal tiles, started, said
            if tiles is None:
                tiles = stack.enter_context(bar(n_all, name, 'tile'))
                started = said = time.monotonic()
            tiles.update(n_done - tiles.n)
            if tiles.disable and n_done < n_all and time.monotonic() - said >= LINE_EVERY_S:
                said = time.monotonic()
                logger.info('%s: %d of %d tiles%s', name, n_done, n_all, time_left(started, n_done, n_all))

        yield report


def time_left(started, n_done, n_all):
    """How long the rest takes if it takes as long as what is done, in words; empty if nothing is done yet."""
    if not n_done:
        return ''
    minutes = (time.monotonic() - started) / n_done * (n_all - n_done) / 60
    return f', about {minutes:.0f} min left' if minutes >= 1 else ', less than a minute left'
