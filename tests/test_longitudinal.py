"""`--longitudinal`: sessions of a participant are registered, know each other's lesions, and share their texture."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from bids_examples import find, mask_path, t1w_path, write_bids
from heads import head_at, turned

from bids_lesionfill import text_files
from bids_lesionfill.app import cli, exit_codes, longitudinal, visits, workflow
from bids_lesionfill.app import options as app_options
from bids_lesionfill.images import registration
from bids_lesionfill.layout import inputs

SCALE = 2.3  # smaller than the head of `heads`, for speed
AFFINE = np.array([[-1.0, 0, 0, 22], [0, 1, 0, -27], [0, 0, 1.2, -16], [0, 0, 0, 1]])
SHAPE = (45, 54, 34)
WAY = turned((5, -3, 8), (1, 1, 1), (6, -9, 4))  # world of session 1 to that of session 2
COMMON, LATER = (9.5, -4, 3), (-9, -8, 2)  # centres of lesions, mm; the second is in session 2 alone
FAST = ['--model', 'biharmonic', '--skip-bids-validation']


def ball(centre_mm, radius_mm):
    points = nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1))
    return np.linalg.norm(points - np.array(centre_mm), axis=-1) <= radius_mm


def scan(seed, lesions):
    points = nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1))
    t1w = head_at(points * SCALE)
    noise = np.random.default_rng(seed).normal(0, 25, SHAPE)
    return np.where(t1w > 0, t1w - 250 * lesions + noise, 0).astype(np.float32)


def in_session_2(array):
    """An image of session 2: the same voxels, stored in another order, the head elsewhere."""
    img = nib.Nifti1Image(array.astype(np.uint8) if array.dtype == bool else array, WAY @ AFFINE)
    return img.as_reoriented([[0, -1], [2, 1], [1, -1]])


def in_session_1(array):
    return nib.Nifti1Image(array.astype(np.uint8) if array.dtype == bool else array, AFFINE)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Sub-01: a lesion in both sessions, one in the second alone, a third session without mask; sub-02: one session."""
    common, later = ball(COMMON, 3), ball(LATER, 3)
    images = {
        t1w_path('01', '1'): in_session_1(scan(1, common)),
        mask_path('01', '1'): in_session_1(common),
        t1w_path('01', '2'): in_session_2(scan(2, common | later)),
        mask_path('01', '2'): in_session_2(common | later),
        t1w_path('01', '3'): in_session_1(scan(3, common)),
        t1w_path('02', '1'): in_session_1(scan(4, common)),
        mask_path('02', '1'): in_session_1(common),
    }
    return write_bids(tmp_path_factory.mktemp('longitudinal') / 'data', images)


@pytest.fixture(scope='module', autouse=True)
def quick_registration():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longitudinal, 'SHRINK_MM', (4, 2))
        yield


@pytest.fixture(scope='module')
def run(root):
    done = {}

    def call(*arguments):
        if arguments not in done:
            out = root.parent / '_'.join(['out', *arguments])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr('bids_lesionfill.app.validation.is_valid', lambda options: True)
                assert cli.main([str(root), str(out), 'participant', *FAST, *arguments]) == exit_codes.OK
            done[arguments] = out
        return done[arguments]

    return call


def anat(out, subject, session, name):
    return out / f'sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_{name}'


def filled(out, subject, session):
    """A filled image in the order of voxels of session 1."""
    img = nib.load(anat(out, subject, session, 'desc-filled_T1w.nii.gz'))
    return img.as_reoriented([[0, -1], [2, -1], [1, 1]]).get_fdata() if session == '2' else img.get_fdata()


def way_of(out, session):
    path = anat(out, '01', session, 'from-T1w_to-individual_mode-image_xfm.txt')
    return registration.from_itk_text(path.read_text())


def record(out, session):
    about = text_files.read_json(anat(out, '01', session, 'desc-filled_T1w.json'))
    return about, about.get('SubjectSpace')


def apart_mm(one, other):
    """Largest distance that two transforms put between points of the brain."""
    points = [corner * np.array([16.0, 22, 14]) * [1, 1, 1] for corner in (-1, 1)]
    moved = [nib.affines.apply_affine(transform, points) for transform in (one, other)]
    return np.linalg.norm(moved[0] - moved[1], axis=1).max()


def test_order_of_session_2_is_turned_back_by_the_tests():
    array = scan(1, ball(COMMON, 3))
    assert np.array_equal(in_session_2(array).as_reoriented([[0, -1], [2, -1], [1, 1]]).get_fdata(), array)


def test_sessions_meet_in_the_middle(run):
    first, second = (way_of(run('--longitudinal'), session) for session in '12')
    assert apart_mm(np.linalg.inv(second) @ first, WAY) < 0.3
    np.testing.assert_allclose(first @ second, np.eye(4), atol=1e-6)  # half the way each
    _, about = record(run('--longitudinal'), '1')
    assert about['Reference'] == 'unbiased'
    assert about['Images'] == [f'bids:raw:{t1w_path("01", session)}' for session in '12']
    assert 5 < about['ShiftMm'] < 15


def spaces_of(images, **options):
    """The transform of each T1w to the space of the participant: dict of file -> array."""
    of_participant = visits.visits_of(images, app_options.Options(Path('in'), Path('out'), **options))
    longitudinal.join(of_participant, of_participant[0].options)
    return of_participant[0].member.subject.spaces


def usable(folder):
    return [image for image in find(folder)['01'] if not image.problem]


def test_first_lex_is_the_space_of_the_first_session(root):
    spaces = spaces_of(usable(root), subject_anatomical_reference='first-lex')
    first, second = (spaces[path] for path in sorted(spaces))
    np.testing.assert_allclose(first, np.eye(4), atol=1e-9)
    assert apart_mm(np.linalg.inv(second), WAY) < 0.3


def test_same_place_has_the_same_texture_in_both_sessions(run):
    core = ball(COMMON, 2)

    def likeness(out):
        return np.corrcoef(*(filled(out, '01', session)[core] for session in '12'))[0, 1]

    together, alone = likeness(run('--longitudinal')), likeness(run())
    assert together > 0.6
    assert together > alone + 0.3


def test_lesion_of_another_session_stays_and_is_not_taken_for_healthy(run):
    about, space = record(run('--longitudinal'), '1')
    n_later = ball(LATER, 3).sum()
    assert 0.7 * n_later < space['LesionVoxelsKnownOfOtherVisits'] < 1.3 * n_later
    assert space['LesionVoxelsFilledOfOtherVisits'] == 0
    used = nib.load(anat(run('--longitudinal'), '01', '1', 'label-lesion_desc-used_mask.nii.gz')).get_fdata() > 0
    assert not used[ball(LATER, 2)].any()
    assert {f'bids:raw:{t1w_path("01", "2")}', f'bids:lesions:{mask_path("01", "2").split("/", 2)[2]}'} <= set(
        about['Sources']
    )
    _, other = record(run('--longitudinal'), '2')
    assert other['LesionVoxelsKnownOfOtherVisits'] == 0  # its own mask has both


def test_union_fills_lesions_of_all_sessions_in_each(run):
    out = run('--longitudinal', '--mask-union', '--participant-label', '01')
    for session in '123':
        used = nib.load(anat(out, '01', session, 'label-lesion_desc-used_mask.nii.gz'))
        used = used.as_reoriented([[0, -1], [2, -1], [1, 1]]).get_fdata() if session == '2' else used.get_fdata()
        assert used[ball(COMMON, 2)].all()
        assert used[ball(LATER, 2)].all()


def test_mask_of_one_session_serves_one_without(run):
    out = run('--longitudinal', '--mask-session', '1', '--participant-label', '01')
    used = nib.load(anat(out, '01', '3', 'label-lesion_desc-used_mask.nii.gz')).get_fdata() > 0
    assert used[ball(COMMON, 2)].all()
    assert not used[ball(LATER, 2)].any()
    assert not anat(run('--longitudinal'), '01', '3', 'desc-filled_T1w.nii.gz').exists()


def test_participant_with_one_session_is_filled_as_sessionwise(run):
    names = ['desc-filled_T1w.nii.gz', 'desc-filled_T1w.json', 'label-lesion_desc-used_mask.nii.gz']
    for name in names:
        together, alone = (anat(out, '02', '1', name).read_bytes() for out in (run('--longitudinal'), run()))
        assert together == alone
    assert not anat(run('--longitudinal'), '02', '1', 'from-T1w_to-individual_mode-image_xfm.txt').exists()


def test_finished_sessions_are_done_again_only_if_a_visit_changed(run, root, tmp_path):
    out = shutil.copytree(run('--longitudinal'), tmp_path / 'out')
    file = anat(out, '01', '1', 'desc-filled_T1w.nii.gz')
    before = file.stat().st_mtime_ns
    assert cli.main([str(root), str(out), 'participant', *FAST, '--longitudinal']) == exit_codes.OK
    assert file.stat().st_mtime_ns == before
    assert cli.main([str(root), str(out), 'participant', *FAST, '--participant-label', '01']) == exit_codes.OK
    assert file.stat().st_mtime_ns != before
    assert not anat(out, '01', '1', 'from-T1w_to-individual_mode-image_xfm.txt').exists()  # of the run before


def test_names_and_order_of_sessions_make_no_difference(root, tmp_path):
    swapped = write_bids(tmp_path / 'swapped', {
        path('01', there): (root / path('01', here)).read_bytes()
        for path in (t1w_path, mask_path) for here, there in (('1', '2'), ('2', '1'))
    })  # fmt: skip
    found = {}
    for images in (usable(root), usable(swapped)[::-1]):
        for file, transform in spaces_of(images, longitudinal=True).items():
            found.setdefault(file.read_bytes(), []).append(transform)
    assert len(found) == 2
    for one, other in found.values():
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_heads_of_two_people_are_refused():
    def anatomy_of(volume):
        return SimpleNamespace(grid_img=nib.Nifti1Image(volume.astype(np.float32), np.eye(4)), brain_mask=volume > 0)

    brain, slab = scan(1, ball(COMMON, 3)), scan(2, ball(COMMON, 3))
    slab[:, :, 12:] = 0
    brains = {Path('a.nii'): anatomy_of(brain), Path('b.nii'): anatomy_of(slab)}
    with pytest.raises(ValueError, match=r'a\.nii and b\.nii cannot be brought together.*Dice.*expected 80 %'):
        longitudinal.register(brains, *brains)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--mask-session', '1'], 'add --longitudinal'),
        (['--mask-union'], 'add --longitudinal'),
        (['--longitudinal', '--subject-anatomical-reference', 'first-lex'], 'contradicts'),
        (['--longitudinal', '--mask-session', '1', '--session-label', '2'], 'not among those of --session-label'),
        (['--longitudinal', '--mode', 'synth'], 'only with --mode fill'),
    ],
)
def test_options_that_contradict_each_other_are_refused(root, tmp_path, caplog, arguments, words):
    assert cli.main([str(root), str(tmp_path / 'out'), 'participant', *arguments]) == exit_codes.USAGE
    assert words in caplog.text


def test_registered_sessions_are_one_node(tmp_path):
    images = [SimpleNamespace(image_file=tmp_path / 'none.nii', session=session) for session in '12']
    for is_longitudinal, n_nodes in ((False, 3), (True, 1)):
        options = app_options.Options(tmp_path, tmp_path, longitudinal=is_longitudinal)
        flow = workflow.build({'01': images}, None, options, 'run', tmp_path)
        assert len(flow.list_node_names()) == n_nodes


def test_session_that_shall_serve_and_has_no_mask_is_named(caplog, root, tmp_path):
    options = app_options.Options(root, tmp_path, longitudinal=True, mask_session='3')
    images = find(root)['01']
    assert longitudinal.with_masks_of_sessions(images, options) == images
    assert [image.session for image in images if image.problem == inputs.NO_MASK] == ['3']
    assert 'ses-3 has no lesion mask' in caplog.text
