"""Time and size of the page of a study, built from made-up derivatives of many participants.

    python benchmarks/study.py --work-dir WORK [--participants 200] [--sessions 2]

Each image has a sidecar, a table of 20 lesions, a status and the pictures of a report at their real size, drawn from
smooth noise. Prints seconds to build the page, its size, and (if there is a Chromium) seconds until it is loaded.
"""

import argparse
import json
import re
import resource
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from bids_lesionfill.app import study
from bids_lesionfill.layout import files
from bids_lesionfill.report import pictures

N_LESIONS = 20
N_DRAWN = 8  # participants whose pictures are drawn; the others have copies of them
LOADED = """<script>addEventListener('load', () => requestAnimationFrame(() => {
document.body.innerHTML = '<pre id="seen">' + performance.now() / 1000 + '</pre>'; }));</script>"""


def draw(rng, lesions):
    """Return pictures of a lesion (before, mask, after) in smooth noise, as a report has them: dict of PNG bytes."""
    before = np.kron(rng.normal(300, 40, (20, 20, 20)), np.ones((5, 5, 5)))
    mask = np.zeros(before.shape, dtype=bool)
    mask[48:53, 48:53, 48:53] = True
    figures = pictures.fill_figures(before, mask, np.where(mask, 300, before), (1, 1, 1), lesions[:1])
    return pictures.png_files([figure for figure in figures if figure['name'] != 'overview'])


def make_lesions(rng):
    """Return rows of a table of lesions, the first the one that changed most."""
    volumes = np.sort(rng.lognormal(4, 1, N_LESIONS))[::-1].round(3)
    rows = [
        {'label': n, 'volume_mm3': float(v), 'mean_before': 250.0, 'mean_after': 300.0}
        for n, v in enumerate(volumes, 1)
    ]
    return [row | {'mean_touching': 299.0, 'mean_beyond': 300.0, 'centre_voxel': (50, 50, 50)} for row in rows]


def make_study(folder, n_participants, n_sessions):
    """Write the derivatives of a study that was never run."""
    rng = np.random.default_rng(0)
    columns = ('label', 'volume_mm3', 'mean_before', 'mean_after', 'mean_touching', 'mean_beyond')
    drawn, statuses = [], []
    for number in range(n_participants):
        subject = f'sub-{number:03d}'
        for session in range(1, n_sessions + 1):
            scan, lesions = f'{subject}_ses-{session}', make_lesions(rng)
            if len(drawn) < N_DRAWN:
                drawn.append(draw(rng, lesions))
            for name, png in drawn[number % len(drawn)].items():
                files.write_bytes(folder / subject / 'figures' / f'{scan}_T1w_{name}.png', png)
            anat, used = folder / subject / f'ses-{session}' / 'anat', int(sum(row['volume_mm3'] for row in lesions))
            files.write_tsv(anat / f'{scan}_desc-lesions_qc.tsv', lesions, columns)
            warning = ['Lesion 1: a darker border stays around the mask.'] if number % 5 == 0 else []
            info = {'RunHash': 64 * 'a', 'Warnings': warning, 'LesionVoxelsGiven': used // 2, 'LesionVoxelsUsed': used}
            info |= {'WhiteMatterDeviation': 20.0, 'WhiteMatterMedian': 300.0}
            files.write_json(anat / f'{scan}_desc-filled_T1w.json', info)
            files.write_json(
                folder / subject / 'log' / '20260101-000000_x' / f'time-{scan}_T1w.json', {'seconds': 31.5}
            )
        status = {'participant_id': subject, 'status': 'filled', 'message': None}
        files.write_json(folder / subject / 'log' / '20260101-000000_x' / 'status.json', status)
        files.write_bytes(folder / f'{subject}.html', b'a report')
        statuses.append(status)
    files.write_tsv(folder / 'participants.tsv', statuses, ('participant_id', 'status', 'message'))


def seconds_to_load(page, work_dir):
    """Return seconds until a page is loaded and drawn once in headless Chromium; None without one."""
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if chromium is None:
        return None
    timed = page.with_name('timed.html')
    timed.write_text(page.read_text().replace('</body>', f'{LOADED}</body>'))
    command = [chromium, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={work_dir / "profile"}']
    command += ['--dump-dom', timed.resolve().as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    return float(re.search(r'<pre id="seen">(.*?)</pre>', dom)[1])


def main():
    """Make the study unless it is there, build the page, open it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--participants', type=int, default=200)
    parser.add_argument('--sessions', type=int, default=2)
    options = parser.parse_args()
    folder = options.work_dir / f'study_{options.participants}_{options.sessions}'
    if not (folder / 'participants.tsv').is_file():
        make_study(folder, options.participants, options.sessions)
    started, cpu = time.monotonic(), time.process_time()
    group = SimpleNamespace(output_dir=folder, bids_dir=folder / 'no_data', version='benchmark', command='benchmark')
    rows = study.write(group)
    result = {'rows': rows, 'seconds_to_build': round(time.monotonic() - started, 2)}
    result['cpu_seconds_to_build'] = round(time.process_time() - cpu, 2)
    result['page_mb'] = round((folder / 'index.html').stat().st_size / 1e6, 2)
    result['peak_memory_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result['seconds_to_load'] = seconds_to_load(folder / 'index.html', options.work_dir)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
