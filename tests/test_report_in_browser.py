"""The pages in a real browser (Chromium, headless), from a file address; left out where there is none."""

import html
import json
import re
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from bids_lesionfill import text_files
from bids_lesionfill.lesions.checks import Check
from bids_lesionfill.report import closeup, group, pictures, study, viewer
from bids_lesionfill.report import page as report_page

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = [
    *(pytest.mark.slow, pytest.mark.usefixtures('real_pictures')),
    pytest.mark.skipif(CHROMIUM is None, reason='no Chromium'),
]

WEBGL = ('--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--virtual-time-budget=60000')

# What a person would do: sort by volume twice, reach a picture with the keyboard, follow the link to a lesion.
ACTIONS = """
<script>
addEventListener('load', () => {
  const seen = {};
  const volumes = () => [...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[1].innerText);
  const button = document.querySelectorAll('table.sortable th button')[1];
  button.click(); seen.rising = volumes();
  button.click(); seen.falling = volumes();
  const picture = document.querySelector('.flicker'), after = picture.querySelector('.after');
  const state = () => getComputedStyle(after).animationPlayState;
  seen.atRest = [state(), getComputedStyle(after).opacity];
  picture.focus({focusVisible: true});
  seen.focused = state();
  seen.linked = document.querySelector('.verdict a').hash;
  seen.target = document.getElementById(seen.linked.slice(1)).tagName;
  seen.pictures = [...document.images].every(image => image.complete && image.naturalWidth > 0);
  seen.wider = document.documentElement.scrollWidth > innerWidth;
  document.body.innerHTML = '<pre id="seen">' + JSON.stringify(seen) + '</pre>';
});
</script>
"""


@pytest.fixture
def browse(tmp_path):
    """Function: open a page with options of Chromium; what it prints, after a check that the console stayed empty."""

    def run(page, *options):
        command = [CHROMIUM, '--headless', '--no-sandbox', '--enable-logging=stderr']
        command += [] if set(options) & set(WEBGL) else ['--disable-gpu']
        command += [f'--user-data-dir={tmp_path / "profile"}', *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        complaints = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
        assert [line for line in complaints if 'source: chrome://' not in line] == []  # of the browser's own pages
        return done.stdout

    return run


@pytest.fixture
def page(tmp_path, make_phantom):
    """The report of a participant with one unusual lesion."""
    phantom = make_phantom()
    rows = [
        {'label': 1, 'volume_mm3': 60.0, 'mean_before': 550.0, 'mean_after': 800.0, 'x_mm': None},
        {'label': 2, 'volume_mm3': 9.5, 'mean_before': 550.0, 'mean_after': 801.0, 'x_mm': None},
        {'label': 3, 'volume_mm3': 100.0, 'mean_before': 550.0, 'mean_after': 802.0, 'x_mm': None},
    ]
    lesion = rows[0] | {'centre_voxel': (24, 20, 16), 'suspicion': 2, 'reason': 'Unusual: a border stays.'}
    image = {
        'name': 'sub-07_T1w',
        'status': 'filled',
        'output': 'sub-07_desc-filled_T1w.nii.gz',
        'warnings': ['Lesion 1: a darker border stays around the mask.'],
        'checks': [Check('Border', '2.7 SD', 'up to 1 SD', 'A border stays.')],
        'lesions': rows,
        'figures': pictures.fill_figures(phantom.t1w, phantom.lesion_mask, phantom.healthy, (1, 1, 1), [lesion]),
        'provenance': {'Model': 'fill-T1w'},
    }
    path = tmp_path / 'sub-07.html'
    content = dict.fromkeys(('version', 'command', 'message', 'methods'), 'x') | {'label': 'sub-07', 'status': 'filled'}
    report_page.write_participant(path, content | {'images': [image]})
    return path


def test_a_complaint_of_a_page_would_be_seen(tmp_path, browse):
    (tmp_path / 'bad.html').write_text('<script>nonsense()</script>')
    with pytest.raises(AssertionError, match='nonsense is not defined'):
        browse(tmp_path / 'bad.html', '--dump-dom')


def test_lesions_are_sorted_pictures_flicker_and_links_lead_somewhere(page, browse):
    page.write_text(page.read_text().replace('</body>', f'{ACTIONS}</body>'))
    dom = browse(page, '--dump-dom', '--window-size=1300,900')
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', dom)[1])
    assert seen == {
        'rising': ['9.5', '60.0', '100.0'],
        'falling': ['100.0', '60.0', '9.5'],
        'atRest': ['paused', '1'],
        'focused': 'running',
        'linked': '#image-1-lesion-1',
        'target': 'FIGURE',
        'pictures': True,
        'wider': False,
    }


def test_a_page_prints(page, browse, tmp_path):
    browse(page, f'--print-to-pdf={tmp_path / "page.pdf"}', '--no-pdf-header-footer')
    pdf = (tmp_path / 'page.pdf').read_bytes()
    assert pdf.startswith(b'%PDF')
    assert pdf.count(b'/Subtype /Image') >= 6  # before, mask and after of the overview and of a lesion


def test_the_page_of_the_group_opens_without_a_complaint(tmp_path, browse):
    engine = {'engine': 'pbt', 'region_errors': np.linspace(0, 1, 68), 'participant_errors': [0.2, 0.4]}
    engine |= {'participant_noise': [0.1], 'juxtacortical_scans': []}
    content = {'version': '1', 'command': 'run.py', 'rows': [], 'excluded': [], 'juxta_min_voxels': 1}
    content |= {'juxta_rule': 'cortex'}
    group.write(tmp_path / 'group.html', content | {'n_participants': 2, 'n_scans': 2, 'engines': [engine]})
    assert 'Reproducibility error' in browse(tmp_path / 'group.html', '--dump-dom')


# What a rater would do: rate by keys, withdraw, comment, search, filter, sort; then save, and load what was saved.
RATER = """
<script>
addEventListener('load', () => {
  const seen = {}, press = name => new KeyboardEvent('keydown', {key: name, bubbles: true});
  const key = name => document.activeElement.dispatchEvent(press(name));
  const rows = () => [...document.querySelectorAll('#images tbody tr')];
  const shown = () => rows().filter(row => !row.hidden).map(row => row.dataset.image);
  const set = (id, value, kind) => {
    const field = document.getElementById(id);
    field.value = value; field.dispatchEvent(new Event(kind));
  };
  set('rater', 'A', 'change');
  seen.others = document.querySelector('#row-0 .others').textContent;
  seen.old = document.querySelector('#row-1 .others').textContent;
  key('j'); seen.chosen = document.querySelector('[aria-selected=true]').dataset.image;
  key('a'); key('j'); key('d'); key('d'); key('r'); key('c');
  seen.commenting = document.activeElement.placeholder;
  document.activeElement.value = ' dark\trim "left" ';
  document.activeElement.dispatchEvent(new Event('change', {bubbles: true}));
  key('Escape'); seen.back = document.activeElement.dataset.image;
  set('rated', 'reject', 'input'); seen.rejected = shown(); set('rated', '', 'input');
  set('search', 'border', 'input'); seen.found = shown(); set('search', '', 'input');
  set('status', 'copied', 'input'); seen.copied = shown(); set('status', '', 'input');
  set('flags', 'none', 'input'); seen.plain = shown(); set('flags', '', 'input');
  const title = document.querySelectorAll('#images th button')[2];
  title.click(); seen.rising = shown(); title.click(); seen.falling = shown();
  seen.kept = JSON.parse(localStorage.getItem(place)).ratings.length;
  let blob; URL.createObjectURL = given => { blob = given; return '#'; };
  document.getElementById('save').click();
  seen.saved = table();
  seen.whole = blob.size === new TextEncoder().encode(seen.saved).length;
  seen.read = read(seen.saved).map(row => [row.image, row.rater, row.rating, row.comment]);
  seen.wrong = read('image\\nx\\n');
  seen.wider = document.documentElement.scrollWidth > innerWidth;
  document.body.innerHTML = '<pre id="seen"></pre>';
  document.getElementById('seen').textContent = JSON.stringify(seen);
});
</script>
"""


@pytest.fixture
def study_page(tmp_path):
    """Function: write the page of three images with ratings; returns its path."""

    def write(ratings, more=''):
        rows = [
            {'name': f'sub-{n}_T1w', 'participant': f'sub-{n}', 'session': None, 'status': status, 'run_hash': 'new'}
            | {'warnings': warnings, 'n_lesions': n_lesions, 'report': f'sub-{n}.html'}
            for n, (status, warnings, n_lesions) in enumerate(
                [('filled', ['A border stays.'], 9), ('filled', [], 10), ('copied', [], 0)], 1
            )
        ]
        content = {'name': 'A study', 'version': '1', 'command': 'x', 'rows': rows, 'has_group': False}
        path = tmp_path / 'index.html'
        path.write_text(study.render(content | {'ratings': ratings}).replace('</body>', f'{more}</body>'))
        return path

    return write


def test_images_are_rated_by_keys_and_ratings_saved(study_page, browse, tmp_path):
    whose = dict.fromkeys(study.RATING_COLUMNS, '')
    given = [
        whose | {'image': 'sub-1_T1w', 'rater': 'B', 'rating': 'reject', 'comment': 'look', 'run_hash': 'new'},
        whose | {'image': 'sub-2_T1w', 'rater': 'B', 'rating': 'accept', 'run_hash': 'older'},
    ]
    dom = browse(study_page(given, RATER), '--dump-dom', '--window-size=1400,900')
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1]))
    saved = seen.pop('saved')
    ours = [['sub-2_T1w', 'A', 'accept', ''], ['sub-3_T1w', 'A', 'reject', 'dark rim "left"']]
    theirs = [['sub-1_T1w', 'B', 'reject', 'look'], ['sub-2_T1w', 'B', 'accept', '']]
    assert seen == {
        'others': 'B: reject, look',
        'old': 'B: accept (of an older result)',
        'chosen': 'sub-2_T1w',
        'commenting': 'comment',
        'back': 'sub-3_T1w',
        'rejected': ['sub-3_T1w'],
        'found': ['sub-1_T1w'],
        'copied': ['sub-3_T1w'],
        'plain': ['sub-2_T1w', 'sub-3_T1w'],
        'rising': ['sub-3_T1w', 'sub-1_T1w', 'sub-2_T1w'],
        'falling': ['sub-2_T1w', 'sub-1_T1w', 'sub-3_T1w'],
        'kept': 4,
        'whole': True,
        'read': [theirs[0], ours[0], theirs[1], ours[1]],
        'wrong': None,
        'wider': False,
    }
    (tmp_path / 'desc-qc_ratings.tsv').write_text(saved)
    rows = study.merge_ratings(text_files.read_tsv(tmp_path / 'desc-qc_ratings.tsv'))
    assert [[row[name] for name in ('image', 'rater', 'rating', 'comment')] for row in rows] == seen['read']


def test_ratings_are_there_when_the_page_is_opened_again(study_page, browse):
    rate = """<script>addEventListener('load', () => rate(all[0], {rating: 'doubt'}))</script>"""
    browse(study_page([], rate), '--dump-dom')
    row = re.search(r'<tr id="row-0".*?</tr>', browse(study_page([]), '--dump-dom'), re.DOTALL)[0]
    assert re.search(r'value="doubt"[^>]*aria-pressed="true"', row)


# What a reader would do: go from the table and a picture to lesions, blend, hide masks, filter, and change the image.
READER = """
<script>
addEventListener('load', async () => {
  const seen = {}, find = name => document.querySelector(name);
  const press = async name => { find(name).click(); await looking; };
  const where = () => {
    viewer.nv.drawScene();
    const {gl} = viewer.nv, {width, height} = gl.canvas;
    const pixel = new Uint8Array(4), all = new Uint8Array(4 * width * height);
    gl.readPixels(width >> 1, height >> 1, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, all);
    const found = {used: 0, given: 0};
    for (let i = 0; i < all.length; i += 4) {
      found.used += all[i] === 255 && all[i + 1] === 160 && all[i + 2] === 0;
      found.given += all[i] === 64 && all[i + 1] === 180 && all[i + 2] === 255;
    }
    return {
      mm: [...viewer.nv.frac2mm(viewer.nv.scene.crosshairPos, 0, true)].slice(0, 3), grey: pixel[0],
      used: found.used > 20, given: found.given > 20, text: find('.where').textContent,
    };
  };
  const set = (name, value) => {
    const field = viewer.find(name);
    field[field.type === 'checkbox' ? 'checked' : 'value'] = value;
    field.dispatchEvent(new Event('input', {bubbles: true}));
  };
  seen.closed = document.querySelectorAll('canvas').length;
  await press('tr[data-place="2"] td:nth-child(2)');
  if (!viewer.panel) seen.message = find('.look p').textContent;
  else {
    set('.views', 0); set('.zoom', 3);
    seen.after = where();
    set('.share', 0); seen.before = where();
    set('.share', 0.5); seen.half = where().grey;
    set('input.used', false); set('input.given', false); seen.bare = where();
    set('input.used', true); set('input.given', true);
    await press('#image-1-lesion-1 h3 button'); seen.picture = where();
    seen.chosen = document.querySelector('tr.chosen').id;
    await press('.look[data-image="2"] button'); seen.second = [where().mm, viewer.panel.parentNode.dataset.image];
    seen.canvases = document.querySelectorAll('canvas').length;
  }
  const filter = text => {
    find('.filter').value = text; find('.filter').dispatchEvent(new Event('input'));
    return [...find('table.sortable').tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].innerText);
  };
  seen.filtered = [filter('volume > 50'), filter('vol<50 9.5'), filter('given>5'), filter('mean')];
  document.body.innerHTML = '<pre id="seen"></pre>';
  document.getElementById('seen').textContent = JSON.stringify(seen);
});
</script>
"""
TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, -0.1) @ np.diag((-0.9, 1.1, 1.6)), (9, -20, 31))
LESIONS = {1: (12, 21, 16), 2: (28, 14, 12)}  # voxels of the image as it is stored, with x from right to left
LEVELS = {1: (400, 1000), 2: (600, 800)}


@pytest.fixture
def viewer_page(tmp_path):
    """Function: write the page of two images with a turned, flipped grid, and two lesions in each; its path."""

    def write():
        shape = (40, 36, 32)
        arrays = {name: np.full(shape, 300.0) for name in ('before', 'after')} | {'used': np.zeros(shape)}
        arrays['before'][0] = arrays['after'][0] = 0
        arrays['before'][1:3, :8] = arrays['after'][1:3, :8] = 1275.0  # the upper end of the grey window
        for label, (x, y, z) in LESIONS.items():
            place = np.s_[x - 2 : x + 3, y - 2 : y + 3, z - 2 : z + 3]
            arrays['before'][place], arrays['after'][place], arrays['used'][place] = *LEVELS[label], 1
        imgs = {name: nib.as_closest_canonical(nib.Nifti1Image(array, TURNED)) for name, array in arrays.items()}
        before, after, used = (imgs[name].get_fdata() for name in arrays)
        affine = imgs['used'].affine
        to_voxel = np.linalg.inv(affine) @ TURNED
        volumes = [(9.5, 3.0), (60.0, 6.0)]  # filled, given
        rows = [{'label': n, 'volume_mm3': v, 'given_volume_mm3': g} for n, (v, g) in enumerate(volumes, 1)]
        lesions = [
            {'label': label, 'centre_voxel': np.rint(nib.affines.apply_affine(to_voxel, voxel)).astype(int)}
            | {'mean_before': 1.0, 'mean_after': 2.0, 'volume_mm3': 1.0}
            for label, voxel in LESIONS.items()
        ]
        packed = viewer.pack(before, after, closeup.Masks(used > 0, used > 0), affine, lesions)
        assert packed['grey_max'] == 1275
        figures = pictures.fill_figures(before, used > 0, after, (1, 1, 1), lesions[:1])
        images = [
            {'name': f'sub-07_run-{n}_T1w', 'status': 'filled', 'lesions': rows, 'figures': figures, 'viewer': packed}
            for n in (1, 2)
        ]
        path = tmp_path / 'sub-07 ü.html'
        content = dict.fromkeys(('version', 'command', 'message', 'methods'), 'x') | {'label': 'sub-07'}
        report_page.write_participant(path, content | {'status': 'filled', 'images': images})
        path.write_text(path.read_text().replace('</body>', f'{READER}</body>'))
        return path

    return write


def read(dom):
    return json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1]))


def check_places(seen):
    """The crosshair stands where the lesions are in scanner space, on their grey values."""
    for name, label in (('after', 2), ('before', 2), ('picture', 1)):
        assert np.allclose(seen[name]['mm'], nib.affines.apply_affine(TURNED, LESIONS[label]), atol=0.05)
    assert np.allclose(seen['second'][0], seen['picture']['mm'], atol=0.05)  # opens at the first lesion
    before, after = (value / 5 for value in LEVELS[2])
    assert abs(seen['before']['grey'] - before) <= 1
    assert abs(seen['after']['grey'] - after) <= 1
    assert abs(seen['half'] - (before + after) / 2) <= 1
    assert 'before about 600, after about 800; in the used and given mask' in seen['before']['text']


def test_rows_and_pictures_lead_to_lesions_in_the_viewer(viewer_page, browse):
    seen = read(browse(viewer_page(), '--dump-dom', '--window-size=800,600', *WEBGL))
    assert 'message' not in seen
    check_places(seen)
    assert [seen[name][mask] for name in ('after', 'bare') for mask in ('used', 'given')] == [True, True, False, False]
    assert (seen['closed'], seen['canvases'], seen['second'][1]) == (0, 1, '2')
    assert seen['chosen'] == 'image-1-row-1'
    assert seen['filtered'] == [['2'], ['1'], ['2'], []]


def test_volumes_beside_a_page_are_read_from_there(viewer_page, browse, monkeypatch, tmp_path):
    """As browsers do it for a page from a disk; without the file, the page says which one it needs."""
    monkeypatch.setattr(report_page, 'MAX_PAGE_BYTES', 0)
    path = viewer_page()
    assert len(list(tmp_path.glob('sub-07 ü/figures/*'))) == 2 * (2 * 3 + 1)
    check_places(read(browse(path, '--dump-dom', '--window-size=800,600', *WEBGL)))
    script = 'sub-07 ü/figures/sub-07_run-1_T1w_viewer.js'
    (tmp_path / script).unlink()
    message = read(browse(path, '--dump-dom', *WEBGL))['message']
    assert message == f'The viewer needs the file {script} beside this page.'


def test_a_browser_without_webgl_says_so_and_the_rest_works(viewer_page, browse):
    seen = read(browse(viewer_page(), '--dump-dom', '--disable-3d-apis', '--virtual-time-budget=60000'))
    assert seen['message'].startswith('This browser offers no WebGL 2')
    assert seen['filtered'] == [['2'], ['1'], ['2'], []]
