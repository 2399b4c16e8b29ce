"""Facts about the figures and the page of an evaluation."""

import io
import re

import numpy as np
import pytest
from matplotlib import image as mpl_image

from bids_lesionfill.evaluate import page as evaluate_page
from bids_lesionfill.evaluate import pictures, tables
from bids_lesionfill.layout import derivatives

METHODS = {
    'fill-T1w': ('model', 0.0010),
    'thesis 2D': ('model', 0.0031),
    'biharmonic': ('baseline', 0.0012),
    'membrane': ('baseline', 0.0050),
    'unfilled': ('control', 0.0277),
}
INFO = {'Command': 'python -m bids_lesionfill.evaluate', 'Models': 'fill-T1w: sha256 0123abcd'}


def make_row(method, family, mse, /, kind='clean', dilation=0, group='all', n=48, **replaced):
    """One row of the summary, whose scores follow from the MSE."""
    scores = {
        'mse': mse,
        'psnr': 10 * np.log10(4 / mse),
        'ssim': 1 - 20 * mse,
        'm2_mse': mse / 2,
        'm2_psnr': 10 * np.log10(2 / mse),
        'm2_ssim': 1 - 10 * mse,
        'border': 1 + 50 * mse,
        'texture': 1 - 10 * mse,
        'seconds': 1000 * mse,
    } | replaced
    ends = {f'{key}_{end}': factor * scores[key] for key in scores for end, factor in (('low', 0.9), ('high', 1.1))}
    return {'kind': kind, 'dilation': dilation, 'group': group, 'method': method, 'family': family, 'n': n} | (
        scores | ends
    )


def make_summary(methods=METHODS, kinds=('clean',), **options):
    return [make_row(method, *known, kind=kind, **options) for kind in kinds for method, known in methods.items()]


def make_pair(method='fill-T1w', other='biharmonic', difference=-0.0002, margin=0.0001, kind='clean'):
    ends = {'low': difference - margin, 'high': difference + margin}
    names = {'kind': kind, 'dilation': 0, 'metric': 'mse', 'method': method, 'other': other}
    return names | ends | {'difference': difference, 'n': 48}


def make_example(names=('healthy truth', 'with lesion', 'fill-T1w'), **options):
    """A dark ball in noisy white matter; every method fills it perfectly."""
    truth = np.random.default_rng(0).normal(0.5, 0.03, (20, 24, 18))
    x, y, z = np.ogrid[:20, :24, :18]
    mask = (x - 10) ** 2 + (y - 12) ** 2 + (z - 9) ** 2 < 16
    images = {name: np.where(mask, -0.2, truth) if name == 'with lesion' else truth for name in names}
    return {'title': 'sub-01, deep', 'kind': 'rim', 'mask': mask, 'images': images, **options}


@pytest.fixture
def make_page(tmp_path):
    """Factory: write a page and return its text."""

    def make(summary=None, comparisons=(), examples=(), info=INFO, **options):
        summary = make_summary() if summary is None else summary
        path = evaluate_page.write_page(tmp_path / 'out', summary, comparisons, examples, info, **options)
        assert path == tmp_path / 'out/evaluation.html'
        return path.read_text(encoding='utf-8')

    return make


def rows_of(page, table=0):
    """Rows of one of the page's sortable tables: a dict of method -> list of cells, as HTML."""
    body = re.findall(r'<table class="sortable">.*?<tbody>(.*?)</tbody>', page, flags=re.S)[table]
    return {
        re.sub(r'<[^>]*>', '', name): re.findall(r'<td[^>]*>(.*?)</td>', cells)
        for name, cells in re.findall(r'<tr><th[^>]*>(.*?)</th>(.*?)</tr>', body)
    }


def headlines_of(page):
    return [re.sub('<[^>]*>', '', text) for text in re.findall(r'<div class="verdict[^>]*>(.*?)</div>', page)]


def test_page_holds_every_method_and_the_sort_script(make_page):
    page = make_page()
    assert list(rows_of(page)) == list(dict(sorted(METHODS.items(), key=lambda item: item[1][1])))
    assert 'table.sortable' in page
    assert 'addEventListener' in page


def test_page_names_no_network_address(make_page, tmp_path):
    page = make_page(examples=[make_example()], info=INFO | {'Code': 'https://x.org'})
    addresses = re.findall(r'(?:src|href)\s*=\s*"([^"]*)', page)
    assert all(address.startswith(('data:', '#', 'figures/')) for address in addresses)
    assert all(address.startswith('data:') for address in re.findall(r'src\s*=\s*"([^"]*)', page))
    assert not re.search(r'url\(|@import|<link|<iframe', page)
    assert "default-src 'none'" in page


def test_figures_exist_and_are_referred_to(make_page, tmp_path):
    artefact = make_example(caption='Stripes along z.', view='sagittal', methods=['healthy truth', 'fill-T1w'])
    page = make_page(examples=[make_example(), make_example()], artefacts=[artefact])
    referred = re.findall(r'href="(figures/[^"]*)"', page)
    files = [str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out/figures').iterdir()]
    assert sorted(referred) == sorted(files)
    assert set(files) == {f'figures/{name}.png' for name in ('scores', 'example-1', 'example-2', 'artefacts')}
    assert all((tmp_path / 'out' / file).read_bytes().startswith(b'\x89PNG') for file in files)
    assert page.count('data:image/png;base64,') == len(files)


def test_every_text_is_escaped(make_page):
    name = '<b>x'
    methods = {name: ('model', 0.001), '<i>y $\\frac{1$': ('baseline', 0.002)}
    comparisons = [make_pair(*methods, kind='<kind>')]
    summary = make_summary(methods, ['<kind>']) + make_summary(methods, ['<kind>'], group='volume <b>z')
    example = make_example(['<u>truth', name], title='<em>t', kind='<kind>')
    info = {'<th>': '<script>alert(1)', 'kinds': {'<kind>': '<em>words'}}
    page = make_page(summary, comparisons, [example], info, artefacts=[example | {'caption': '<p>', 'view': 'axial'}])
    assert '&lt;b&gt;x' in page
    assert not re.search(r'<b>[xz]|<i>y|<u>truth|<em>|<kind>|<th>|<script>alert', page)


def test_best_filler_of_each_column_is_bold(make_page):
    rows = rows_of(make_page())
    assert all('<b>' in cell for cell in rows['fill-T1w'][:-1])
    assert '<b>0.00100</b><small>0.00090–0.00110</small>' in rows['fill-T1w'][0]
    assert not any('<b>' in cell for method, cells in rows.items() for cell in cells if method != 'fill-T1w')


def test_bold_ratio_is_the_nearest_to_one_and_no_control_is_bold(make_page):
    summary = [
        make_row('near', 'model', 0.01, texture=1.1, seconds=2.0),
        make_row('far', 'model', 0.02, texture=0.5, seconds=1.0),
        make_row('unfilled', 'control', 0.001, texture=1.0, seconds=0.0),
    ]
    rows = rows_of(make_page(summary))
    assert '<b>1.10</b>' in rows['near'][7]
    assert '<b>1.0</b>' in rows['far'][8]
    assert not any('<b>' in cell for cell in rows['unfilled'])


@pytest.mark.parametrize(
    ('difference', 'margin', 'look', 'words'),
    [
        (-0.0002, 0.0001, 'good', 'the interval excludes zero, the model is better'),
        (+0.0002, 0.0001, 'bad', 'the interval excludes zero, the classical filler is better'),
        (-0.0002, 0.0003, 'neutral', 'the interval does not exclude zero'),
    ],
)
def test_headline_compares_the_best_model_with_the_best_baseline(make_page, difference, margin, look, words):
    page = make_page(comparisons=[make_pair(difference=difference, margin=margin)])
    (headline,) = headlines_of(page)
    assert 'best model fill-T1w, MSE 0.00100 (0.00090 to 0.00110)' in headline
    assert 'best classical filler biharmonic, MSE 0.00120' in headline
    assert words in headline
    assert f'class="verdict {look}"' in page


def test_headline_reads_a_pair_that_was_compared_the_other_way_round(make_page):
    (headline,) = headlines_of(make_page(comparisons=[make_pair('biharmonic', 'fill-T1w', 0.0002)]))
    assert '−0.00020 (−0.00030 to −0.00010, 48 cases)' in headline
    assert 'the model is better' in headline


def test_matrix_is_coloured_by_the_interval(make_page):
    page = make_page(comparisons=[make_pair(), make_pair('fill-T1w', 'membrane', -0.001, 0.002)])
    assert re.findall(r'<td class="(\w+)" title="[^"]*">([^<]*)', page) == [
        ('low', '−0.00020'),
        ('none', '−0.00100'),
        ('high', '+0.00020'),
        ('none', '+0.00100'),
    ]


def test_unknown_values_are_dashes(make_page):
    nowhere = dict.fromkeys([metric.key for metric in tables.METRICS], np.nan)
    summary = [make_row('fill-T1w', 'model', 0.001), make_row('biharmonic', 'baseline', 0.002, **nowhere)]
    page = make_page(summary, [make_pair(difference=np.nan)])
    assert rows_of(page)['biharmonic'] == ['–'] * 9 + ['48']
    assert 'no classical filler was scored' in headlines_of(page)[0]
    assert not re.search(r'\b(nan|None)\b', re.sub(r'base64,[^"]*', '', page))


def test_kind_without_truth_is_reported_by_its_border(make_page, tmp_path):
    unknown = dict.fromkeys(['mse', 'psnr', 'ssim', 'm2_mse', 'm2_psnr', 'm2_ssim', 'texture'], np.nan)
    page = make_page(make_summary(kinds=['patient'], **unknown, border=1.25))
    assert 'no error was measured. Nearest to 1: best model fill-T1w, Border ratio 1.25' in headlines_of(page)[0]
    assert not (tmp_path / 'out/figures/scores.png').exists()
    assert 'SSIM' not in page.split('<table')[1].split('</table>')[0]


def test_kinds_are_in_order_and_each_has_its_dilation(make_page):
    summary = make_summary(kinds=['patient', 'rim', 'clean']) + make_summary(kinds=['rim'], dilation=1, n=7)
    headlines = headlines_of(make_page(summary, info={'dilation': {'rim': 1}}))
    assert [headline.split(':')[0] for headline in headlines] == [
        'clean (mask not dilated)',
        'rim (mask dilated by 1 voxel)',
        'patient (mask not dilated)',
    ]
    page = make_page(summary)
    assert 'rim (mask not dilated)' in headlines_of(page)[1]
    assert '<details><summary>The same, mask dilated by 1 voxel</summary>' in page


def test_groups_have_tables_of_their_own(make_page):
    small = make_summary(group='volume < 0.1 ml', n=9)
    deep = make_summary({'biharmonic': ('baseline', 0.0015)}, group='deep', n=4)
    page = make_page(make_summary() + small + deep)
    assert 'MSE by volume' in page
    assert 'MSE by place' in page
    assert '>&lt; 0.1 ml</button><small>n = 9</small>' in page
    assert rows_of(page, 1)['fill-T1w'] == ['<b>0.00100</b>']
    assert rows_of(page, 2)['fill-T1w'] == ['–']
    assert rows_of(page, 2)['biharmonic'] == ['<b>0.00150</b>']


@pytest.mark.parametrize('summary', [[], make_summary({'fill-T1w': ('model', 0.001)}), make_summary(group='deep')])
def test_little_to_show_works(make_page, summary):
    assert make_page(summary, info={}).rstrip().endswith('</html>')


def test_scores_survive_odd_values(make_page):
    summary = [
        make_row('zero', 'model', 0.001, mse=0.0),
        make_row('wide', 'model', 0.001) | {'mse_low': -0.5, 'mse_high': 80.0},
        make_row('bare', 'baseline', 0.002) | {'mse_low': np.nan, 'mse_high': None},
    ]
    page = make_page(summary)
    assert '<b>0.00000</b>' in rows_of(page)['zero'][0]
    assert rows_of(page)['bare'][0] == '0.00200'


def test_gallery_wraps_into_bands_that_repeat_the_truth():
    def size(n_others):
        example = make_example(['healthy truth', *(f'method {n}' for n in range(n_others))])
        return mpl_image.imread(io.BytesIO(pictures.draw_example(example, {}))).shape[:2]

    height, width = size(6)
    assert size(8) == (2 * height, size(4)[1])
    assert size(3)[1] < width


def test_example_shows_the_patients_right_and_the_top_where_they_belong():
    example = make_example(['healthy truth'])
    dark = np.full(example['mask'].shape, -1.0)
    dark[15:, 18:, :] = 1.0  # right, front
    dark[:, :, 15:] = 1.0  # top
    example['images'] = {'healthy truth': dark}
    picture = mpl_image.imread(io.BytesIO(pictures.draw_example(example, {})))[..., :3].mean(axis=2)
    scale = round(pictures.CELL_PX / 24)
    top, left = pictures.TITLE_PX, pictures.LABEL_PX
    axial = picture[top : top + 24 * scale, left + 2 * scale : left + 22 * scale]
    sagittal_top = top + 24 * scale + pictures.GAP_PX
    sagittal = picture[sagittal_top : sagittal_top + 18 * scale, left : left + 24 * scale]
    assert axial[scale, scale] > 0.9
    assert axial[scale, -scale] < 0.1
    assert sagittal[scale].min() > 0.9
    assert sagittal[-scale].max() < 0.1


def test_voxels_of_a_gallery_are_whole_pixels():
    checks = np.indices((24, 24, 24)).sum(axis=0) % 2 * 2.0 - 1
    example = make_example() | {'mask': np.zeros(checks.shape, dtype=bool), 'images': {'healthy truth': checks}}
    picture = mpl_image.imread(io.BytesIO(pictures.draw_example(example, {})))[..., 0]
    line = picture[pictures.TITLE_PX + 2, pictures.LABEL_PX :][: 8 * 24]
    assert np.array_equal(line.reshape(24, 8), np.repeat(line[::8, None], 8, axis=1))


def test_figures_are_the_same_bytes_every_time():
    example = make_example()
    assert pictures.draw_example(example, {}) == pictures.draw_example(example, {})


def test_failed_write_keeps_the_old_page_and_leaves_no_temporary_file(make_page, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError('disk full')

    make_page()
    before = sorted(path.name for path in tmp_path.rglob('*'))
    monkeypatch.setattr(derivatives.os, 'replace', refuse)
    with pytest.raises(OSError, match='disk full'):
        make_page()
    assert sorted(path.name for path in tmp_path.rglob('*')) == before
