"""The numbers of the documentation are those of the files that benchmarks wrote."""

import json
import re

import pytest
from pages import ROOT

THICKNESS, SPEED, REALISM = 'benchmarks/thickness.md', 'benchmarks/speed.md', 'benchmarks/realism.md'
INTENSITY, CARD, LIST = 'benchmarks/intensity.md', 'bids_lesionfill/models/fill-T1w/README.md', 'benchmarks/README.md'
CHANGE = 5  # column of the signed change of thickness
GROWN = '1, then by up to 2 where 2.5 deviations too dark'

# Page, its words with each number in braces, and for each number the source: file, beginning of a row, column.
CLAIMS = [
    ('README.md', 'in {28} to {43} seconds', (SPEED, 'sub-07 | 36', 4), (SPEED, 'sub-19 | 97', 4)),
    ('docs/index.md', 'takes {28} to {43} seconds', (SPEED, 'sub-07 | 36', 4), (SPEED, 'sub-19 | 97', 4)),
    (
        'README.md',
        'thickness by {-0.28} % unfilled and by {-0.006} % after filling',
        (THICKNESS, 'unfilled | 24', CHANGE),
        (THICKNESS, 'fill-T1w | 24', CHANGE),
    ),
    *(
        (
            page,
            'AUC {0.81} on FLAIR, {0.85} on T1w',
            (REALISM, 'synth-FLAIR, new |', 3),
            (REALISM, 'synth-T1w, new |', 3),
        )
        for page in ('README.md', 'docs/training_set.md')
    ),
    (
        'docs/synthesis.md',
        '(AUC {0.94} on FLAIR; {0.81} with it',
        (REALISM, 'synth-FLAIR, new, no halo', 3),
        (REALISM, 'synth-FLAIR, new |', 3),
    ),
    (
        'docs/synthesis.md',
        'slope {0.91} on FLAIR, {0.40} on T1w',
        (INTENSITY, 'all | 80', 7),
        (INTENSITY.replace('.md', '.md#T1w'), 'all | 80', 7),
    ),
    *(
        (
            'docs/methods.md',
            f'| {title} | {{{ours}}} | {{{theirs}}} ({name}) |',
            (CARD, f'{kind} | fill-T1w, 1 step', 4),
            (CARD, f'{kind} | {name}', 4),
        )
        for title, ours, theirs, name, kind in (
            ('exact mask', '0.00084', '0.00184', 'biharmonic', 'clean | 0'),
            ('mask misses the rim, grown by 1 and along the rim', '0.00167', '0.00326', 'biharmonic', 'rim | 1+2'),
            ('all lesions of a patient, grown likewise', '0.00181', '0.00400', 'patch match', 'patient | 1+2'),
        )
    ),
    *(
        ('docs/growth.md', f'| {title} | {{{a}}} | {{{b}}} | {{{c}}} |', *((LIST, row, column) for column in (2, 3, 4)))
        for title, a, b, c, row in (
            ('1 voxel', '1.00', '0.66', '1.10', '1 | 1.00'),
            ('2 voxels', '2.03', '0.18', '0.92', '2 | 2.03'),
            ('3 voxels', '3.39', '0.09', '1.57', '3 | 3.39'),
            ('**1, then up to 2 along the rim** (default of `--rims grown`)', '1.07', '0.26', '0.63', GROWN),
        )
    ),
    *(
        ('docs/texture.md', f'| {n} | {{{mse}}} | {{{texture}}} | {{{s}}} |', *((CARD, f'{k} |', c) for c in (2, 4, 5)))
        for n, mse, texture, s, k in (
            ('1 (default)', '0.00083', '0.97', '0.3', '1'),
            ('5', '0.00109', '1.06', '1.1', '5'),
            ('10', '0.00125', '1.11', '2.1', '10'),
            ('50', '0.00147', '1.18', '9.3', '50'),
        )
    ),
]


def cell(source, row, column):
    """Return the first number in a column of the table row that begins with some words; after a heading, if named."""
    file, _, heading = source.partition('#')
    text = (ROOT / file).read_text()
    text = text[text.index(f'\n## {heading}\n') :] if heading else text
    found = re.search(rf'^\| {re.escape(row)}.*$', text, re.M)
    assert found, (source, row)
    return float(re.search(r'[-+]?\d*\.?\d+', found[0].split('|')[column])[0])


@pytest.mark.parametrize(('page', 'words', 'sources'), [(page, words, rest) for page, words, *rest in CLAIMS])
def test_numbers_of_a_page_are_those_of_the_benchmark(page, words, sources):
    text = ' '.join((ROOT / page).read_text().split())
    assert ' '.join(words.replace('{', '').replace('}', '').split()) in text
    numbers = re.findall(r'{(.*?)}', words)
    assert len(numbers) == len(sources)
    for number, source in zip(numbers, sources):
        decimals = len(number.partition('.')[2])
        assert f'{cell(*source):.{decimals}f}' == number, source


def test_volumes_of_the_rim_are_those_that_were_measured():
    ml = json.loads((ROOT / 'benchmarks/rim_picture.json').read_text())['ml']
    given, unmixed, replaced, grown = (
        f'{ml[name]:.1f}' for name in ('given mask', 'used mask, unmixed', 'replaced, unmixed', 'used mask, grown')
    )
    growth = ' '.join((ROOT / 'docs/growth.md').read_text().split())
    assert f'The given mask has {given} ml. By unmixing, {unmixed} ml change, of which {replaced} ml' in growth
    assert f'By growth, {grown} ml are replaced' in growth
    first = ' '.join((ROOT / 'docs/first_run.md').read_text().split())
    assert f'{unmixed} ml instead of {given} ml for sub-26. Of these, {replaced} ml are more than half lesion' in first


def test_the_scores_of_the_tutorial_are_those_of_a_run():
    written = (ROOT / 'benchmarks/score_tutorial.txt').read_text().strip()
    assert f'```\n{written}\n```' in (ROOT / 'docs/score.md').read_text()
