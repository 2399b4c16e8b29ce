"""Bad inputs, one row each, and what is promised for it: a fill, a clear error, or a skip with a reason.

The rows of `ROWS` are participants of one dataset, in a folder with spaces and letters of several alphabets, and one
run of the app does them all: that a row is done says that those before it did not stop the run. What is not a row here:

- empty mask: test_app, test_fill; no mask at all, a file that is no NIfTI, three volumes, a black image: test_app
- mask on a finer, flipped or far grid; probabilities, labels above one: test_fill
- white matter found in a FLAIR's T1w that cannot be used: test_app, test_fill
- output on top of the input, options that contradict each other: test_cli
- killed runs, two runs at once, processes: test_app; random headers and masks: test_fuzz
- how long many participants and large images take: benchmarks/index.py, benchmarks/large.py
"""

import contextlib
import gzip
import json
import os
import resource
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids_examples import find, flair_path, mask_path, t1w_path, write_bids
from conftest import PHANTOM_AFFINE, build_phantom
from nibabel.affines import from_matvec
from scipy import ndimage

from bids_lesionfill import text_files
from bids_lesionfill.app import cli, exit_codes, loading, single_file
from bids_lesionfill.images import grid as images_grid
from bids_lesionfill.images import registration
from bids_lesionfill.layout import derivatives, indexing, pairing
from bids_lesionfill.report import participant as report_participant

P = build_phantom()
SHEAR = np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0.05, 0, 1, 0], [0, 0, 0, 1]])
HEALTHY = ~P.wm_mask & ~P.lesion_mask  # no mask may grow into it
DRAWN = ('nanimage', 'infimage', 'negative', 'hotvoxel', 'thickslices', 'cuthead')  # with pictures in the report


@dataclass(frozen=True)
class Row:
    """What a participant brings, and what is promised."""

    t1w: object = None  # image or bytes of a file; that of the phantom if None
    mask: object = None
    status: str = 'filled'
    words: str = ''  # in the message, or in a warning of the sidecar
    fills: object = None  # voxels that must be filled
    leaves: object = None  # voxels that must be left


def filled_row(t1w=None, mask=None, words=''):
    """The lesions of the phantom are filled, and nothing outside white matter is."""
    return Row(t1w, mask, words=words, fills=P.lesion_mask, leaves=HEALTHY)


def failed(words, t1w=None, mask=None):
    return Row(t1w, mask, 'failed', words)


def gz(img, **fields):
    """An image as bytes of a file, with header fields as they are given, sensible or not."""
    data = bytearray(img.to_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header.structarr[name] = value
    data[:348] = header.structarr.tobytes()
    return gzip.compress(bytes(data), mtime=0)


def scanned():
    """The phantom's T1w as a scanner writes it."""
    img = nib.Nifti1Image(np.rint(P.t1w / 0.25).astype(np.int16), P.affine)
    img.header.set_slope_inter(0.25, 0.0)
    return img


def as_type(dtype):
    return nib.Nifti1Image(P.t1w.astype(dtype), P.affine, dtype=dtype)


def with_voxel(value):
    """The T1w with a value in healthy white matter."""
    t1w = P.t1w.copy()
    t1w[20, 10, 14] = value
    return P.img(t1w)


def no_numbers_in_image(value):
    """Values that are no numbers: in a lesion, beside one, and in a corner."""
    t1w = P.t1w.copy()
    lesion = np.argwhere(P.lesion_mask)
    t1w[tuple(lesion[0])] = t1w[tuple(lesion[-1])] = t1w[20, 10, 14] = t1w[0, 0, 0] = value
    return filled_row(P.img(t1w))


def no_numbers_in_mask(value):
    mask = np.where(P.lesion_mask, np.float32(0.9), np.float32(0.1))
    mask[0] = mask[20, 10, 14] = value
    return filled_row(mask=P.img(mask))


def mask_of(values):
    """A mask with other values than 0 and 1, given for lesions and for the rest."""
    lesion, rest = values
    return P.img(np.where(P.lesion_mask, lesion, rest).astype(np.float32))


def scaled_mask():
    """Probabilities as integers with a scaling: 0.9 in lesions, 0.1 elsewhere."""
    img = nib.Nifti1Image(np.where(P.lesion_mask, 230, 25).astype(np.uint8), P.affine)
    img.header.set_slope_inter(1 / 255, 0)
    return img


def box(*sides):
    mask = np.zeros_like(P.lesion_mask)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def many_lesions():
    p = build_phantom(shape=(58, 54, 48), affine=np.eye(4))
    dots = np.zeros_like(p.lesion_mask)
    dots[::4, ::4, ::5] = True
    dots &= p.wm_mask
    assert dots.sum() > 300
    return Row(p.img(np.where(dots, p.healthy - 250, p.healthy)), p.img(dots), fills=dots)


def lesion_to_the_border():
    """From white matter through cortex and fluid to the border of the image: what is no tissue stays."""
    mask = box((28, 40), (17, 20), (14, 17))
    assert {0, 1, 2, 3} == set(P.tissue_seg[mask])
    outside = mask & (P.tissue_seg < 2) & ndimage.binary_erosion(P.tissue_seg < 2)
    return Row(mask=P.img(mask | P.lesion_mask), fills=P.lesion_mask, leaves=outside)


def head_cut_through():
    """The field of view ends in the middle of the brain, and of a lesion."""
    assert P.lesion_mask[14].any()
    cut = [nib.Nifti1Image(array[14:], P.affine @ from_matvec(np.eye(3), (14, 0, 0)))
           for array in (P.t1w, P.lesion_mask.astype(np.uint8))]  # fmt: skip
    return Row(*cut, fills=P.lesion_mask[14:])


def on_sheared_grid():
    """The mask on a finer grid whose axes are not at right angles; all but its surface must come back."""
    affine = from_matvec(np.eye(3), (-24, -24, -22)) @ SHEAR @ np.diag([0.8, 0.8, 0.8, 1])
    grid = nib.Nifti1Image(np.zeros((60, 60, 56), np.uint8), affine)
    mask = images_grid.resample_to(P.lesion_mask_img, grid, order=1) >= 0.5
    inner = ndimage.binary_erosion(P.lesion_mask)
    assert inner.sum() > 20
    return Row(mask=nib.Nifti1Image(mask.astype(np.uint8), affine), fills=inner, leaves=HEALTHY)


def sheared_image():
    p = build_phantom(affine=SHEAR @ PHANTOM_AFFINE)
    return Row(nib.Nifti1Image(p.t1w, p.affine), nib.Nifti1Image(p.lesion_mask.astype(np.uint8), p.affine),
               fills=p.lesion_mask)  # fmt: skip


def thick_slices():
    p = build_phantom(shape=(40, 36, 9), affine=np.diag([1, 1, 5.0, 1]))
    return Row(p.t1w_img, p.lesion_mask_img, fills=p.lesion_mask)


def no_contrast():
    p = build_phantom(affine=np.eye(4))
    return failed('the brain has no contrast', p.img(300 * p.brain_mask.astype(np.float32)), p.lesion_mask_img)


def noise_around():
    """Noise of 3 % of white matter where there is no brain."""
    noise = np.abs(np.random.default_rng(1).normal(0, 24, P.t1w.shape))
    return P.img(np.where(P.brain_mask, P.t1w, noise).astype(np.float32))


def other_qform():
    img = P.t1w_img
    img.set_qform(from_matvec(np.eye(3), (30, 0, 0)) @ P.affine, code=1)
    return img


def mask_on_qform():
    """The mask lies where the image's qform puts it, 30 mm beside the sform."""
    img = other_qform()
    return filled_row(img, nib.Nifti1Image(P.lesion_mask.astype(np.uint8), img.header.get_qform()),
                      words='The lesion mask lies where the qform puts the image')  # fmt: skip


def zscored(background):
    """Mean 0 and deviation 1 in the brain; background 0 or its minimum."""
    inside = P.t1w[P.brain_mask]
    z = (P.t1w - inside.mean()) / inside.std()
    return P.img(np.where(P.brain_mask, z, 0 if background == 'zero' else z.min()).astype(np.float32))


def ct():
    """Hounsfield units: air, skull, and a brain in which tissues differ by little."""
    units = np.array([-1000, 900, 38, 28])[P.tissue_seg] + np.random.default_rng(0).normal(0, 5, P.t1w.shape)
    return P.img(np.rint(units).astype(np.int16))


NO_PLACE = {'sform_code': 0, 'qform_code': 0}
RGB = np.zeros(P.t1w.shape, dtype=[('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
ROWS = {
    # masks: where
    'maskofeverything': failed('0 of 20369 voxels of the brain are outside the lesion mask', mask=P.img(P.t1w > -1)),
    'manylesions': many_lesions(),
    'lesiontotheborder': lesion_to_the_border(),
    'lesionincortex': Row(mask=P.img(box((36, 38), (17, 19), (14, 16))), status='copied',
                          words='No lesion touches white matter: the output is a copy of the input.'),
    'cuthead': head_cut_through(),
    # masks: which grid
    'masksheared': on_sheared_grid(),
    'masknear': filled_row(mask=nib.Nifti1Image(P.lesion_mask.astype(np.uint8),
                                                from_matvec(np.eye(3), (0.001,) * 3) @ P.affine)),
    'maskwithoutplace': filled_row(mask=gz(P.lesion_mask_img, **NO_PLACE), words='says nothing of its place'),
    'maskwithoutplacenorshape': failed(
        'says nothing of its place (sform_code and qform_code are 0) and has shape (20, 36, 30), '
        'expected that of the image, (40, 36, 30)', mask=gz(P.img(P.lesion_mask[:20]), **NO_PLACE)),
    'imagewithoutplace': filled_row(gz(P.t1w_img, **NO_PLACE), words='says nothing of its place'),
    'imagewithoutplacenorshape': failed(
        'the image says nothing of its place (sform_code and qform_code are 0), and lesion mask ',
        gz(P.t1w_img, **NO_PLACE), P.img(P.lesion_mask[:20])),
    # masks: which values
    'nanmask': no_numbers_in_mask(np.nan),
    'infmask': no_numbers_in_mask(np.inf),
    'floatmask': filled_row(mask=mask_of((0.9999, 0))),
    'overshoot': filled_row(mask=mask_of((1.03, 0.02))),  # as cubic interpolation leaves a mask
    'scaledmask': filled_row(mask=scaled_mask()),
    'floatlabels': filled_row(mask=mask_of((6.9999, 0))),
    'percent': failed('label-lesion_mask.nii.gz has values up to 87.3 that are no whole numbers, expected labels, or '
                      'probabilities from 0 to 1', mask=mask_of((87.3, 1.5))),
    'negativemask': failed('label-lesion_mask.nii.gz has values from -1 to 0, expected lesions above zero',
                           mask=mask_of((-1, 0))),
    'negativelabels': filled_row(mask=mask_of((2, -1))),
    'maskoftwo': failed('label-lesion_mask.nii.gz has shape (40, 36, 30, 2), expected one 3D volume',
                        mask=nib.Nifti1Image(np.zeros((40, 36, 30, 2), np.uint8), P.affine)),
    # images: values
    'nanimage': no_numbers_in_image(np.nan),
    'infimage': no_numbers_in_image(np.inf),
    'negative': filled_row(P.img((P.t1w - 50).astype(np.float32))),
    'allnegative': failed('white matter has median', P.img((P.t1w - 5000).astype(np.float32))),
    'constantbrain': no_contrast(),
    'hotvoxel': filled_row(with_voxel(100 * 800)),
    'veryhotvoxel': filled_row(with_voxel(1e6 * 800)),
    'alreadyfilled': filled_row(P.healthy_img),
    'noisearound': filled_row(noise_around()),
    # images: shape and type
    'flat': failed('T1w.nii.gz has shape (40, 36), expected one 3D volume', nib.Nifti1Image(P.t1w[:, :, 15], P.affine)),
    'colours': failed('T1w.nii.gz has data type [', nib.Nifti1Image(RGB, P.affine)),
    'complex': failed('T1w.nii.gz has data type complex64, expected integers or floats', as_type(np.complex64)),
    'float64': filled_row(as_type(np.float64)),
    'int64': filled_row(as_type(np.int64)),
    'bigendian': filled_row(nib.Nifti1Image(P.t1w, P.affine, nib.Nifti1Header(endianness='>'))),
    'nifti2': filled_row(nib.Nifti2Image(P.t1w, P.affine)),
    'thickslices': thick_slices(),
    'zscored': failed('T1w.nii.gz is negative in', zscored('zero')),
    'zscoredbackground': failed('as after z-scoring', zscored('minimum')),
    'ct': failed('T1w.nii.gz has air near -1000 and tissue near 0, as a CT in Hounsfield units', ct()),
    # images: place
    'sheared': sheared_image(),
    'otherqform': filled_row(other_qform(), words='sform and qform of the image lie 30 mm apart: the sform is used'),
    'maskonqform': mask_on_qform(),
    'sformzero': filled_row(gz(P.t1w_img, sform_code=0)),
    'brokenquaternion': filled_row(gz(P.t1w_img, qform_code=0, quatern_b=3, quatern_c=np.nan)),
    'zeroaffine': failed('T1w.nii.gz has no usable affine: [[0.0, 0.0',
                         gz(P.t1w_img, qform_code=0, srow_x=0, srow_y=0, srow_z=0)),
    'micrometres': failed('voxels of 900 x 1000 x 1200 mm, expected a head of at most 1000 mm',
                          nib.Nifti1Image(P.t1w, np.diag([1000, 1000, 1000, 1]) @ P.affine)),
    # files
    'truncated': failed('T1w.nii.gz is damaged, its data cannot be read: Compressed file ended', gz(scanned())[:-2000]),
    'shortdata': failed('T1w.nii.gz is damaged, its data cannot be read: Expected 86400 bytes, got 81400',
                        gzip.compress(scanned().to_bytes()[:-5000])),
    'truncatedheader': failed('T1w.nii.gz cannot be read as an image', gz(scanned())[:100]),
    'truncatedmask': failed('label-lesion_mask.nii.gz is damaged', mask=gz(P.lesion_mask_img)[:-20]),
    'empty': failed('T1w.nii.gz cannot be read as an image: Empty file', b''),
    'emptymask': failed('label-lesion_mask.nii.gz cannot be read as an image: Empty file', mask=b''),
    'annexpointer': failed('T1w.nii.gz is a pointer of git-annex: fetch its content, with DataLad by: datalad get',
                           b'/annex/objects/MD5E-s12--d41d8cd98f00b204e9800998ecf8427e.nii.gz\n'),
    'brokenlink': failed('T1w.nii.gz is a link to ../../.git/annex/objects/X, which is not there: fetch its content, '
                         'with DataLad by: datalad get'),
    'pair': Row(status='no image', words='no T1w image'),  # .hdr and .img are not BIDS
    'brokenmasklink': failed('label-lesion_mask.nii.gz is a link to ../../.git/annex/objects/X, which is not there'),
}  # fmt: skip


@pytest.fixture(scope='module')
def table(tmp_path_factory, model_dirs):
    """A run on all rows: the folders of input and output, and the rows of participants.tsv by participant."""
    images = {}
    for name, row in ROWS.items():
        images[t1w_path(name)] = scanned() if row.t1w is None else row.t1w
        images[mask_path(name)] = P.lesion_mask_img if row.mask is None else row.mask
    root = write_bids(tmp_path_factory.mktemp('Läsionen und 病变') / 'the data', images)
    for path in (t1w_path('brokenlink'), mask_path('brokenmasklink')):
        (root / path).unlink()
        (root / path).symlink_to('../../.git/annex/objects/X')
    (root / t1w_path('pair')).unlink()
    nib.save(nib.Nifti1Pair(P.t1w, P.affine), root / 'sub-pair/anat/sub-pair_T1w.img')
    out = root.parent / 'out put ß'
    draw = report_participant.draw_figures
    with pytest.MonkeyPatch.context() as patch:  # pictures of all would take as long as the fillings
        is_drawn = lambda path: any(f'sub-{name}_' in path.name for name in DRAWN)  # noqa: E731
        patch.setattr(
            report_participant,
            'draw_figures',
            lambda path, *rest: draw(path, *rest) if is_drawn(path) else report_participant.Drawing(),
        )
        arguments = [str(root), str(out), 'participant', '--model', str(model_dirs['T1w']), '--skip-bids-validation']
        assert cli.main(arguments) == exit_codes.SOME_FAILED
    return root, out, {row['participant_id'].removeprefix('sub-'): row
                       for row in text_files.read_tsv(out / 'participants.tsv')}  # fmt: skip


@pytest.mark.parametrize('name', ROWS)
def test_row(table, name):
    root, out, statuses = table
    row, status = ROWS[name], statuses[name]
    message = status['message'] or ''
    assert status['status'] == row.status, message
    page = (out / f'sub-{name}.html').read_text()
    assert 'Traceback' not in message + page
    if row.status in ('failed', 'no image'):
        assert row.words in message
        assert '\n' not in message
        assert not (out / f'sub-{name}/anat').exists()
        return
    info = derivatives.read_sidecar(out / f'sub-{name}/anat/sub-{name}_desc-filled_T1w.nii.gz')
    assert row.words in ' '.join(info['Warnings'])
    used_mask = check_promise_1(root, out, name)
    if row.status == 'copied':
        assert not used_mask.any()
        return
    (image,) = (row for row in text_files.read_tsv(out / 'images.tsv') if row['participant_id'] == f'sub-{name}')
    assert image['lesions'] == len(text_files.read_tsv(out / f'sub-{name}/anat/sub-{name}_desc-lesions_qc.tsv')) > 0
    assert used_mask[row.fills].all()
    assert row.leaves is None or not used_mask[row.leaves].any()
    assert bool(list(out.glob(f'sub-{name}/figures/*.png'))) == (name in DRAWN)


def check_promise_1(root, out, name):
    """Header and values outside the used mask are those of the input, those inside are tissue; the used mask."""
    anat = out / f'sub-{name}/anat'
    before, after = nib.load(root / t1w_path(name)), nib.load(anat / f'sub-{name}_desc-filled_T1w.nii.gz')
    used_mask = np.asarray(nib.load(anat / f'sub-{name}_label-lesion_desc-used_mask.nii.gz').dataobj) > 0
    assert type(after) is type(before)
    for field in set(before.header.keys()) - {'scl_slope', 'scl_inter', 'vox_offset'}:
        assert before.header[field].tobytes() == after.header[field].tobytes(), field
    stored, filled = (img.dataobj.get_unscaled() for img in (before, after))
    assert (before.dataobj.slope, before.dataobj.inter) == (after.dataobj.slope, after.dataobj.inter)
    assert stored.dtype == filled.dtype
    assert stored[~used_mask].tobytes() == filled[~used_mask].tobytes()
    inside = after.get_fdata()[used_mask]
    assert np.isfinite(inside).all()
    if len(inside) and used_mask.shape == P.wm_mask.shape:
        assert np.median(inside) == pytest.approx(np.nanmedian(before.get_fdata()[P.wm_mask]), rel=0.1)
    return used_mask


def test_300_lesions_are_filled_one_by_one(table):
    _, out, statuses = table
    rows = {row['participant_id']: row for row in text_files.read_tsv(out / 'images.tsv')}
    assert statuses['manylesions']['status'] == 'filled'
    assert rows['sub-manylesions']['lesions'] > 300


# Files that are no NIfTI in one file


def test_a_pair_of_files_is_filled_by_the_program_for_one_file(tmp_path, model_dirs):
    nib.save(nib.Nifti1Pair(P.t1w, P.affine), tmp_path / 't1w.img')
    nib.save(P.lesion_mask_img, tmp_path / 'mask.nii.gz')
    files = [str(tmp_path / name) for name in ('t1w.img', 'mask.nii.gz', 'out.nii.gz')]
    assert single_file.main([*files, '--model', str(model_dirs['T1w'])]) == single_file.OK
    before, after = nib.load(files[0]), nib.load(files[2])
    assert np.array_equal(after.affine, before.affine)
    changed = before.get_fdata() != after.get_fdata()
    assert changed[P.lesion_mask].mean() > 0.9
    assert not changed[HEALTHY].any()


# What surrounds the files


@contextlib.contextmanager
def as_nobody():
    """Without the rights of root, where the tests have them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that any user may write to, with a dataset of two participants that nobody may."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    write_bids(folder / 'data', {t1w_path('01'): scanned(), mask_path('01'): P.lesion_mask_img,
                                 t1w_path('02'): scanned(), mask_path('02'): P.lesion_mask_img})  # fmt: skip
    yield folder
    for path in folder.rglob('*'):
        path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.fixture
def run(model_dirs, open_folder):
    """Run the app on the dataset, without the rights of root; the exit code."""
    shutil.copytree(model_dirs['T1w'], open_folder / 'tiny')
    for path in (open_folder / 'tiny').rglob('*'):
        path.chmod(0o755)

    def call(out):
        arguments = [str(open_folder / 'data'), str(out), 'participant', '--model', str(open_folder / 'tiny')]
        with as_nobody():
            return cli.main([*arguments, '--skip-bids-validation'])

    return call


def test_input_that_may_not_be_written_to_is_filled_and_a_file_that_may_not_be_read_is_named(open_folder, run):
    data, out = open_folder / 'data', open_folder / 'out'
    for path in (data, *data.rglob('*')):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (data / t1w_path('02')).chmod(0)
    assert run(out) == exit_codes.SOME_FAILED
    first, second = text_files.read_tsv(out / 'participants.tsv')
    assert first['status'] == 'filled'
    assert second['status'] == 'failed'
    assert 'sub-02_T1w.nii.gz cannot be read by user' in second['message']
    assert second['message'].endswith('Permission denied')


def test_a_folder_that_may_not_be_read_is_named(open_folder, run, caplog):
    folder = open_folder / 'data/sub-02/anat'
    folder.chmod(0)
    assert run(open_folder / 'out') == exit_codes.USAGE
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == 'ERROR']
    assert str(folder) in message
    assert message.endswith('Permission denied')
    assert 'Traceback' not in caplog.text


def test_output_in_the_raw_data_is_refused(open_folder, run, caplog):
    data = open_folder / 'data'
    assert run(data / 'out') == exit_codes.USAGE
    assert f'is in BIDS_DIR, where it would be read as raw data; use for example {data}/derivatives' in caplog.text
    assert not (data / 'out').exists()


@contextlib.contextmanager
def room_for_files_of(n_bytes):
    """A disk on which no file can be larger."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize('n_bytes', [20_000, 3000, 0])
def test_a_full_disk_is_named_and_leaves_no_half_file(open_folder, run, caplog, n_bytes):
    out = open_folder / 'out'
    with room_for_files_of(n_bytes):
        code = run(out)
    assert code == (exit_codes.SOME_FAILED if n_bytes else exit_codes.USAGE)
    assert 'File too large' in caplog.text
    assert 'Traceback' not in caplog.text
    assert not list(out.rglob('*.tmp'))
    assert not list(out.rglob('*_T1w.nii.gz'))
    for path in out.rglob('*.nii.gz'):  # masks are small enough, and whole
        nib.load(path).get_fdata()
    if n_bytes == 20_000:
        rows = text_files.read_tsv(out / 'participants.tsv')
        assert [row['status'] for row in rows] == ['failed', 'failed']
        assert rows[0]['message'] == f"[Errno 27] File too large: '{out}/sub-01/anat/sub-01_desc-filled_T1w.nii.gz'"


def test_an_image_or_mask_that_is_there_twice_fails_in_one_sentence(tmp_path, model_dir):
    """`.nii` beside `.nii.gz`, as gunzip -k leaves it."""
    masks = {mask_path(subject): P.lesion_mask_img for subject in ('01', '02')}
    root = write_bids(tmp_path / 'data', {t1w_path(subject): P.t1w_img for subject in ('01', '02')} | masks)
    for path in (t1w_path('01'), mask_path('02')):
        (root / path.removesuffix('.gz')).write_bytes(gzip.decompress((root / path).read_bytes()))
    arguments = [str(root), str(tmp_path / 'out'), 'participant', '--model', str(model_dir)]
    assert cli.main(arguments) == exit_codes.SOME_FAILED
    rows = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    names = [path.rpartition('/')[2].removesuffix('.gz') for path in (t1w_path('01'), mask_path('02'))]
    assert [row['message'] for row in rows] == [
        f'{name} and {name}.gz are two files of one name: remove one' for name in names
    ]
    bids_layout = indexing.open_layout(root)
    (image,) = pairing.find_inputs(bids_layout, {}, 'T1w', ['01'], needs_mask=False)['01']  # for synthesis
    assert 'are two files of one name' in image.problem


# Masks and images that belong together (pairing alone: the images hold nothing)


def masks_found(root, paths, img, **options):
    """The mask of each T1w of a dataset of these files: dict of name of the image -> name of the mask, or problem."""
    write_bids(root, dict.fromkeys(paths, img))
    images = find(root, **options)['01']
    return {image.name: image.problem or image.lesion_mask_file.name for image in images}


@pytest.mark.parametrize('mask', [mask_path('01', extra='space-FLAIR_'), mask_path('01')])
def test_one_mask_of_the_usual_visit_serves_all_its_t1w(tmp_path, img, mask):
    """Fault 17: T1w, the same with gadolinium, FLAIR, one mask."""
    paths = [t1w_path('01'), t1w_path('01', extra='ce-gad_'), flair_path('01'), mask]
    name = mask.rpartition('/')[2]
    assert masks_found(tmp_path, paths, img) == {'sub-01_T1w': name, 'sub-01_ce-gad_T1w': name}


def test_a_mask_of_the_flair_by_name_serves_all_t1w_of_the_visit(tmp_path, img):
    mask = mask_path('01', extra='acq-3D_space-FLAIR_')
    paths = [t1w_path('01'), t1w_path('01', extra='ce-gad_'), flair_path('01', extra='acq-3D_'), mask]
    name = mask.rpartition('/')[2]
    assert masks_found(tmp_path, paths, img) == {'sub-01_T1w': name, 'sub-01_ce-gad_T1w': name}


@pytest.mark.parametrize('pair', [('echo-1_', 'echo-2_'), ('rec-norm_', 'rec-dis2d_'), ('inv-1_', 'inv-2_')])
def test_a_mask_named_as_its_image_goes_with_it(tmp_path, img, pair):
    """Fault 12."""
    paths = [path('01', extra=extra) for path in (t1w_path, mask_path) for extra in pair]
    assert masks_found(tmp_path, paths, img) == {
        f'sub-01_{extra}T1w': f'sub-01_{extra}label-lesion_mask.nii.gz' for extra in pair
    }


@pytest.mark.parametrize('extra', ['part-mag_', ''])
def test_a_phase_image_is_never_filled(tmp_path, img, extra):
    """Fault 12."""
    mask = mask_path('01', extra=extra)
    paths = [t1w_path('01', extra='part-mag_'), t1w_path('01', extra='part-phase_'), mask]
    assert masks_found(tmp_path, paths, img) == {'sub-01_part-mag_T1w': mask.rpartition('/')[2]}


def test_image_and_mask_in_the_space_of_one_template_belong_together(tmp_path, img):
    """Fault 11: names of ATLAS 2.0. A T1w beside it that is in no template has no mask."""
    space = 'space-MNI152NLin2009aSym_'
    mask = mask_path('01', extra=space, name='label-L_desc-T1lesion_mask')
    found = masks_found(tmp_path, [t1w_path('01', extra=space), t1w_path('01'), mask], img)
    assert found == {f'sub-01_{space}T1w': mask.rpartition('/')[2], 'sub-01_T1w': 'no lesion mask'}


def test_a_mask_on_the_t2w_is_taken_with_it_and_refused_without(tmp_path, img, caplog):
    """Fault 11."""
    paths = [t1w_path('01'), 'sub-01/anat/sub-01_T2w.nii.gz', mask_path('01', extra='space-T2w_')]
    root = write_bids(tmp_path / 'data', dict.fromkeys(paths, img))
    (image,) = find(root)['01']
    assert image.lesion_mask_file == root / paths[2]
    assert (image.flair_file, image.mask_space, image.drawn_on) == (root / paths[1], 'T2w', 'T2w')
    (root / paths[1]).unlink()
    (image,) = find(root)['01']
    assert image.problem == 'no lesion mask'
    assert 'is in the space of T2w, and no image of sub-01 is: not used' in caplog.text
    assert find(root, filters={'lesion_mask': {'space': 'T2w'}})['01'][0].problem == ''  # as the warning says


@pytest.mark.parametrize(('names', 'way'), [
    (('label-lesion_desc-a_mask', 'label-lesion_desc-b_mask'), '--mask-desc b'),
    (('label-lesion_mask', 'label-L_mask'), '{"lesion_mask": {"label": "lesion"}}'),
    (('acq-a_space-FLAIR_label-lesion_mask', 'acq-b_space-FLAIR_label-lesion_mask'),
     '{"lesion_mask": {"acquisition": "b"}}'),
])  # fmt: skip
def test_what_a_message_says_of_two_masks_works(tmp_path, img, names, way):
    images = [t1w_path('01'), *(flair_path('01', extra=f'acq-{name}_') for name in 'ab')]
    root = write_bids(tmp_path, dict.fromkeys([*images, *(mask_path('01', name=name) for name in names)], img))
    (image,) = find(root)['01']
    assert way in image.problem
    options = {'mask_desc': 'b'} if way.startswith('--') else {'filters': json.loads(way)}
    (image,) = find(root, **options)['01']
    assert image.problem == ''
    assert image.lesion_mask_file.name in (f'sub-01_{name}.nii.gz' for name in names)


def test_two_masks_in_two_derivatives_are_chosen_as_the_message_says(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img})
    shutil.copytree(root / 'derivatives/lesions', root / 'derivatives/other')
    problem = find(root)['01'][0].problem
    assert problem.endswith(f'; choose with --derivatives {root / "derivatives/other"}')
    chosen = {'other': root / 'derivatives/other'}
    bids_layout = indexing.open_layout(root, chosen.values())
    (image,) = pairing.find_inputs(bids_layout, chosen)['01']
    assert image.lesion_mask_file == root / mask_path('01', derivative='other')


MOVE = from_matvec(np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]]), (9, -7, 5))


def test_a_mask_on_one_t1w_comes_to_another_that_lies_elsewhere(tmp_path):
    """Two T1w of a visit whose headers disagree, and a mask on the first: it is registered to the second."""
    p = build_phantom(affine=np.diag([-4.0, 4, 4, 1]))
    moved = nib.Nifti1Image(p.t1w, MOVE @ p.affine)
    images = {t1w_path('01'): p.t1w_img, t1w_path('01', extra='ce-gad_'): moved, mask_path('01'): p.lesion_mask_img}
    plain, with_gadolinium = find(write_bids(tmp_path, images))['01'][::-1]
    assert (plain.name, loading.settle(plain).flair_file) == ('sub-01_T1w', None)
    image = loading.settle(with_gadolinium)
    assert (image.flair_file, image.drawn_on) == (plain.image_file, 'T1w')
    assert image.sources[-1] == 'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
    seen = loading.view(image)
    assert seen.registration.used
    assert registration.largest_shift_mm(np.linalg.inv(MOVE) @ seen.to_t1w, p.t1w, p.affine) < 2  # half a voxel
    assert seen.notes[-1].startswith('sub-01_T1w.nii.gz and T1w differ by up to')
