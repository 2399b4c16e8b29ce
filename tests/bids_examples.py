"""Small BIDS datasets for tests."""

import json

import nibabel as nib
import numpy as np

from bids_lesionfill.layout import indexing, pairing


def write_description(folder, name='test', **more):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'dataset_description.json').write_text(json.dumps({'Name': name, 'BIDSVersion': '1.10.0', **more}))


def write_bids(root, images, derivative='lesions'):
    """A dataset from a dict of relative path -> image (saved) or bytes; paths in `derivatives/` get a description."""
    write_description(root, DatasetType='raw', License='CC0', Authors=['Nobody'])
    (root / 'README').write_text('A dataset for tests, written by tests, with nobody in it.\n' * 5)
    if any(path.startswith('derivatives/') for path in images):
        write_description(root / 'derivatives' / derivative, DatasetType='derivative', GeneratedBy=[{'Name': 'rater'}])
    for path, content in images.items():
        path = root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            nib.save(content, path)
            if path.name.endswith(('_T1w.nii.gz', '_FLAIR.nii.gz')):
                sidecar = path.with_name(path.name.replace('.nii.gz', '.json'))
                sidecar.write_text('{"SkullStripped": true}\n')
    return root


def bytes_without_place(img):
    """A NIfTI file whose header says nothing of its place."""
    content = bytearray(img.to_bytes())
    content[252:256] = bytes(4)  # qform_code, sform_code
    return bytes(content)


def without_place(img):
    """An image as it is read from such a file."""
    return nib.Nifti1Image.from_bytes(bytes_without_place(img))


def t1w_path(subject, session=None, extra=''):
    folder = f'sub-{subject}/' + (f'ses-{session}/' if session else '')
    return f'{folder}anat/sub-{subject}_' + (f'ses-{session}_' if session else '') + f'{extra}T1w.nii.gz'


def flair_path(subject, session=None, extra=''):
    return t1w_path(subject, session, extra).replace('T1w', 'FLAIR')


def mask_path(subject, session=None, extra='', name='label-lesion_mask', derivative='lesions'):
    folder = f'derivatives/{derivative}/sub-{subject}/' + (f'ses-{session}/' if session else '')
    return f'{folder}anat/sub-{subject}_' + (f'ses-{session}_' if session else '') + f'{extra}{name}.nii.gz'


def listing(root):
    """Relative paths of all files, run ids replaced, sorted."""
    names = []
    for path in root.rglob('*'):
        if path.is_file():
            parts = list(path.relative_to(root).parts)
            if 'log' in parts[:-1]:
                parts[parts.index('log') + 1] = 'RUN'
            names.append('/'.join(parts))
    return sorted(names)


def empty_like(img):
    return nib.Nifti1Image(np.zeros(img.shape, np.uint8), img.affine)


def find(root, **options):
    """What `layout.find_inputs` finds in a dataset and its derivatives."""
    derivatives = indexing.find_derivatives(root)
    return pairing.find_inputs(indexing.open_layout(root, derivatives.values()), derivatives, **options)
