"""Files that tools write under names of their own, not those of BIDS: whose they are, and what they hold.

A tool's folder holds one folder for each participant (`sub-01`, `01`) or visit (`sub-01_ses-1`, `01_1`).
"""

from collections.abc import Iterable
from pathlib import Path

from .. import text_files

# Tissue labels of the whole brain, the best first; WM hypointensities of FreeSurfer are labels of their own.
LABEL_FILES = {
    'mri/aparc.DKTatlas+aseg.deep.withCC.mgz': 'FastSurfer',
    'mri/aparc.DKTatlas+aseg.deep.mgz': 'FastSurfer',
    'mri/aseg.mgz': 'FreeSurfer',
    'mri/aseg.presurf.mgz': 'FreeSurfer',
    'mri/synthseg.mgz': 'SynthSeg',
    'synthseg.nii.gz': 'SynthSeg',
    'synthseg.mgz': 'SynthSeg',
    'T1w_norm_seg.nii.gz': 'DL+DiReCT',
    'seg.mgz': 'SAMSEG',
}
MASK_TOOLS = frozenset({'SAMSEG', 'LST-AI'})
LESION_FILES = ('space-t1w_seg-lst.nii.gz', 'space-flair_seg-lst.nii.gz')  # of LST-AI, in a folder for each visit


def folder_names(subject: str, session: str | None = None) -> list[str]:
    """List possible names of a participant's folder or, with a session, of a visit's."""
    if session is None:
        return [f'sub-{subject}', subject]
    return [f'sub-{subject}_ses-{session}', f'sub-{subject}/ses-{session}', f'{subject}_{session}']


def visit_folders(roots: Iterable[Path], subject: str, session: str | None = None) -> list[Path]:
    """List a visit's folders below tools' folders and below fMRIPrep's `sourcedata/freesurfer`."""
    roots = [Path(root) / below for root in roots for below in ('.', 'sourcedata/freesurfer')]
    folders = [root / name for root in roots for name in folder_names(subject, session)]
    return [folder for folder in folders if folder.is_dir()]


def find_labels(roots: Iterable[Path], subject: str, session: str | None = None) -> list[tuple[Path, str]]:
    """Label files of a visit: list of (path, tool), the best first."""
    found = [
        (folder / name, tool)
        for name, tool in LABEL_FILES.items()
        for folder in visit_folders(roots, subject, session)
        if (folder / name).is_file()
    ]
    return [(path, tool) for path, tool in found if tool != 'SAMSEG' or has_samseg_stats(path.parent)]


def find_lesion_masks(
    roots: Iterable[Path], subject: str, session: str | None = None
) -> list[tuple[Path, tuple[int, ...]]]:
    """Find the lesion masks of a visit: list of (path, labels that are lesions or ())."""
    found = [
        (folder / name, ())
        for folder in visit_folders(roots, subject, session)
        for name in LESION_FILES
        if (folder / name).is_file()
    ]
    samseg = [path for path, tool in find_labels(roots, subject, session) if tool == 'SAMSEG']
    return found + [(path, (99,)) for path in samseg if segmented_lesions(path.parent)]


def has_samseg_stats(folder: Path) -> bool:
    """Return True if a folder is SAMSEG's."""
    return (folder / 'samseg.stats').is_file()


def segmented_lesions(folder: Path) -> bool:
    """Return True if SAMSEG was run with `--lesion`, by its table of volumes."""
    return 'Lesions' in text_files.read_text(folder / 'samseg.stats')


def is_tool_folder(root: Path) -> bool:
    """Return True if a folder is no BIDS derivative, but holds participants of one of these tools."""
    return bool(tools_in([root]))


def may_hold_masks(root: Path) -> bool:
    """Return True if a folder can hold lesion masks: a BIDS derivative or a lesion tool's folder."""
    return (Path(root) / 'dataset_description.json').is_file() or not MASK_TOOLS.isdisjoint(tools_in([root]))


def tools_in(roots: Iterable[Path]) -> list[str]:
    """List the tools with files in folders, as in `visit_folders`: list of names, in a fixed order."""
    roots = [Path(root) for root in roots]
    tool_of = LABEL_FILES | dict.fromkeys(LESION_FILES, 'LST-AI')
    places = [f'{below}{depth}' for below in ('', 'sourcedata/freesurfer/') for depth in ('*/', 'sub-*/ses-*/')]
    found = {
        tool
        for name, tool in tool_of.items()
        if any(next(root.glob(place + name), None) for root in roots for place in places)
    }
    return [tool for tool in dict.fromkeys(tool_of.values()) if tool in found]
