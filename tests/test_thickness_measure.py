"""What the participant level writes about thickness, with engines that need no time."""

import nibabel as nib
import numpy as np
import pytest
from bids_examples import without_place

from bids_lesionfill import text_files
from bids_lesionfill.app import measuring
from bids_lesionfill.images.anatomy import look_at
from bids_lesionfill.layout import derivatives, inputs, naming
from bids_lesionfill.layout import files as layout_files
from bids_lesionfill.layout import tables as layout_tables
from bids_lesionfill.lesions.settings import MaskChoice
from bids_lesionfill.report import thickness
from bids_lesionfill.thickness import tables as thickness_tables
from bids_lesionfill.thickness.engine import Availability, Measurement
from bids_lesionfill.thickness.tables import REGIONS, table_of

N_REGIONS = len(REGIONS)


class Ruler:
    """An engine whose thickness is the mean of the image, and a little more with every seed."""

    has_noise, reads_results = True, False

    def __init__(self, name='ruler', fails_on=None, makes_classes=True, version='1', regions=None):
        self.name, self.fails_on, self.makes_classes, self.version = name, fails_on, makes_classes, version
        self.regions, self.seen = regions, []

    def check(self):
        return Availability(True, self.version)

    def run(self, scan):
        self.seen.append((scan.desc, scan.seed))
        if scan.desc == self.fails_on:
            raise ValueError('no cortex in sight')
        t1w = scan.t1w_img.get_fdata()
        mm = float(t1w.mean()) / 100 + 0.001 * (scan.seed % 2)
        seg = np.digitize(t1w, [100, 350, 650]).astype(np.uint8)
        seg_img = nib.Nifti1Image(seg, scan.t1w_img.affine) if self.makes_classes else None
        table = table_of({name: (mm, 7) for name in REGIONS}, {'lh': mm, 'rh': mm})
        regions_img = None if self.regions is None else nib.Nifti1Image(self.regions, scan.t1w_img.affine)
        return Measurement(table, seg_img, {'Ruler': 'mm'}, regions_img=regions_img)


@pytest.fixture
def image(tmp_path, phantom):
    """An image that has been filled, with the truth."""
    paths = {name: tmp_path / 'data' / f'{name}.nii.gz' for name in ('t1w', 'mask')}
    (tmp_path / 'data').mkdir()
    nib.save(phantom.t1w_img, paths['t1w'])
    nib.save(phantom.lesion_mask_img, paths['mask'])
    image = inputs.Inputs('01', None, 'sub-01_T1w', paths['t1w'], 'sub-01/anat/sub-01_T1w.nii.gz', paths['mask'],
                          sources=('bids:raw:sub-01/anat/sub-01_T1w.nii.gz',))  # fmt: skip
    files = naming.output_files(tmp_path / 'out', image)
    layout_files.write_image(files['filled'], phantom.healthy_img)
    layout_files.write_image(files['used_mask'], phantom.lesion_mask_img)
    return image


@pytest.fixture
def run(image, tmp_path):
    def measure_with(*engines, **more):
        task = measuring.Task(**{'seed': 4, 'version': '1'} | more)
        by_name = {engine.name: engine for engine in engines}
        measuring.measure_image(image, by_name, tmp_path / 'out', lambda: look_at(nib.load(image.image_file)), task)
        return naming.thickness_files(tmp_path / 'out', image)

    return measure_with


def test_tables_of_the_original_the_filled_and_the_rerun_are_written(run, phantom):
    ruler = Ruler()
    files = run(ruler)
    assert ruler.seen == [('original', 4), ('filled', 4), ('original', 5)]
    written = {path for name, path in files.items() if name != 'lesions_filled'}  # no regions as voxels
    assert all(path.is_file() and naming.sidecar(path).is_file() for path in written)
    assert not files['lesions_filled'].exists()
    assert files['morph_filled'].name == 'sub-01_seg-DK_desc-filled_morph.tsv'
    assert files['dseg_filled'].name == 'sub-01_desc-filled_dseg.nii.gz'
    rows = text_files.read_tsv(files['morph_filled'])
    assert [row['name'] for row in rows][:35] == [*REGIONS[:34], 'lh_MeanThickness']
    assert len(rows) == N_REGIONS + 2
    assert rows[0]['thickness_mm'] == pytest.approx(phantom.healthy.mean() / 100, abs=1e-5)
    assert rows[34]['n_voxels'] == 34 * 7
    info = derivatives.read_sidecar(files['morph_filled'])
    assert info['Engines']['ruler']['Ruler'] == 'mm'
    assert info['Engines']['ruler']['RandomSeed'] == 4
    assert info['Sources'][-1] == 'bids::sub-01/anat/sub-01_desc-filled_T1w.nii.gz'


def test_classes_of_the_filled_image_say_whether_lesions_touch_grey_matter(run):
    files = run(Ruler())
    seg = np.asarray(nib.load(files['dseg_filled']).dataobj)
    assert set(np.unique(seg)) == {0, 1, 2, 3, 7}
    counts = derivatives.read_sidecar(files['morph_filled'])['Engines']['ruler']['LesionVoxels']
    assert counts['outside_white_matter'] == counts['grey_matter'] < 10  # in white matter
    assert 'LesionVoxels' not in derivatives.read_sidecar(files['morph_original'])['Engines']['ruler']


def test_classes_are_the_common_labels_of_bids_with_what_was_filled_as_lesion(run, phantom):
    files = run(Ruler())
    original, filled = (np.asarray(nib.load(files[f'dseg_{desc}']).dataobj) for desc in ('original', 'filled'))
    used = phantom.lesion_mask
    assert (filled[used] == 7).all()
    assert set(np.unique(original)) == {0, 1, 2, 3}
    classes = np.digitize(phantom.healthy_img.get_fdata(), [100, 350, 650])
    assert np.array_equal(filled[~used], np.array([0, 3, 1, 2])[classes][~used])


@pytest.fixture
def regions(phantom):
    """Half of the lesion voxels are the first region's; the sixth region is beside it, the second far away."""
    regions = np.zeros(phantom.lesion_mask.shape, dtype=np.uint8)
    lesion = np.argwhere(phantom.lesion_mask)
    regions[tuple(lesion[: len(lesion) // 2].T)] = 1
    regions[0, 0, :3] = 2
    regions[tuple(lesion[0] - [1, 0, 0])] = 6
    return regions


def test_rows_of_the_filled_image_say_which_regions_were_filled(run, regions, phantom):
    files = run(Ruler('blind'), Ruler('sees', regions=regions))
    rows = text_files.read_tsv(files['morph_filled'])
    blind, sees = ({row['name']: row for row in rows if row['engine'] == name} for name in ('blind', 'sees'))
    voxel_mm3 = abs(np.linalg.det(phantom.t1w_img.affine[:3, :3]))
    half = phantom.lesion_mask.sum() // 2
    states = [sees[REGIONS[number - 1]]['lesion'] for number in (1, 2, 6)]
    assert states == ['replaced', 'none', 'adjacent']
    assert sees[REGIONS[0]]['lesion_mm3'] == pytest.approx(half * voxel_mm3)
    assert sees['lh_MeanThickness']['lesion'] == 'reduced'
    assert sees[REGIONS[9]]['lesion'] is None  # not in the image
    assert {row['lesion'] for row in blind.values()} == {None}
    assert {row['lesion'] for row in text_files.read_tsv(files['morph_original'])} == {None}


def test_regions_and_lobes_have_a_table_of_their_own(run, regions):
    files = run(Ruler('blind'), Ruler('sees', regions=regions), Ruler('sees_too', regions=regions[::-1]))
    rows = text_files.read_tsv(files['lesions_filled'])
    assert [sum(row['level'] == level for row in rows) for level in ('region', 'lobe', 'hemisphere')] == [68, 12, 2]
    by_name = {row['name']: row for row in rows}
    assert by_name['lh_bankssts']['lesion_mm3'] == by_name['lh_temporal_lobe']['lesion_mm3'] > 0
    assert by_name['lh_bankssts']['lobe'] == 'temporal'
    assert by_name['rh_cortex']['lesion'] is None
    about = derivatives.read_sidecar(files['lesions_filled'])
    assert about['Description'].endswith('regions by sees')
    assert about['lesion']['Levels'].keys() == {'replaced', 'reduced', 'adjacent', 'none'}


def test_what_is_measured_is_not_measured_again_unless_seed_or_image_differ(run, image, tmp_path, make_phantom):
    ruler = Ruler()
    files = run(ruler)
    written = [path for path in files.values() if path.is_file()]
    before = [path.read_bytes() for path in written]
    run(ruler)
    assert len(ruler.seen) == 3
    assert [path.read_bytes() for path in written] == before
    layout_files.write_image(naming.output_files(tmp_path / 'out', image)['filled'], make_phantom(seed=9).healthy_img)
    run(ruler)
    assert ruler.seen[3:] == [('filled', 4)]
    run(ruler, seed=6)
    assert len(ruler.seen) == 7


def test_results_of_another_tool_are_read_anew(run):
    ruler = Ruler()
    ruler.reads_results = True
    run(ruler)
    run(ruler)
    assert len(ruler.seen) == 6


def test_noise_can_be_left_out(run):
    ruler = Ruler()
    files = run(ruler, noise=False)
    assert ruler.seen == [('original', 4), ('filled', 4)]
    assert not files['morph_rerun'].exists()


def test_an_engine_that_fails_is_named_and_the_others_are_measured(run):
    with pytest.raises(RuntimeError, match=r'thickness by broken \(filled\): no cortex in sight'):
        run(Ruler('broken', fails_on='filled'), Ruler('sound'))


def test_engines_share_a_table_and_the_rows_of_a_failed_one_are_missing(run, image, tmp_path):
    with pytest.raises(RuntimeError):
        run(Ruler('broken', fails_on='filled'), Ruler('sound'))
    files = naming.thickness_files(tmp_path / 'out', image)
    assert {row['engine'] for row in text_files.read_tsv(files['morph_original'])} == {'broken', 'sound'}
    assert {row['engine'] for row in text_files.read_tsv(files['morph_filled'])} == {'sound'}


def test_what_was_measured_on_another_image_or_seed_is_gone_if_the_engine_fails_now(run, image, tmp_path):
    run(Ruler(), Ruler('sound'))
    with pytest.raises(RuntimeError):
        run(Ruler(fails_on='filled'), Ruler('sound'), seed=6)
    entries = layout_tables.read_thickness([tmp_path / 'out'])
    assert {entry['engine'] for entry in entries if entry['desc'] == 'filled'} == {'sound'}
    assert {entry['about']['RandomSeed'] for entry in entries if entry['desc'] == 'original'} == {6}


def test_report_shows_nothing_that_was_dropped(run, image, tmp_path, make_phantom):
    run(Ruler())
    nib.save(make_phantom(seed=9).t1w_img, image.image_file)
    run(Ruler(), noise=False)
    (engine,) = thickness.describe_thickness(image, tmp_path / 'out')
    assert 'No rerun was measured' in engine['sentence']
    with pytest.raises(RuntimeError):
        run(Ruler(fails_on='filled'), noise=False, seed=8)
    assert thickness.describe_thickness(image, tmp_path / 'out') == []


def test_lesions_lie_on_the_voxels_of_an_image_without_a_place(run, image, tmp_path):
    affine = nib.affines.from_matvec(np.eye(3), (9, 0, 5)) @ nib.load(image.image_file).affine
    filled_file = naming.output_files(tmp_path / 'out', image)['filled']
    for path in (image.image_file, filled_file, image.lesion_mask_file):
        img = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), affine)
        nib.save(img if path == image.lesion_mask_file else without_place(img), path)
    moved = derivatives.read_sidecar(run(Ruler())['morph_filled'])['Engines']['ruler']['LesionVoxels']
    for path in (image.image_file, filled_file):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), affine), path)
    assert derivatives.read_sidecar(run(Ruler())['morph_filled'])['Engines']['ruler']['LesionVoxels'] == moved


def test_a_rerun_of_another_image_is_gone_also_if_none_is_wanted_now(run, image, tmp_path, make_phantom):
    files = run(Ruler())
    run(Ruler(), noise=False)
    assert layout_tables.thickness_done(files['morph_rerun'], 'ruler')
    nib.save(make_phantom(seed=9).t1w_img, image.image_file)
    run(Ruler(), noise=False)
    assert not layout_tables.thickness_done(files['morph_rerun'], 'ruler')
    assert 'rerun' not in {entry['desc'] for entry in layout_tables.read_thickness([tmp_path / 'out'])}


def test_a_new_filling_takes_what_was_measured_on_the_old_one_away(run, image, tmp_path):
    files = run(Ruler())
    layout_tables.remove_thickness(tmp_path / 'out', image)
    assert {name for name, path in files.items() if path.exists()} == {'morph_original', 'morph_rerun', 'dseg_original'}
    assert not naming.sidecar(files['morph_filled']).exists()
    assert thickness.describe_thickness(image, tmp_path / 'out') == []


def test_another_version_of_an_engine_measures_again(run):
    run(Ruler(version='1'))
    newer = Ruler(version='2')
    run(newer)
    assert len(newer.seen) == 3


def test_lesions_that_were_kept_on_purpose_say_nothing_of_where_lesions_lie(run, image, tmp_path):
    t1w_img = nib.load(image.image_file)
    mask = np.asarray(nib.load(image.lesion_mask_file).dataobj).copy()
    mask[tuple(np.argwhere(t1w_img.get_fdata() < 50)[0])] = 1  # one voxel far outside of white matter
    nib.save(nib.Nifti1Image(mask, t1w_img.affine), image.lesion_mask_file)
    ruler = Ruler()
    counts = [
        derivatives.read_sidecar(run(ruler, **more)['morph_filled'])['Engines']['ruler']['LesionVoxels']
        for more in ({}, {'choice': MaskChoice(min_volume_mm3=8)})
    ]
    assert counts[0]['outside_white_matter'] > counts[1]['outside_white_matter']
    assert ruler.seen[3:] == [('filled', 4)]  # other lesions: judged again, and nothing else is


def test_how_much_was_filled_is_said_if_it_is_known(run, image, tmp_path):
    ruler = Ruler()
    assert 'FilledVoxels' not in derivatives.read_sidecar(run(ruler)['morph_filled'])['Engines']['ruler']
    filled_file = naming.output_files(tmp_path / 'out', image)['filled']
    layout_files.write_json(naming.sidecar(filled_file), {'LesionVoxelsUsed': 0})
    assert derivatives.read_sidecar(run(ruler, seed=5)['morph_filled'])['Engines']['ruler']['FilledVoxels'] == 0


@pytest.mark.parametrize('order', [(True, True), (False, True), (True, False)])
def test_tissue_classes_in_the_file_are_those_of_the_first_engine_that_makes_some(run, order):
    engines = [Ruler(name, makes_classes=own) for name, own in zip('ab', order)]
    first = 'ab'[order.index(True)]
    files = run(*engines)
    for _ in range(2):
        about = derivatives.read_sidecar(files['dseg_filled'])
        assert about['Description'].endswith(f'by {first}')
        assert about['Sources'][-2:] == [
            f'bids::sub-01/anat/sub-01_{name}.nii.gz' for name in ('desc-filled_T1w', 'label-lesion_desc-used_mask')
        ]
        run(*engines, Ruler('c'))  # which comes later


def test_images_that_can_be_filled_can_be_measured(run, image):
    t1w_img = nib.load(image.image_file)
    values = t1w_img.get_fdata(dtype=np.float32)[..., None]
    values[3, 3, 3] = np.inf
    nib.save(nib.Nifti1Image(values, t1w_img.affine), image.image_file)
    seen = []
    ruler = Ruler()
    ruler.run = lambda scan: seen.append(scan.t1w_img.get_fdata()) or Ruler().run(scan)
    run(ruler)
    assert seen[0].ndim == 3
    assert np.isfinite(seen[0]).all()


def test_report_says_which_regions_change_by_more_than_the_noise_floor(run, image, tmp_path):
    run(Ruler())
    (engine,) = thickness.describe_thickness(image, tmp_path / 'out')
    before, after = (row[key] for row in engine['regions'][:1] for key in ('before_mm', 'after_mm'))
    assert after > before  # lesions are dark
    assert {row['exceeds_noise_floor'] for row in engine['regions']} == {'yes'}
    assert f'Of 68 regions {N_REGIONS} change by more than the noise floor' in engine['sentence']


def test_report_without_a_rerun_claims_nothing_about_noise(run, image, tmp_path):
    run(Ruler(), noise=False)
    (engine,) = thickness.describe_thickness(image, tmp_path / 'out')
    assert {row['exceeds_noise_floor'] for row in engine['regions']} == {'n/a'}
    assert 'No rerun was measured' in engine['sentence']


def tables_of(original, filled, rerun=None):
    """Tables as `describe_engine` gets them: mm of lh, rh, and of all regions."""
    tables = {'original': original, 'filled': filled, 'rerun': rerun or ()}
    rows = {}
    for desc, values in tables.items():
        mm = np.concatenate([values[:2], np.broadcast_to(values[2], N_REGIONS)]) if values else []
        rows[desc] = [
            {'engine': 'ruler', 'name': name, 'thickness_mm': v} for name, v in zip(thickness_tables.NAMES, mm)
        ]
    return rows


def test_hemispheres_are_held_against_their_own_rerun_and_regions_against_the_floor():
    """A mean over a hemisphere is far less noisy than a region: the floor of regions would hide what it shows."""
    tables = tables_of((2.0, 2.0, 2.0), (2.004, 2.004, 2.1), (2.002, 2.02, np.where(np.arange(68) < 10, 2.2, 2.0)))
    engine = thickness.describe_engine('ruler', tables)
    left, right, *regions = (row['exceeds_noise_floor'] for row in engine['regions'])
    assert (left, right) == ('yes', 'no')
    assert set(regions) == {'no'}
    assert '(error 0.100 %; 0.274 % between two runs on the original image)' in engine['sentence']


def test_report_says_how_many_regions_exceed_the_noise_floor_by_chance():
    tables = tables_of((2, 2, 2), (2, 2, 2), (2, 2, 2.01))
    sentence = thickness.describe_engine('ruler', tables)['sentence']
    assert 'Of 68 regions 0 change by more than the noise floor' in sentence
    assert 'about 3 are expected by chance' in sentence


def test_report_says_not_available_instead_of_nan():
    tables = tables_of((np.nan, 2, 2), (2, 2, np.where(np.arange(68) < 8, np.nan, 2)), (2, 2, 2.01))
    engine = thickness.describe_engine('ruler', tables)
    assert 'nan' not in engine['sentence']
    assert 'thickness n/a before and 2.000 mm after filling (error n/a; n/a between two runs' in engine['sentence']
    assert 'Of 60 regions' in engine['sentence']
    nothing = thickness.describe_engine('ruler', tables_of((2, 2, np.nan), (2, 2, np.nan)))
    assert 'nan' not in nothing['sentence']
    assert 'mean error of the regions n/a.' in nothing['sentence']
