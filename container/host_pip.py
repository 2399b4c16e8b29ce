#!/usr/bin/env python3
"""Let `buildah build` use pip as it is configured here: print the mounts, write the pip.conf that is mounted.

    python3 container/host_pip.py FOLDER

Indexes and wheels that lie on this machine's disk are mounted, read-only, where they are; certificates as one file.
Nothing of it enters the Dockerfile or the repository.
"""

import re
import subprocess
import sys
from pathlib import Path

# pip's names of settings that say where packages are, and how many folders above it belong to it.
PLACES = {'index-url': 1, 'extra-index-url': 1, 'find-links': 0}
CERTIFICATES = '/run/host-certificates.crt'


def settings(config_list):
    """Settings from the lines of `pip config list`, dict; the environment comes before the files."""
    found = {}
    for origin, name, value in re.findall(r"^(:env:|global|install|user)\.([\w-]+)='(.*)'$", config_list, re.MULTILINE):
        if origin == ':env:' or name not in found:
            found[name] = value.replace('\\n', ' ')
    return found


def mounts(found):
    """Folders on this disk that the settings name, each mounted where it is."""
    folders = set()
    for name, above in PLACES.items():
        for place in found.get(name, '').split():
            path = Path(place.removeprefix('file://'))
            if path.is_absolute():
                folders.add(path.parents[above - 1] if above else path)
    return [f'{folder}:{folder}:ro' for folder in sorted(folders)]


def main():
    folder = Path(sys.argv[1]).resolve()
    pip = [sys.executable, '-m', 'pip', 'config', 'list']
    found = settings(subprocess.run(pip, capture_output=True, text=True, check=True).stdout)
    lines = ['[global]'] + [f'{name} = {found[name]}' for name in PLACES if name in found]
    volumes = mounts(found)
    if 'cert' in found:
        volumes.append(f'{found["cert"]}:{CERTIFICATES}:ro')
        lines.append(f'cert = {CERTIFICATES}')
    (folder / 'pip.conf').write_text('\n'.join(lines) + '\n')
    for volume in [f'{folder / "pip.conf"}:/etc/pip.conf:ro', *volumes]:
        print('--volume', volume, sep='\n')


if __name__ == '__main__':
    main()
