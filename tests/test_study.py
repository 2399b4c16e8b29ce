"""The page of a study, from derivatives made by hand."""

import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from bids_examples import write_description
from PIL import Image

from bids_lesionfill import text_files
from bids_lesionfill.app import cli
from bids_lesionfill.app import study as app_study
from bids_lesionfill.layout import derivatives, files, naming
from bids_lesionfill.report import page as report_page
from bids_lesionfill.report import pictures, study

HASH = 'a' * 64
LESION = {'volume_mm3': 500.0, 'mean_before': 250.0, 'mean_after': 300.0, 'mean_touching': 300.0, 'mean_beyond': 300.0}
INFO = {
    'RunHash': HASH,
    'Warnings': [],
    'LesionVoxelsGiven': 600,
    'LesionVoxelsUsed': 1000,
    'WhiteMatterDeviation': 20.0,
}


@pytest.fixture
def out(tmp_path):
    maker = {'DatasetType': 'derivative', 'GeneratedBy': [{'Name': naming.APP_NAME}]}
    write_description(tmp_path / 'data')
    write_description(tmp_path / 'out', **maker)
    return tmp_path / 'out'


@pytest.fixture
def add(out):
    """Function: write what a participant run leaves of an image; tables of participants are written by `finish`."""

    def write(name, lesions=({'label': 1, **LESION}, {'label': 2, **LESION}), desc='filled', **more):
        scan, modality = name.rsplit('_', 1)
        entities = naming.name_entities(scan)
        session = [f'ses-{entities["ses"]}'] if 'ses' in entities else []
        anat = out.joinpath(f'sub-{entities["sub"]}', *session, 'anat')
        space = '' if modality == 'T1w' else f'_space-{modality}'
        table = 'lesions' if desc == 'filled' else f'{desc}lesions'
        files.write_tsv(anat / f'{scan}{space}_desc-{table}_qc.tsv', lesions, ['label', *LESION])
        files.write_json(anat / f'{scan}_desc-{desc}_{modality}.json', INFO | more)
        files.write_bytes(out / f'sub-{entities["sub"]}.html', b'a report')

    return write


@pytest.fixture
def finish(out):
    """Function: write participants.tsv from `participant -> (status, message)`, and crash files of the latest run."""

    def write(statuses, crashes=()):
        rows = [{'participant_id': who, 'status': what[0], 'message': what[1]} for who, what in statuses.items()]
        files.write_tsv(out / 'participants.tsv', rows, ['participant_id', 'status', 'message'])
        for who in statuses:
            files.write_json(out / who / 'log' / '20260101-000000_x' / 'status.json', {'participant_id': who})
        for who, name in crashes:
            files.write_bytes(out / who / 'log' / '20260101-000000_x' / f'crash-{name}.txt', b'x')

    return write


@pytest.fixture
def build(out):
    """Function: write the page; returns its rows as dict of image -> text."""

    def write():
        app_study.write(SimpleNamespace(output_dir=out, bids_dir=out.parent / 'data', version='1', command='x'))
        return rows_of(out / 'index.html')

    return write


def rows_of(page):
    """Return the text of each row of the table of images, by image."""
    rows = re.findall(r'<tr id="row-\d+".*?data-image="(.*?)".*?>(.*?)</tr>', page.read_text(), flags=re.DOTALL)
    return {name: ' '.join(re.sub(r'<.*?>', ' ', cells).split()) for name, cells in rows}


def rating(image, rater, verdict, when='2026-01-01T00:00:00.000Z', run_hash=HASH[:12], comment=''):
    whose = {'participant_id': image.partition('_')[0], 'session_id': '', 'image': image, 'rater': rater}
    return whose | {'rating': verdict, 'comment': comment, 'rated_at': when, 'run_hash': run_hash}


# -------------------------------------------------------------------------------------------------- rows


def test_a_row_tells_given_from_filled_volume():
    row = study.describe_image('sub-01_T1w', 'filled', 'T1w', INFO, [LESION, LESION])
    assert (row['status'], row['n_lesions'], row['used_ml']) == ('filled', 2, 1.0)
    assert row['given_ml'] == pytest.approx(0.6)
    assert (
        study.describe_image('sub-01_T1w', 'filled', 'T1w', INFO | {'LesionVoxelsGiven': 0}, [])['status'] == 'copied'
    )
    synthesized = study.describe_image('sub-01_T1w', 'synth2', 'T1w', INFO, [LESION])
    assert (synthesized['name'], synthesized['given_ml']) == ('sub-01_T1w_synth2', None)


def test_the_worst_lesion_is_the_most_unusual_then_the_one_that_changed_most():
    lesions = [
        {'label': 1.0, **LESION},
        {'label': 2.0, **LESION, 'volume_mm3': 900.0},
        {'label': 3.0, **LESION, 'volume_mm3': 90.0, 'mean_touching': 200.0},
    ]
    assert study.worst_first(lesions, INFO, 'T1w') == [3, 2, 1]


def test_a_thumbnail_shows_the_lesion_in_the_middle_before_and_after(real_pictures):
    before = np.full((100, 100, 100), 300.0)
    before[48:53, 48:53, 48:53] = 0
    mask = before == 0
    lesion = {'label': 1, **LESION, 'centre_voxel': (50, 50, 50)}
    figures = pictures.png_files(pictures.fill_figures(before, mask, np.full_like(before, 300), (1, 1, 1), [lesion]))
    jpeg = study.thumbnail(figures['lesion-1_before'], figures['lesion-1_after'])
    grey = np.asarray(Image.open(io.BytesIO(jpeg)))
    side = study.THUMBNAIL_PX
    assert grey.shape == (side, 2 * side)
    assert len(jpeg) < 10_000
    middle = side // 2
    assert grey[middle, middle] < 60
    assert grey[middle, side + middle] > 200
    dark = np.argwhere(grey[:, :side] < 128)
    np.testing.assert_allclose(dark.mean(axis=0), middle, atol=2)


def test_failures_are_told_where_they_happened(add, finish, build):
    add('sub-01_ses-1_T1w')
    add('sub-01_ses-2_T1w')
    add('sub-02_T1w')
    add('sub-05_T1w')
    finish(
        {
            'sub-01': ('failed', 'no memory'),
            'sub-02': ('failed', 'no atlas'),
            'sub-03': ('no lesion mask', ''),
            'sub-04': ('failed', 'it is a link'),
            'sub-05': ('failed', 'disk full'),
        },
        [('sub-01', 'sub-01_ses-2_T1w'), ('sub-01', 'sub-01_ses-3_T1w'), ('sub-02', 'sub-02_T1w_thickness')]
        + [('sub-05', 'report')],
    )
    rows = build()
    assert list(rows) == [
        *('sub-01_ses-1_T1w', 'sub-01_ses-2_T1w', 'sub-01_ses-3_T1w', 'sub-02_T1w', 'sub-03', 'sub-04', 'sub-05'),
        'sub-05_T1w',
    ]
    assert 'filled' in rows['sub-01_ses-1_T1w']
    assert 'failed no memory' in rows['sub-01_ses-2_T1w']
    assert 'failed no memory' in rows['sub-01_ses-3_T1w']
    assert 'filled 2 0.60 1.00 Its thickness was not measured: no atlas' in rows['sub-02_T1w']
    assert 'no lesion mask' in rows['sub-03']
    assert 'failed it is a link' in rows['sub-04']
    assert 'failed disk full' in rows['sub-05']


def test_who_was_not_run_is_on_the_page(out, add, finish, build):
    (out.parent / 'data' / 'sub-09' / 'anat').mkdir(parents=True)
    (out.parent / 'data' / 'sub-09' / 'anat' / 'sub-09_T1w.nii.gz').write_bytes(b'x')
    add('sub-01_T1w')
    finish({'sub-01': ('filled', None)})
    assert build()['sub-09'] == 'sub-09 not run'


def test_synthesized_images_and_other_modalities_have_rows_masks_have_none(out, add, finish, build):
    add('sub-01_FLAIR', Warnings=['<b>Look</b>'])
    add('sub-01_T1w', desc='synth1')
    files.write_json(out / 'sub-01/anat/sub-01_label-lesion_desc-synth1_mask.json', INFO)
    files.write_json(out / 'sub-01/log/20260101-000000_x/time-sub-01_FLAIR.json', {'seconds': 31.4})
    finish({'sub-01': ('filled', None)})
    assert build() == {
        'sub-01_FLAIR': 'sub-01_FLAIR filled 2 0.60 1.00 &lt;b&gt;Look&lt;/b&gt; 31',
        'sub-01_T1w_synth1': 'sub-01_T1w_synth1 synthesized 2 1.00',
    }


def test_damaged_files_are_told_and_stop_nothing(out, add, finish, build):
    for number in (1, 2, 3):
        add(f'sub-0{number}_T1w')
    finish({f'sub-0{number}': ('filled', None) for number in (1, 2, 3)})
    (out / 'sub-01/anat/sub-01_desc-filled_T1w.json').write_text('{')
    (out / 'sub-02/anat/sub-02_desc-lesions_qc.tsv').write_text('label\tx\n1\t2\n')
    for picture in ('before', 'after'):
        files.write_bytes(out / f'sub-03/figures/sub-03_T1w_lesion-1_{picture}.png', b'no picture')
    (out / 'desc-qc_ratings.tsv').write_text('image\n\xe4\n', encoding='latin-1')
    rows = build()
    assert 'failed sub-01_desc-filled_T1w.json is damaged' in rows['sub-01_T1w']
    assert rows['sub-02_T1w'].startswith('sub-02_T1w copied')
    assert 'filled 2' in rows['sub-03_T1w']


def test_the_page_has_no_address_on_a_network_and_escapes_what_it_is_given(add, finish, build, out):
    add('sub-01_T1w')
    finish({'sub-01': ('filled', None)})
    files.write_tsv(
        out / 'desc-qc_ratings.tsv',
        [rating('sub-01_T1w', '</script><script>alert(1)</script>', 'accept')],
        study.RATING_COLUMNS,
    )
    build()
    html = (out / 'index.html').read_text()
    assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
    assert 'alert(1)</script>' not in html


# -------------------------------------------------------------------------------------------------- ratings


def test_of_two_ratings_of_one_rater_the_later_counts_and_others_stay():
    rows = [
        rating('sub-01_T1w', 'A', 'accept', '2026-01-02T00:00:00.000Z'),
        rating('sub-01_T1w', 'A', 'reject', '2026-01-01T00:00:00.000Z'),
        rating('sub-01_T1w', 'B', 'doubt'),
        rating('sub-02_T1w', 'A', 'good'),
        rating('sub-03_T1w', 1.0, None, comment='see\tslice 80'),
    ]
    merged = study.merge_ratings(rows)
    assert [(row['image'], row['rater'], row['rating']) for row in merged] == [
        ('sub-01_T1w', 'A', 'accept'),
        ('sub-01_T1w', 'B', 'doubt'),
        ('sub-03_T1w', '1', ''),
    ]
    assert merged[2]['comment'] == 'see slice 80'


def test_agreement_is_that_of_scikit_learn_on_what_both_rated():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    verdicts = rng.choice(study.RATINGS, (2, 40))
    verdicts[1, :25] = verdicts[0, :25]
    rows = [rating(f'sub-{n:02d}_T1w', rater, verdicts[k, n]) for k, rater in enumerate('AB') for n in range(40)]
    rows += [rating('sub-50_T1w', 'A', 'accept'), rating('sub-51_T1w', 'A', 'accept')]
    rows += [rating('sub-51_T1w', 'B', 'reject', run_hash='older'), rating('sub-50_T1w', 'C', '')]
    (pair,) = study.agreement(study.merge_ratings(rows))
    assert (pair['raters'], pair['n'], pair['agree']) == (('A', 'B'), 40, int((verdicts[0] == verdicts[1]).sum()))
    assert pair['kappa'] == pytest.approx(cohen_kappa_score(*verdicts))


def test_files_of_two_raters_become_one_that_is_read_back(out, add, finish, build):
    for number in (1, 2, 3):
        add(f'sub-0{number}_T1w')
    finish({f'sub-0{number}': ('filled', None) for number in (1, 2, 3)})
    for file, rater, verdicts in (
        ('desc-qc_ratings.tsv', 'A', ('accept', 'accept', 'reject')),
        ('desc-qc_ratings (1).tsv', 'B', ('accept', 'doubt', 'reject')),
    ):
        rows = [rating(f'sub-0{n}_T1w', rater, verdict) for n, verdict in enumerate(verdicts, 1)]
        files.write_tsv(out / file, rows, study.RATING_COLUMNS)
    build()
    merged = text_files.read_tsv(out / 'desc-qc_ratings.tsv')
    assert [(row['rater'], row['rating']) for row in merged] == [
        *(('A', 'accept'), ('B', 'accept'), ('A', 'accept'), ('B', 'doubt'), ('A', 'reject'), ('B', 'reject'))
    ]
    assert json.loads((out / 'desc-qc_ratings.json').read_text())['Agreement'] == [
        "A and B: 2 of 3 images rated alike, Cohen's kappa 0.50"
    ]
    assert (
        '<td>A and B</td><td class="number">3</td><td class="number">2</td><td class="number">0.50</td>'
        in (out / 'index.html').read_text()
    )
    first = (out / 'desc-qc_ratings.tsv').read_bytes()
    build()
    assert (out / 'desc-qc_ratings.tsv').read_bytes() == first


def test_the_group_writes_the_page_without_thickness(out, add, finish):
    add('sub-01_T1w')
    finish({'sub-01': ('filled', None)})
    assert cli.main([str(out.parent / 'data'), str(out), 'group']) == 0
    assert list(rows_of(out / 'index.html')) == ['sub-01_T1w']
    assert not (out / 'group.html').exists()


def test_the_address_of_the_code_is_told_if_it_is_set(tmp_path):
    citation = tmp_path / 'CITATION.cff'
    assert derivatives.code_url(citation) == {}
    citation.write_text('title: x\n# repository-code: https://...\n')
    assert derivatives.code_url(citation) == {}
    citation.write_text('title: x\nrepository-code: https://example.org/app\n')
    assert derivatives.code_url(citation) == {'CodeURL': 'https://example.org/app'}


def test_commands_of_freesurfer_and_fastsurfer_name_the_filled_t1w():
    images = [
        {'name': 'sub-01_ses-1_T1w', 'status': 'filled', 'output': 'sub-01_ses-1_desc-filled_T1w.nii.gz'},
        {'name': 'sub-01_ses-1_FLAIR', 'status': 'filled', 'output': 'sub-01_ses-1_desc-filled_FLAIR.nii.gz'},
    ]
    participant = {'label': 'sub-01', 'status': 'filled', 'images': images}
    html = report_page.page_template().render(participant=participant, outline_colour='x')
    file = '$OUTPUT_DIR/sub-01/ses-1/anat/sub-01_ses-1_desc-filled_T1w.nii.gz'
    assert f'recon-all -s sub-01_ses-1 -i &quot;{file}&quot; -all' in html
    assert html.count('run_fastsurfer.sh') == 1
    derivatives_of_fmriprep = '--participant-label 01 --derivatives filled="$OUTPUT_DIR"'
    assert f'{derivatives_of_fmriprep} --subject-anatomical-reference sessionwise' in html
    html = report_page.page_template().render(participant=participant | {'images': images[1:]}, outline_colour='x')
    assert 'recon-all' not in html
