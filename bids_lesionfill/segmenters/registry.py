"""Registry of segmenters: other programs that make a lesion mask for a visit without one (`--segmenter`).

A segmenter is a class (`segmenter.Segmenter`). It knows the arguments of its program, the images that it needs, the
file that it writes and the labels of lesions in it. Other packages add a segmenter as an entry point of the group
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
    """Return a segmenter by name; `Segmenter.check` tests whether it can be used."""
    return SEGMENTERS[name](settings or Settings())


def desc_of(name: str) -> str:
    """Return the `desc-` of the masks of a segmenter: the letters and digits of its name (`lstai`)."""
    return ''.join(letter for letter in name if letter.isalnum())


def descriptions() -> dict[str, str]:
    """Return the meaning of the `desc-` of all segmenters: dict of `desc-NAME` -> description."""
    return {f'desc-{desc_of(name)}': f'lesion mask by --segmenter {name}' for name in SEGMENTERS}


def methods_text(name: str) -> str:
    """Return a sentence on a segmenter to paste into a paper."""
    segmenter = SEGMENTERS[name]
    return f'Where a visit had no lesion mask, its lesions were segmented by {segmenter.title} ({segmenter.cited}).'
