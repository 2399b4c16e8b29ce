"""How long it takes to find the inputs of many participants, before any is read.

    python benchmarks/index.py [--participants 500]

Fake participants: a T1w and a FLAIR, and in derivatives a lesion mask, a brain mask and tissue classes, all empty
files. Prints Markdown.
"""

import argparse
import tempfile
import time
from pathlib import Path

from bids_lesionfill.layout import derivatives as layout_derivatives
from bids_lesionfill.layout import files, indexing, pairing

NAMES = (
    *('sub-{n}/anat/sub-{n}_T1w.nii.gz', 'sub-{n}/anat/sub-{n}_T1w.json', 'sub-{n}/anat/sub-{n}_FLAIR.nii.gz'),
    'derivatives/lesions/sub-{n}/anat/sub-{n}_label-lesion_mask.nii.gz',
    'derivatives/fmriprep/sub-{n}/anat/sub-{n}_desc-brain_mask.nii.gz',
    'derivatives/fmriprep/sub-{n}/anat/sub-{n}_dseg.nii.gz',
)


def write_fakes(root, n_participants):
    """A dataset of empty files."""
    for folder in (root, root / 'derivatives/lesions', root / 'derivatives/fmriprep'):
        folder.mkdir(parents=True)
        files.write_json(
            folder / 'dataset_description.json', {'Name': 'fakes', 'BIDSVersion': layout_derivatives.BIDS_VERSION}
        )
    for number in range(n_participants):
        for name in NAMES:
            path = root / name.format(n=f'{number:04d}')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--participants', type=int, default=500)
    n_participants = parser.parse_args().participants
    import bids  # noqa: F401  its import is not the index

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, 'data')
        write_fakes(root, n_participants)
        moments = [(time.monotonic(), time.process_time())]
        derivatives = indexing.find_derivatives(root)
        bids_layout = indexing.open_layout(root, derivatives.values())
        moments.append((time.monotonic(), time.process_time()))
        found = pairing.find_inputs(bids_layout, derivatives)
        moments.append((time.monotonic(), time.process_time()))
    images = [image for of_subject in found.values() for image in of_subject]
    assert len(images) == n_participants
    assert all(image.lesion_mask_file and image.brain_mask_file and image.segmentation for image in images)
    print(f'{n_participants} participants\n\n| what | wall s | CPU s |\n|---|---|---|')
    for what, (wall, cpu), (wall_after, cpu_after) in zip(('index', 'pairing'), moments, moments[1:]):
        print(f'| {what} | {wall_after - wall:.1f} | {cpu_after - cpu:.1f} |')


if __name__ == '__main__':
    main()
