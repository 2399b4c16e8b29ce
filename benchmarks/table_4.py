"""Our counterparts of the thesis' tables 4.1 and 4.2, from one evaluation: `table_4_1.md` and `table_4_2.md`.

    for plan in small-3d-mixture small-plain ...; do     # the plans of MODELS and OURS below
      OMP_NUM_THREADS=1 python -m bids_lesionfill.train BIDS_DIR ROWS/$plan --lesion-masks MASKS --plan $plan \\
        --cpu-minutes 8 --num-workers 0
    done
    python -m bids_lesionfill.evaluate BIDS_DIR OUT --lesion-masks MASKS --models ROWS/*/last fill-T1w \\
      --kinds clean rim --dilate 0 1 --n-lesions 4
    python benchmarks/table_4.py OUT ROWS

`small-*` plans are the thesis' models and ours in a size that learns something in minutes (`unet.SIZES`).
"""

import argparse
import csv
from pathlib import Path

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
OURS = {
    'small-plain': 'plain: v-prediction, loss in the mask',
    'small-residual': 'residual on biharmonic, no rims',
    'small-residual-rims-biharmonic': 'residual on biharmonic, rims',
    'small-residual-rims-membrane': 'residual on membrane, rims',
    'small-residual-rims-local_white_matter': 'residual on local white-matter mean, rims',
    'fill-T1w': 'bundled fill-T1w (other budget: its card)',
}
MIN_SNR = {
    'small-2d-unconditional': ('2D unconditional, RePaint', '0.83', '28', '8.2e-3', '2.0e-3'),
    'small-2d-unconditional-min-snr': ('2D unconditional, RePaint, min-SNR', '0.83', '29', '7.3e-3', '2.8e-3'),
}


def read_tsv(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


def with_interval(row, metric, form):
    """Value and 95 % interval of a row of summary.tsv."""
    if row is None or row[metric] == 'n/a':
        return '–'
    value, low, high = (float(row[name]) for name in (metric, f'{metric}_low', f'{metric}_high'))
    return f'{value:{form}} ({low:{form}} to {high:{form}})'


def find(summary, plan, kind, dilation):
    """Row of a plan, or of a baseline by its name; None if it was not run."""
    for row in summary:
        name = row['method'].split(', ')[0] if row['family'] == 'model' else row['method']
        if (row['group'], row['kind'], row['dilation'], name) == ('all', kind, str(dilation), plan):
            return row
    return None


def cells(summary, plan):
    """Scores of a row: clean, and rim with the mask grown by one voxel."""
    clean, rim = find(summary, plan, 'clean', 0), find(summary, plan, 'rim', 1)
    return [
        with_interval(clean, 'ssim', '.3f'),
        with_interval(clean, 'psnr', '.1f'),
        with_interval(clean, 'mse', '.4f'),
        with_interval(rim, 'mse', '.4f'),
        with_interval(clean, 'texture', '.2f'),
    ]


def training(rows_dir, plan):
    """Updates and CPU minutes of a training, from its log."""
    log = rows_dir / plan / 'log.csv'
    if not log.exists():
        return '–'
    with open(log, newline='') as file:
        last = list(csv.DictReader(file))[-1]
    return f'{last["update"]}'


def table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('evaluation_dir', type=Path)
    parser.add_argument('rows_dir', type=Path)
    options = parser.parse_args()
    summary = read_tsv(options.evaluation_dir / 'summary.tsv')
    first = next(row for row in summary if row['group'] == 'all' and row['kind'] == 'clean')
    columns = ['M1 SSIM, clean', 'PSNR dB', 'MSE', 'MSE, rim', 'texture']
    other = 'thesis: SSIM / PSNR / MSE / LPIPS (other data)'
    rows = []
    for plan, (name, *scores) in THESIS.items():
        rows.append([name, training(options.rows_dir, plan), *cells(summary, plan), ' / '.join(scores)])
    for plan, name in OURS.items():
        rows.append([name, training(options.rows_dir, plan), *cells(summary, plan), '–'])
    for row in summary:
        if row['family'] == 'baseline' and (row['group'], row['kind']) == ('all', 'clean'):
            rows.append([row['method'], 'none', *cells(summary, row['method']), '–'])
    header = ['filler', 'updates', *columns, other]
    intro = (
        f'{first["n"]} cases of each kind; mean and 95 % bootstrap interval over cases. `clean`: the mask is exact; '
        '`rim`: a painted lesion, its mask too tight or ragged, then grown by one voxel. LPIPS was not measured: no '
        'AlexNet weights were at hand.'
    )
    (HERE / 'table_4_1.md').write_text(f'# Table 4.1, our counterpart\n\n{intro}\n\n' + table(header, rows))
    rows = [
        [name, training(options.rows_dir, plan), *cells(summary, plan), ' / '.join(scores)]
        for plan, (name, *scores) in MIN_SNR.items()
    ]
    (HERE / 'table_4_2.md').write_text(f'# Table 4.2, our counterpart\n\n{intro}\n\n' + table(header, rows))


if __name__ == '__main__':
    main()
