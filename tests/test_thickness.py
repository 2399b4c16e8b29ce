from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ellipsoid

from bids_lesionfill.thickness import anatomy, cortex, registry, segmentation, tables
from bids_lesionfill.thickness import engine as thickness_engine

INSIDE, CORTEX = cortex.INSIDE, cortex.CORTEX


def layers(*thicknesses_and_labels, width=13):
    """Flat layers along the last axis, as a volume."""
    column = np.concatenate([np.full(n, label) for n, label in thicknesses_and_labels])
    return np.tile(column, (width, width, 1))


def shell(inner_radius, thickness_voxels, inside=INSIDE, outside=cortex.OUTSIDE):
    """A spherical cortex around (or, with inside and outside exchanged, around a hole in) white matter."""
    centre = np.array([29.3, 29.6, 29.8]).reshape(3, 1, 1, 1)
    radius = np.linalg.norm(np.indices((60, 60, 60)) - centre, axis=0)
    return np.select([radius < inner_radius, radius < inner_radius + thickness_voxels], [inside, CORTEX], outside)


# ------------------------------------------------------------------------------------------------------------ distances


@pytest.mark.parametrize('voxels', [1, 2, 3, 5])
def test_flat_cortex_is_as_thick_as_it_has_voxels(voxels):
    ribbon = layers((4, INSIDE), (voxels, CORTEX), (4, cortex.OUTSIDE))
    thickness_voxels = cortex.projection_thickness(ribbon)
    assert (thickness_voxels[ribbon == CORTEX] == voxels).all()
    assert (thickness_voxels[ribbon != CORTEX] == 0).all()


def test_two_banks_that_touch_are_three_voxels_thick_each_and_not_six():
    ribbon = layers((4, INSIDE), (6, CORTEX), (4, INSIDE))
    assert (cortex.projection_thickness(ribbon)[ribbon == CORTEX] == 3).all()


def test_thickness_is_the_same_in_every_direction_of_the_grid():
    ribbon = layers((4, INSIDE), (3, CORTEX), (6, cortex.OUTSIDE))
    for axes in ((0, 2, 1), (2, 1, 0)):
        for turned in (ribbon.transpose(axes), ribbon.transpose(axes)[::-1, ::-1, ::-1]):
            assert (cortex.projection_thickness(turned)[turned == CORTEX] == 3).all()


@pytest.mark.parametrize(('voxels', 'inside', 'outside'), [
    (2.5, INSIDE, cortex.OUTSIDE), (4, INSIDE, cortex.OUTSIDE), (2.5, cortex.OUTSIDE, INSIDE)
], ids=['gyrus', 'thick gyrus', 'sulcus'])  # fmt: skip
def test_curved_cortex_has_its_thickness_on_average(voxels, inside, outside):
    ribbon = shell(18, voxels, inside, outside)
    thickness_voxels = cortex.projection_thickness(ribbon)[ribbon == CORTEX]
    assert thickness_voxels.mean() == pytest.approx(voxels, abs=0.15)
    assert thickness_voxels.std() < 0.35


def test_no_cortex_is_no_thickness_and_cortex_without_white_matter_is_an_error():
    assert not cortex.projection_thickness(np.full((4, 4, 4), INSIDE)).any()
    with pytest.raises(ValueError, match='encloses no white matter'):
        cortex.projection_thickness(np.full((4, 4, 4), CORTEX))


# --------------------------------------------------------------------------------------------------------------- labels


def test_nearest_label_is_taken_up_to_a_distance_and_in_the_mask_only():
    labels = np.zeros((1, 1, 9), dtype=np.int16)
    labels[..., 0], labels[..., 8] = 5, 7
    mask = np.ones(labels.shape, dtype=bool)
    mask[..., 7] = False
    found = cortex.nearest_labels(labels, mask, farthest_voxels=2)
    assert found[0, 0].tolist() == [5, 5, 5, 0, 0, 0, 7, 0, 7]
    assert not cortex.nearest_labels(np.zeros_like(labels), mask).any()


def test_average_takes_the_boundary_of_the_mask_only_and_leaves_out_zeros():
    mask = np.zeros((7, 7, 7), dtype=bool)
    mask[1:6, 1:6, 1:6] = True  # 125 voxels, 27 of them have no face outside
    values = np.where(mask, 2.0, 9.0)
    values[2:5, 2:5, 2:5] = 100  # within
    values[1, 1, 1] = 0
    labels = np.where(np.arange(7)[:, None, None] < 3, 1, 2) * mask
    means, counts = cortex.average_by_label(values, labels, 3, mask)
    assert means[:2].tolist() == [2, 2]
    assert np.isnan(means[2])
    assert counts.tolist() == [2 * 25 - 9 - 1, 3 * 25 - 2 * 9, 0]


# --------------------------------------------------------------------------------------------------------- segmentation


@pytest.fixture
def segmented(rng):
    """Three nested tissues with noise, and the soft priors of a template that lies two voxels beside."""
    shape = (44, 44, 44)
    seg = sum(ellipsoid(shape, (21.5,) * 3, (radius,) * 3).astype(int) for radius in (20, 17, 13))
    t1w = np.array([0, 300, 600, 900])[seg] + rng.normal(0, 40, shape)
    beside = np.roll(seg, 2, axis=0)
    priors = np.stack([np.where(beside == tissue, 0.8, 0.1) for tissue in (1, 2, 3)])
    return t1w.astype(np.float32), seg, priors.astype(np.float32)


def test_tissues_are_found_where_they_are_and_not_where_the_template_has_them(segmented, rng):
    t1w, seg, priors = segmented
    fractions = segmentation.segment(t1w, seg > 0, priors, rng)
    assert fractions[:, seg == 0].max() == 0
    np.testing.assert_allclose(fractions[:, seg > 0].sum(axis=0), 1, atol=1e-5)
    found = 1 + fractions.argmax(axis=0)
    assert (found == seg)[seg > 0].mean() > 0.98


def test_a_voxel_half_way_between_two_tissues_is_half_of_each():
    means = np.array([[300], [450], [600], [750], [900]], dtype=np.float32)
    posterior = np.array([[0, 0, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=np.float32)
    fractions = segmentation.unmix(np.array([450, 375, 300], dtype=np.float32), posterior, means)
    np.testing.assert_allclose(fractions, [[0.5, 0.75, 1], [0.5, 0.25, 0], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(('unit', 'offset'), [(1e-9, 0), (1.5, 0), (1e9, 0), (1, 1000), (1e-6, -3e-4)])
def test_unit_of_intensity_and_offset_do_not_change_the_tissue_fractions(segmented, unit, offset):
    t1w, seg, priors = segmented
    one, other = (
        segmentation.segment(image.astype(np.float32), seg > 0, priors, np.random.default_rng(3))
        for image in (t1w, t1w.astype(np.float64) * unit + offset)
    )
    assert np.abs(one - other).max() < 0.01
    assert (one.argmax(axis=0) != other.argmax(axis=0)).sum() <= 5


def test_segmentation_gives_the_same_bytes_for_the_same_seed_and_others_for_another(segmented):
    t1w, seg, priors = segmented
    first, again, other = (
        segmentation.segment(t1w, seg > 0, priors, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_constant_or_empty_brains_are_refused(rng):
    with pytest.raises(ValueError, match='brain mask is empty'):
        segmentation.segment(np.ones((4, 4, 4)), np.zeros((4, 4, 4), bool), np.ones((3, 4, 4, 4)), rng)
    priors = np.full((3, 4, 4, 4), 1 / 3)
    flat = segmentation.segment(np.ones((4, 4, 4)), np.ones((4, 4, 4), bool), priors, rng)
    assert np.isfinite(flat).all()


# --------------------------------------------------------------------------------------------------- ribbon and regions


def test_ribbon_counts_deep_grey_matter_as_inside_and_leaves_out_what_is_near_no_label():
    labels = np.zeros((1, 1, 12), dtype=np.int16)
    labels[..., 1], labels[..., 2], labels[..., 10] = 36, 1, 75  # caudate, left bankssts, right insula
    tissue_seg = np.full(labels.shape, 2)
    tissue_seg[..., 11] = 3
    ribbon, regions = anatomy.find_ribbon(tissue_seg, labels)
    assert regions[0, 0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 68, 68, 0]
    assert ribbon[0, 0].tolist() == [0, 2, 1, 1, 0, 0, 0, 0, 0, 1, 1, 2]


def test_regions_are_those_of_the_atlas_in_its_order():
    template = anatomy.read_template()
    assert set(np.unique(template.labels)) == set(range(84))
    csv = anatomy.atlas_file('atlas-desikankilliany.csv').read_text().splitlines()[1:]
    names = [line.split(',')[1] for line in csv]
    assert tuple(names[:34]) == tuple(names[41:75]) == tables.REGION_NAMES
    assert [line.split(',')[0] for line in csv][:1] == ['1']
    left = np.argwhere((template.labels >= 1) & (template.labels <= 34)).mean(axis=0)
    assert (template.labels_affine @ [*left, 1])[0] < -20  # mm: left is left


def test_template_priors_are_probabilities_in_the_order_of_the_tissues():
    template = anatomy.read_template()
    assert template.priors.shape == (3, *template.t1w.shape)
    assert template.priors.min() >= 0
    assert template.priors.sum(axis=0).max() <= 1.001
    means = [np.average(template.t1w, weights=prior) for prior in template.priors]
    assert means[0] < means[1] < means[2]


# -------------------------------------------------------------------------------------------------- table and registry


def test_table_has_68_regions_in_fixed_order_and_unknown_ones_are_nan():
    table = tables.table_of({'rh_insula': (3.1, 40)}, {'lh': 2.4, 'rh': 2.6})
    assert len(tables.REGIONS) == 68
    assert tuple(table.thickness_mm) == tables.REGIONS
    assert table.thickness_mm['rh_insula'] == 3.1
    assert np.isnan(table.thickness_mm['lh_bankssts'])
    assert table.n_voxels['lh_bankssts'] == 0
    assert table.global_mm == 2.5
    assert np.isnan(tables.table_of({}, {'lh': 2.4}).global_mm)


def test_table_in_another_order_is_refused():
    table = tables.table_of({}, {})
    turned = dict(reversed(table.thickness_mm.items()))
    with pytest.raises(ValueError, match='expected the 68'):
        tables.ThicknessTable(turned, table.n_voxels, table.hemisphere_mm)


@pytest.mark.parametrize('name', registry.ENGINES)
def test_every_engine_can_be_made_and_checked_without_work(name):
    engine = registry.make_engine(name)
    check = engine.check()
    assert engine.name == name
    assert {engine.has_noise, engine.reads_results} <= {True, False}
    assert check.version if check.ok else (check.reason and check.how_to_get)


@pytest.fixture
def known_template(monkeypatch):
    """A template that lies on the brain of `segmented` already, with region 1 on the left and 42 on the right."""

    def use(seg, priors, affine):
        sides = np.where(np.arange(seg.shape[0]) < 22, 1, 42)[:, None, None]
        labels = np.where(seg == 2, sides, 0).astype(np.int16)
        template = anatomy.Template(seg, priors, affine, labels, affine)
        monkeypatch.setattr(anatomy, 'read_template', lambda: template)
        monkeypatch.setattr(
            anatomy,
            'register',
            lambda t1w, brain_mask, affine, template, rng: anatomy.Registration(
                nib.affines.apply_affine(affine, np.argwhere(brain_mask)), {}
            ),
        )

    return use


def test_pbt_measures_a_known_brain_on_a_flipped_grid_and_gives_the_same_bytes_again(segmented, known_template):
    t1w, seg, priors = segmented
    affine = nib.affines.from_matvec(np.eye(3), (-22, -20, -18))
    known_template(seg, priors, affine)
    stripped = np.where(seg > 0, t1w, 0)[::-1]
    img = nib.Nifti1Image(stripped, affine @ nib.affines.from_matvec(np.diag([-1.0, 1, 1]), (43, 0, 0)))
    engine = registry.make_engine('pbt')
    first = engine.run(thickness_engine.Scan(img, Path('t1w.nii'), 'sub-01', 'original', seed=5))
    again = engine.run(thickness_engine.Scan(img, Path('t1w.nii'), 'sub-01', 'original', seed=5))
    classes = np.asarray(first.tissue_seg_img.dataobj)
    assert classes.tobytes() == np.asarray(again.tissue_seg_img.dataobj).tobytes()
    assert (classes == seg[::-1]).mean() > 0.97
    for region in ('lh_bankssts', 'rh_bankssts'):
        assert first.table.thickness_mm[region] == pytest.approx(4, abs=0.3)
        assert first.table.thickness_mm[region] == again.table.thickness_mm[region]
    assert first.table.hemisphere_mm == again.table.hemisphere_mm
    assert first.info['BrainVolumeMl'] == pytest.approx((seg > 0).sum() / 1000, rel=0.03)


@pytest.mark.slow
def test_pbt_gives_equal_bytes_twice_and_ants_works_on_the_same_segmentation(tmp_path):
    """The template as a brain, at half of its resolution: registration, segmentation and thickness, all of it."""
    from bids_lesionfill.thickness.engines import ants

    template = anatomy.read_template()
    coarse = template.t1w[::2, ::2, ::2] * 800
    affine = template.affine.copy()
    affine[:3, :3] *= 2
    img = nib.Nifti1Image(coarse.astype(np.float32), affine)
    first, again = (run_coarse(img, template) for _ in range(2))
    assert first.fractions.tobytes() == again.fractions.tobytes()
    assert first.regions.tobytes() == again.regions.tobytes()
    assert set(np.unique(first.regions)) == set(range(69))
    box = tuple(slice(n // 2 - 12, n // 2 + 12) for n in first.ribbon.shape)
    part = anatomy.Anatomy(first.fractions[(slice(None), *box)], first.tissue_seg[box], first.ribbon[box],
                           first.regions[box], affine, {})  # fmt: skip
    reports = []
    thickness_voxels = ants.direct_thickness(part, tmp_path, lambda *report: reports.append(report))
    assert reports[0] == (1, ants.N_ITERATIONS)
    assert reports == sorted(reports)
    assert not list(tmp_path.iterdir())
    assert thickness_voxels.shape == part.ribbon.shape
    assert 0 < thickness_voxels[part.ribbon == CORTEX].mean() < 12


def run_coarse(img, template):
    """The embedded chain on voxels of 2 mm that are taken for 1 mm."""
    t1w = img.get_fdata(dtype=np.float32)
    rng = np.random.default_rng(0)
    registered = anatomy.register(t1w, t1w > 0, img.affine, template, rng)
    return anatomy.find_anatomy(t1w, t1w > 0, img.affine, template, registered, rng)
