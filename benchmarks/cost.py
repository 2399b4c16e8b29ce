"""Wall time and peak memory of a participant run, and of the thesis-size network: one pass, updates of its training.

    python benchmarks/cost.py BIDS_DIR LABEL [LABEL ...]
    python benchmarks/cost.py --training-slices N     (of 256x256; a slab of the plan has 16. On a GPU if there is one)

Each participant is a process of its own: start-up, index, filling and report are all in it. Prints Markdown.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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


def run(command):
    """Seconds, peak memory in GB and output of a command."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu, usage.ru_maxrss / 1e6, result.stdout


def training_cost(n_slices):
    """Print what 1000 updates of the thesis' plan take, from the last of a few updates of a slab of `n_slices`."""
    _, _, memory, output = run([sys.executable, '-c', TRAINING, str(n_slices)])
    device, seconds = output.split()[-2:]
    hours = float(seconds) * 1000 * 16 / n_slices / 3600
    print(
        f'{device}: {float(seconds):.1f} s per update of {n_slices} slices, {memory:.1f} GB of memory of the process; '
    )
    print(f'{hours:.1f} h per 1000 updates of 16 slices, if slices cost the same in a larger slab')


def main():
    if sys.argv[1] == '--training-slices':
        return training_cost(int(sys.argv[2]))
    bids_dir, labels = sys.argv[1], sys.argv[2:]
    print(f'{os.cpu_count()} cores\n\n| what | wall s | CPU s | peak memory GB (largest so far) |\n|---|---|---|---|')
    for label in labels:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, 'run.py', bids_dir, out, 'participant', '--participant-label', label]
            wall, cpu, memory, _ = run(command)
        print(f'| {label} | {wall:.0f} | {cpu:.0f} | {memory:.2f} |', flush=True)
    _, cpu, memory, seconds = run([sys.executable, '-c', SLAB])
    print(
        f'| thesis-size network, one pass on 16 slices of 256x256 | {float(seconds):.0f} | {cpu:.0f} | {memory:.2f} |'
    )


if __name__ == '__main__':
    main()
