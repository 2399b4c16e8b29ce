"""Input files of one image."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..modality import of_file
from . import naming

NO_MASK = 'no lesion mask'
DONOR = 'donor of lesions'  # of `--mask-from`


@dataclass(frozen=True)
class Inputs:
    """One image to work on, and what was found for it. Paths are absolute; sources are BIDS URIs."""

    subject: str  # without sub-
    session: str | None
    name: str  # sub-01_ses-1_T1w
    image_file: Path
    relative_path: str  # of the image, in the dataset
    lesion_mask_file: Path | None = None
    tissue_file: Path | None = None  # the T1w that shows the white matter, if the image is none itself
    brain_mask_file: Path | None = None
    problem: str = ''  # why it cannot be used
    sources: tuple = ()
    lesion_labels: tuple = ()  # values of the mask file that are lesions; all above zero if empty
    mask_space: str | None = None  # T1w, FLAIR or another modality, if its name says it
    flair_file: Path | None = None  # of a T1w: the FLAIR (or T2w, ...) of its session, on which the mask may be drawn
    segmentation: 'Segmentation | None' = None  # tissue classes of the T1w, by another tool
    sibling_files: tuple = ()  # other T1w that share the lesion mask, which may be drawn on one of them
    fluid_file: Path | None = None  # of a T1w: the FLAIR of its session, which tells fluid from lesions as dark
    segmented_from: tuple = ()  # T1w and, if there is one, FLAIR from which `--segmenter` makes the lesion mask

    @property
    def modality(self) -> str:
        """The suffix of the file: `T1w`, `FLAIR`, ..."""
        return self.name.rpartition('_')[2]

    @property
    def contrast(self) -> str:
        """Name of the modality, in which a T1w after contrast agent is told from one before."""
        return of_file(self.name).name

    @property
    def drawn_on(self) -> str:
        """Modality of the image on which the mask was drawn, if that was not the T1w itself."""
        path = self.image_file if self.tissue_file else self.flair_file
        return 'FLAIR' if path is None else naming.suffix_of(path.name)

    @property
    def t1w_file(self) -> Path:
        """The T1w that shows the white matter: the image itself, or that of its session."""
        return self.tissue_file or self.image_file

    @property
    def t1w_path(self) -> str:
        """Path of `t1w_file` in the dataset."""
        return str(PurePosixPath(self.relative_path).with_name(self.t1w_file.name))

    def uri_beside(self, path: Path) -> str:
        """Return the BIDS URI of a raw file in the folder of the image."""
        return f'bids:raw:{PurePosixPath(self.relative_path).with_name(path.name)}'


@dataclass(frozen=True)
class Segmentation:
    """Tissue classes of a T1w that another tool found."""

    files: tuple  # one of labels, or three of probabilities: CSF, grey and white matter
    source: str  # which tool or file, in words
    table: tuple | str | None = None  # rows of the labels' table as dicts, or `freesurfer`; None if none names them
