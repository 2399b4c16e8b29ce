"""Wall time and peak memory of a participant run, and of the thesis-size network on one slab.

    python benchmarks/cost.py BIDS_DIR LABEL [LABEL ...]

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


def run(command):
    """Seconds, peak memory in GB and output of a command."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu, usage.ru_maxrss / 1e6, result.stdout


def main():
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
