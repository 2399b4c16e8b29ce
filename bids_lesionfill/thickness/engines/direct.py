"""DiReCT in a process of its own: the call holds Python for minutes; no bar could move, no Ctrl-C would end it.

python -m bids_lesionfill.thickness.direct FOLDER    # run by `estimate`
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...images import syn

PACKAGES = Path(__file__).resolve().parents[3]
ITERATION = re.compile(r'Iteration (\d+) \(of \d+\)')


def estimate(
    labels: np.ndarray,
    grey: np.ndarray,
    white: np.ndarray,
    n_iterations: int,
    step: float,
    n_points: int,
    smoothing: float,
    work_dir: Path | None = None,
    report: Callable[..., Any] | None = None,
) -> np.ndarray:
    """Estimate thickness between white and pial surface (Das et al. 2009; `ants.kelly_kapowski`).

    Parameters
    ----------
    labels : (X, Y, Z) array
        2 grey matter, 3 white matter.
    grey, white : (X, Y, Z) float array
        Share of each in a voxel.
    n_iterations : int
    step : float
        Of the gradient descent.
    n_points : int
        Integration points of the velocity.
    smoothing : float
        Variance of the Gaussian that smooths the velocity, in voxels.
    work_dir : path, optional
        For temporary files.
    report : callable, optional
        Called with iterations done and all iterations.

    Returns
    -------
    (X, Y, Z) float32 array, voxels; zero outside grey matter

    Raises
    ------
    RuntimeError
        If it failed; with the last words of the process.
    """
    with tempfile.TemporaryDirectory(dir=work_dir, prefix='direct') as folder:
        options = np.array([n_iterations, step, n_points, smoothing])
        np.savez(Path(folder) / 'in.npz', labels=labels, grey=grey, white=white, options=options)
        with start(folder) as process:
            try:
                last_words = follow(process.stdout, n_iterations, report)
            except BaseException:  # Ctrl-C
                process.kill()
                raise
        if process.returncode:
            raise RuntimeError(f'DiReCT ended with {process.returncode}: {last_words}')
        return np.load(Path(folder) / 'out.npy')


def start(folder: str | Path) -> Any:
    """Start the subprocess that works on a folder; its log can be read from its `stdout`."""
    paths = filter(None, [str(PACKAGES), os.environ.get('PYTHONPATH')])
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(paths)}
    command = [sys.executable, '-m', __name__, str(folder)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding='utf-8',
        errors='replace',
        cwd=folder,
        env=environment,
    )


def follow(lines: Iterable[str], n_iterations: int, report: Callable[..., Any] | None) -> str:
    """Read what the process says, report its iterations, return the last 300 characters."""
    text = ''
    for line in lines:
        text = (text + line)[-300:]
        iteration = ITERATION.search(line)
        if iteration and report:
            report(int(iteration[1]), n_iterations)
    return text


def main(folder: Path) -> None:
    """Run the subprocess: read volumes from the folder, write thickness into it."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # its next word ends it when nobody listens: its parent was killed
    ants = syn.import_ants()
    with np.load(folder / 'in.npz') as arrays:
        volumes = [ants.from_numpy(np.ascontiguousarray(arrays[n], np.float32)) for n in ('labels', 'grey', 'white')]
        n_iterations, step, n_points, smoothing = arrays['options'].tolist()
    thickness = ants.kelly_kapowski(*volumes, its=int(n_iterations), r=step, n=int(n_points), m=smoothing, v=1)
    np.save(folder / 'out.npy', thickness.numpy())


if __name__ == '__main__':
    main(Path(sys.argv[1]))
