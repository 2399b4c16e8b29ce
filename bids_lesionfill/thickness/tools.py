"""What engines that call other programs share: nipype without a network, and results in folders of derivatives."""

import importlib
import os


def nipype_interface(module, name):
    """An interface class of nipype; it would ask for its newest version over the network, which is forbidden here."""
    os.environ['NO_ET'] = '1'
    return getattr(importlib.import_module(f'nipype.interfaces.{module}'), name)


def find_results(roots, subject, desc, filename):
    """A file of another tool's results on one image.

    Parameters
    ----------
    roots : sequence of Path
        Folders of the tool, each with a folder per image.
    subject : str
        sub-01 or sub-01_ses-1.
    desc : {'original', 'filled'}
        The folder of an image is `sub-01_desc-filled` or, in a root whose name says `original` or `filled`, `sub-01`.
    filename : str
        Below that folder.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        It says where it looked; or if several are there.
    """
    folders = [root / f'{subject}_desc-{desc}' for root in roots]
    folders += [root / subject for root in roots if desc in root.name]
    if desc == 'original':  # a tool that was run on the raw dataset knows nothing of desc
        folders += [root / subject for root in roots if 'filled' not in root.name and desc not in root.name]
    found = [folder / filename for folder in folders if (folder / filename).is_file()]
    if len(found) > 1:
        raise FileNotFoundError(
            f'{len(found)} files for {subject} ({desc}): {", ".join(map(str, found))}; expected one'
        )
    if not found:
        looked = ', '.join(str(folder / filename) for folder in folders) or 'no folder: give one with --derivatives'
        raise FileNotFoundError(f'{filename} of {subject} ({desc}) is not there; looked at {looked}')
    return found[0]
