"""Random headers and masks through the app's path of one image: files, reading, filling, writing.

    python benchmarks/fuzz.py [--cases 2000]

Hypothesis makes the cases, the same ones as long as this script and hypothesis are: affines with flips, unequal
voxels, rotations and shears, and broken ones; qform and sform codes, units, data types, byte orders, NIfTI-1 and -2,
slopes and intercepts; shapes; values that are no numbers; masks of any type, values and grid. The network says nothing,
so that a case takes milliseconds.

Promised of every case: a ValueError with one sentence that names what is wrong, or a result in which no voxel outside
the mask that was used differs by a bit, with the header of the input, and with finite numbers inside. Anything else
is unexpected; the first case of each kind is printed. Prints Markdown: how many were filled or refused, and why; exit
code 1 if anything was unexpected.
"""

import argparse
import logging
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import hypothesis
import nibabel as nib
import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bids_lesionfill.app import loading
from bids_lesionfill.diffusion import forms, models, process
from bids_lesionfill.images import anatomy, nifti
from bids_lesionfill.layout import files, inputs
from bids_lesionfill.lesions import fill, settings

IMAGE_TYPES = ('int16', 'uint8', 'int8', 'uint16', 'int32', 'uint32', 'int64', 'uint64', 'float32', 'float64')
REFUSED_TYPES = ('complex64', 'rgb')
RGB = np.dtype([('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
USUAL_SLOPES = ((1, 0), (0.25, 0), (0.37, -20.5), (2, 5), (-0.5, 300), (1e-3, 0))
BROKEN_SLOPES = ((0, 0), (np.nan, np.nan), (np.inf, 0), (1, np.nan), (1e-30, 0), (1e30, 1))
# What the header may not keep: how its fields spell "no scaling", and where the data begin.
FREE_FIELDS = ('scl_slope', 'scl_inter', 'vox_offset', 'magic')
REASONS = {
    r'has shape': 'not one volume',
    r'has data type': 'no real numbers',
    r'no usable affine': 'affine',
    r'expected a head of': 'size',
    r'cannot be read as an image': 'header',
    r'is damaged': 'data',
    r'lies outside the image': 'mask outside the image',
    r'says nothing of its place': 'mask without a place, of another shape',
    r'expected lesions above zero|expected labels, or': 'values of the mask',
    r'white matter has median|holds no white matter': 'no white matter beside the lesions',
}


@st.composite
def affines(draw):
    """From the voxels to the world, mostly as scanners and tools write them."""
    kind = draw(st.sampled_from(['usual'] * 24 + ['sheared'] * 4 + ['zero', 'flat', 'nan', 'huge', 'metres']))
    sizes = draw(st.tuples(*[st.sampled_from([1, 1, 0.7, 0.9, 1.2, 2, 3])] * 3))
    order = draw(st.permutations([0, 1, 2]))
    flips = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    angles = draw(st.sampled_from([(0, 0, 0), (0, 0, 5), (20, -10, 30), (45, 45, 0)]))
    matrix = Rotation.from_euler('xyz', angles, degrees=True).as_matrix() @ np.diag(np.multiply(sizes, flips))[:, order]
    shift = draw(st.sampled_from([(0, 0, 0), (-12.5, 7, 3.3), (900, -400, 1e4)]))
    if kind == 'sheared':
        matrix = matrix @ np.array([[1, 0.2, 0], [0, 1, 0.1], [0, 0, 1]])
    if kind == 'flat':
        matrix[draw(st.integers(0, 2))] = 0
    factor = {'zero': 0, 'nan': np.nan, 'huge': 1e5, 'metres': 1e-3}.get(kind, 1)
    return nib.affines.from_matvec(matrix * factor, shift)


@st.composite
def headers(draw, affine):
    """Fields of a NIfTI header, as dict, and whether it is NIfTI-2 and big-endian."""
    fields = {'xyzt_units': draw(st.sampled_from([2, 10, 0, 1, 3, 255]))}
    fields['sform_code'] = draw(st.sampled_from([1] * 9 + [2, 4, 0, 0, 77]))
    fields['qform_code'] = draw(st.sampled_from([1, 1, 0, 3]))
    fields |= {f'srow_{axis}': row for axis, row in zip('xyz', affine)}
    if draw(st.integers(0, 14)) == 0:
        fields |= {'quatern_b': draw(st.sampled_from([0.5, 3.0, np.nan])), 'quatern_c': 0.9}
    if draw(st.integers(0, 14)) == 0:
        fields['pixdim'] = [draw(st.sampled_from([-1, 1, 0])), *draw(st.tuples(*[st.sampled_from([1, 0, 2.5])] * 3)),
                            0, 0, 0, 0]  # fmt: skip
    return fields, draw(st.integers(0, 7)) == 0, draw(st.integers(0, 7)) == 0


@st.composite
def cases(draw):
    """All that a case is made of."""
    affine = draw(affines())
    kind = draw(st.sampled_from(['same'] * 6 + ['near', 'flipped', 'other'] * 2 + ['far', 'other shape']))
    return {
        'shape': draw(st.sampled_from([(12, 11, 10), (9, 14, 8), (16, 16, 16), (12, 12, 4)])),
        'trailing': draw(st.sampled_from([()] * 24 + [(1,)] * 3 + [(2,), 'flat'])),
        'affine': affine,
        'header': draw(headers(affine)),
        'type': draw(st.sampled_from(IMAGE_TYPES * 6 + REFUSED_TYPES)),
        'scaling': draw(st.sampled_from(USUAL_SLOPES * 4 + BROKEN_SLOPES)),
        'level': draw(st.sampled_from([100] * 8 + [1, 1, 1e-4, 1e6, 1e30, -100])),
        'spoilt': draw(st.sampled_from([None] * 4 + [np.nan, np.inf, -np.inf, -30.0, 1e4])),
        'mask_kind': kind,
        'mask_header': draw(headers(affine)) if draw(st.integers(0, 3)) == 0 else None,
        'mask_type': draw(st.sampled_from(('uint8', 'int16', 'float32', 'float64', 'int8', 'scaled') * 3 + ('rgb',))),
        'mask_values': draw(
            st.sampled_from(
                [(0, 1)] * 12
                + [(0, 7), (0, -1), (0.02, 0.97), (0, 0.4), (-0.03, 1.04), (1, 1), (0, 0), (0, 87.3), (0, 0.9999)]
            )
        ),  # fmt: skip
        'mask_spoilt': draw(st.sampled_from([None] * 8 + [np.nan, np.inf])),
        'whole': draw(st.integers(0, 24)) == 0,  # the mask covers all
        'tissue': draw(st.sampled_from(['classes', 'white matter'])),
        'options': draw(st.sampled_from([(1, 2, 1), (0, 0, 1), (2, 1, 1), (1, 2, 2)])),  # dilate, rim, samples
        'base': draw(st.sampled_from(['biharmonic', 'membrane', 'local_white_matter'])),
        'seed': draw(st.integers(0, 2**16)),
    }


def head(case):
    """Intensities, tissue classes and lesions of a small head: nested balls with noise."""
    shape, rng = case['shape'], np.random.default_rng(case['seed'])
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    radius = np.sqrt(sum(axis**2 for axis in axes))
    tissue_seg = np.select([radius < 0.75, radius < 0.88, radius < 1], [3, 2, 1], 0).astype(np.uint8)
    values = np.array([0, 0.3, 0.7, 1])[tissue_seg] + rng.normal(0, 0.02, shape) * (tissue_seg > 0)
    centre = rng.uniform(-0.6, 0.6, 3)
    lesion = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, centre))) < rng.uniform(0.15, 0.4)
    values = np.where(lesion, 0.6 * values, values) * case['level']
    if case['spoilt'] is not None:
        values[rng.random(shape) < 0.02] = case['spoilt'] * (case['level'] if np.isfinite(case['spoilt']) else 1)
    return values, tissue_seg, np.ones_like(lesion) if case['whole'] else lesion


def to_type(values, name, scaling=(1, 0)):
    """Values as they are stored in a file of this type and scaling."""
    if name == 'rgb':
        return np.zeros(values.shape, RGB)
    slope, inter = scaling if np.isfinite(scaling).all() and scaling[0] else (1, 0)
    with np.errstate(all='ignore'):
        stored = (values - inter) / slope
        if np.dtype(name).kind in 'iu':
            limits = np.iinfo(name)
            stored = np.clip(np.nan_to_num(np.rint(stored)), float(limits.min), np.nextafter(float(limits.max), 0))
        return stored.astype(name)


def to_bytes(stored, affine, header, scaling=(1, 0)):
    """A NIfTI file, whose header fields are then set as they are, sensible or not."""
    fields, is_nifti2, is_big_endian = header
    image_class = nib.Nifti2Image if is_nifti2 else nib.Nifti1Image
    img = image_class(stored, np.eye(4), image_class.header_class(endianness='>' if is_big_endian else '<'),
                      dtype=stored.dtype)  # fmt: skip
    data = bytearray(img.to_bytes())
    header = image_class.header_class(bytes(data[: img.header.structarr.nbytes]), check=False,
                                      endianness=img.header.endianness)  # fmt: skip
    header.structarr['pixdim'][1:4] = np.nan_to_num(nib.affines.voxel_sizes(affine))
    for name, value in (fields | {'scl_slope': scaling[0], 'scl_inter': scaling[1]}).items():
        header.structarr[name] = value
    data[: header.structarr.nbytes] = header.structarr.tobytes()
    return bytes(data)


def mask_of(case, lesion):
    """The mask as bytes of a NIfTI file."""
    low, high = case['mask_values']
    values = np.where(lesion, high, low).astype(float)
    affine, kind = case['affine'].copy(), case['mask_kind']
    if case['mask_spoilt'] is not None:
        values[0, 0] = case['mask_spoilt']
    if kind == 'near':
        affine[:3, 3] += 1e-3
    elif kind == 'flipped':
        affine = affine @ nib.affines.from_matvec(np.diag([-1, 1, 1]), (lesion.shape[0] - 1, 0, 0))
        values = values[::-1]
    elif kind == 'other':
        affine = affine @ nib.affines.from_matvec(0.8 * np.eye(3), (0.3, 0.1, -0.2))
    elif kind == 'far':
        affine[:3, 3] += 3000
    elif kind == 'other shape':
        values = np.pad(values, 2)
    header = case['mask_header'] or (case['header'][0], False, False)
    header = (header[0] | {f'srow_{axis}': row for axis, row in zip('xyz', affine)}, *header[1:])
    if case['mask_type'] == 'scaled':
        return to_bytes(to_type(values, 'uint8', (1 / 200, 0)), affine, header, (1 / 200, 0))
    return to_bytes(to_type(values, case['mask_type']), affine, header)


def write_files(case, folder):
    """Image and mask as files; what the app would know of them, and the tissue classes."""
    values, tissue_seg, lesion = head(case)
    shape = case['shape']
    stored = to_type(values, case['type'], case['scaling'])
    stored = stored[:, :, 0] if case['trailing'] == 'flat' else np.stack([stored] * int(np.prod(case['trailing'])), -1)
    stored = stored if case['trailing'] else stored.reshape(shape)
    (folder / 'T1w.nii').write_bytes(to_bytes(stored, case['affine'], case['header'], case['scaling']))
    (folder / 'mask.nii').write_bytes(mask_of(case, lesion))
    found = inputs.Inputs('01', None, 'sub-01_T1w', folder / 'T1w.nii', 'sub-01/T1w.nii', folder / 'mask.nii')
    return found, tissue_seg


def silent_model(base):
    """A model whose network predicts zeros."""
    form = forms.Form(base=base)
    plan = {'num_inference_steps': 1, 'modality': 'T1w'}
    return models.Model('silent', 'none', plan, form, (8, 8, 4), lambda slabs, timesteps: 0 * slabs[:, :1],
                         process.build_scheduler(prediction_type='v_prediction'))  # fmt: skip


def find_anatomy(view, case, tissue_seg, affine):
    """The anatomy of a case, from white matter or tissues that are given; None if there is nothing to fill."""
    given_mask, _ = view.lesions.on_grid(view.image_img)
    if not given_mask.any():
        return None
    if case['tissue'] == 'white matter':
        wm_mask_img = nib.Nifti1Image((tissue_seg == 3).astype(np.uint8), affine)
        return anatomy.from_white_matter(view.image_img, wm_mask_img)
    mask_img, tissue_seg_img = nifti.mask_image(given_mask, view.image_img), nib.Nifti1Image(tissue_seg, affine)
    return anatomy.look_at(view.image_img, mask_img, tissue_seg_img=tissue_seg_img, lesion_share=fill.LESION_SHARE)


def run_case(case):
    """What became of a case, in words: `filled`, `copied`, or why it was refused; AssertionError if a promise broke."""
    with tempfile.TemporaryDirectory() as folder:
        found, tissue_seg = write_files(case, Path(folder))
        try:
            view = loading.view(found)
            affine = view.image_img.affine
            affine = affine if np.nan_to_num(np.linalg.det(affine)) else np.eye(4)  # nibabel makes no image with all
            dilate, rim_voxels, n_samples = case['options']
            growth, sampling = settings.Growth(dilate, rim_voxels), settings.Sampling(n_samples=n_samples, device='cpu')
            filling = fill.fill(
                view.image_img,
                view.lesions,
                find_anatomy(view, case, tissue_seg, affine),
                silent_model(case['base']),
                growth,
                sampling,
            )
        except ValueError as error:
            return f'refused: {reason_of(error)}'
        files.write_image(Path(folder, 'filled.nii.gz'), filling.filled_img)
        files.write_image(Path(folder, 'used.nii.gz'), filling.used_mask_img)
        check(found.image_file, Path(folder, 'filled.nii.gz'), Path(folder, 'used.nii.gz'))
    return 'filled' if filling.lesions else 'copied'


def reason_of(error):
    """Which of `REASONS` the sentence of an error is; it must be one of ours."""
    sentence = str(error)
    for pattern, reason in REASONS.items():
        if re.search(pattern, sentence):
            assert '\n' not in sentence, sentence
            return reason
    raise AssertionError(f'a ValueError that is no sentence of ours: {sentence}') from error


def check(before_file, after_file, used_mask_file):
    """Assert the promises: header and values outside the mask as they were, numbers inside."""
    before, after, used_mask_img = (nib.load(path) for path in (before_file, after_file, used_mask_file))
    used_mask = np.asarray(used_mask_img.dataobj) > 0
    assert used_mask.shape == before.shape[:3]
    assert np.allclose(used_mask_img.affine, before.affine, rtol=1e-6)  # NIfTI-1 holds it in fewer digits than NIfTI-2
    assert type(after) is type(before)
    for name in before.header.structarr.dtype.names:
        if name not in FREE_FIELDS:
            assert before.header[name].tobytes() == after.header[name].tobytes(), name
    assert (before.dataobj.slope, before.dataobj.inter) == (after.dataobj.slope, after.dataobj.inter)
    stored, filled = (img.dataobj.get_unscaled().reshape(used_mask.shape) for img in (before, after))
    assert stored.dtype == filled.dtype
    assert stored[~used_mask].tobytes() == filled[~used_mask].tobytes()
    assert np.isfinite(after.get_fdata().reshape(used_mask.shape)[used_mask]).all()


def fuzz(n_cases):
    """Run so many cases, always the same; Counter of what became of them, and dict of what was unexpected -> case."""
    outcomes, unexpected = Counter(), {}

    @hypothesis.settings(max_examples=n_cases, derandomize=True, database=None, deadline=None,
                         phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    @hypothesis.given(cases())
    def run(case):
        try:
            outcome = run_case(case)
        except Exception as error:  # the run goes on, to find others
            place = traceback.extract_tb(error.__traceback__)[-1]
            sentence = ' '.join(f'{error}'.split())
            outcome = f'unexpected: {type(error).__name__} {sentence} ({place.name}, line {place.lineno})'
            unexpected.setdefault(outcome, case)
        outcomes[outcome] += 1

    run()
    return outcomes, unexpected


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--cases', type=int, default=2000)
    logging.getLogger('nibabel.global').setLevel(logging.CRITICAL)  # it mends headers, and says so
    warnings.simplefilter('ignore')  # of numbers that overflow
    outcomes, unexpected = fuzz(parser.parse_args().cases)
    n_unexpected = sum(outcomes[outcome] for outcome in unexpected)
    print(f'hypothesis {hypothesis.__version__}, {sum(outcomes.values())} cases, {n_unexpected} unexpected\n')
    print('| what became of it | cases |\n|---|---|')
    for outcome, count in outcomes.most_common():
        print(f'| {outcome} | {count} |')
    for outcome, case in unexpected.items():
        print(f'{outcome}\n    {case}', file=sys.stderr)
    sys.exit(bool(unexpected))


if __name__ == '__main__':
    main()
