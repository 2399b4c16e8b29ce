"""The pages in a real browser (Chromium, headless), from a file address; left out where there is none."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from bids_lesionfill import text_files
from bids_lesionfill.lesions.checks import Check
from bids_lesionfill.report import group, pictures, study
from bids_lesionfill.report import page as report_page

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = [
    *(pytest.mark.slow, pytest.mark.usefixtures('real_pictures')),
    pytest.mark.skipif(CHROMIUM is None, reason='no Chromium'),
]

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
        command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr']
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
