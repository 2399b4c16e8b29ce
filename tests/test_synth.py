"""New lesions in one image: where they lie, how bright they are, and that nothing else changes (files: test_visits)."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from bids_examples import without_place
from scipy import ndimage

from bids_lesionfill import synthesize_lesions
from bids_lesionfill.diffusion import forms, models, process
from bids_lesionfill.images import anatomy as images_anatomy
from bids_lesionfill.images import masks, placement, tissues
from bids_lesionfill.lesions import contrasts as lesions_contrasts
from bids_lesionfill.lesions import places
from bids_lesionfill.lesions import synthesis as lesions_synthesis
from bids_lesionfill.lesions.settings import Lesions, Sampling
from bids_lesionfill.modality import FLAIR

MM = nib.affines.from_matvec(np.eye(3), (-20, -18, -15))  # 1 mm, RAS: the image's grid is the working grid
SIGN = {'FLAIR': 1, 'T1w': -1}
KNOWN = np.full(5, 36.0), np.array([0.2, 0.3, 0.4, 0.5, 0.6])  # volumes and contrasts that the fake models know
TILE = (16, 16, 8)


class ZeroResidual:
    """A network that finds nothing to add to its base: x_t is all noise, and v = sqrt(a / (1 - a)) x_t."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def __call__(self, slabs, timesteps):
        a = self.scheduler.alphas_cumprod[int(timesteps[0])]
        return (a / (1 - a)).sqrt() * slabs[:, :1]


def build_model(modality='FLAIR', form=None, unet=None, contrasts=KNOWN, **plan):
    """A model whose lesions are the base alone if no network is given."""
    scheduler = process.build_scheduler(prediction_type='v_prediction')
    if contrasts is not None:
        contrasts = contrasts[0], SIGN[modality] * contrasts[1]
    return models.Model(
        name='tiny',
        sha256='abc',
        plan={'num_inference_steps': 2, 'modality': modality, 'task': 'synth'} | plan,
        form=form or forms.Form(base='lesion', residual_scale=0.16, detail_scale=0.3),
        tile=TILE,
        unet=unet or ZeroResidual(scheduler),
        scheduler=scheduler,
        jump_length=2,
        jump_n_sample=2,
        contrasts=contrasts,
    )


@pytest.fixture(scope='module')
def head(make_phantom):
    return make_phantom(affine=MM)


@pytest.fixture(scope='module')
def anatomy(head):
    return images_anatomy.look_at(head.t1w_img, head.lesion_mask_img)


@pytest.fixture(scope='module')
def new_mask(head):
    """Three lesions in white matter, apart from the old ones: 36, 36 and 8 voxels."""
    mask = np.zeros_like(head.lesion_mask)
    mask[18:22, 10:13, 12:15] = mask[22:26, 20:23, 16:19] = mask[17:19, 24:26, 14:16] = True
    assert head.wm_mask[mask].all()
    assert not (masks.dilate_within(head.lesion_mask, ~head.lesion_mask, 1) & mask).any()
    return mask


def lesions_at(mask, affine=MM, intensity=0.5, seed=0):
    img = nib.Nifti1Image(mask.astype(np.uint8), affine)
    return lesions_synthesis.given(img, np.random.default_rng(seed), intensity)


def image_of(head, modality):
    return head.img(head.flair) if modality == 'FLAIR' else head.t1w_img


def data_of(img):
    return np.asarray(img.dataobj)


def contrasts_in(synthesis, anatomy, mask):
    """Contrast of the painted lesions, measured in the image that came out, in units of the normalised image."""
    normalised = 1.5 / synthesis.record.white_matter_median * synthesis.synth_img.get_fdata(dtype=np.float32) - 1
    return lesions_contrasts.contrast_of(normalised, mask, anatomy.wm_mask & ~mask)[2]


# What is changed


def stored_as(head, kind):
    """The FLAIR of a head as it is read from a file."""
    if kind == 'int16 with scaling':
        img = nib.Nifti1Image(np.rint((head.flair + 20) / 0.37).astype(np.int16), head.affine)
        img.header.set_slope_inter(0.37, -20.0)
    elif kind == '4D':
        img = nib.Nifti1Image(head.flair[..., None], head.affine)
    else:
        img = nib.Nifti1Image(head.flair, head.affine)
    img.set_sform(head.affine, 2)
    img.set_qform(head.affine, 1)
    return nib.Nifti1Image.from_bytes(img.to_bytes())


@pytest.fixture(scope='module')
def oblong(make_phantom):
    """The usual phantom, flipped and anisotropic, and what is seen in its T1w."""
    head = make_phantom()
    return head, images_anatomy.look_at(head.t1w_img, head.lesion_mask_img)


@pytest.mark.parametrize('kind', ['int16 with scaling', 'float32', '4D'])
def test_outside_the_new_lesions_and_their_halo_every_stored_value_is_the_same(oblong, new_mask, tiny_unet, kind):
    head, anatomy = oblong
    img, model = stored_as(head, kind), build_model(unet=tiny_unet(4))
    before = img.to_bytes()
    synthesis = lesions_synthesis.paint(
        img, anatomy, lesions_at(new_mask, head.affine), model, Lesions(head.lesion_mask_img), Sampling(seed=3)
    )
    assert img.to_bytes() == before
    written = nib.Nifti1Image.from_bytes(synthesis.synth_img.to_bytes())
    assert np.array_equal(data_of(synthesis.new_mask_img), new_mask)
    painted = data_of(synthesis.changed_mask_img) > 0
    stored = [image.dataobj.get_unscaled() for image in (img, written)]
    assert stored[0].dtype == stored[1].dtype
    assert stored[0].shape == stored[1].shape
    assert stored[0][~painted].tobytes() == stored[1][~painted].tobytes()
    assert (stored[0] != stored[1])[painted].mean() > 0.9
    assert (written.dataobj.slope, written.dataobj.inter) == (img.dataobj.slope, img.dataobj.inter)
    for field in ('qform_code', 'sform_code', 'pixdim', 'dim', 'datatype', 'srow_x'):
        assert np.array_equal(written.header[field], img.header[field]), field
    assert synthesis.record.voxels_changed == (stored[0] != stored[1]).sum()


def test_masks_are_the_new_lesions_and_all_lesions(head, anatomy, new_mask):
    synthesis = lesions_synthesis.paint(
        image_of(head, 'FLAIR'), anatomy, lesions_at(new_mask), build_model(), Lesions(head.lesion_mask_img)
    )
    assert np.array_equal(data_of(synthesis.new_mask_img), new_mask)
    assert np.array_equal(data_of(synthesis.mask_img), new_mask | head.lesion_mask)
    for img in (synthesis.mask_img, synthesis.new_mask_img, synthesis.changed_mask_img):
        assert img.get_data_dtype() == np.uint8
        assert np.array_equal(img.affine, MM)
    record = synthesis.record
    assert (record.lesion_voxels_old, record.lesion_voxels_new) == (head.lesion_mask.sum(), 80)
    assert record.lesions == len(synthesis.lesions) == 3
    assert [row['volume_mm3'] for row in synthesis.lesions] == [36, 36, 8]
    assert synthesis.warnings == []


def test_healthy_head_has_new_lesions_alone(make_phantom, new_mask):
    head = make_phantom(affine=MM)
    anatomy = images_anatomy.look_at(head.healthy_img)
    synthesis = lesions_synthesis.paint(head.healthy_img, anatomy, lesions_at(new_mask), build_model('T1w'))
    assert np.array_equal(data_of(synthesis.mask_img), new_mask)
    assert np.array_equal(data_of(synthesis.new_mask_img), new_mask)
    assert synthesis.record.lesion_voxels_old == 0


def test_lesions_of_the_t1w_are_painted_into_thick_slices_of_a_flair(oblong, new_mask):
    head, anatomy = oblong
    flair_img, old_img = head.thick_slices(head.flair), head.thick_slices(head.lesion_mask)
    synthesis = lesions_synthesis.paint(
        flair_img, anatomy, lesions_at(new_mask, head.affine), build_model(), Lesions(old_img)
    )
    painted = data_of(synthesis.new_mask_img) > 0
    expected = data_of(head.thick_slices(new_mask)) > 0
    assert painted.shape == flair_img.shape
    assert (painted & expected).sum() > 0.9 * expected.sum()
    after, changed = synthesis.synth_img.get_fdata(), data_of(synthesis.changed_mask_img) > 0
    assert np.array_equal(after[~changed], flair_img.get_fdata()[~changed])
    assert after[painted].mean() > 400  # white matter is 350
    assert np.array_equal(data_of(synthesis.mask_img) > 0, painted | (data_of(old_img) > 0))


def test_same_seed_same_bytes_and_another_seed_another_lesion_for_one_mask(head, anatomy, new_mask, tiny_unet):
    model, img = build_model(unet=tiny_unet(4)), image_of(head, 'FLAIR')
    first, again, other = (
        data_of(
            lesions_synthesis.paint(img, anatomy, lesions_at(new_mask), model, sampling=Sampling(seed=seed)).synth_img
        )
        for seed in (5, 5, 6)
    )
    assert first.tobytes() == again.tobytes()
    assert (first != other)[new_mask].mean() > 0.9


# How bright


@pytest.mark.parametrize(('modality', 'halo'), [('FLAIR', 0), ('T1w', 0), ('FLAIR', 'auto'), ('T1w', 'auto')])
def test_contrast_that_is_asked_for_is_obtained(head, anatomy, new_mask, modality, halo):
    """With a network that adds nothing, each lesion has the quantile of the known contrasts: bright or dark."""
    for intensity, expected in ((0, 0.2), (0.5, 0.4), (0.875, 0.55)):
        new = lesions_at(new_mask, intensity=intensity)
        arguments = (image_of(head, modality), anatomy, new, build_model(modality), Lesions(head.lesion_mask_img))
        synthesis = lesions_synthesis.paint(*arguments, lesion_halo=halo)
        found = contrasts_in(synthesis, anatomy, new_mask)
        np.testing.assert_allclose(found, 3 * [SIGN[modality] * expected], atol=2e-3)
    assert synthesis.record.contrast_reference == '5 lesions that the model was trained on'


@pytest.mark.parametrize(('texture', 'kept'), [('sampled', True), ('mean', False)])
def test_noise_of_the_tissue_stays_in_lesions_of_one_step(head, anatomy, new_mask, texture, kept):
    noise = np.random.default_rng(2).normal(0, 0.03 * head.flair.max(), head.flair.shape) * (head.flair > 0)
    noisy_img, sampling = head.img((head.flair + noise).astype(np.float32)), Sampling(1, texture=texture, device='cpu')
    done = lesions_synthesis.paint(noisy_img, anatomy, lesions_at(new_mask), build_model(), None, sampling, 0)
    alike = np.corrcoef(data_of(done.synth_img)[new_mask], noise[new_mask])[0, 1]
    assert (alike > 0.4) == kept
    assert done.record.texture == texture


def test_every_lesion_has_a_contrast_of_its_own_and_that_of_its_size(head, anatomy, new_mask):
    new = replace(lesions_at(new_mask), strengths=np.array([0.0, 1.0, 0.5]))
    known = np.repeat([8.0, 36.0], 20), np.concatenate([np.linspace(0.1, 0.3, 20), np.linspace(0.4, 0.6, 20)])
    synthesis = lesions_synthesis.paint(image_of(head, 'FLAIR'), anatomy, new, build_model(contrasts=known))
    labels = data_of(new.mask_img)
    assert np.bincount(labels.flat).tolist()[1:] == [8, 36, 36]
    found = contrasts_in(synthesis, anatomy, new_mask)  # numbered as in the mask: along the first axis
    np.testing.assert_allclose(found, [0.1, 0.6, 0.5], atol=2e-3)


def test_no_painted_voxel_is_brighter_than_the_brightest_of_the_brain(head, anatomy, new_mask):
    model = build_model(contrasts=(np.full(5, 36.0), np.full(5, 4.0)))
    synthesis = lesions_synthesis.paint(image_of(head, 'FLAIR'), anatomy, lesions_at(new_mask), model)
    painted = data_of(synthesis.synth_img)[new_mask]
    brightest = np.quantile(head.flair[anatomy.brain_mask & ~new_mask], 0.999)
    assert painted.max() <= brightest * (1 + 1e-6)
    assert painted.min() > 0.99 * brightest  # all would be brighter


def test_contrast_is_the_patients_own_from_ten_lesions_on(head, anatomy):
    """Twelve lesions of three voxels, 0.1 to 1.2 brighter than white matter, and specks that do not count."""
    old = np.zeros((40, 36, 30), dtype=bool)
    image = np.full(old.shape, 0.5, dtype=np.float32)
    for n in range(12):
        image[4 + 3 * (n % 4) * 2, 6 + 9 * (n // 4), 10:13] += 0.1 * (n + 1)
        old[4 + 3 * (n % 4) * 2, 6 + 9 * (n // 4), 10:13] = True
    old[:, :, 20:22] = False
    old[5, 5, 22] = old[9, 9, 24] = True
    made = replace(anatomy, old_lesions=old, tissue_seg=np.full(old.shape, tissues.WHITE_MATTER))
    (volumes, contrasts), source = lesions_contrasts.reference_contrasts(
        image, old, made.wm_mask, build_model(contrasts=None)
    )
    assert source == '12 lesions of the patient'
    assert volumes.tolist() == [3] * 12
    np.testing.assert_allclose(np.sort(contrasts), 0.1 * np.arange(1, 13), atol=1e-4)
    few = old & (np.arange(30) > 10)  # two voxels are left of each
    assert (
        lesions_contrasts.reference_contrasts(image, few, made.wm_mask, build_model())[1]
        == '5 lesions that the model was trained on'
    )


def test_without_contrasts_of_model_or_patient_there_is_nothing_to_ask_for(head, anatomy, new_mask):
    model = build_model(contrasts=None)
    with pytest.raises(ValueError, match=r'tiny brings no contrasts .*lesion_contrasts\.json.* fewer than 10 lesions'):
        lesions_synthesis.paint(
            image_of(head, 'FLAIR'), anatomy, lesions_at(new_mask), model, Lesions(head.lesion_mask_img)
        )


def test_model_that_takes_no_contrast_paints_without(head, anatomy, new_mask, tiny_unet):
    """The thesis' conditional synthesis: mask and voided image (3.2)."""
    form = forms.Form(kind='plain')
    model = build_model(form=form, unet=tiny_unet(form.n_channels), contrasts=None)
    synthesis = lesions_synthesis.paint(image_of(head, 'FLAIR'), anatomy, lesions_at(new_mask), model)
    assert 'cannot be asked' in synthesis.record.contrast_reference
    assert (data_of(synthesis.synth_img) != head.flair)[new_mask].mean() > 0.9


# Halo


def test_lesions_fade_into_the_white_matter_around_and_nothing_else_changes(head, anatomy, new_mask):
    paint = [image_of(head, 'FLAIR'), anatomy, lesions_at(new_mask), build_model(), Lesions(head.lesion_mask_img)]
    painted = lesions_synthesis.paint(*paint)
    before, after = head.flair, data_of(painted.synth_img)
    changed = data_of(painted.changed_mask_img) > 0
    ring = changed & ~new_mask
    assert np.array_equal(changed, new_mask | (before != after))
    assert head.wm_mask[ring].all()
    assert not (ring & head.lesion_mask).any()
    distance = ndimage.distance_transform_edt(~new_mask)
    assert distance[ring].max() <= lesions_contrasts.HALO_REACH_MM
    contrast = (after - before)[new_mask].mean()
    means = [(after - before)[ring & (distance == mm)].mean() / contrast for mm in (1, 2, 3)]
    np.testing.assert_allclose(means, [0.36, 0.16, 0.07], atol=0.02)  # of FLAIR, e-fold 1.2 mm


def test_what_is_no_number_does_not_count_as_changed(head, anatomy, new_mask):
    values = np.where(head.brain_mask, head.flair, np.nan).astype(np.float32)
    synthesis = lesions_synthesis.paint(head.img(values), anatomy, lesions_at(new_mask), build_model())
    changed = data_of(synthesis.changed_mask_img) > 0
    assert np.isfinite(values[changed]).all()
    assert synthesis.record.voxels_changed <= changed.sum()


def test_old_lesions_of_a_mask_without_a_place_lie_on_the_voxels_of_the_t1w(oblong):
    head, _ = oblong
    affine = nib.affines.from_matvec(np.eye(3), (9, 0, 5)) @ head.affine
    placed = nib.Nifti1Image(head.lesion_mask.astype(np.uint8), affine)
    assert not np.allclose(without_place(placed).affine, affine)
    seen, expected = (
        images_anatomy.look_at(nib.Nifti1Image(head.t1w, affine), mask_img)
        for mask_img in (without_place(placed), placed)
    )
    assert np.array_equal(seen.old_lesions, expected.old_lesions)
    assert seen.old_lesions.any()


@pytest.mark.parametrize('size', [1.0, 1.2])
def test_new_lesions_are_painted_at_their_place_into_an_image_without_one(head, new_mask, size):
    affine = np.diag([size, size, size, 1])
    t1w_img = without_place(nib.Nifti1Image(head.t1w, affine))
    anatomy = images_anatomy.look_at(t1w_img)
    given_img = placement.beside(nib.Nifti1Image(new_mask.astype(np.uint8), affine), t1w_img, 'mask')
    new = lesions_synthesis.given(given_img, np.random.default_rng(0), 0.5)
    synthesis = lesions_synthesis.paint(t1w_img, anatomy, new, build_model('T1w'))
    assert np.array_equal(data_of(synthesis.new_mask_img) > 0, new_mask)
    on_grid = placement.mask_on_grid(
        given_img, anatomy.grid_img
    )  # as drawn lesions are, which lie on the anatomy's grid
    drawn_img = nib.Nifti1Image(on_grid.astype(np.uint8), anatomy.grid_img.affine)
    drawn = lesions_synthesis.given(drawn_img, np.random.default_rng(0), 0.5)
    painted = data_of(lesions_synthesis.paint(t1w_img, anatomy, drawn, build_model('T1w')).new_mask_img) > 0
    assert (painted & new_mask).sum() > 0.6 * (painted | new_mask).sum()


def test_halo_of_zero_changes_nothing_outside_the_lesions(head, anatomy, new_mask):
    painted = lesions_synthesis.paint(
        image_of(head, 'FLAIR'), anatomy, lesions_at(new_mask), build_model(), lesion_halo=0
    )
    assert np.array_equal(data_of(painted.changed_mask_img) > 0, new_mask)
    assert np.array_equal(data_of(painted.synth_img)[~new_mask], head.flair[~new_mask])


def test_halo_is_the_patients_own_from_ten_lesions_on():
    old = np.zeros((40, 36, 30), dtype=bool)
    for number in range(12):
        x, y = 4 + 8 * (number % 4), 5 + 10 * (number // 4)
        old[x : x + 3, y : y + 3, 14:17] = True
    white = np.ones_like(old)
    image = np.where(old, 1.0, 0.5)
    image = lesions_contrasts.fade_out(image, old, white & ~old, 0.5)
    anatomy = images_anatomy.Anatomy(None, white, np.full(old.shape, tissues.WHITE_MATTER), old)
    assert lesions_contrasts.choose_halo('auto', image, anatomy, build_model()) == pytest.approx(0.5, abs=0.05)
    few = replace(anatomy, old_lesions=old & (np.arange(30) < 0))
    assert lesions_contrasts.choose_halo('auto', image, few, build_model()) == FLAIR.halo_share
    assert lesions_contrasts.choose_halo(0.2, image, anatomy, build_model()) == 0.2
    with pytest.raises(ValueError, match='lesion halo is 1.5, expected a share from 0 to 1'):
        lesions_contrasts.choose_halo(1.5, image, anatomy, build_model())


# Unconditional models


UNCONDITIONAL = forms.Form(kind='unconditional', inside_mask_only=False)


def test_unconditional_model_starts_from_coarse_lesions_of_the_contrast(head, anatomy, new_mask):
    """A network that predicts no noise leaves the painting nearly as it is if it starts one step before the end."""
    model = build_model(form=UNCONDITIONAL, unet=lambda slabs, _: torch.zeros_like(slabs), start_step=1)
    model = replace(model, scheduler=process.build_scheduler(prediction_type='epsilon'))
    for intensity, expected in ((0, 0.2), (1, 0.6)):
        new = lesions_at(new_mask, intensity=intensity)
        synthesis = lesions_synthesis.paint(image_of(head, 'FLAIR'), anatomy, new, model, sampling=Sampling(20))
        np.testing.assert_allclose(contrasts_in(synthesis, anatomy, new_mask), 3 * [expected], atol=0.06)


def test_unconditional_model_keeps_what_is_outside_and_seeds_differ(head, anatomy, new_mask, tiny_unet):
    model = build_model(form=UNCONDITIONAL, unet=tiny_unet(1), num_inference_steps=5)
    images = [
        data_of(
            lesions_synthesis.paint(
                image_of(head, 'FLAIR'), anatomy, lesions_at(new_mask), model, sampling=Sampling(seed=seed)
            ).synth_img
        )
        for seed in (1, 2)
    ]
    outside = ndimage.distance_transform_edt(~new_mask) > lesions_contrasts.HALO_REACH_MM
    for image in images:
        assert np.array_equal(image[outside], head.flair[outside])
    assert (images[0] != images[1])[new_mask].mean() > 0.9


# Masks that are given


def test_voxels_outside_the_brain_or_in_old_lesions_are_left_out(head, anatomy, new_mask):
    wanted = new_mask | head.lesion_mask
    wanted[1:3, 1:3, 1:3] = True  # a corner of the image
    synthesis = lesions_synthesis.paint(
        image_of(head, 'FLAIR'), anatomy, lesions_at(wanted), build_model(), Lesions(head.lesion_mask_img)
    )
    assert np.array_equal(data_of(synthesis.new_mask_img) > 0, new_mask)
    assert np.array_equal(data_of(synthesis.mask_img) > 0, new_mask | head.lesion_mask)
    assert synthesis.warnings == [
        '8 of 88 voxels of the new lesions lie outside the brain: left out.',
        '3 of 6 new lesions are not in this image: smaller than its voxels, in old lesions or outside the brain.',
    ]


def test_new_lesions_that_touch_old_ones_are_counted_and_named(head, anatomy, new_mask):
    beside = ndimage.binary_dilation(head.lesion_mask, np.ones((3, 3, 3)))
    synthesis = lesions_synthesis.paint(
        image_of(head, 'FLAIR'), anatomy, lesions_at(new_mask | beside), build_model(), Lesions(head.lesion_mask_img)
    )
    # The shells of the two old ones; those of `new_mask` lie apart.
    assert synthesis.record.new_lesions_touching_old == 2
    assert any('2 new lesions touch an old one' in warning for warning in synthesis.warnings)


def test_lesions_outside_white_matter_are_painted_and_named(head, anatomy):
    cortex = np.zeros_like(head.lesion_mask)
    cortex[18:21, 16:19, 26:28] = True
    cortex &= head.tissue_seg == tissues.GREY_MATTER
    synthesis = lesions_synthesis.paint(image_of(head, 'FLAIR'), anatomy, lesions_at(cortex), build_model())
    assert np.array_equal(data_of(synthesis.new_mask_img), cortex)
    assert synthesis.warnings == ['100 % of the new lesions lie outside white matter.']


def test_lesions_too_small_for_the_slices_of_an_image_are_named(oblong, new_mask):
    """The one of 8 voxels lies between two slices of 3 mm: less than half of any voxel is lesion."""
    head, anatomy = oblong
    new = lesions_at(new_mask, head.affine)
    synthesis = lesions_synthesis.paint(head.thick_slices(head.flair), anatomy, new, build_model())
    assert len(new.strengths) == 3
    assert synthesis.record.lesions == 2
    assert synthesis.warnings == [
        '1 of 3 new lesions are not in this image: smaller than its voxels, in old lesions or outside the brain.'
    ]


@pytest.mark.parametrize('where', ['in old lesions', 'outside the brain'])
def test_mask_of_which_nothing_is_left_is_refused(head, anatomy, where):
    corner = np.zeros_like(head.lesion_mask)
    corner[:3, :3, :3] = True
    mask = head.lesion_mask if where == 'in old lesions' else corner
    with pytest.raises(ValueError, match='no voxel of the new lesions lies in the brain and outside the old lesions'):
        lesions_synthesis.paint(
            image_of(head, 'FLAIR'), anatomy, lesions_at(mask), build_model(), Lesions(head.lesion_mask_img)
        )


def test_empty_mask_and_what_is_no_mask_are_refused(head, rng):
    with pytest.raises(ValueError, match='mask of new lesions is empty'):
        lesions_synthesis.given(head.img(np.zeros_like(head.lesion_mask)), rng)
    with pytest.raises(ValueError, match='mask of new lesions has shape'):
        lesions_synthesis.given(nib.Nifti1Image(np.ones((4, 4, 4, 2), np.uint8), np.eye(4)), rng)


def test_given_lesions_are_numbered_and_probabilities_are_cut(head, new_mask, rng):
    new = lesions_synthesis.given(head.img(np.where(new_mask, 0.6, 0.2).astype(np.float32)), rng, mask_threshold=0.5)
    labels = data_of(new.mask_img)
    assert np.array_equal(labels > 0, new_mask)
    assert labels.max() == len(new.strengths) == 3
    assert np.array_equal(new.mask_img.affine, head.affine)
    assert lesions_contrasts.volumes_of(new).tolist() == [8, 36, 36]


def test_mask_on_another_grid_finds_its_place(oblong, new_mask):
    head, anatomy = oblong
    mask_img = head.thick_slices(new_mask)
    new = lesions_synthesis.given(mask_img, np.random.default_rng(0), 0.5)
    synthesis = lesions_synthesis.paint(head.t1w_img, anatomy, new, build_model('T1w'))
    painted = data_of(synthesis.new_mask_img) > 0
    assert 0.6 < (painted & new_mask).sum() / new_mask.sum() <= 1
    assert (painted & ~masks.dilate_within(new_mask, ~new_mask, 2)).sum() == 0
    assert lesions_contrasts.volumes_of(new).sum() == pytest.approx(3 * data_of(mask_img).sum())


def test_mask_that_lies_elsewhere_is_refused(head, anatomy, new_mask):
    far = nib.affines.from_matvec(np.eye(3), (500, 0, 0))
    with pytest.raises(ValueError, match='do not overlap'):
        lesions_synthesis.paint(image_of(head, 'FLAIR'), anatomy, lesions_at(new_mask, far), build_model())


# Lesions that are drawn


def test_drawn_lesions_lie_in_white_matter_apart_from_old_ones_and_each_other(anatomy, find_tiny_places):
    for seed in range(4):
        new = lesions_synthesis.draw(anatomy, find_tiny_places(anatomy), np.random.default_rng(seed), n_lesions=5)
        labels = data_of(new.mask_img)
        assert labels.max() == len(new.strengths) == masks.label_lesions(labels > 0)[1] == 5
        assert (anatomy.tissue_seg[labels > 0] == tissues.WHITE_MATTER).all()
        near_old = ndimage.binary_dilation(anatomy.old_lesions, masks.FULL_CONNECTIVITY, iterations=3)
        assert not labels[near_old].any()


def test_drawn_lesions_know_their_place(anatomy, find_tiny_places):
    atlas = find_tiny_places(anatomy)
    assert lesions_synthesis.draw(anatomy, atlas, np.random.default_rng(1), n_lesions=3).places == ('deep',) * 3
    atlas = replace(atlas, places=np.full_like(atlas.places, places.PLACES['juxtacortical']))
    assert (
        lesions_synthesis.draw(anatomy, atlas, np.random.default_rng(1), n_lesions=3).places == ('juxtacortical',) * 3
    )


def test_rows_of_the_table_have_the_place_of_their_lesion(head, anatomy, new_mask):
    new = lesions_at(new_mask)
    assert all(
        'place' not in row for row in lesions_synthesis.paint(head.t1w_img, anatomy, new, build_model('T1w')).lesions
    )
    numbers = data_of(new.mask_img)
    new = replace(new, places=tuple(f'at {x}' for x in (ndimage.find_objects(numbers)[n][0].start for n in range(3))))
    rows = lesions_synthesis.paint(head.t1w_img, anatomy, new, build_model('T1w')).lesions
    assert [row['place'] for row in sorted(rows, key=lambda row: row['x_mm'])] == ['at 17', 'at 18', 'at 22']


def test_strengths_are_the_one_asked_for_or_drawn(rng):
    assert lesions_contrasts.draw_strengths(rng, 3, 0.7).tolist() == [0.7] * 3
    drawn = lesions_contrasts.draw_strengths(rng, 2000, 'auto')
    assert 0.05 <= drawn.min() < 0.07
    assert 0.93 < drawn.max() <= 0.95
    with pytest.raises(ValueError, match='lesion intensity is 1.2, expected a quantile'):
        lesions_contrasts.draw_strengths(rng, 3, 1.2)


# Lesions of another patient


@pytest.fixture
def borrow(monkeypatch, no_deformation, anatomy, head):
    """Borrow from a donor with the same head, whose lesions are where the test says; both lie on one another."""

    def call(where):
        monkeypatch.setattr(images_anatomy, 'look_at', lambda *_: replace(anatomy, old_lesions=where))
        return lesions_synthesis.borrow(head.t1w_img, head.lesion_mask_img, anatomy)

    return call


def test_borrowed_lesions_are_kept_in_free_white_matter(borrow, head, anatomy, new_mask):
    where = new_mask | head.lesion_mask
    where[20, 17, 5:7] = True  # of two voxels
    where[18:21, 16:19, 26:28] = True  # cortex
    borrowed = data_of(borrow(where)) > 0
    near_old = ndimage.binary_dilation(head.lesion_mask, masks.FULL_CONNECTIVITY, iterations=3)
    assert borrowed.any()
    assert np.array_equal(borrowed, new_mask & ~near_old & anatomy.wm_mask)


def test_borrowed_lesions_that_find_no_free_white_matter_are_refused(borrow, head):
    with pytest.raises(ValueError, match='none of the lesions .* lies in free white matter'):
        borrow(head.lesion_mask)


# The public function


def test_public_function_paints_lesions_that_are_drawn(head, monkeypatch, find_tiny_places):
    monkeypatch.setattr(lesions_synthesis, 'find_places', find_tiny_places)
    arguments = {'t1w_img': head.t1w_img, 'model': build_model(), 'n_lesions': 3, 'device': 'cpu', 'seed': 4}
    flair_img = head.img(head.flair)
    synth_img, mask_img = synthesize_lesions(flair_img, head.lesion_mask_img, **arguments, lesion_intensity=0.9)
    mask = data_of(mask_img) > 0
    assert masks.label_lesions(mask)[1] == 3
    assert not (mask & head.lesion_mask).any()
    outside = ndimage.distance_transform_edt(~mask) > lesions_contrasts.HALO_REACH_MM
    assert np.array_equal(synth_img.get_fdata()[outside], flair_img.get_fdata()[outside])
    assert synth_img.get_fdata()[mask].mean() > flair_img.get_fdata()[mask].mean() + 50
    again = synthesize_lesions(flair_img, head.lesion_mask_img, **arguments, lesion_intensity=0.9)
    assert synth_img.to_bytes() == again[0].to_bytes()


def test_flair_needs_its_t1w(head):
    with pytest.raises(ValueError, match=r'tiny paints into FLAIR images: it needs their T1w \(t1w_img\)'):
        synthesize_lesions(head.img(head.flair), model=build_model(), device='cpu')


def test_sidecar_says_of_a_flair_whether_it_has_a_skull(head, anatomy, new_mask, monkeypatch):
    """It may have one where the T1w has none."""
    monkeypatch.setattr(images_anatomy, 'is_skull_stripped', lambda image: False)
    flair, t1w = (
        lesions_synthesis.paint(image_of(head, modality), anatomy, lesions_at(new_mask), build_model(modality)).record
        for modality in ('FLAIR', 'T1w')
    )
    assert (flair.skull_stripped, t1w.skull_stripped) == (False, True)
