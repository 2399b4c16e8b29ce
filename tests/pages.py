"""Pages of the documentation, and the command lines in them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / 'docs'
PAGES = sorted(path.name for path in DOCS.glob('*.md'))
TEXTS = ['README.md', 'CONTRIBUTING.md', 'benchmarks/thickness.md', *(f'docs/{name}' for name in PAGES)]


def arguments_of(words, program):
    """Return what a command line hands to a program, or None if it does not call it."""
    if words[0].endswith(f'/{program}') or words[0] == program:
        return words[1:]
    image = {'docker': 'bids_lesionfill', 'apptainer': 'bids_lesionfill.sif', 'singularity': 'bids_lesionfill.sif'}
    if program == 'bids_lesionfill' and words[1:2] == ['run'] and '--entrypoint' not in words and words[0] in image:
        return words[words.index(image[words[0]]) + 1 :]
    return words[3:] if words[1:3] == ['-m', program] else None
