"""Programs that behave as segmenters of others do, by their documentation and code, on images of the phantom.

Lesions of its FLAIR are brighter than all else; those of its T1w are told from grey matter by their number alone.
Each call is noted in the file that FAKE_CALLS names. What a real program wants and is not given ends a fake, too.
"""

import os
import sys
from pathlib import Path

START = """#!{python}
import argparse, json, os, pathlib, sys, time, urllib.request
import numpy as np
import nibabel as nib

with open(os.environ['FAKE_CALLS'], 'a') as file:
    file.write(' '.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + '\\n')

def load(path):
    assert str(path).endswith('.nii.gz'), 'Please provide a zipped nifti.'
    return nib.load(path)

def lesions(img, is_flair):
    values = img.get_fdata()
    return values > 500 if is_flair else (values > 525) & (values < 575)

def save(labels, img, path, make=nib.Nifti1Image):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(make(labels.astype(np.uint8 if make is nib.Nifti1Image else np.int32), img.affine), path)

parser = argparse.ArgumentParser()
"""

# CompImg/LST-AI: LST_AI/lst, LST_AI/utils.py
LST = """
for name in ('t1', 'flair', 'output'):
    parser.add_argument(f'--{name}', required=True)
for name in ('existing_seg', 'temp'):
    parser.add_argument(f'--{name}', default='')
for name in ('segment_only', 'annotate_only', 'stripped', 'fast-mode', 'probability_map'):
    parser.add_argument(f'--{name}', action='store_true')
parser.add_argument('--threshold', type=float, default=0.5)
parser.add_argument('--device', default='0')
parser.add_argument('--threads', type=int)
args = parser.parse_args()
data = pathlib.Path(os.environ.get('LST_AI_DATA_DIR', pathlib.Path(sys.argv[0]).parent))
if not all((data / part).exists() for part in ('atlas', 'model')):
    print('Downloading data...', flush=True)
    urllib.request.urlopen('https://example.org/lst_data.zip', timeout=20)
assert args.device == 'cpu', 'no GPU here'
if 'FAKE_FAILS' in os.environ and load(args.t1).shape[0] == int(os.environ['FAKE_FAILS']):
    print('Registering ...\\nCUDA error: the fake was told to fail')
    sys.exit(3)
if 'FAKE_SLEEPS' in os.environ:
    time.sleep(float(os.environ['FAKE_SLEEPS']))
load(args.t1)
flair = load(args.flair)
pathlib.Path(args.temp).mkdir(exist_ok=True)
found = lesions(flair, True)
save(found, flair, pathlib.Path(args.output, os.environ.get('FAKE_LST_NAME', 'space-flair_seg-lst.nii.gz')))
print('Done.')
"""

# MS-PINPOINT/mindGlide: inference/mindglide/infer.py
MINDGLIDE = """
parser.add_argument('-i', required=True)
parser.add_argument('-o', required=True)
parser.add_argument('--model_path', '--model-path')
parser.add_argument('--device', choices=['auto', 'cpu', 'cuda', 'mps'], default='auto')
parser.add_argument('--version', action='version', version='mindglide 1.2.0')
args = parser.parse_args()
if args.model_path is None and os.environ.get('HF_HUB_OFFLINE') == '1':
    sys.exit('Error: could not download the MindGlide model weights (~123 MB) from the\\nHugging Face Hub')
img = load(args.i)
found = lesions(img, 'FLAIR' in args.i)
save(np.where(found, 18, 13 * (img.get_fdata() > 0)), img, args.o)
"""

# freesurfer/samseg: samseg/cli/run_samseg.py, samseg/Samseg.py
SAMSEG = """
parser.add_argument('-o', '--output', required=True)
parser.add_argument('-i', '--input', nargs='+', action='extend', required=True)
parser.add_argument('--threads', type=int, default=1)
parser.add_argument('--lesion', action='store_true')
parser.add_argument('--lesion-mask-pattern', type=int, nargs='+')
parser.add_argument('--pallidum-separate', action='store_true')
parser.add_argument('--threshold', type=float, default=0.3)
args = parser.parse_args()
imgs = [load(path) for path in args.input]
if len(args.lesion_mask_pattern or ()) != len(imgs):
    raise ValueError('Number of lesion mask patterns does not match the number of input images.')
assert all(img.shape == imgs[0].shape and np.allclose(img.affine, imgs[0].affine, atol=1e-3) for img in imgs)
brain = np.where(imgs[0].get_fdata() > 0, 2, 0)
found = lesions(imgs[-1], 'FLAIR' in args.input[-1]) & args.lesion
save(np.where(found, 99, brain), imgs[0], pathlib.Path(args.output, 'seg.mgz'), nib.MGHImage)
pathlib.Path(args.output, 'samseg.stats').write_text('# Measure Lesions, 1.0, mm^3\\n')
"""

# MIC-DKFZ/nnUNet: nnunetv2/inference/predict_from_raw_data.py
NNUNET = """
for name in ('-i', '-o', '-m'):
    parser.add_argument(name, required=True)
parser.add_argument('-f', nargs='+', default=(0, 1, 2, 3, 4))
parser.add_argument('-device', default='cuda')
parser.add_argument('-npp', type=int, default=3)
parser.add_argument('-nps', type=int, default=3)
args = parser.parse_args()
assert args.device == 'cpu', 'no GPU here'
model, given = pathlib.Path(args.m), sorted(pathlib.Path(args.i).iterdir())
about = json.loads((model / 'dataset.json').read_text())
assert all((model / f'fold_{fold}').is_dir() for fold in args.f), 'a fold is not there'
assert [path.name[-12:] for path in given] == [f'_{n:04d}.nii.gz' for n in range(len(about['channel_names']))], given
imgs = [load(path) for path in given]
assert all(img.shape == imgs[0].shape and np.allclose(img.affine, imgs[0].affine, atol=1e-3) for img in imgs)
flair = [*about['channel_names'].values()].index('FLAIR')
found = about['labels']['lesion'] * lesions(imgs[flair], True)
save(found, imgs[0], pathlib.Path(args.o, given[0].name.replace('_0000', '')))
"""

# `docker run`, `apptainer run`: what comes after the name of the image goes to its entry point, and only the folder
# that is bound is seen.
BOX = """#!{python}
import os, sys
assert sys.argv[1] == '--bind', sys.argv
given = sys.argv[4:]
if any(word.startswith('/') and not word.startswith(sys.argv[2]) for word in given):
    sys.exit('box: a path that is not bound')
os.execv(os.path.join(os.path.dirname(sys.argv[0]), sys.argv[3]), [sys.argv[3], *given])
"""

PROGRAMS = {
    'lst': START + LST,
    'mindglide': START + MINDGLIDE,
    'run_samseg': START + SAMSEG,
    'nnUNetv2_predict_from_modelfolder': START + NNUNET,
    'box': BOX,
}


def install(folder, monkeypatch, names=PROGRAMS):
    """Put fakes into a folder at the head of PATH; the file in which their calls are noted."""
    folder.mkdir(exist_ok=True)
    for name in names:
        write_program(folder / name, PROGRAMS[name])
    for part in ('atlas', 'model'):
        (folder / part).mkdir(exist_ok=True)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    calls = folder / 'calls.txt'
    calls.touch()
    monkeypatch.setenv('FAKE_CALLS', str(calls))
    return calls


def write_program(path, text):
    """Write a script that this Python runs."""
    Path(path).write_text(text.replace('{python}', sys.executable, 1))
    Path(path).chmod(0o755)


def calls_in(calls):
    """What the fakes were called with, without the trials: list of list of words."""
    lines = [line.split() for line in calls.read_text().splitlines()]
    return [words for words in lines if words[-1] not in ('--help', '--version')]
