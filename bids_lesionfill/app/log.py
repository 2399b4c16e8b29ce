"""Log of a run on stderr."""

import logging
import sys
from typing import Any

NOISY = ('matplotlib', 'PIL', 'bids', 'bidsschematools', 'filelock', 'urllib3', 'httpx')  # their INFO is not ours


def set_up(options: Any, is_worker: bool = False) -> None:
    """Log to stderr, as much as options ask for (`quiet`, `verbose`); workers log warnings, and a level more by -v."""
    usual = logging.WARNING if is_worker else logging.INFO
    logging.basicConfig(
        format='%(asctime)s %(levelname)s %(message)s',
        datefmt='%H:%M:%S',
        stream=sys.stderr,
        level=logging.WARNING if options.quiet else max(logging.DEBUG, usual - 10 * options.verbose),
    )
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
