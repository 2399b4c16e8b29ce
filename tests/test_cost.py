"""What a visit costs: brain, bias, tissues and registration are found once, and each file is opened once."""

import collections
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids_examples import flair_path, mask_path, t1w_path, write_bids

from bids_lesionfill.app import cli, exit_codes, reporting
from bids_lesionfill.app import options as app_options
from bids_lesionfill.images import registration, tissues
from bids_lesionfill.thickness import anatomy as thickness_anatomy

VOXEL_MM = 2.5


@pytest.fixture
def head(make_phantom):
    return make_phantom(affine=np.diag([-VOXEL_MM, VOXEL_MM, VOXEL_MM, 1]))


@pytest.fixture
def visit(tmp_path, head):
    """A T1w and a FLAIR whose grid lies elsewhere, on which the lesions were delineated."""
    shift = nib.affines.from_matvec(np.eye(3), (7.3, -4.1, 5.2))
    flair_img = nib.Nifti1Image(head.flair[:, :, 1:], shift @ head.affine)
    mask_img = nib.Nifti1Image(head.lesion_mask[:, :, 1:].astype(np.uint8), flair_img.affine)
    mask_name = mask_path('01', name='space-FLAIR_label-lesion_mask')
    images = {t1w_path('01'): head.t1w_img, flair_path('01'): flair_img, mask_name: mask_img}
    return write_bids(tmp_path / 'data', images)


@pytest.fixture
def calls(monkeypatch):
    """How often costly functions were called, by name, and inputs opened, by file."""
    found = collections.Counter()

    def count(module, name):
        function = getattr(module, name)

        def counting(*arguments, **options):
            found[Path(arguments[0]).name if name == 'load' else name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, counting)

    for module, name in ((tissues, 'find_brain'), (tissues, 'find_bias'), (tissues, 'classify'),
                         (registration, 'rigid'), (nib, 'load')):  # fmt: skip
        count(module, name)
    return found


@pytest.fixture
def template(monkeypatch, head):
    """In place of the template of thickness: the head itself, to which nothing has to be registered."""
    sides = np.where(np.arange(head.t1w.shape[0]) < 20, 1, 42)[:, None, None]
    priors = np.stack([head.tissue_seg == tissue for tissue in (1, 2, 3)]).astype(np.float32)
    labels = np.where(head.tissue_seg == 2, sides, 0).astype(np.int16)
    brain = thickness_anatomy.Template(head.t1w, priors, head.affine, labels, head.affine)
    seen = []

    def register(t1w, brain_mask, affine, template, rng):
        seen.append((t1w, brain_mask))
        points_mm = nib.affines.apply_affine(affine, np.argwhere(brain_mask))
        return thickness_anatomy.Registration(points_mm, {})

    monkeypatch.setattr(thickness_anatomy, 'read_template', lambda: brain)
    monkeypatch.setattr(thickness_anatomy, 'register', register)
    return seen


def run(visit, out, *arguments):
    return cli.main([str(visit), str(out), 'participant', '--modality', 'T1w', 'FLAIR', *arguments])


def test_a_visit_with_thickness_finds_and_opens_everything_once(
    visit, tmp_path, monkeypatch, calls, template, model_dirs
):
    monkeypatch.setattr(app_options.Options, 'model_of', lambda self, modality: str(model_dirs[modality]))
    monkeypatch.setattr(reporting, 'finish', lambda *_: 'filled')  # the report opens images for its pictures
    out = tmp_path / 'out'
    assert run(visit, out, '--thickness', 'pbt') == exit_codes.OK
    assert {name: calls[name] for name in ('find_brain', 'find_bias', 'classify', 'rigid')} == {
        'find_brain': 1, 'find_bias': 1, 'classify': 1, 'rigid': 1}  # fmt: skip
    inputs = [path.name for path in visit.rglob('*.nii.gz')]
    assert len(inputs) == 3
    assert {name: calls[name] for name in inputs} == dict.fromkeys(inputs, 1)
    (original, brain), (filled, brain_of_filled), (rerun, brain_of_rerun) = template
    assert np.array_equal(brain, brain_of_filled)
    assert np.array_equal(brain, brain_of_rerun)
    assert np.array_equal(original, rerun)
    assert not np.array_equal(original, filled)
    calls.clear()
    assert run(visit, out, '--thickness', 'pbt') == exit_codes.OK  # all is there
    assert not any(calls[name] for name in ('find_brain', 'find_bias', 'classify', 'rigid'))
