"""What other tools and raters write, in their own layouts; and from files to images in one world."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from bids_examples import find, flair_path, mask_path, t1w_path, write_bids
from nibabel.affines import from_matvec

from bids_lesionfill.app import loading
from bids_lesionfill.images import registration
from bids_lesionfill.layout import inputs


def with_files(root, files):
    """Files that are no BIDS: dict of path below the dataset -> image or text."""
    for path, content in files.items():
        path = root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif path.suffix == '.mgz':
            nib.save(nib.MGHImage(np.asarray(content.dataobj).astype(np.int32), content.affine), path)
        else:
            nib.save(content, path)
    return root


# Layouts of lesion masks


@pytest.mark.parametrize('name', [
    'label-lesion_dseg', 'desc-lesion_dseg', 'label-L_probseg', 'label-lesion_probseg', 'desc-lesions_mask',
    'label-Lesion_mask', 'space-orig_label-lesion_mask', 'space-flair_seg-lst', 'seg-lst', 'seg-lesion_mask',
])  # fmt: skip
def test_names_of_lesion_masks_in_use_are_found(tmp_path, img, name):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01', name=name): img})
    (found,) = find(root)['01']
    assert found.lesion_mask_file == root / mask_path('01', name=name)


@pytest.mark.parametrize('name', ['sub-01_T1w_label-lesion_roi', 'sub-01_label-lesion_roi', 'sub-01_label-lesion_mask'])
def test_a_manual_mask_beside_the_t1w_is_found(tmp_path, img, name):
    root = write_bids(tmp_path, {t1w_path('01'): img, f'sub-01/anat/{name}.nii.gz': img})
    assert find(root)['01'][0].lesion_mask_file.name == f'{name}.nii.gz'


def test_lst_ai_in_bids_gives_each_image_the_mask_of_its_space(tmp_path, img):
    names = ('space-t1w_seg-lst', 'space-flair_seg-lst', 'space-flair_desc-annotated_seg-lst')
    images = {path('01', 'a'): img for path in (t1w_path, flair_path)}
    root = write_bids(tmp_path, images | {mask_path('01', 'a', name=name): img for name in names})
    for modality, name in (('T1w', names[0]), ('FLAIR', names[1])):
        (found,) = find(root, modality=modality)['01']
        assert found.lesion_mask_file == root / mask_path('01', 'a', name=name)
        assert found.mask_space == modality


def test_lst_ai_without_bids_is_found_in_a_folder_for_each_visit(tmp_path, img):
    root = write_bids(tmp_path, {path('01', s): img for s in 'ab' for path in (t1w_path, flair_path)})
    files = {f'derivatives/lst/sub-01_ses-{s}/space-{space}_seg-lst.nii.gz': img
             for s in 'ab' for space in ('flair', 't1w')}  # fmt: skip
    with_files(root, files)
    first, second = find(root)['01']
    assert first.lesion_mask_file == root / 'derivatives/lst/sub-01_ses-a/space-t1w_seg-lst.nii.gz'
    assert second.lesion_mask_file == root / 'derivatives/lst/sub-01_ses-b/space-t1w_seg-lst.nii.gz'
    assert first.sources[-1] == 'bids:lst:sub-01_ses-a/space-t1w_seg-lst.nii.gz'
    flair, _ = find(root, modality='FLAIR')['01']
    assert flair.lesion_mask_file.name == 'space-flair_seg-lst.nii.gz'


@pytest.mark.parametrize(('stats', 'labels'), [
    ('# Measure Lesions, 1234.5, mm^3', (99,)), ('# Measure Left-Thalamus, 7000, mm^3', None),
])  # fmt: skip
def test_samseg_brings_lesions_if_it_segmented_them(tmp_path, img, stats, labels):
    root = write_bids(tmp_path, {t1w_path('01'): img})
    with_files(root, {'derivatives/samseg/sub-01/seg.mgz': img, 'derivatives/samseg/sub-01/samseg.stats': stats})
    (found,) = find(root)['01']
    assert found.segmentation.source == 'labels of SAMSEG in seg.mgz'
    if labels is None:
        assert found.problem == inputs.NO_MASK
    else:
        assert found.lesion_labels == labels
        assert found.lesion_mask_file == root / 'derivatives/samseg/sub-01/seg.mgz'


def test_a_mask_of_a_rater_comes_before_that_of_samseg(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img})
    with_files(root, {'derivatives/samseg/sub-01/seg.mgz': img, 'derivatives/samseg/sub-01/samseg.stats': 'Lesions'})
    (found,) = find(root)['01']
    assert (found.lesion_mask_file, found.lesion_labels) == (root / mask_path('01'), ())


def test_a_mask_comes_before_its_probabilities(tmp_path, img):
    names = ('label-lesion_probseg', 'label-lesion_mask')
    root = write_bids(tmp_path, {t1w_path('01'): img} | {mask_path('01', name=name): img for name in names})
    assert find(root)['01'][0].lesion_mask_file.name == 'sub-01_label-lesion_mask.nii.gz'


def test_a_mask_in_the_space_of_a_template_is_not_used_unless_asked_for(tmp_path, img, caplog):
    name = 'space-MNI152NLin2009cAsym_label-lesion_mask'
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01', name=name): img})
    assert find(root)['01'][0].problem == inputs.NO_MASK
    assert 'is in the space of MNI152NLin2009cAsym, and no image of sub-01 is: not used' in caplog.text
    assert '{"lesion_mask": {"space": "MNI152NLin2009cAsym"}}' in caplog.text
    filters = {'lesion_mask': {'space': 'MNI152NLin2009cAsym'}}
    assert find(root, filters=filters)['01'][0].problem == ''


def test_two_raters_in_two_derivatives_are_told_apart_by_their_paths(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img})
    (root / 'derivatives/other').mkdir()
    description = (root / 'derivatives/lesions/dataset_description.json').read_text()
    (root / 'derivatives/other/dataset_description.json').write_text(description)
    with_files(root, {mask_path('01', derivative='other'): img})
    problem = find(root)['01'][0].problem
    assert 'derivatives/lesions/sub-01' in problem
    assert 'derivatives/other/sub-01' in problem
    assert '--derivatives' in problem


@pytest.mark.parametrize('extra', ['ce-gd_', 'acq-mprage_', 'acq-mprage_ce-gd_run-2_'])
def test_acquisition_contrast_and_run_of_mask_and_image_go_together(tmp_path, img, extra):
    images = {path('01', extra=e): img for path in (t1w_path, mask_path) for e in (extra, 'acq-other_')}
    root = write_bids(tmp_path, images)
    found = {image.name: image.lesion_mask_file for image in find(root)['01']}
    assert found[f'sub-01_{extra}T1w'] == root / mask_path('01', extra=extra)


# Segmentations of tissues


@pytest.mark.parametrize(('path', 'source'), [
    ('fs/sub-01/mri/aseg.mgz', 'labels of FreeSurfer in aseg.mgz'),
    ('fmriprep/sourcedata/freesurfer/sub-01/mri/aseg.mgz', 'labels of FreeSurfer in aseg.mgz'),
    ('fast/sub-01/mri/aparc.DKTatlas+aseg.deep.mgz', 'labels of FastSurfer in aparc.DKTatlas+aseg.deep.mgz'),
    ('synthseg/sub-01/synthseg.nii.gz', 'labels of SynthSeg in synthseg.nii.gz'),
    ('dldirect/sub-01/T1w_norm_seg.nii.gz', 'labels of DL+DiReCT in T1w_norm_seg.nii.gz'),
    ('lesions/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz', 'labels of FreeSurfer in sub-01_desc-aseg_dseg.nii.gz'),
    ('lesions/sub-01/anat/sub-01_dseg.nii.gz', 'classes in sub-01_dseg.nii.gz'),
])  # fmt: skip
def test_segmentations_of_other_tools_are_found(tmp_path, img, path, source):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img})
    with_files(root, {f'derivatives/{path}': img})
    if path.startswith('fmriprep'):
        description = (root / 'derivatives/lesions/dataset_description.json').read_text()
        (root / 'derivatives/fmriprep/dataset_description.json').write_text(description)
    (found,) = find(root)['01']
    assert found.segmentation.source == source
    assert found.sources[-1] == f'bids:{path.replace("/", ":", 1)}'


def test_probabilities_are_taken_if_there_are_three(tmp_path, img):
    names = [f'label-{tissue}_probseg' for tissue in ('GM', 'WM', 'CSF')]
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img}
                      | {mask_path('01', name=name): img for name in names})  # fmt: skip
    files = [path.name for path in find(root)['01'][0].segmentation.files]
    assert files == [f'sub-01_label-{tissue}_probseg.nii.gz' for tissue in ('CSF', 'GM', 'WM')]
    (root / mask_path('01', name=names[0])).unlink()
    assert find(root)['01'][0].segmentation is None


def test_the_table_at_the_top_of_a_derivative_names_classes(tmp_path, img):
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img, mask_path('01', name='dseg'): img})
    (root / 'derivatives/lesions/dseg.tsv').write_text('index\tname\n1\tGray Matter\n2\tWhite Matter\n3\tCSF\n')
    assert [row['name'] for row in find(root)['01'][0].segmentation.table] == ['Gray Matter', 'White Matter', 'CSF']


def test_filter_tissue_chooses_and_null_turns_off(tmp_path, img):
    images = {mask_path('01', name=name): img for name in ('dseg', 'desc-aseg_dseg')}
    root = write_bids(tmp_path, {t1w_path('01'): img, mask_path('01'): img} | images)
    with_files(root, {'derivatives/fs/sub-01/mri/aseg.mgz': img})
    (found,) = find(root)['01']
    assert found.segmentation.source == 'labels of FreeSurfer in sub-01_desc-aseg_dseg.nii.gz'
    from bids.layout import Query

    (found,) = find(root, filters={'tissue': {'desc': Query.NONE}})['01']
    assert found.segmentation.source == 'classes in sub-01_dseg.nii.gz'
    assert find(root, filters={'tissue': None})['01'][0].segmentation is None


# Which lesions


def numbered(phantom):
    labels = np.zeros(phantom.t1w.shape, np.int16)
    labels[phantom.lesion_mask] = 3
    labels[:20][phantom.lesion_mask[:20]] = 7
    return phantom.img(labels), labels


def test_lesions_with_these_labels_are_filled_and_the_others_kept(phantom):
    mask_img, labels = numbered(phantom)
    wanted, kept = loading.select_lesions(mask_img, labels=(7, 12))
    assert np.array_equal(np.asarray(wanted.dataobj) > 0, labels == 7)
    assert np.array_equal(np.asarray(kept.dataobj) > 0, labels == 3)


def test_labels_that_are_not_there_are_named(phantom):
    with pytest.raises(ValueError, match=r'--lesion-labels \[5\]: the lesion mask has none of them, but 3, 7'):
        loading.select_lesions(numbered(phantom)[0], labels=(5,))


def test_small_lesions_are_kept(phantom):
    voxel_mm3 = 0.9 * 1.0 * 1.2
    sizes = sorted(count * voxel_mm3 for count in np.unique(numbered(phantom)[1], return_counts=True)[1][1:])
    wanted, kept = loading.select_lesions(phantom.lesion_mask_img, min_volume_mm3=sizes[1])
    assert np.asarray(kept.dataobj).sum() * voxel_mm3 == pytest.approx(sizes[0])
    assert np.asarray(wanted.dataobj).sum() * voxel_mm3 == pytest.approx(sizes[1])
    assert loading.select_lesions(phantom.lesion_mask_img, min_volume_mm3=sizes[0])[1] is None


def test_of_labels_of_a_whole_brain_only_lesions_count(phantom):
    labels = np.where(phantom.lesion_mask, 99, 2 * phantom.brain_mask).astype(np.int32)
    wanted, kept = loading.select_lesions(phantom.img(labels), holds=(99,))
    assert np.array_equal(np.asarray(wanted.dataobj) > 0, phantom.lesion_mask)
    assert kept is None


def test_all_lesions_of_a_file_of_labels_are_one_mask(tmp_path, phantom):
    labels = np.where(phantom.lesion_mask, 99, 2 * phantom.brain_mask).astype(np.int32)
    nib.save(phantom.img(labels), tmp_path / 'seg.nii.gz')
    t1w_file = tmp_path / 'seg.nii.gz'  # its grid will do
    image = inputs.Inputs('01', None, 'sub-01_T1w', t1w_file, 'x', tmp_path / 'seg.nii.gz', lesion_labels=(99,))
    assert np.array_equal(np.asarray(loading.lesions_of(image).dataobj) > 0, phantom.lesion_mask)
    shifted, on_flair = from_matvec(np.eye(3), (1, 2, 3)), replace(image, flair_file=tmp_path / 'flair.nii.gz')
    assert np.allclose(loading.lesions_of(on_flair, to_t1w=shifted).affine, shifted @ phantom.affine)
    assert np.allclose(loading.lesions_of(image, to_t1w=shifted).affine, phantom.affine)
    assert loading.lesions_of(replace(image, lesion_mask_file=None)) is None


# Tissues, read


def segmentation_of(tmp_path, phantom, array, table=None):
    nib.save(phantom.img(array.astype(np.int16)), tmp_path / 'seg.nii.gz')
    return inputs.Segmentation((tmp_path / 'seg.nii.gz',), 'classes in seg.nii.gz', table)


def test_classes_of_fmriprep_are_read_with_and_without_their_table(tmp_path, phantom):
    order = np.array([0, 3, 1, 2])  # 1 GM, 2 WM, 3 CSF
    rows = ({'index': 1.0, 'name': 'GM'}, {'index': 2.0, 'name': 'WM'}, {'index': 3.0, 'name': 'CSF'})
    for table in (None, rows):
        segmentation = segmentation_of(tmp_path, phantom, order[phantom.tissue_seg], table)
        seg_img, source, notes = loading.load_segmentation(segmentation, phantom.t1w_img)
        assert np.array_equal(np.asarray(seg_img.dataobj), phantom.tissue_seg)
        assert (source, notes) == ('classes in seg.nii.gz', [])


def test_a_segmentation_that_does_not_fit_is_left_out_with_a_word(tmp_path, phantom):
    wrong = np.array([0, 42, 4, 2])[phantom.tissue_seg]  # CSF and grey matter exchanged
    segmentation = segmentation_of(tmp_path, phantom, wrong, 'freesurfer')
    seg_img, source, (note,) = loading.load_segmentation(segmentation, phantom.t1w_img)
    assert (seg_img, source) == (None, '')
    assert note.startswith('seg.nii.gz is not used as tissue segmentation: its classes do not rise')


def test_a_segmentation_on_another_grid_of_the_world_fits(tmp_path, phantom):
    canonical = nib.as_closest_canonical(phantom.tissue_seg_img)
    nib.save(nib.MGHImage(np.array([0, 24, 3, 2], np.int32)[np.asarray(canonical.dataobj)], canonical.affine),
             tmp_path / 'aseg.mgz')  # fmt: skip
    segmentation = inputs.Segmentation((tmp_path / 'aseg.mgz',), 'labels', 'freesurfer')
    seg_img, source, notes = loading.load_segmentation(segmentation, phantom.t1w_img)
    assert (source, notes) == ('labels', [])
    assert np.array_equal(np.asarray(seg_img.dataobj), np.asarray(canonical.dataobj))


# FLAIR to T1w

TURN = from_matvec(
    np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]]), (9.0, -7.0, 5.0)
)


@pytest.fixture
def visit(tmp_path, make_phantom):
    """Factory: files of a visit, a head of natural size in voxels of 4 mm; the world of the FLAIR may be moved."""

    def build(transform=None, mask_space='FLAIR'):
        phantom = make_phantom(affine=np.diag([-4.0, 4, 4, 1]))
        transform = np.eye(4) if transform is None else transform
        # another grid than that of the T1w, one slice less
        flair = nib.Nifti1Image(phantom.flair[:, :, 1:], transform @ phantom.affine @ from_matvec(np.eye(3), (0, 0, 1)))
        mask = nib.Nifti1Image(phantom.lesion_mask[:, :, 1:].astype(np.uint8), flair.affine)
        if mask_space == 'T1w':
            mask = phantom.lesion_mask_img
        files = {'T1w': phantom.t1w_img, 'FLAIR': flair, 'mask': mask}
        for name, img in files.items():
            nib.save(img, tmp_path / f'{name}.nii.gz')
        paths = {name: tmp_path / f'{name}.nii.gz' for name in files}
        image = inputs.Inputs('01', None, 'sub-01_T1w', paths['T1w'], 'sub-01/anat/sub-01_T1w.nii.gz', paths['mask'],
                              flair_file=paths['FLAIR'], sources=('bids:raw:x',))  # fmt: skip
        return phantom, image

    return build


def test_a_mask_on_a_flair_that_lies_elsewhere_comes_to_the_t1w(visit):
    phantom, image = visit(TURN)
    image = loading.settle(image)
    assert image.sources[-1] == 'bids:raw:sub-01/anat/FLAIR.nii.gz'
    loaded = loading.view(image)
    assert loaded.registration.used
    truth = np.linalg.inv(TURN)
    assert registration.largest_shift_mm(loaded.to_t1w @ TURN, phantom.t1w, phantom.affine) < 2  # half a voxel
    assert np.allclose(loaded.lesions.mask_img.affine, loaded.to_t1w @ nib.load(image.lesion_mask_file).affine)
    assert np.abs(loaded.to_t1w - truth).max() < 2
    assert 'Look at the overlay' in loaded.notes[0]


def test_a_mask_on_a_flair_whose_world_agrees_stays_where_it_is(visit):
    _, image = visit()
    loaded = loading.view(loading.settle(image))
    assert loaded.to_t1w is None
    assert loaded.registration.used is False
    assert np.array_equal(loaded.lesions.mask_img.affine, nib.load(image.lesion_mask_file).affine)
    assert loaded.notes == []


def test_a_mask_on_the_grid_of_the_t1w_needs_no_flair(visit):
    _, image = visit(TURN, mask_space='T1w')
    settled = loading.settle(image)
    assert settled.flair_file is None
    assert settled.sources == image.sources
    assert loading.view(settled).registration is None


@pytest.mark.parametrize('mask_space', ['FLAIR', 'T1w'])
def test_a_flair_that_datalad_did_not_fetch_is_asked_for_only_where_it_is_needed(visit, mask_space):
    _, image = visit(TURN, mask_space)
    image.flair_file.unlink()
    image.flair_file.symlink_to('nowhere')
    if mask_space == 'T1w':
        assert loading.settle(image).flair_file is None
        return
    with pytest.raises(ValueError, match='FLAIR.nii.gz is a link to nowhere, which is not there: .* datalad get'):
        loading.settle(image)


@pytest.mark.parametrize('mask_space', ['FLAIR', 'T1w'])
def test_of_a_flair_that_lies_elsewhere_the_t1w_comes_to_it(visit, mask_space):
    phantom, image = visit(TURN, mask_space)
    flair = replace(image, image_file=image.flair_file, tissue_file=image.image_file, flair_file=None,
                    name='sub-01_FLAIR')  # fmt: skip
    loaded = loading.view(loading.settle(flair))
    moved = loaded.from_t1w
    assert registration.largest_shift_mm(np.linalg.inv(moved) @ TURN, phantom.t1w, phantom.affine) < 2
    assert np.allclose(loaded.lesions.mask_img.affine, TURN @ phantom.affine, atol=2 + 4 * (mask_space == 'FLAIR'))


def test_the_transform_is_written_as_itk_reads_it(tmp_path):
    import SimpleITK

    path = tmp_path / 'x.txt'
    path.write_text(registration.itk_text(TURN))
    np.testing.assert_allclose(registration.from_itk_text(path.read_text()), TURN, atol=1e-9)
    point = np.array([10.0, 20, 30])  # of the FLAIR
    in_t1w = nib.affines.apply_affine(TURN, point)
    lps = np.array([-1, -1, 1])
    back = SimpleITK.ReadTransform(str(path)).TransformPoint((lps * in_t1w).tolist())
    np.testing.assert_allclose(lps * back, point, atol=1e-9)
