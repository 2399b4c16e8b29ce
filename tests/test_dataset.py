from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_lesionfill.diffusion import forms, process
from bids_lesionfill.diffusion.forms import Form
from bids_lesionfill.images import anatomy, masks, tissues
from bids_lesionfill.lesions import contrasts as lesions_contrasts
from bids_lesionfill.train import brains as train_brains
from bids_lesionfill.train import cases as train_cases
from bids_lesionfill.train.brains import Brain
from bids_lesionfill.train.cases import CasePlan, TrainingCases

PLAN = CasePlan(crop=(16, 16, 4))


def filler(modality):
    """A model that predicts zero at its first step, from the last time on: no residual."""
    return SimpleNamespace(
        sha256='abc',
        modality=modality,
        plan={'num_inference_steps': 1},
        form=Form(base='local_white_matter'),
        tile=(8, 8, 8),
        unet=lambda slabs, timesteps: 0 * slabs[:, :1],
        scheduler=process.build_scheduler('linear', 'v_prediction'),
    )


FILL_T1W, FILL_FLAIR = filler('T1w'), filler('FLAIR')
WHOLE = replace(PLAN, max_dilation=0, grow_share=0)  # lesions as they are: their masks do not grow


@pytest.fixture
def brain(phantom):
    return Brain(phantom.normalised_healthy, phantom.wm_mask)


@pytest.fixture
def shapes(phantom):
    return masks.split_lesions(phantom.lesion_mask)


@pytest.fixture
def cases(brain, shapes):
    return TrainingCases([brain], shapes, PLAN, Form(), seed=3, n_cases=100)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def draw(brain, shapes, rng, form=None, **changes):
    """The first case that finds a place."""
    case = None
    while case is None:
        case = train_cases.draw_fill_case(brain, shapes, replace(PLAN, **changes), form or Form(), rng)
    return case


# Reading


@pytest.fixture
def files(phantom, tmp_path):
    for name in ('t1w', 'healthy', 'tissue_seg', 'lesion_mask'):
        nib.save(getattr(phantom, f'{name}_img'), tmp_path / f'{name}.nii.gz')
    return tmp_path


def test_healthy_brains_are_normalised_1mm_and_ras(phantom, files):
    ((image, wm_mask, lesion_mask, *_),) = train_brains.read_healthy_brains(
        [(files / 'healthy.nii.gz', files / 'tissue_seg.nii.gz')]
    )
    assert lesion_mask is None
    assert image.dtype == np.float32
    assert image.shape == wm_mask.shape == (36, 36, 36)  # white matter and 12 mm around it: the whole phantom
    assert np.median(image[wm_mask]) == pytest.approx(0.5, abs=1e-4)
    assert (image == -1).any()
    assert wm_mask.sum() == pytest.approx(phantom.wm_mask.sum() * 0.9 * 1.0 * 1.2, rel=0.03)
    assert image[wm_mask].min() > image[~wm_mask].min()
    assert image[~ndimage.binary_dilation(wm_mask, iterations=3)].max() < 0.3  # tissue and mask lie on each other


def test_healthy_brains_are_cropped_to_white_matter_and_12_voxels(make_phantom, tmp_path):
    affine = np.diag([1.0, 1.0, 1.0, 1])
    phantom = make_phantom(affine=affine)
    margin = [(20, 15), (5, 18), (14, 13)]
    for name in ('healthy', 'tissue_seg'):
        padded = np.pad(getattr(phantom, name), margin)
        nib.save(nib.Nifti1Image(padded, affine), tmp_path / f'{name}.nii.gz')
    ((_, wm_mask, *_),) = train_brains.read_healthy_brains(
        [(tmp_path / 'healthy.nii.gz', tmp_path / 'tissue_seg.nii.gz')]
    )
    assert wm_mask.sum() == phantom.wm_mask.sum()
    voxels = np.argwhere(wm_mask)
    assert voxels.min(axis=0).tolist() == [12, 10, 12]  # along Y the volume ends earlier
    assert (np.array(wm_mask.shape) - 1 - voxels.max(axis=0)).tolist() == [12, 12, 12]


def test_lesion_shapes_are_the_lesions_of_all_masks(files, phantom):
    canonical = nib.Nifti1Image(phantom.lesion_mask.astype(np.uint8), np.eye(4))
    nib.save(canonical, files / '1mm.nii.gz')
    shapes = train_brains.read_lesion_shapes([files / '1mm.nii.gz', files / 'lesion_mask.nii.gz'])
    assert len(shapes) == 4
    expected = masks.split_lesions(phantom.lesion_mask)
    assert equal(shapes[:2], expected)


def test_lesion_shapes_below_min_voxels_are_left_out(files, phantom):
    sizes = sorted(shape.sum() for shape in train_brains.read_lesion_shapes([files / 'lesion_mask.nii.gz']))
    assert len(sizes) == 2
    assert len(train_brains.read_lesion_shapes([files / 'lesion_mask.nii.gz'], min_voxels=sizes[0] + 1)) == 1


# Augmentation


def test_augmentation_keeps_white_matter_near_one_half(phantom, rng):
    for _ in range(40):
        (image,) = train_cases.augment_intensity([phantom.normalised_healthy], rng)
        assert image.dtype == np.float32
        assert np.median(image[phantom.wm_mask]) == pytest.approx(0.5, abs=0.06)


def test_augmentation_changes_contrast_blur_and_noise_but_not_the_anatomy(phantom, rng):
    original = phantom.normalised_healthy
    drawn = [train_cases.augment_intensity([original], rng)[0] for _ in range(30)]
    contrast = [np.median(image[phantom.wm_mask]) - np.median(image[phantom.tissue_seg == 2]) for image in drawn]
    assert np.ptp(contrast) > 0.1
    deep = ndimage.binary_erosion(phantom.wm_mask, iterations=3)
    roughness = np.array([np.std(image[deep]) for image in drawn]) / np.std(original[deep])
    assert roughness.min() < 0.7  # less than contrast alone can do
    assert roughness.max() > 1.3
    for image in drawn:
        assert np.corrcoef(image.ravel(), original.ravel())[0, 1] > 0.97


def test_augmentation_leaves_its_argument_alone(phantom, rng):
    image = phantom.normalised_healthy
    before = image.copy()
    for _ in range(5):
        train_cases.augment_intensity([image], rng)
    assert np.array_equal(image, before)


def test_augmentation_is_the_same_for_all_images(phantom, rng):
    image = phantom.normalised_healthy
    for _ in range(20):
        one, other = train_cases.augment_intensity([image, image.copy()], rng)
        assert np.array_equal(one, other)


# One case


@pytest.mark.parametrize('rim_share', [0.0, 1.0])
def test_case_is_the_core_of_the_padded_crop(brain, shapes, rng, rim_share):
    case = draw(brain, shapes, rng, rim_share=rim_share)
    core = (slice(8, -8),) * 3
    assert np.array_equal(case['image'], brain[0][core])
    assert case['channels'].shape == (3, *case['image'].shape)
    for name in ('seen', 'lesion_mask', 'base'):
        assert case[name].shape == case['image'].shape


@pytest.mark.parametrize('rim_share', [0.0, 1.0])
def test_case_has_its_mask_in_white_matter(brain, shapes, rng, rim_share):
    core = (slice(8, -8),) * 3
    for _ in range(10):
        lesion_mask = draw(brain, shapes, rng, rim_share=rim_share)['lesion_mask']
        assert lesion_mask.sum() >= 4
        assert not (lesion_mask & ~brain[1][core]).any()


def test_clean_case_shows_the_healthy_image(brain, shapes, rng):
    for _ in range(5):
        case = draw(brain, shapes, rng, rim_share=0.0)
        assert np.array_equal(case['seen'], case['image'])


def test_rim_case_shows_a_darker_rim_around_the_mask_and_the_truth_stays_healthy(brain, shapes, rng):
    core = (slice(8, -8),) * 3
    rims = []
    for _ in range(20):
        case = draw(brain, shapes, rng, rim_share=1.0)
        darker = case['image'] - case['seen']
        assert np.array_equal(case['image'], brain[0][core])
        assert darker.min() >= 0
        assert not darker[~brain[1][core]].any()
        assert darker[case['lesion_mask']].max() > 0.05
        rims.append(darker[~case['lesion_mask']].max())
    assert np.mean(np.array(rims) > 0.02) >= 0.4  # a wide dilation may hide it, none and narrow ones do not


def test_base_and_channels_come_from_what_is_seen_never_from_the_hidden_truth(brain, shapes, rng):
    for _ in range(5):
        case = draw(brain, shapes, rng, rim_share=1.0)
        known = ~case['lesion_mask']
        assert np.array_equal(case['base'][known], case['seen'][known])
        assert np.array_equal(case['channels'][0][known], np.clip(case['seen'], -1, 1.5)[known])
        assert not case['channels'][0][~known].any()
        assert np.array_equal(case['channels'][1], case['lesion_mask'].astype(np.float32))


def test_conditions_are_made_of_the_padded_crop_then_cut(brain, shapes, rng, monkeypatch):
    """The base may read beyond the crop, as it does in a whole volume."""
    calls = []

    def condition(*arguments):
        calls.append((arguments, inpaint_condition(*arguments)))
        return calls[-1][1]

    inpaint_condition = forms.condition
    monkeypatch.setattr(forms, 'condition', condition)
    case = draw(brain, shapes, rng, rim_share=0.0)
    (seen, lesion_mask, wm_mask, form, contrast), (base, channels) = calls[-1]
    core = (slice(8, -8),) * 3
    assert np.array_equal(seen, brain[0])
    assert np.array_equal(wm_mask, brain[1])
    assert form == Form()
    assert contrast is None  # no form of filling asks for it
    assert np.array_equal(case['lesion_mask'], lesion_mask[core])
    assert np.array_equal(case['base'], base[core])
    assert np.array_equal(case['channels'], channels[(slice(None), *core)])


def test_case_without_a_place_for_a_lesion_is_none(brain, rng):
    image = brain.image
    nowhere = np.zeros(image.shape, dtype=bool)
    assert train_cases.draw_fill_case(Brain(image, nowhere), [], replace(PLAN, ellipsoid_share=1), Form(), rng) is None


def test_case_without_healthy_white_matter_left_is_none(brain, rng):
    image = brain.image
    wm_mask = np.zeros(image.shape, dtype=bool)
    wm_mask[18:21, 16:19, 14:16] = True  # 18 voxels
    plan = replace(PLAN, ellipsoid_share=0)
    assert train_cases.draw_fill_case(Brain(image, wm_mask), [np.ones((9, 9, 9), bool)], plan, Form(), rng) is None


def test_case_with_fewer_than_4_lesion_voxels_in_the_crop_is_none(brain, rng):
    image = brain.image
    wm_mask = np.zeros(image.shape, dtype=bool)
    wm_mask[2:8, 15:17, 14:16] = True  # in the padding
    wm_mask[8, 15, 14:17] = True  # three voxels of the core
    wm_mask[36:39, 15:18, 14:17] = True  # healthy white matter in the padding of the other side
    plan = replace(PLAN, ellipsoid_share=0, max_lesions=1)
    for _ in range(20):
        assert train_cases.draw_fill_case(Brain(image, wm_mask), [np.ones((9, 5, 5), bool)], plan, Form(), rng) is None


# The numbered set


def test_item_depends_on_the_seed_and_the_index_only(brain, shapes, cases):
    forwards = [cases[i] for i in range(4)]
    np.random.default_rng().random()
    other = TrainingCases([brain], shapes, PLAN, Form(), seed=3, n_cases=7)
    backwards = [other[i] for i in reversed(range(4))][::-1]
    assert all(equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not equal(cases[0], cases[1])
    assert not equal(TrainingCases([brain], shapes, PLAN, Form(), seed=4, n_cases=7)[0], cases[0])


def test_length_is_n_cases(cases):
    assert len(cases) == 100


@pytest.mark.parametrize('kind', ['residual', 'plain'])
def test_item_is_target_channels_and_mask_as_slabs(brain, shapes, kind):
    form = Form(kind=kind)
    target, channels, mask = TrainingCases([brain], shapes, PLAN, form, seed=3, n_cases=1)[0]
    assert target.shape == mask.shape == (1, 4, 16, 16)
    assert channels.shape == (form.n_channels - 1, 4, 16, 16)
    for array in (target, channels, mask):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()
    assert np.array_equal(mask[0], channels[1])
    assert set(np.unique(mask)) == {0, 1}


def test_target_and_base_give_the_healthy_truth_back(brain, shapes):
    # Clean and without augmentation, the known voxels of base and truth agree: their residual is zero.
    plan = replace(PLAN, rim_share=0.0, intensity_augmentation=False)
    cases = TrainingCases([brain], shapes, plan, Form(), seed=1, n_cases=3)
    for i in range(3):
        target, channels, mask = cases[i]
        assert not target[mask == 0].any()
        assert target[mask == 1].any()
        plain_target, plain_channels, plain_mask = TrainingCases([brain], shapes, plan, Form(kind='plain'), 1, 3)[i]
        assert np.array_equal(mask, plain_mask)
        assert np.array_equal(channels[:2], plain_channels)
        base = plain_target - Form().residual_scale * target
        assert np.array_equal(base[mask == 0], plain_target[mask == 0])
        assert np.abs(base - plain_target)[mask == 1].mean() < 0.4  # something like what is beneath


def test_target_is_healthy_even_where_a_rim_is_seen(brain, shapes):
    plan = replace(PLAN, rim_share=1.0, intensity_augmentation=False)
    cases = TrainingCases([brain], shapes, plan, Form(kind='plain'), seed=1, n_cases=4)
    rims = 0
    for i in range(4):
        target, channels, mask = cases[i]
        assert np.isin(target, brain[0]).all()  # the values of the brain itself
        rims += (channels[:1] < target - 0.01)[mask == 0].sum()
    assert rims > 0


def test_crops_have_the_planned_size_and_padding(cases, rng):
    for _ in range(10):
        image, wm_mask, *_ = cases.draw_crop(rng)
        assert image.shape == wm_mask.shape == (32, 32, 20)
        assert image.flags.c_contiguous
        assert wm_mask.any()


def test_crop_keeps_image_and_white_matter_together(brain, rng):
    wm_mask = brain[1]
    plan = replace(PLAN, intensity_augmentation=False)
    cases = TrainingCases([Brain(wm_mask.astype(np.float32), wm_mask)], [], plan, Form(), 0, 1)
    for _ in range(20):
        image, crop, *_ = cases.draw_crop(rng)
        assert np.array_equal(image, crop.astype(np.float32))


def test_crop_keeps_axial_slices_axial_and_upright(brain, rng):
    height = np.broadcast_to(np.arange(30, dtype=np.float32), brain[0].shape)
    cases = TrainingCases([Brain(height, brain[1])], [], replace(PLAN, intensity_augmentation=False), Form(), 0, 1)
    for _ in range(20):
        image, *_ = cases.draw_crop(rng)
        assert (np.ptp(image, axis=(0, 1)) == 0).all()
        assert (np.diff(image[0, 0]) == 1).all()


def test_crops_come_in_8_orientations(rng):
    image = np.zeros((32, 32, 20), dtype=np.float32)
    image[3, 5, :] = 1
    everywhere = np.ones(image.shape, dtype=bool)
    cases = TrainingCases([Brain(image, everywhere)], [], replace(PLAN, intensity_augmentation=False), Form(), 0, 1)
    seen = {tuple(np.argwhere(cases.draw_crop(rng)[0][..., 0])[0]) for _ in range(150)}
    assert seen == {(3, 5), (5, 3), (28, 5), (5, 28), (3, 26), (26, 3), (28, 26), (26, 28)}


def test_crops_come_from_all_brains(brain, rng):
    flat = [Brain(np.full_like(brain[0], value), brain[1]) for value in (1, 2, 3)]
    cases = TrainingCases(flat, [], replace(PLAN, intensity_augmentation=False), Form(), 0, 1)
    assert {cases.draw_crop(rng)[0].max() for _ in range(30)} == {1, 2, 3}


def test_axes_are_permuted_if_the_plan_says_so(rng):
    shape = (30, 32, 34)
    everywhere = np.ones(shape, dtype=bool)
    ramps = np.indices(shape).astype(np.float32)  # of every axis the voxel's own coordinate
    for augmented in (False, True):
        plan = replace(PLAN, intensity_augmentation=False, axis_augmentation=augmented)
        seen = set()
        for original_axis, ramp in enumerate(ramps):
            cases = TrainingCases([Brain(ramp, everywhere)], [], plan, Form(), 0, 1)
            for _ in range(40):
                image, *_ = cases.draw_crop(rng)
                assert image.shape == (32, 32, 20)
                inside = image[tuple(slice(n // 2 - 4, n // 2 + 4) for n in image.shape)]  # not the padding
                (axis,) = [axis for axis in range(3) if np.diff(inside, axis=axis).any()]
                seen.add((original_axis, axis))
        all_axes = {(i, j) for i in range(3) for j in range(3)}
        assert seen == (all_axes if augmented else {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)})


def test_image_white_matter_and_lesions_keep_together_when_axes_are_permuted(phantom, rng):
    image = phantom.wm_mask + 2 * phantom.lesion_mask.astype(np.float32)
    plan = replace(PLAN, intensity_augmentation=False, axis_augmentation=True)
    cases = TrainingCases([Brain(image, phantom.wm_mask, phantom.lesion_mask)], [], plan, Form(), 0, 1)
    for _ in range(20):
        crop, wm_mask, lesion_mask, *_ = cases.draw_crop(rng)
        assert np.array_equal(np.maximum(crop, 0), wm_mask + 2 * lesion_mask)  # -1 is the padding
        assert lesion_mask.any()


def test_crops_that_are_not_square_keep_one_shape_and_make_half_turns(rng):
    image = np.zeros((32, 28, 20), dtype=np.float32)
    image[3, 5, :] = 1
    everywhere = np.ones(image.shape, dtype=bool)
    plan = replace(PLAN, crop=(16, 12, 4), intensity_augmentation=False)
    cases = TrainingCases([Brain(image, everywhere)], [], plan, Form(), 0, 1)
    seen = set()
    for _ in range(80):
        crop, *_ = cases.draw_crop(rng)
        assert crop.shape == (32, 28, 20)
        seen.add(tuple(np.argwhere(crop[..., 0])[0].tolist()))
    assert seen == {(3, 5), (28, 5), (3, 22), (28, 22)}


def test_cases_that_are_not_square_are_one_batch(brain, shapes):
    cases = TrainingCases([brain], shapes, replace(PLAN, crop=(16, 12, 4)), Form(), seed=3, n_cases=8)
    assert {tuple(array.shape for array in cases[i]) for i in range(8)} == {
        ((1, 4, 16, 12), (3, 4, 16, 12), (1, 4, 16, 12))
    }


def test_lesions_that_fit_nowhere_end_in_an_error(brain):
    specks = [np.ones((1, 1, 1), dtype=bool)]
    cases = TrainingCases([brain], specks, replace(PLAN, ellipsoid_share=0.0), Form(), seed=3, n_cases=1)
    with pytest.raises(ValueError, match=r'no lesion found a place in 200 crops of \(16, 16, 4\) voxels'):
        cases[0]


# Patients: synthesis


@pytest.fixture
def patient(phantom):
    """Four lesions: the phantom's two, one that touches another at a corner only, a third far away."""
    lesion_mask = phantom.lesion_mask.copy()
    lesion_mask[17:20, 24:27, 14:17] = True
    lesion_mask[20:22, 27:29, 17:19] = True
    lesion_mask[24:27, 21:24, 19:22] = True
    image = np.where(lesion_mask, phantom.normalised_healthy + 0.4, phantom.normalised_healthy).astype(np.float32)
    return Brain(image, phantom.wm_mask & ~lesion_mask, lesion_mask, phantom.normalised_healthy)


CORE = (slice(8, -8),) * 3


@pytest.mark.parametrize('kind', ['plain', 'prior', 'residual', 'unconditional'])
def test_synthesis_case_has_whole_lesions_to_paint_and_shows_the_others(patient, rng, kind):
    form = Form(kind=kind, inside_mask_only=kind != 'unconditional')
    labels, n_lesions = ndimage.label(patient.lesion_mask, structure=np.ones((3, 3, 3)))
    assert n_lesions == 4
    chosen = []
    for _ in range(30):
        case = train_cases.draw_synthesis_case(patient, WHOLE, form, rng)
        lesion_mask = case['lesion_mask']
        assert np.array_equal(case['image'], patient.image[CORE])  # with all its lesions
        assert np.array_equal(case['seen'][~lesion_mask], case['image'][~lesion_mask])
        mine = [i for i in range(1, n_lesions + 1) if lesion_mask[labels[CORE] == i].any()]
        assert mine
        assert np.array_equal(lesion_mask, np.isin(labels[CORE], mine))  # whole, and nothing else
        others = patient.lesion_mask[CORE] & ~lesion_mask
        if kind != 'unconditional':
            voided = case['channels'][0]
            assert np.array_equal(voided[others], case['image'][others])
            assert not voided[lesion_mask].any()
            assert np.array_equal(case['channels'][1], lesion_mask)
        assert len(case['channels']) == form.n_channels - 1
        chosen.append(tuple(mine))
    assert {len(mine) for mine in chosen} == {1, 2, 3, 4}
    assert {i for mine in chosen for i in mine} == {1, 2, 3, 4}


def test_what_synthesis_sees_does_not_depend_on_the_lesions_to_paint(patient):
    hidden = patient._replace(image=np.where(patient.lesion_mask, 7, patient.image).astype(np.float32))
    for seed in range(5):
        one, other = (
            train_cases.draw_synthesis_case(brain, WHOLE, Form(kind='plain'), np.random.default_rng(seed))
            for brain in (patient, hidden)
        )
        others = patient.lesion_mask[CORE] & ~one['lesion_mask']
        assert np.array_equal(one['channels'][0][~others], other['channels'][0][~others])
        assert (other['channels'][0][others] == 1.5).all()  # those that are known are to be seen


def test_synthesis_items_are_slabs_of_crops_around_lesions(patient):
    form = Form(kind='plain', inside_mask_only=False)
    plan = replace(WHOLE, intensity_augmentation=False)
    cases, again = (TrainingCases([patient], [], plan, form, seed=3, n_cases=20) for _ in range(2))
    for i in range(10):
        target, channels, mask = cases[i]
        assert (target.shape, channels.shape, mask.shape) == ((1, 4, 16, 16), (2, 4, 16, 16), (1, 4, 16, 16))
        assert mask.sum() >= 4
        assert target[mask == 1].mean() == pytest.approx(0.9, abs=0.05)  # the lesions are what is to be learnt
        assert np.array_equal(channels[:1][mask == 0], np.clip(target, -1, 1.5)[mask == 0])
        assert equal(cases[i], again[i])


def test_synthesis_without_a_lesion_large_enough_ends_in_an_error(patient, monkeypatch):
    speck = np.zeros_like(patient.lesion_mask)
    speck[20, 18, 15] = True
    monkeypatch.setattr(train_cases, 'MAX_TRIES', 5)
    cases = TrainingCases([patient._replace(lesion_mask=speck)], [], WHOLE, Form(), seed=3, n_cases=1)
    with pytest.raises(ValueError, match='no lesion found a place in 5 crops'):
        cases[0]
    nothing = patient._replace(lesion_mask=np.zeros_like(speck))
    assert train_cases.draw_synthesis_case(nothing, WHOLE, Form(), np.random.default_rng(0)) is None


def test_validation_cases_of_patients_are_synth(patient):
    cases = train_cases.validation_cases([patient], [], PLAN, Form(kind='plain'), n_cases=4, seed=5)
    assert [case['kind'] for case in cases] == ['synth'] * 4
    for case in cases:
        outside = ~case['lesion_mask']
        assert np.array_equal(case['seen'][outside], case['image'][outside])
        assert np.isin(case['image'], patient.image).all()  # not augmented
        assert case['image'][case['lesion_mask']].min() > 0.7


def whole_lesions(patient, lesion_mask):
    """The lesions of a patient of which a mask of the core holds something, (X, Y, Z) as the patient."""
    labels, _ = masks.label_lesions(patient.lesion_mask)
    return np.isin(labels, np.setdiff1d(np.unique(labels[CORE][lesion_mask]), 0))


def test_masks_of_synthesis_grow_into_white_matter_by_the_plan(patient, rng):
    """New lesions have no rim outside their mask, so in part of the cases the rim of the real ones is inside."""
    plan, seen = replace(PLAN, max_dilation=2), set()
    for _ in range(20):
        lesion_mask = train_cases.draw_synthesis_case(patient, plan, Form(kind='plain'), rng)['lesion_mask']
        whole = whole_lesions(patient, lesion_mask)
        others = masks.dilate_within(patient.lesion_mask & ~whole, np.ones_like(whole), 3)
        grown = [masks.dilate_within(whole, patient.wm_mask & ~others, n)[CORE] for n in range(3)]
        (n_voxels,) = [n for n in range(3) if np.array_equal(lesion_mask, grown[n])]
        seen.add(n_voxels)
    assert seen == {0, 1, 2}


def test_around_lesions_to_be_painted_the_tissue_is_healthy(patient, rng):
    """A bright rim of one voxel around every lesion, which the rater's mask misses, is seen around the others only."""
    rim = masks.dilate_within(patient.lesion_mask, patient.wm_mask, 1) & ~patient.lesion_mask
    patient = patient._replace(image=patient.image + np.float32(0.3) * rim)
    everywhere = []
    for _ in range(20):
        case = train_cases.draw_synthesis_case(patient, WHOLE, Form(kind='plain'), rng)
        others = ndimage.binary_dilation(patient.lesion_mask[CORE] & ~case['lesion_mask'], iterations=1)
        around = rim[CORE] & ~case['lesion_mask'] & ~ndimage.binary_dilation(others, np.ones((3, 3, 3)), iterations=3)
        assert np.array_equal(case['seen'][around], patient.filled[CORE][around])
        everywhere.append(around.sum())
    assert max(everywhere) > 50


def test_contrast_of_lesions_is_scaled_by_the_plan(patient):
    plan = replace(WHOLE, contrast_scale=(2.0, 2.0))
    case = train_cases.draw_synthesis_case(patient, plan, Form(base='lesion'), np.random.default_rng(0))
    lesion = case['lesion_mask']
    assert case['image'][lesion].mean() - patient.filled[CORE][lesion].mean() == pytest.approx(0.8, abs=1e-5)


def test_synthesis_case_asks_for_the_contrast_that_the_lesions_have(patient, rng):
    """The base `lesion` is even, and as bright as the lesion on the mean."""
    for _ in range(5):
        case = train_cases.draw_synthesis_case(patient, WHOLE, Form(base='lesion'), rng)
        whole = whole_lesions(patient, case['lesion_mask'])
        expected = lesions_contrasts.contrast_of(patient.image, whole, patient.wm_mask)[0][CORE]
        labels, n_lesions = masks.label_lesions(case['lesion_mask'])
        for number in range(1, n_lesions + 1):
            lesion = labels == number
            assert case['base'][lesion].mean() == pytest.approx(case['image'][lesion].mean(), abs=2e-3)
            assert np.ptp(case['base'][lesion]) < 0.5 * np.ptp(case['image'][lesion])
            assert expected[lesion].min() == expected[lesion].max() > 0.3


def test_small_lesions_are_in_the_middle_of_crops_in_proportion_to_their_diameter(phantom):
    lesion_mask = np.zeros_like(phantom.lesion_mask)
    lesion_mask[12:14, 16:18, 14:16] = True  # 2 voxels wide
    lesion_mask[20:26, 15:21, 12:18] = True  # 6 voxels wide
    brain = Brain(phantom.normalised, phantom.wm_mask & ~lesion_mask, lesion_mask)
    groups, chances = train_cases.crop_centres(brain)
    assert [len(group) for group in groups] == [8, 216]
    np.testing.assert_allclose(chances, [0.25, 0.75])
    assert groups[0].min(axis=0).tolist() == [12, 16, 14]
    assert groups[1].max(axis=0).tolist() == [25, 20, 17]
    centres = np.concatenate(groups)
    assert lesion_mask[tuple(centres.T)].all()
    plan = replace(WHOLE, crop=(4, 4, 4), intensity_augmentation=False, orientation_augmentation=False)
    place = np.where(lesion_mask, 1 + np.arange(40)[:, None, None], 0).astype(np.float32)  # where a crop comes from
    cases = TrainingCases([brain._replace(image=place)], [], plan, Form(kind='plain'), 0, 1)
    rng = np.random.default_rng(1)
    small = [cases.draw_crop(rng).image[10, 10, 10] < 15 for _ in range(400)]
    assert np.mean(small) == pytest.approx(0.25, abs=0.07)  # by volume it would be 0.04


def test_all_white_matter_of_a_healthy_brain_may_be_in_the_middle_of_a_crop(brain):
    (centres,), chances = train_cases.crop_centres(brain)
    assert chances == [1.0]
    assert np.array_equal(centres, np.argwhere(brain.wm_mask))


def test_contrasts_of_all_lesions_of_all_patients_are_measured_but_specks(rng):
    everywhere = np.full((24, 24, 24), 0.5, dtype=np.float32)
    brains = []
    for contrast in (0.4, -0.2):
        lesion_mask = np.zeros(everywhere.shape, dtype=bool)
        lesion_mask[4:7, 4:7, 4:7] = lesion_mask[12, 12, 12:15] = lesion_mask[20, 20, 19:21] = True
        brains.append(Brain(everywhere + contrast * lesion_mask, ~lesion_mask, lesion_mask))
    volumes, contrasts = train_brains.lesion_contrasts(brains)
    assert volumes.tolist() == [27, 3, 27, 3]  # the one of two voxels is left out
    np.testing.assert_allclose(contrasts, [0.4, 0.4, -0.2, -0.2], atol=1e-5)


@pytest.fixture
def patient_files(make_phantom, tmp_path):
    """A patient on 1 mm: T1w with dark lesions, FLAIR with bright ones and white matter of other units."""
    phantom = make_phantom(affine=np.eye(4))
    flair = np.where(phantom.lesion_mask, phantom.healthy + 250, phantom.healthy) / 4
    for name, image in (('t1w', phantom.t1w), ('flair', flair), ('mask', phantom.lesion_mask)):
        nib.save(phantom.img(image), tmp_path / f'{name}.nii.gz')
    return phantom, [str(tmp_path / f'{name}.nii.gz') for name in ('flair', 't1w', 'mask')]


def test_patients_are_normalised_by_their_white_matter_and_keep_their_lesions(patient_files):
    phantom, (flair, t1w, mask) = patient_files
    (on_flair,), (on_t1w,) = (
        train_brains.read_patients([(image, t1w, mask)], filler)
        for image, filler in ((flair, FILL_FLAIR), (t1w, FILL_T1W))
    )
    for brain in (on_flair, on_t1w):
        assert brain.image.shape == brain.wm_mask.shape == brain.lesion_mask.shape
        assert brain.lesion_mask.sum() == phantom.lesion_mask.sum()
        assert not (brain.lesion_mask & brain.wm_mask).any()
        assert np.median(brain.image[brain.wm_mask]) == pytest.approx(0.5, abs=1e-3)
        assert brain.image[0, 0, 0] == -1
    assert np.array_equal(on_flair.wm_mask, on_t1w.wm_mask)
    assert on_flair.image[on_flair.lesion_mask].mean() > 0.8
    assert on_t1w.image[on_t1w.lesion_mask].mean() < 0.2


def test_patients_come_with_their_image_without_lesions(patient_files):
    """The filler predicts no residual: what is filled in is its base."""
    _, (flair, t1w, mask) = patient_files
    (brain,) = train_brains.read_patients([(flair, t1w, mask)], FILL_FLAIR)
    changed = brain.filled != brain.image
    assert changed[brain.lesion_mask].mean() > 0.99
    assert not changed[ndimage.distance_transform_edt(~brain.lesion_mask) > 6].any()
    assert brain.filled[brain.lesion_mask].mean() == pytest.approx(0.5, abs=0.05)


def test_patients_without_lesions_are_left_out(patient_files, tmp_path):
    phantom, (flair, t1w, mask) = patient_files
    nib.save(phantom.img(np.zeros_like(phantom.lesion_mask)), tmp_path / 'empty.nii.gz')
    assert (
        len(train_brains.read_patients([(flair, t1w, str(tmp_path / 'empty.nii.gz')), (flair, t1w, mask)], FILL_FLAIR))
        == 1
    )


# Validation


def test_validation_cases_are_half_clean_half_rim_and_not_augmented(brain, shapes):
    cases = train_cases.validation_cases([brain], shapes, PLAN, Form(), n_cases=6, seed=5)
    assert sorted(case['kind'] for case in cases) == ['clean'] * 3 + ['rim'] * 3
    for case in cases:
        assert np.array_equal(case['seen'], case['image']) == (case['kind'] == 'clean')
        assert np.isin(case['image'], brain[0]).all()  # the values of the brain itself
        assert case['image'].shape == (16, 16, 4)


def test_validation_cases_depend_on_the_seed_only(brain, shapes):
    first, again, other = (
        train_cases.validation_cases([brain], shapes, PLAN, Form(), n_cases=3, seed=seed) for seed in (5, 5, 6)
    )
    for a, b in zip(first, again, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(first[0]['image'], other[0]['image'])


def test_more_validation_cases_begin_with_the_same(brain, shapes):
    few, many = (train_cases.validation_cases([brain], shapes, PLAN, Form(), n, seed=5) for n in (2, 4))
    for a, b in zip(few, many, strict=False):
        assert np.array_equal(a['channels'], b['channels'])


def test_validation_cases_hold_real_shapes_whatever_the_plan(brain):
    # An ellipsoid of the plan's share 1 would rarely fill its box.
    bar = np.ones((5, 5, 5), dtype=bool)
    everywhere = np.ones_like(brain[1])
    plan = replace(PLAN, ellipsoid_share=1.0, max_lesions=1, crop=(16, 16, 8))
    for case in train_cases.validation_cases([Brain(brain[0], everywhere)], [bar], plan, Form(), 6, seed=5)[::2]:
        box = ndimage.find_objects(case['lesion_mask'].astype(np.uint8))[0]
        assert case['lesion_mask'][box].all()
        assert max(case['lesion_mask'][box].shape) <= 5  # as it is: not grown by the plan's dilation


def test_clean_validation_cases_have_an_exact_mask_and_rim_cases_a_painted_lesion(brain):
    # The bar lies somewhere in a white matter that is everywhere.
    bar, everywhere = np.ones((5, 5, 5), dtype=bool), np.ones_like(brain.wm_mask)
    plan = replace(PLAN, crop=(16, 16, 8), max_lesions=1, max_dilation=2, rim_share=0.5)
    cases = train_cases.validation_cases([Brain(brain.image, everywhere)], [bar], plan, Form(), 12, seed=5)
    assert [case['kind'] for case in cases] == ['clean', 'rim'] * 6
    rims = []
    for case in cases:
        darker = case['image'] - case['seen']
        if case['kind'] == 'clean':
            assert not darker.any()
            assert np.array_equal(case['base'][~case['lesion_mask']], case['image'][~case['lesion_mask']])
        else:
            assert darker.min() >= 0
            assert darker[case['lesion_mask']].min() > 0
            rims.append(darker[~case['lesion_mask']].max())
    assert np.mean(np.array(rims) > 0.02) > 0.8  # the mask misses some of the lesion


def test_validation_cases_that_find_no_place_end_in_an_error(brain, monkeypatch):
    monkeypatch.setattr(train_cases, 'MAX_TRIES', 3)
    with pytest.raises(ValueError, match='0 of 2 validation cases'):
        train_cases.validation_cases([brain], [np.ones((1, 1, 1), bool)], PLAN, Form(), 2, seed=5)


def test_crop_larger_than_the_brain_is_padded_with_background(rng):
    wm_mask = np.zeros((20, 24, 18), dtype=bool)
    wm_mask[6:-6, 6:-6, 6:-6] = True
    image = np.zeros(wm_mask.shape, dtype=np.float32)
    plan = train_cases.CasePlan(crop=(24, 24, 8), intensity_augmentation=False)
    cases = train_cases.TrainingCases([Brain(image, wm_mask)], [], plan, forms.Form(), 0, 1)
    crop, white, *_ = cases.draw_crop(rng)
    assert crop.shape == white.shape == (40, 40, 24)
    assert (crop == -1).sum() == crop.size - image.size
    assert white.sum() == wm_mask.sum()


def test_crops_keep_their_orientation_if_told_so(rng):
    image = np.arange(60 * 60 * 40, dtype=np.float32).reshape(60, 60, 40)
    brain = Brain(image, np.ones(image.shape, dtype=bool))
    plan = CasePlan(crop=(8, 8, 8), intensity_augmentation=False, orientation_augmentation=False)

    def directions(plan):
        """Steps of the image along the three axes: they tell how a crop was turned."""
        source = TrainingCases([brain], [], plan, Form(), 0, 1)
        corners = (source.draw_crop(rng).image[:2, :2, :2] for _ in range(80))
        return {tuple(corner[at] - corner[0, 0, 0] for at in ((1, 0, 0), (0, 1, 0), (0, 0, 1))) for corner in corners}

    assert directions(plan) == {(2400.0, 40.0, 1.0)}
    assert len(directions(replace(plan, orientation_augmentation=True))) == 8


def test_ellipsoids_have_the_radii_of_the_plan(rng):
    brain = Brain(np.full((80, 80, 80), 0.5, dtype=np.float32), np.ones((80, 80, 80), dtype=bool))
    largest = []
    for radii in ((1.5, 3.0), (12.0, 14.0)):
        plan = CasePlan((8, 8, 8), 1.0, radii, 1, rim_share=0.0, max_dilation=0)
        cases = [train_cases.draw_fill_case(brain, [], plan, Form(kind='plain'), rng) for _ in range(8)]
        largest.append(max(case['lesion_mask'].sum() for case in cases if case is not None))
    assert largest[0] < 320 < 1500 < largest[1]


def test_lesions_and_their_rims_are_not_normal_appearing():
    tissue_seg = np.full((20, 20, 20), tissues.WHITE_MATTER)
    tissue_seg[:2] = 0
    lesion_mask = np.zeros(tissue_seg.shape, dtype=bool)
    lesion_mask[4, 10, 10] = True
    found = anatomy.normal_appearing(anatomy.Patient(np.zeros(tissue_seg.shape), tissue_seg, lesion_mask))
    excluded = np.zeros_like(lesion_mask)
    excluded[2:8, 7:14, 7:14] = True  # three voxels around, but not outside the brain
    assert np.array_equal(found == tissues.EXCLUDED, excluded)
    assert np.array_equal(found[~excluded], tissue_seg[~excluded])


def test_no_mask_is_drawn_into_a_patients_lesions(make_phantom, rng):
    phantom = make_phantom(affine=np.eye(4))
    patient = anatomy.Patient(phantom.normalised, phantom.tissue_seg, phantom.lesion_mask)
    wm_mask = anatomy.normal_appearing(patient) == tissues.WHITE_MATTER
    brain = train_brains.Brain(phantom.normalised, wm_mask)
    plan = train_cases.CasePlan(crop=phantom.t1w.shape, ellipsoid_share=1.0, grow_share=1.0)
    far = ~ndimage.binary_dilation(phantom.lesion_mask, iterations=2)
    n_drawn = 0
    for _ in range(6):
        wide = train_brains.Brain(*(np.pad(a, train_cases.PADDING) for a in brain[:2]))
        case = train_cases.draw_fill_case(wide, [], plan, forms.Form(), rng)
        n_drawn += case is not None
        assert case is None or far[case['lesion_mask']].all()
    assert n_drawn >= 3


def test_grown_masks_leave_less_of_the_rim(make_phantom):
    phantom = make_phantom(affine=np.eye(4))
    brain = train_brains.Brain(*(np.pad(a, train_cases.PADDING) for a in (phantom.normalised_healthy, phantom.wm_mask)))
    left = []
    for grow_share in (0.0, 1.0):
        plan = train_cases.CasePlan(ellipsoid_share=1.0, rim_share=1.0, max_dilation=0, grow_share=grow_share)
        cases = [train_cases.draw_fill_case(brain, [], plan, forms.Form(), np.random.default_rng(n)) for n in range(8)]
        left.append([((c['image'] - c['seen'])[~c['lesion_mask']]).sum() for c in cases if c is not None])
    assert len(left[0]) == len(left[1]) > 3
    assert sum(left[1]) < 0.6 * sum(left[0])
