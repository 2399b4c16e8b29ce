"""Registry of segmenters: programs of others that make a lesion mask where a visit has none (`--segmenter`).

A segmenter is a class (`segmenter.Segmenter`) that knows how its program is called, with which images, and where and
how lesions stand in what it writes. Other packages bring one as an entry point of the group
`bids_lesionfill.segmenters`.
"""

from ..plugins import Registry
from .segmenter import Segmenter, Settings

_HERE = 'bids_lesionfill.segmenters'
SEGMENTERS = Registry(
    'bids_lesionfill.segmenters',
    {
        'lst-ai': f'{_HERE}.lst_ai:LSTAI',
        'mindglide': f'{_HERE}.mindglide:MindGlide',
        'nnunet': f'{_HERE}.nnunet:NNUNet',
        'samseg': f'{_HERE}.samseg:SAMSEG',
    },
)


def make_segmenter(name: str, settings: Settings | None = None) -> Segmenter:
    """Return a segmenter by name; it need not be usable, see `Segmenter.check`."""
    return SEGMENTERS[name](settings or Settings())


def desc_of(name: str) -> str:
    """Return the `desc-` of the masks that a segmenter makes: its name in letters and digits (`lstai`)."""
    return ''.join(letter for letter in name if letter.isalnum())


def descriptions() -> dict[str, str]:
    """Return what the `desc-` of masks by segmenters stand for: dict of `desc-NAME` -> words."""
    return {f'desc-{desc_of(name)}': f'lesion mask that --segmenter {name} made' for name in SEGMENTERS}


def methods_text(name: str) -> str:
    """Return a sentence on a segmenter to paste into a paper."""
    segmenter = SEGMENTERS[name]
    return f'Where a visit had no lesion mask, its lesions were segmented by {segmenter.title} ({segmenter.cited}).'
