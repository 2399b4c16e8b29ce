"""What a participant run costs in seconds and memory, and what it is spent on: `speed.md`.

    python benchmarks/speed.py BIDS_DIR --work-dir WORK [--only SECTION ...]
    python benchmarks/speed.py --training-slices N     (of 256x256; a slab of the plan has 16. On a GPU if there is one)

BIDS_DIR is the Ljubljana database. Every run of the app is a process of its own, with start-up, index, filling and
report in it. What is compared was measured in one go, so leave the machine alone. Sections that are done are kept in
WORK, and not done again.
"""

import argparse
import copy
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LABELS = ('07', '26', '19')
ORDINARY = '26'
N_PARTICIPANTS = 10
THESIS_STEPS = 50
SLAB_SLICES = 16
REPEATS = 2  # the fastest counts: other work on the machine only adds

SLAB = """
import time, torch
from bids_lesionfill import train
with torch.no_grad():
    network = train.PLANS['thesis-3d-mixture'].build_unet().eval()
    slab = torch.zeros(1, 3, 16, 256, 256)
    started = time.monotonic()
    network(slab, torch.tensor([999]))
print(time.monotonic() - started)
"""

TRAINING = """
import sys, time, torch
from bids_lesionfill import diffusion, train
n_slices, device = int(sys.argv[1]), 'cuda' if torch.cuda.is_available() else 'cpu'
plan = train.PLANS['thesis-3d-mixture']
network, scheduler = plan.build_unet().to(device), plan.build_scheduler()
optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate)
slab = torch.zeros(1, 1, n_slices, 256, 256)
batch = [part.to(device) for part in (slab, torch.cat([slab, slab], dim=1), torch.ones_like(slab))]
for update in range(2 if device == 'cpu' else 12):
    started = time.monotonic()
    with torch.autocast(device, torch.float16, enabled=device == 'cuda'):
        losses, _ = train.train_step(network, batch, scheduler, plan, update)
    losses.mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.tolist()  # waits for the device
print(device, time.monotonic() - started)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path, nargs='?')
    parser.add_argument('--work-dir', type=Path)
    parser.add_argument('--only', nargs='+', choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument('--training-slices', type=int)
    options = parser.parse_args()
    if options.training_slices:
        return print_training_cost(options.training_slices)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        kept = options.work_dir / f'{name}.json'
        if not kept.is_file():
            rows = SECTIONS[name][1](options)
            kept.write_text(json.dumps(rows))
        print(name, kept.read_text(), flush=True)
    where = f'{os.cpu_count()} cores ({processor()})'
    parts = [f'# Speed and memory\n\nWritten by `speed.py`, which says how, on {where}.\n']
    for name, (title, _) in SECTIONS.items():
        kept = options.work_dir / f'{name}.json'
        if kept.is_file():
            parts.append(f'## {title}\n\n{table(json.loads(kept.read_text()))}')
    (Path(__file__).with_suffix('.md')).write_text('\n'.join(parts))


def processor():
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), 'unknown')


def table(rows):
    """Rows (dicts with the same keys) as Markdown."""
    lines = [list(rows[0]), ['---'] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines) + '\n'


def cell(value):
    return f'{value:.3g}' if isinstance(value, float) else value


# Runs of the app


def run(command):
    """A command's output, and its wall seconds, CPU seconds and peak memory in GB, of itself and its children."""
    usage_before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    timed = [sys.executable, '-c', CHILD, *map(str, command)]
    result = subprocess.run(timed, capture_output=True, text=True, check=True, cwd=ROOT)
    wall, usage = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime - usage_before.ru_utime - usage_before.ru_stime
    peak = float(result.stdout.splitlines()[-1])
    return result.stdout + result.stderr, {'wall s': wall, 'CPU s': cpu, 'peak GB': peak}


# The peak of a process is that of its largest child since it started, so each run gets a parent of its own.
CHILD = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6)
"""


def run_app(bids_dir, *arguments):
    """Fill a dataset into a folder that is thrown away; cost, and the sidecars of what was filled."""
    with tempfile.TemporaryDirectory() as out:
        _, cost = run([sys.executable, 'run.py', bids_dir, out, 'participant', *map(str, arguments)])
        sidecars = [json.loads(path.read_text()) for path in Path(out).rglob('*_desc-filled_T1w.json')]
    return cost, sidecars


def by_load(options):
    rows = []
    for label in LABELS:
        cost, (info,) = run_app(options.bids_dir, '--participant-label', label)
        rows.append({'participant': f'sub-{label}', 'lesions': info['Lesions'],
                     'ml filled': info['LesionVoxelsUsed'] / 1000, **cost})  # fmt: skip
    return rows


def by_steps(options):
    return [
        {'steps': n, **run_app(options.bids_dir, '--participant-label', ORDINARY, '--num-inference-steps', n)[0]}
        for n in (1, 5, 20)
    ]


def by_threads(options):
    return [
        {'threads': n, **run_app(options.bids_dir, '--participant-label', ORDINARY, '--omp-nthreads', n)[0]}
        for n in (1, 2)
    ]


def by_processes(options):
    """Ten participants: copies of the three, under other names."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy_participants(options.bids_dir, Path(folder))
        for n_procs in (1, 2):
            cost, sidecars = run_app(folder, '--nprocs', n_procs, '--skip-bids-validation')
            rows.append({'participants': len(sidecars), '--nprocs': n_procs, **cost})
    for row in rows:
        row['times faster than with 1'] = rows[0]['wall s'] / row['wall s']
    return rows


def copy_participants(bids_dir, target):
    """T1w images and masks of `N_PARTICIPANTS` participants."""
    shutil.copy(bids_dir / 'dataset_description.json', target)
    masks = bids_dir / 'derivatives'
    for description in masks.glob('*/dataset_description.json'):
        copy = target / description.relative_to(bids_dir)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(description, copy)
    for number in range(N_PARTICIPANTS):
        source = f'sub-{LABELS[number % len(LABELS)]}'
        for path in [*bids_dir.glob(f'{source}/**/*_T1w.*'), *masks.glob(f'*/{source}/**/*_mask.*')]:
            copy = target / str(path.relative_to(bids_dir)).replace(source, f'sub-{number:02d}')
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def start_up(options):
    """Until the first participant's work starts, by the app's own log; and what answers at once."""
    rows = []
    for what in ('--version', '--help'):
        cost = min((run([sys.executable, 'run.py', what])[1] for _ in range(REPEATS)), key=lambda cost: cost['wall s'])
        rows.append({'what': what, 'wall s': cost['wall s'], 'CPU s': cost['CPU s']})
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, 'run.py', options.bids_dir, out, 'participant', '--participant-label', ORDINARY]
        for name, more in (('first participant starts', ['--skip-bids-validation']), ('same, after validation', [])):
            started = time.monotonic()
            process = subprocess.Popen([*command, *more], cwd=ROOT, stderr=subprocess.PIPE, text=True)
            next(line for line in process.stderr if '(1 of 1' in line)
            wall = time.monotonic() - started
            process.kill()
            _, _, usage = os.wait4(process.pid, 0)
            rows.append({'what': name, 'wall s': wall, 'CPU s': usage.ru_utime + usage.ru_stime})
    return rows


# Inside a run


def look_at(bids_dir, label):
    """What a run hands to the sampler: normalised image, hole and white matter, on the working grid."""
    from bids_lesionfill.images import anatomy, grid, nifti, placement
    from bids_lesionfill.images import masks as images_masks
    from bids_lesionfill.lesions import contrasts

    img = nib.load(next(bids_dir.glob(f'sub-{label}/**/*_T1w.nii.gz')))
    mask_img = nib.load(next(bids_dir.glob(f'derivatives/*/sub-{label}/**/*_mask.nii.gz')))
    grid_img = grid.conform(nifti.plain(img, 'image'))
    image, given = grid_img.get_fdata(dtype=np.float32), placement.mask_on_grid(mask_img, grid_img)
    brain_mask, wm_mask, _ = anatomy.find_white_matter(image, given, grid_img)
    hole = images_masks.dilate_within(images_masks.restrict_to_white_matter(given, wm_mask), wm_mask, 1)
    hole = contrasts.grow_to_rim(image, hole, wm_mask, 2)
    return grid.white_matter_scaling(image, wm_mask & ~hole).apply(image), hole, wm_mask


def seconds(function, *arguments):
    """CPU seconds of all threads, the least of some calls; and the wall seconds of that call."""
    times = []
    for _ in range(REPEATS):
        started, cpu = time.monotonic(), time.process_time()
        function(*arguments)
        times.append((time.process_time() - cpu, time.monotonic() - started))
    return min(times)


def by_covered_voxels(options):
    """The sampler alone: does its time grow with what the tiles cover?"""
    from bids_lesionfill.diffusion import forms, inpaint, models
    from bids_lesionfill.diffusion import tiles as diffusion_tiles

    model, rows = models.load_model('fill-T1w', 'cpu'), []
    for label in LABELS:
        image, hole, wm_mask = look_at(options.bids_dir, label)
        n_tiles = len(diffusion_tiles.plan_tiles(np.pad(hole, 32), np.array(model.tile)))
        cpu, wall = seconds(inpaint.fill_volume, image, hole, wm_mask, model, 1, [0])
        base_cpu, _ = seconds(forms.condition, image, hole, wm_mask, model.form)
        rows.append({'participant': f'sub-{label}', 'ml': float(hole.sum() / 1000), 'tiles': n_tiles,
                     'base and channels, CPU s': base_cpu, 'one step, CPU s': cpu - base_cpu,
                     'CPU ms per tile': 1000 * (cpu - base_cpu) / n_tiles})  # fmt: skip
    return rows


def by_tile(options):
    from bids_lesionfill.diffusion import inpaint, models
    from bids_lesionfill.diffusion import tiles as diffusion_tiles

    model, rows = models.load_model('fill-T1w', 'cpu'), []
    image, hole, wm_mask = look_at(options.bids_dir, ORDINARY)
    for tile, batch_size in ((model.tile, 1), (model.tile, 8), (model.tile, 32), ((32, 32, 16), 8), ((48, 48, 24), 4)):
        own = replace(model, tile=tile)
        n_tiles = len(diffusion_tiles.plan_tiles(np.pad(hole, 64), np.array(tile)))
        cpu, wall = seconds(inpaint.fill_volume, image, hole, wm_mask, own, 1, [0], 'cpu', batch_size)
        rows.append({'tile': 'x'.join(map(str, tile)), 'tiles at once': batch_size, 'tiles': n_tiles,
                     'CPU s': cpu, 'wall s': wall})  # fmt: skip
    return rows


def peers(options):
    """Fillers on one image and mask; the thesis' own way from one pass, extrapolated."""
    from bids_lesionfill.diffusion import classical, inpaint, models

    image, hole, wm_mask = look_at(options.bids_dir, ORDINARY)
    model, rng = models.load_model('fill-T1w', 'cpu'), np.random.default_rng(0)
    ways = {
        'fill-T1w, 1 step (default)': lambda: inpaint.fill_volume(image, hole, wm_mask, model, 1, [0]),
        'fill-T1w, 5 steps': lambda: inpaint.fill_volume(image, hole, wm_mask, model, 5, [0]),
        'biharmonic': lambda: classical.biharmonic(image, hole),
        'membrane': lambda: classical.membrane(image, hole),
        "ANTs' rule": lambda: classical.ants_rule(image, hole, wm_mask, rng),
        'local white matter, mean': lambda: classical.local_white_matter(image, hole, wm_mask),
    }
    rows = []
    for name, way in ways.items():
        cpu, wall = seconds(way)
        rows.append({'filler': name, 'CPU s': cpu, 'wall s': wall})
    output, cost = run([sys.executable, '-c', SLAB])
    slices = np.flatnonzero(hole.any(axis=(0, 1)))
    n_slabs = -(-(slices[-1] + 1 - slices[0]) // SLAB_SLICES)
    wall = float(output.split()[0])
    rows.append({'filler': f"the thesis' network, {THESIS_STEPS} steps on {n_slabs} slabs of {SLAB_SLICES} slices of "
                 f'256x256: extrapolated from one pass ({wall:.0f} s, {cost["peak GB"]:.1f} GB)',
                 'CPU s': cost['CPU s'] * n_slabs * THESIS_STEPS, 'wall s': wall * n_slabs * THESIS_STEPS})  # fmt: skip
    for row in rows:
        row['times fill-T1w'] = row['CPU s'] / rows[0]['CPU s']
    return rows


def backends(options):
    """The network alone, on a batch of tiles and one thread, by what might be faster; how far the answers differ."""
    import torch

    from bids_lesionfill.diffusion import models

    torch.set_num_threads(1)
    model = models.load_model('fill-T1w', 'cpu')
    height, width, depth = model.tile
    tiles = torch.randn(8, model.unet.config.in_channels, depth, height, width, generator=torch.manual_seed(0))
    times = torch.full((8,), 999)
    rows = []
    with torch.no_grad():
        expected = model.unet(tiles, times)
        for name, network in networks(model.unet, tiles, times):
            answer = torch.as_tensor(network(tiles, times))
            cpu, _ = seconds(network, tiles, times)
            difference = float((answer - expected).abs().max())
            rows.append({'network': name, 'CPU s': cpu, 'largest difference': difference})
    for row in rows:
        row['times faster'] = rows[0]['CPU s'] / row['CPU s']
    return rows


def networks(unet, tiles, times):
    """Names and functions; ONNX Runtime and OpenVINO if they and onnx are installed, which the app does not need."""
    import torch

    yield 'as it is', unet
    yield 'contiguous, not channels last', copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
    yield 'torch.compile', torch.compile(unet)
    with torch.autocast('cpu', torch.bfloat16):
        yield 'bfloat16', lambda *inputs: unet(*inputs).float()
    try:
        import onnxruntime
        import openvino
    except ImportError:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = f'{folder}/network.onnx'
        torch.onnx.export(unet, (tiles, times), file, dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options)
        names = [node.name for node in session.get_inputs()]
        yield 'ONNX Runtime', lambda *inputs: session.run(None, dict(zip(names, (i.numpy() for i in inputs))))[0]
        compiled = openvino.Core().compile_model(file, 'CPU', {'INFERENCE_NUM_THREADS': 1})
        yield 'OpenVINO', lambda *inputs: next(iter(compiled([i.numpy() for i in inputs]).values()))


def print_training_cost(n_slices):
    """What 1000 updates of the thesis' plan take, from the last of a few updates of a slab of `n_slices`."""
    output, cost = run([sys.executable, '-c', TRAINING, str(n_slices)])
    device, one = output.split()[:2]
    hours = float(one) * 1000 * SLAB_SLICES / n_slices / 3600
    print(f'{device}: {float(one):.1f} s per update of {n_slices} slices, {cost["peak GB"]:.1f} GB of memory; ')
    print(f'{hours:.1f} h per 1000 updates of {SLAB_SLICES} slices, if slices cost the same in a larger slab')


SECTIONS = {
    'start_up': ('Start-up', start_up),
    'loads': ('By lesion load', by_load),
    'steps': ('By steps, sub-26', by_steps),
    'threads': ('By threads, sub-26', by_threads),
    'processes': ('Several participants at once', by_processes),
    'covered': ('The sampler alone, by what its tiles cover', by_covered_voxels),
    'tiles': ('The sampler alone, by size and number of tiles, one step, sub-26', by_tile),
    'peers': ('Peers on the same image and mask, sub-26', peers),
    'backends': ('The network alone, 8 tiles', backends),
}


if __name__ == '__main__':
    main()
