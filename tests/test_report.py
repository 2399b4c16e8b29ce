"""Facts about the pictures and the page of a report."""

import io
import re

import numpy as np
import pytest
from matplotlib import image as mpl_image

from bids_lesionfill.layout import derivatives
from bids_lesionfill.lesions.checks import Check
from bids_lesionfill.report import page as report_page
from bids_lesionfill.report import pictures as report_pictures

pytestmark = pytest.mark.usefixtures('real_pictures_of_module')

MALICE = '<script>alert("x")</script>'


def decode(png):
    """Pixels (height, width, 3), row 0 at the top, 0 to 1."""
    return mpl_image.imread(io.BytesIO(png))[..., :3]


def is_orange(pixels):
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return (red > green + 0.1) & (green > blue + 0.1)


def block_size(pixels):
    """Height and width in pixels of what is white in the first panel, its letters left out."""
    bright = pixels.min(axis=2) > 0.5
    rows, columns = np.nonzero(bright[20:280, 30:270])
    return np.ptp(rows) + 1, np.ptp(columns) + 1


@pytest.fixture(scope='module')
def volumes(make_phantom):
    """The phantom in RAS+ order: before, mask, after, voxel sizes."""
    phantom = make_phantom()
    return phantom.t1w[::-1], phantom.lesion_mask[::-1], phantom.healthy[::-1], (0.9, 1.0, 1.2)


@pytest.fixture(scope='module')
def lesions():
    """The phantom's two lesions and three made up, which changed less the higher their number is."""
    centres = [(24, 20, 16), (12, 14, 12), (20, 18, 10), (20, 18, 12), (20, 18, 20)]
    return [
        {'label': n, 'centre_voxel': c, 'mean_before': 550.0, 'mean_after': 800.0 - 10 * n, 'volume_mm3': 60.0 / n}
        for n, c in enumerate(centres, start=1)
    ]


@pytest.fixture(scope='module')
def figures(volumes, lesions, real_pictures_of_module):
    return report_pictures.fill_figures(*volumes, lesions[:1])


@pytest.fixture
def make_page(tmp_path):
    """Factory: write the page of a participant and return its text; options replace what is in the dict."""

    def make(images=(), **options):
        path = tmp_path / 'sub-07.html'
        report_page.write_participant(
            path,
            {
                'label': 'sub-07',
                'version': '0.1.0',
                'command': 'run.py /data /out participant',
                'status': 'filled',
                'message': '',
                'images': list(images),
                'methods': 'Lesions were filled.',
                **options,
            },
        )
        return path.read_text(encoding='utf-8')

    return make


def test_an_overview_and_the_three_lesions_that_changed_most_are_drawn(volumes, lesions):
    figures = report_pictures.fill_figures(*volumes, lesions[::-1])
    assert [figure['name'] for figure in figures] == ['overview', 'lesion-1', 'lesion-2', 'lesion-3']
    assert figures[1]['title'] == 'Lesion 1: 60 mm³'


def test_pictures_of_one_entry_have_equal_size(figures):
    for figure in figures:
        assert len({decode(figure[picture]).shape for picture in ('before', 'mask', 'after')}) == 1


def test_pictures_of_one_entry_have_one_grey_window(volumes, lesions):
    before, mask, after, voxel_sizes_mm = volumes
    brighter = np.where(mask, 10 * after, before)  # would darken the rest if it had a window of its own
    figure = report_pictures.fill_figures(before, mask, brighter, voxel_sizes_mm, lesions[:1])[1]
    old, new = decode(figure['before']), decode(figure['after'])
    assert (old == new).all(axis=2).mean() > 0.9
    assert (old != new).any()


def test_mask_picture_differs_from_before_by_the_outline_alone(figures):
    for figure in figures:
        before, mask = decode(figure['before']), decode(figure['mask'])
        changed = (before != mask).any(axis=2)
        assert is_orange(mask).sum() > 50
        assert not is_orange(before).any()
        assert changed.mean() < 0.1


def test_image_is_shown_in_radiological_convention(volumes, lesions):
    before, mask, _, voxel_sizes_mm = volumes
    marked = before.copy()
    marked[26:32, 16:20, 14:18] = 2000  # towards the patient's right (+x)
    marked[18:23, 24:30, 14:18] = 2000  # towards the nose (+y)
    lesion = lesions[0] | {'centre_voxel': (20, 18, 15)}
    picture = decode(report_pictures.fill_figures(marked, mask, marked, voxel_sizes_mm, [lesion])[1]['before'])
    for first_row in (20, 324):  # axial above, sagittal below it
        columns = picture[first_row : first_row + 260, 30:270].sum(axis=(0, 2))
        assert columns[:120].sum() > columns[120:].sum()


def test_anisotropic_voxels_keep_aspect(lesions):
    image = np.zeros((40, 20, 10))
    image[10:30, 5:15, 3:7] = 100  # a cube: 20 mm on each side
    figures = report_pictures.fill_figures(
        image, image > 200, image, (1.0, 2.0, 5.0), [lesions[0] | {'centre_voxel': (20, 10, 5)}]
    )
    for first_row, first_column in ((0, 0), (0, 304), (304, 0)):
        height, width = block_size(decode(figures[1]['before'])[first_row:, first_column:])
        assert height == pytest.approx(width, abs=4)
        assert width == pytest.approx(20 * 300 / report_pictures.ZOOM_MM, rel=0.1)


def test_slices_of_the_overview_hold_the_mask_and_are_spread():
    mask = np.zeros((8, 8, 60), dtype=bool)
    mask[2, 2, 10:50] = True
    mask[2:5, 2:5, 30] = True
    slices = report_pictures.lesion_slices(mask)
    assert len(slices) == 8
    assert 30 in slices
    assert mask.any(axis=(0, 1))[slices].all()
    assert min(slices) < 15
    assert max(slices) > 44


def test_few_bright_lesions_widen_the_grey_window_and_dark_ones_do_not(volumes):
    before, mask, *_ = volumes
    head, lesion = before > 0, np.zeros_like(mask)
    lesion[20, 18, 14:17] = True
    usual = report_pictures.grey_maximum(before, head, np.zeros_like(mask))
    assert report_pictures.grey_maximum(before, head, mask) == usual == pytest.approx(815, abs=15)
    assert report_pictures.grey_maximum(np.where(lesion, 1500, before), head, lesion) == 1500


def test_missing_mask_works(volumes):
    before, mask, _, voxel_sizes_mm = volumes
    figures = report_pictures.fill_figures(before, np.zeros_like(mask), before, voxel_sizes_mm, [])
    assert [figure['name'] for figure in figures] == ['overview']
    assert figures[0]['before'] == figures[0]['mask'] == figures[0]['after']


def test_image_without_anything_in_it_works():
    empty = np.full((6, 6, 6), np.nan)
    assert report_pictures.fill_figures(empty, empty > 0, empty, (1, 1, 1), [])


def test_lesion_without_intensities_and_outside_the_image_works(volumes):
    lesion = {'label': 1, 'centre_voxel': (99, -3, 5), 'mean_before': None, 'mean_after': np.nan, 'volume_mm3': 0.0}
    assert len(report_pictures.fill_figures(*volumes, [lesion])) == 2


def test_shapes_that_differ_are_refused(volumes):
    before, mask, after, voxel_sizes_mm = volumes
    with pytest.raises(ValueError, match='shapes differ'):
        report_pictures.fill_figures(before, mask[1:], after, voxel_sizes_mm, [])


def test_figures_are_the_same_bytes_every_time(volumes, lesions, figures):
    assert report_pictures.fill_figures(*volumes, lesions[:1]) == figures


def test_pictures_are_small_even_of_a_noisy_head():
    rng = np.random.default_rng(0)
    noisy = np.zeros((190, 220, 20), dtype=np.float32)
    x, y = np.ogrid[:190, :220]
    head = ((x - 95) / 75) ** 2 + ((y - 110) / 90) ** 2 < 1
    noisy[head] = rng.normal(600, 30, (head.sum(), 20))
    mask = np.zeros(noisy.shape, dtype=bool)
    mask[60:64, 60:64] = True
    pictures = report_pictures.png_files(report_pictures.fill_figures(noisy, mask, noisy, (1, 1, 1), []))
    assert max(map(len, pictures.values())) < 250_000


def test_png_files_are_named_by_entry_and_picture(figures):
    files = report_pictures.png_files(figures)
    assert list(files) == [
        'overview_before',
        'overview_mask',
        'overview_after',
        'lesion-1_before',
        'lesion-1_mask',
        'lesion-1_after',
    ]
    assert all(png.startswith(b'\x89PNG') for png in files.values())


def test_page_flickers_on_hover_focus_and_touch(make_page, figures):
    page = make_page([{'name': 'sub-07_T1w', 'status': 'filled', 'figures': figures}])
    assert page.count('class="picture flicker" tabindex="0"') == len(figures)
    assert 'animation-play-state: paused' in page
    for state in ('hover', 'focus-visible', 'active'):
        assert re.search(rf'\.flicker:{state} \.after[^}}]*animation-play-state: running', page)
    assert page.count('data:image/png;base64,') == 3 * len(figures)


def test_page_names_no_network_address(make_page, figures):
    image = {'name': 'sub-07_T1w', 'status': 'filled', 'figures': figures, 'provenance': {'CodeURL': 'https://x.org'}}
    page = make_page([image, image])
    assert all(address.startswith(('data:', '#')) for address in re.findall(r'(?:src|href)\s*=\s*"([^"]*)', page))
    assert not re.search(r'url\(|@import|<link|<iframe', page)
    assert "default-src 'none'" in page


def test_every_text_is_escaped(make_page):
    texts = dict.fromkeys(('name', 'status', 'message', 'output'), MALICE)
    image = texts | {
        'warnings': [MALICE],
        'lesions': [{MALICE: MALICE}],
        'summary': {MALICE: MALICE},
        'provenance': {MALICE: MALICE},
        'figures': [{'name': MALICE, 'title': MALICE, 'caption': MALICE, 'before': b'', 'mask': b'', 'after': b''}],
    }
    page = make_page(
        [image, image], **dict.fromkeys(('label', 'version', 'command', 'message', 'methods'), MALICE), status='failed'
    )
    assert 'alert(' in page
    assert '<script>alert' not in page


def test_warnings_come_before_everything_else(make_page):
    page = make_page([{'name': 'sub-07_T1w', 'status': 'filled', 'warnings': ['The mask lies outside the brain.']}])
    assert page.index('The mask lies outside the brain.') < page.index('<section')
    assert 'Nothing unusual' not in page
    assert 'class="badge warn">filled' in page


def test_filled_image_without_warnings_says_so(make_page):
    image = {'name': 'sub-07_T1w', 'status': 'filled'}
    assert 'Nothing unusual found.' in make_page([image])
    page = make_page([image, image])
    assert 'Nothing unusual found in 2 images.' in page
    assert page.count('<td>nothing unusual</td>') == 2
    assert page.count('Nothing unusual found.') == 2  # once for each


def test_checks_are_shown_above_the_pictures_with_what_is_usual(make_page, figures):
    checks = [Check('Border', '2.7 SD', 'up to 1 SD', 'A border stays.'), Check('Volume', '3 ml', 'up to 100 ml')]
    page = make_page([{'name': 'sub-07_T1w', 'status': 'filled', 'checks': checks, 'figures': figures}])
    rows = re.findall(r'<tr class="(\w+)"><td>(\w+)</td>', page)
    assert rows == [('unusual', 'Border'), ('passed', 'Volume')]
    assert page.index('up to 1 SD') < page.index('data:image/png')


def test_unusual_lesions_are_pictured_first_with_the_reason(volumes, lesions, make_page):
    odd = [lesion | {'suspicion': 1 + lesion['label'], 'reason': f'Odd {lesion["label"]}.'} for lesion in lesions[3:]]
    figures = report_pictures.fill_figures(*volumes, lesions[:3] + odd)
    assert [figure['name'] for figure in figures] == ['overview', 'lesion-5', 'lesion-4', 'lesion-1']
    page = make_page([{'name': 'sub-07_T1w', 'status': 'filled', 'figures': figures}])
    assert page.index('Odd 5.') < page.index('Odd 4.')


def test_lesions_that_a_warning_names_are_links_to_their_picture_or_row(make_page, figures):
    image = {
        'name': 'sub-07_T1w',
        'status': 'filled',
        'figures': figures,
        'lesions': [{'label': 1.0}, {'label': 12.0}],
        'warnings': ['Lesions 1, 12: <odd>. 5 % of 3 lesions are faint.'],
    }
    page = make_page([image])
    assert 'Lesions <a href="#image-1-lesion-1">1</a>, <a href="#image-1-row-12">12</a>: &lt;odd&gt;. 5 % of 3' in page
    assert {'image-1-lesion-1', 'image-1-row-12'} <= set(re.findall(r' id="([^"]+)"', page))


def test_a_copy_is_no_filled_image(make_page):
    image = {'name': 'a', 'status': 'copied', 'warnings': ['The mask is empty.']}
    page = make_page([image], status='copied', message='x')
    assert 'Nothing unusual' not in page
    assert 'Not filled: copied' in page


def test_failed_image_is_named_with_its_reason(make_page):
    images = [
        {'name': 'sub-07_ses-1_T1w', 'status': 'filled'},
        {'name': 'sub-07_ses-2_T1w', 'status': 'failed', 'message': 'The mask has another grid.'},
    ]
    page = make_page(images, status='failed')
    assert '1 of 2 images failed' in page
    assert page.index('The mask has another grid.') < page.index('<section')


def test_participant_without_images_has_a_page(make_page):
    page = make_page(status='no lesion mask', message='There is no mask in /data/derivatives.')
    assert 'Not filled: no lesion mask' in page
    assert 'There is no mask in /data/derivatives.' in page


def test_error_of_thickness_is_explained_by_its_formula(make_page):
    """2.0 against 2.2 mm is 4.76 %: half of what "relative to the mean" would say."""
    engine = {'engine': 'pbt', 'sentence': 'Thinner.', 'regions': [{'region': 'lh_insula', 'error_percent': 4.762}]}
    page = make_page([{'name': 'sub-07_T1w', 'status': 'filled', 'thickness': [engine]}])
    assert 'half the absolute difference relative to the mean of both' in page
    assert 'a hemisphere if its error is above its own error between two runs' in page


@pytest.mark.parametrize('lesions', [[], [{}]])
def test_empty_lesion_list_works(make_page, lesions):
    assert '</html>' in make_page([{'name': 'sub-07_T1w', 'status': 'copied', 'lesions': lesions}])


def test_lesions_of_which_most_is_kept_are_named():
    rows = [{'label': n, 'volume_mm3': 10.0, 'given_volume_mm3': given} for n, given in enumerate((8.0, 21.0, None), 1)]
    assert report_page.mostly_kept(rows) == [2]


def test_a_column_of_lesions_is_explained():
    table = report_page.lesion_table([{'label': 1, 'glow_percent': 2.0, 'of_others': 3}])
    assert 'brighter than 99.5 %' in table['notes'][1]
    assert table['notes'][2] == ''


def test_lesion_table_has_readable_titles_and_every_key():
    table = report_page.lesion_table(
        [
            {'label': 1.0, 'volume_mm3': 412.4, 'x_mm': -12.25, 'mean_surrounding': 3.0},
            {'label': 2.0, 'volume_mm3': None, 'x_mm': 3.5, 'sd_before': np.float32(0.5)},
        ]
    )
    assert table['titles'] == ['Lesion', 'Volume (mm³)', 'x (mm)', 'Mean of surroundings', 'SD before']
    assert table['rows'] == [
        (('1', 1.0), ('412', 412.4), ('-12.2', -12.25), ('3', 3.0), ('n/a', '')),
        (('2', 2.0), ('n/a', ''), ('3.5', 3.5), ('n/a', ''), ('0.5000', 0.5)),
    ]


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (None, 'n/a'),
        (float('nan'), 'n/a'),
        (True, 'yes'),
        (np.bool_(False), 'no'),
        (37, '37'),
        (5.0, '5'),
        (1.3, '1.30'),
        (83.21, '83.2'),
        (-0.0, '0'),
        (np.float32(411.8), '412'),
        ([1, 'a'], '1, a'),
        ('cpu', 'cpu'),
    ],
)
def test_summary_values_are_readable(value, text):
    assert report_page.readable(value) == text


def test_page_is_written_whole_and_leaves_no_temporary_file(make_page, tmp_path):
    (tmp_path / 'sub-07.html').write_text('an older page')
    assert make_page().rstrip().endswith('</html>')
    assert [path.name for path in tmp_path.iterdir()] == ['sub-07.html']


def test_failed_write_keeps_the_old_page_and_leaves_no_temporary_file(make_page, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError('disk full')

    (tmp_path / 'sub-07.html').write_text('an older page')
    monkeypatch.setattr(derivatives.os, 'replace', refuse)
    with pytest.raises(OSError, match='disk full'):
        make_page()
    assert [path.read_text() for path in tmp_path.iterdir()] == ['an older page']
