#!/usr/bin/env python3
"""Write the lock files of the image: each package with its version and the SHA-256 of its file.

    python3.11 container/lock.py

pip resolves what pyproject.toml asks for within constraints.txt, wherever it is configured to look (TORCH_INDEX: one
more place, where PyTorch's CPU wheels are); only names, versions and hashes are written, no addresses. Three files:
`requirements.lock` is in every image; `torch-cpu.lock` or `torch-cuda.lock` comes with it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import tomllib

HERE = Path(__file__).parent
ROOT = HERE.parent
PYTHON, MACHINE = (3, 11), 'x86_64'  # of the image
EXTRAS = ('thickness', 'cluster', 'train', 'evaluate')  # all that is for users
# What comes with torch, and setuptools, which torch needs and the few packages without wheels are built with.
WITH_TORCH = re.compile(r'torch|triton|setuptools|nvidia-|cuda-')


def torch_builds(constraints):
    """The requirement of each build: the CPU build has a local version, and `===` takes only the one without."""
    version = re.search(r'^torch==([\d.]+)$', constraints, re.MULTILINE)[1]
    return {'cpu': f'torch=={version}+cpu', 'cuda': f'torch==={version}'}


def resolve(pip, requirements):
    """What pip would install: dict of name -> (version, SHA-256)."""
    index = ['--extra-index-url', os.environ['TORCH_INDEX']] if os.environ.get('TORCH_INDEX') else []
    options = ['--dry-run', '--ignore-installed', '--quiet', '--constraint', ROOT / 'constraints.txt', *index]
    with tempfile.NamedTemporaryFile() as report:
        subprocess.run([pip, 'install', *options, '--report', report.name, *requirements], check=True)
        packages = json.load(report)['install']
    return {
        re.sub(r'[-_.]+', '-', package['metadata']['name']).lower(): (
            package['metadata']['version'],
            package['download_info']['archive_info']['hashes']['sha256'],
        )
        for package in packages
    }


def lock(packages):
    """The text of a lock file. `===` for torch: its version without `+` would also mean the CPU build."""
    lines = ['# Written by `make lock`; do not edit.']
    for name, (version, sha256) in sorted(packages.items()):
        lines.append(f'{name}{"===" if name == "torch" else "=="}{version} --hash=sha256:{sha256}')
    return '\n'.join(lines) + '\n'


def main():
    if sys.version_info[:2] != PYTHON or os.uname().machine != MACHINE:
        sys.exit(f'the image has Python {PYTHON[0]}.{PYTHON[1]} on {MACHINE}: run this with the same')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    extras = project['optional-dependencies']
    requirements = project['dependencies'] + [name for extra in EXTRAS for name in extras[extra]]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = Path(folder) / 'bin' / 'pip'
        subprocess.run([pip, 'install', '--quiet', '--upgrade', 'pip'], check=True)  # a recent one downloads less
        for build, torch in torch_builds((ROOT / 'constraints.txt').read_text()).items():
            packages = resolve(pip, [torch, *requirements])
            with_torch = {name: pin for name, pin in packages.items() if WITH_TORCH.match(name)}
            rest = {name: pin for name, pin in packages.items() if name not in with_torch}
            (HERE / f'torch-{build}.lock').write_text(lock(with_torch))
            if build == 'cpu':
                (HERE / 'requirements.lock').write_text(lock(rest))
            elif lock(rest) != (HERE / 'requirements.lock').read_text():
                sys.exit(f'the {build} build needs other packages besides torch: {rest}')


if __name__ == '__main__':
    main()
