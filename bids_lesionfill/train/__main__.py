"""`python -m bids_lesionfill.train`."""

import sys

try:
    from .cli import main
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed: pip install 'bids_lesionfill[train]'")

if __name__ == '__main__':
    sys.exit(main())
