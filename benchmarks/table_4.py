"""Our counterparts of the thesis' tables 4.1 and 4.2, from one evaluation: `table_4_1.md` and `table_4_2.md`.

    for plan in small-3d-mixture small-plain ...; do     # the plans below
      OMP_NUM_THREADS=1 python -m bids_lesionfill.train BIDS_DIR ROWS/$plan --lesion-masks MASKS --plan $plan \\
        --cpu-minutes 8 --num-workers 0
    done
    python -m bids_lesionfill.evaluate BIDS_DIR OUT --lesion-masks MASKS --kinds clean rim --dilate 0 1 --n-lesions 4 \\
      --models ROWS/*/last ROWS/small-plain/last@1 ROWS/small-plain-rims/last@1 ROWS/small-residual/last@50 fill-T1w
    python benchmarks/table_4.py OUT ROWS

`small-*` plans are the thesis' models and ours in a size that learns something in minutes (`unet.SIZES`).
"""

import argparse
import csv
from pathlib import Path

from bids_lesionfill import text_files

HERE = Path(__file__).parent
# Row of the thesis -> its SSIM, PSNR, MSE, LPIPS (table 4.1), and our plan.
THESIS = {
    'small-2d-unconditional': ('2D unconditional, RePaint', '0.83', '28', '8.2e-3', '2e-3'),
    'small-2d-circles': ('2D conditional circles', '0.90', '32', '4e-3', '2e-3'),
    'small-2d-lesions': ('2D conditional lesions', '0.85', '28', '0.01', '5e-3'),
    'small-2d-mixture': ('2D conditional mixture', '0.90', '33', '4e-3', '1e-3'),
    'small-3d-unconditional': ('3D unconditional, RePaint', '0.90', '32', '3e-3', '9e-4'),
    'small-3d-circles': ('3D conditional circles', '0.95', '38', '1e-3', '3e-4'),
    'small-3d-lesions': ('3D conditional lesions', '0.93', '34', '3e-3', '4e-4'),
    'small-3d-mixture': ('3D conditional mixture', '0.96', '39', '8e-4', '2e-4'),
}
OURS = {  # plan and steps -> words
    ('small-plain', 50): 'plain conditional: v-prediction, loss in the mask; 50 steps',
    ('small-plain', 1): 'the same, 1 step (the mean)',
    ('small-plain-rims', 50): 'plain, rim-robust training; 50 steps',
    ('small-plain-rims', 1): 'the same, 1 step',
    ('small-prior-rims', 50): 'plain with prior channel, rims; 50 steps',
    ('small-residual', 50): 'residual on biharmonic; 50 steps',
    ('small-residual', 1): 'the same, 1 step',
    ('small-residual-rims-biharmonic', 1): 'residual on biharmonic, rims; 1 step',
    ('small-residual-rims-membrane', 1): 'residual on membrane, rims; 1 step',
    ('small-residual-rims-local_white_matter', 1): 'residual on local white-matter mean, rims; 1 step',
    ('fill-T1w', 1): '**fill-T1w of 0.1.0**, 2 hours on two cores, 2.3 M weights: another budget',
}
MIN_SNR = {
    'small-2d-unconditional': ('2D unconditional, RePaint', '0.83', '28', '8.2e-3', '2.0e-3'),
    'small-2d-unconditional-min-snr': ('2D unconditional, RePaint, min-SNR', '0.83', '29', '7.3e-3', '2.8e-3'),
}
NOTES = """\
Written by `table_4.py`, which says how. **Budget**: every `small` network (1.0 M weights; four levels of 16,
32, 48, 64 channels) was trained for 8 minutes of CPU time on one core, preparation of cases included, on
crops of 24x24x12 voxels, 4 at a time; the averaged weights at the end are scored, nothing was selected. The
thesis' models had about 90 000 updates of whole slices on three GPUs, on other data: its figures stand in a
column of their own and must not be compared with ours.

{n} lesions of each kind in 6 scans of 4 people (validation split of the OASIS brains), lesion shapes of 6
masks that no training saw. Mean and 95 % bootstrap interval; people are drawn first, then their lesions. M1,
white matter at +0.5. `SSIM`, `PSNR`, `MSE`, `texture` (standard deviation against the truth's): the mask is
exact. `MSE, rim`: a painted lesion, its mask too tight or ragged, then grown by one voxel in white matter.
LPIPS was not measured: no AlexNet weights were at hand.

To bear in mind: one step gives the mean of all fillings, which errs less and is smoother than a sample of 50
steps. Plain and prior models draw a quarter of their training time steps at T, residual ones half. The 2D
models were trained on 12 neighbouring slices of one brain at one time step at once, so their updates are less
varied than those of the thesis. Crops are flipped and turned, circles are ellipsoids of 1 to 11 voxels
radius.
"""


def with_interval(row, metric, form):
    """Value and 95 % interval of a row of summary.tsv."""
    if row is None or row[metric] is None:
        return '–'
    value, low, high = (row[name] for name in (metric, f'{metric}_low', f'{metric}_high'))
    return f'{value:{form}} ({low:{form}} to {high:{form}})'


def find(summary, method, kind, dilation):
    """Row of a method; None if it was not run."""
    for row in summary:
        name = row['method'].removesuffix(' (RePaint)')
        if (row['group'], row['kind'], row['dilation'], name) == ('all', kind, dilation, method):
            return row
    return None


def of_steps(plan, steps):
    """Name of a model's rows in an evaluation."""
    return f'{plan}, {steps} step' + ('s' if steps > 1 else '')


def cells(summary, method):
    """Scores of a row: clean, and rim with the mask grown by one voxel."""
    clean, rim = find(summary, method, 'clean', 0), find(summary, method, 'rim', 1)
    return [
        with_interval(clean, 'ssim', '.3f'),
        with_interval(clean, 'psnr', '.1f'),
        with_interval(clean, 'mse', '.4f'),
        with_interval(rim, 'mse', '.4f'),
        with_interval(clean, 'texture', '.2f'),
    ]


def updates(rows_dir, plan):
    """Updates of a training, from its log."""
    log = rows_dir / plan / 'log.csv'
    if not log.exists():
        return '–'
    with open(log, newline='') as file:
        return list(csv.DictReader(file))[-1]['update']


def table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('evaluation_dir', type=Path)
    parser.add_argument('rows_dir', type=Path)
    options = parser.parse_args()
    summary = text_files.read_tsv(options.evaluation_dir / 'summary.tsv')
    first = next(row for row in summary if row['group'] == 'all' and row['kind'] == 'clean')
    columns = ['SSIM', 'PSNR dB', 'MSE', 'MSE, rim', 'texture']
    other = 'thesis: SSIM / PSNR / MSE / LPIPS (other data)'
    header = ['filler', 'updates', *columns, other]
    rows = []
    for plan, (name, *scores) in THESIS.items():
        row = [name, updates(options.rows_dir, plan), *cells(summary, of_steps(plan, 50)), ' / '.join(scores)]
        rows.append(row)
    for (plan, steps), name in OURS.items():
        rows.append([name, updates(options.rows_dir, plan), *cells(summary, of_steps(plan, steps)), '–'])
    for row in summary:
        if row['family'] != 'model' and (row['group'], row['kind']) == ('all', 'clean'):
            rows.append([row['method'], 'none', *cells(summary, row['method']), '–'])
    notes = NOTES.format(n=int(first['n']))
    (HERE / 'table_4_1.md').write_text(f'# Table 4.1, our counterpart\n\n{notes}\n' + table(header, rows))
    rows = [
        [name, updates(options.rows_dir, plan), *cells(summary, of_steps(plan, 50)), ' / '.join(scores)]
        for plan, (name, *scores) in MIN_SNR.items()
    ]
    (HERE / 'table_4_2.md').write_text(f'# Table 4.2, our counterpart\n\n{notes}\n' + table(header, rows))


if __name__ == '__main__':
    main()
