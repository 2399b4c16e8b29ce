"""Modalities of images: what each needs, and how lesions look in it.

Another package brings one (`Modality`) as an entry point of the group `bids_lesionfill.modalities`.
"""

from dataclasses import dataclass, field

from .plugins import Registry


@dataclass(frozen=True)
class Modality:
    """A contrast of images, by the suffix of its files in BIDS.

    The sign of lesions is the one that is usual: checks warn where an image has another. Wherever there is a mask of
    lesions, their sign is measured in the image (`lesions.contrasts.lesion_sign`). Contrasts are in units of the
    normalised image, in which white matter is 1.5 above the background.
    """

    name: str
    suffix: str
    lesion_sign: int | None  # 1: usually brighter than white matter, -1: darker; None: either
    needs_t1w: bool = True  # brain and white matter are found in a T1w of the session
    is_measured: bool = False  # cortical thickness is measured in it
    is_default_of: tuple[str, ...] = ()  # tasks (`fill`, `synth`) for which it is taken if no modality is asked for
    fill_model: str = 'fill-T1w'
    synth_model: str | None = None  # None: no bundled model synthesizes lesions
    # Share of the contrast of a lesion that is left 1 mm outside its mask: median of five patients on FLAIR and T1w
    # (benchmarks/lesion_contrast.py); other modalities have the mean of the two.
    halo_share: float = 0.28
    # Standard deviation of a lesion beyond noise, as a share of its contrast (lesions/unevenness.py).
    unevenness: float = 0.5
    # Percentiles of the contrast of real lesions, without its sign; None: not measured.
    contrast_percentiles: dict[int, float] | None = field(default=None, hash=False)

    def model_for(self, task: str) -> str | None:
        """Return the name of the bundled model for a task (`fill`, `synth`); None if there is none."""
        return {'fill': self.fill_model, 'synth': self.synth_model}[task]

    @property
    def look(self) -> str:
        """The usual appearance of lesions next to white matter."""
        return {1: 'brighter', -1: 'darker', None: 'darker or brighter'}[self.lesion_sign]


MODALITIES = Registry(
    'bids_lesionfill.modalities',
    {
        # 64 lesions of at least 20 voxels of three Ljubljana patients (benchmarks/lesion_contrast.py).
        'T1w': Modality(
            'T1w',
            'T1w',
            lesion_sign=-1,
            needs_t1w=False,
            is_measured=True,
            is_default_of=('fill', 'synth'),
            synth_model='synth-T1w',
            halo_share=0.19,
            unevenness=0.8,
            contrast_percentiles={5: 0.041, 10: 0.067, 25: 0.168, 50: 0.326, 75: 0.518, 90: 0.664, 95: 0.706},
        ),
        # 149 lesions of the same and of four sessions of MSLesSeg.
        'FLAIR': Modality(
            'FLAIR',
            'FLAIR',
            lesion_sign=1,
            is_default_of=('synth',),
            fill_model='fill-FLAIR',
            synth_model='synth-FLAIR',
            halo_share=0.36,
            unevenness=0.2,
            contrast_percentiles={5: 0.306, 10: 0.380, 25: 0.546, 50: 0.704, 75: 0.871, 90: 1.085, 95: 1.180},
        ),
        'T2w': Modality('T2w', 'T2w', lesion_sign=1),
        'PDw': Modality('PDw', 'PDw', lesion_sign=1),
        'UNIT1': Modality('UNIT1', 'UNIT1', lesion_sign=-1),
    },
)
NAMES = tuple(MODALITIES)  # what `--modality` takes
T1W, FLAIR = MODALITIES['T1w'], MODALITIES['FLAIR']
# A T1w after contrast agent (`ce-` in its name) has dark lesions and, where they enhance, bright ones.
POST_CONTRAST = Modality('T1w after contrast agent', 'T1w', lesion_sign=None, needs_t1w=False, synth_model='synth-T1w')
UNKNOWN = Modality('image', '', lesion_sign=None, needs_t1w=False)


def get(name: 'str | Modality | None') -> Modality:
    """Return a modality by its name or suffix; None and `any` stand for one that is not known.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    if name in (None, 'any'):
        return UNKNOWN
    if isinstance(name, Modality):
        return name
    for other in (POST_CONTRAST, UNKNOWN):
        if name == other.name:
            return other
    if name not in MODALITIES:
        raise ValueError(f'modality is {name!r}, expected one of {", ".join(MODALITIES)}')
    return MODALITIES[name]


def defaults(task: str) -> tuple[str, ...]:
    """Return the names of the modalities that a task takes if none is asked for, sorted."""
    return tuple(sorted(name for name in NAMES if task in MODALITIES[name].is_default_of))


def of_file(filename: str) -> Modality:
    """Return the modality of a BIDS file by its suffix and `ce-` (contrast agent); `UNKNOWN` if it has none of them."""
    stem = filename.partition('.')[0]
    suffix = stem.rpartition('_')[2]
    if suffix == T1W.suffix and '_ce-' in stem:
        return POST_CONTRAST
    return get(suffix) if suffix in MODALITIES else UNKNOWN


def accepts(name: str, task: str, made_for: str | None) -> bool:
    """Return True if images of a modality can be given to a model that was made for another one (or for `any`)."""
    model = get(name).model_for(task)
    return made_for in (name, 'any') or (model is not None and model == f'{task}-{made_for}')
