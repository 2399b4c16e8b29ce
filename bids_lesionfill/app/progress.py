"""Progress of a run: bars on a terminal, lines in a log, nothing with `--quiet`."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger('bids_lesionfill')


LINE_EVERY_S = 60  # in a log


@contextlib.contextmanager
def bar(n_all: int, name: str, unit: str) -> Iterator[Any]:
    """Show a progress bar on stderr below the log; only in a terminal, and never with `--quiet`.

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
def of_parts(name: str, unit: str = 'tile') -> Iterator[Callable[[int, int], None]]:
    """Return a progress callback (number done, total): it shows a bar, or logs one line per minute.

    The bar begins with the first tiles, so that its estimate is theirs.
    """
    with contextlib.ExitStack() as stack:
        units, started, said = None, 0, 0

        def report(n_done: int, n_all: int) -> None:
            nonlocal units, started, said
            if units is None:
                units = stack.enter_context(bar(n_all, name, unit))
                started = said = time.monotonic()
            units.update(n_done - units.n)
            if units.disable and n_done < n_all and time.monotonic() - said >= LINE_EVERY_S:
                said = time.monotonic()
                logger.info('%s: %d of %d %ss%s', name, n_done, n_all, unit, time_left(started, n_done, n_all))

        yield report


def time_left(started: float, n_done: int, n_all: int) -> str:
    """Return the estimated remaining time as text; empty if nothing is done yet."""
    if not n_done:
        return ''
    minutes = (time.monotonic() - started) / n_done * (n_all - n_done) / 60
    return f', about {minutes:.0f} min left' if minutes >= 1 else ', less than a minute left'
