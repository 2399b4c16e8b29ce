"""Scores of an evaluation as Markdown, for a model's card: `python benchmarks/scores_table.py EVALUATION_DIR`."""

import sys
from pathlib import Path

from bids_lesionfill import text_files

COLUMNS = {'mse': ('MSE', '.5f'), 'psnr': ('PSNR dB', '.1f'), 'ssim': ('SSIM', '.3f'), 'border': ('border', '.2f')}
COLUMNS |= {'texture': ('texture', '.2f'), 'm2_mse': ('M2 MSE', '.5f'), 'm2_ssim': ('M2 SSIM', '.4f')}


def main():
    rows = [row for row in text_files.read_tsv(Path(sys.argv[1]) / 'summary.tsv') if row['group'] == 'all']
    header = ['cases', 'grown by', 'filler', *(title for title, _ in COLUMNS.values())]
    print('| ' + ' | '.join(header) + ' |\n' + '|---' * len(header) + '|')
    for row in rows:
        cells = [row['kind'], str(row['dilation']).removesuffix('.0'), row['method']]
        for name, (_, form) in COLUMNS.items():
            if row[name] is None:
                cells.append('–')
                continue
            mean, low, high = (row[key] for key in (name, f'{name}_low', f'{name}_high'))
            interval = f' ({low:{form}} to {high:{form}})' if name in ('mse', 'border', 'texture') else ''
            cells.append(f'{mean:{form}}{interval}')
        print('| ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
    main()
