"""What the checks of a report find in real patients: false alarms and misses.

    python benchmarks/report_checks.py VALUES.tsv BIDS_DIR [BIDS_DIR ...] --real NAME=REAL.tsv [NAME=REAL.tsv ...]
    python benchmarks/report_checks.py VALUES.tsv --table

Fills: values of all lesions of an image from `real.tsv` of `python -m bids_lesionfill.evaluate ... --kinds real`, which
finds white matter by other means than the app; the app's own row is called NAME. Classical fillers filled the mask of
the first. Real tissue: untouched white matter in the shape of the mask, moved by 12 mm. Masks: as they are, moved by
10 mm sideways and to the front, and flipped left to right. Values that are in the file are not measured again. With
--table the values are held against the limits of `lesions.checks` and counted, as Markdown.
"""

import argparse
import csv
import itertools
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_lesionfill import text_files
from bids_lesionfill.images import anatomy, grid, masks, nifti
from bids_lesionfill.layout import datasets, naming
from bids_lesionfill.lesions import checks, fill, measures, tables
from bids_lesionfill.lesions.records import FillRecord
from bids_lesionfill.modality import get

COLUMNS = ('image', 'kind', 'name', 'grain', 'glow', 'wall', 'outline', 'step', 'step_moved', 'faint')
REAL = ('real tissue, 12 mm to the right', 'real tissue, 12 mm to the front')
KEYS = {
    'grain': 'fill_grain',
    'glow': 'fill_glow',
    'wall': 'fill_wall',
    'step': 'mask_step',
    'step_moved': 'mask_step_moved',
}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('values', type=Path)
    parser.add_argument('bids_dirs', nargs='*')
    parser.add_argument('--real', nargs='+', default=[], metavar='NAME=FILE')
    parser.add_argument('--table', action='store_true')
    options = parser.parse_args(argv)
    rows = read(options.values)
    if options.table:
        return print_tables(rows)
    done = {(row['image'], row['kind'], row['name']) for row in rows}
    tables_of_fills = dict(entry.split('=', 1) for entry in options.real)
    with open(options.values, 'a', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter='\t', restval='n/a', lineterminator='\n')
        if not rows:
            writer.writeheader()
        for row in itertools.chain(fills(tables_of_fills, done), measured(options.bids_dirs, done)):
            writer.writerow({key: f'{v:.4f}' if isinstance(v, float) else v for key, v in row.items() if v == v})
            file.flush()


def read(path):
    """Return the rows of a file of values; none if there is no file."""
    if not path.is_file():
        return []
    with open(path, encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    words = ('image', 'kind', 'name')
    return [
        {key: v if key in words else float('nan') if v == 'n/a' else float(v) for key, v in row.items()} for row in rows
    ]


def fills(tables_of_fills, done):
    """Generate rows of values of fills from the tables of `evaluate`."""
    names = {'grain': 'grain_inside', 'glow': 'glow', 'wall': 'wall_steepness', 'outline': 'outline_sd'}
    for number, (version, path) in enumerate(tables_of_fills.items()):
        for row in text_files.read_tsv(Path(path)):
            if row['group'] == 'all' and (number == 0 or row['family'] == 'model'):
                image, name = f'{row["subject"]}_{row["modality"]}', row['method']
                key = image, 'fill', version if row['family'] == 'model' else name
                values = {name: row[column] for name, column in names.items() if isinstance(row[column], float)}
                if row['modality'] != 'T1w':
                    values.pop('wall', None)  # the app judges no walls there
                if key not in done:
                    yield dict(zip(('image', 'kind', 'name'), key)) | values


def measured(bids_dirs, done):
    """Generate rows of values for all images."""
    by_t1w = {}
    for bids_dir in bids_dirs:
        for modality in ('T1w', 'FLAIR'):
            for _, image_file, t1w_file, mask_file in datasets.find_patients(bids_dir, modality):
                by_t1w.setdefault((t1w_file, mask_file), []).append((image_file, modality))
    for (t1w_file, mask_file), images in by_t1w.items():
        t1w_img, mask_img = nib.load(t1w_file), nib.load(mask_file)
        seen = anatomy.look_at(t1w_img, mask_img, lesion_share=fill.LESION_SHARE)
        blind = anatomy.look_again(seen, t1w_img, None, fill.LESION_SHARE)
        for image_file, modality in images:
            yield from of_image(image_file, modality, mask_img, (seen, blind), done)


def of_image(image_file, modality, mask_img, anatomies, done):
    """Generate rows of values for one image."""
    name = naming.strip_extension(Path(image_file).name)
    grid_img = grid.conform(nifti.plain(nib.load(image_file), 'image'))
    image, sign, is_t1w = grid_img.get_fdata(dtype=np.float32), get(modality).lesion_sign, modality == 'T1w'
    seen, blind = anatomies
    t1w, given = grid.resample_to(seen.grid_img, grid_img, order=3), grid.conform_mask(mask_img, grid_img)
    brain, wm_mask = anatomy.on_grid(seen, grid_img)

    def row(kind, label, values):
        return {'image': name, 'kind': kind, 'name': label} | values

    def wanted(kind, label):
        return (name, kind, label) not in done

    untouched = measures.see_untouched(t1w, brain, wm_mask, given, given)
    tissue = brain & (t1w > untouched.means[:2].mean())
    blind_wm = anatomy.on_grid(blind, grid_img)[1]
    for label, moved in moved_masks(given).items():
        if wanted('mask', label):
            yield row('mask', label, place(image, moved, tissue, wm_mask if label == 'as it is' else blind_wm, sign))
    far = untouched.white_matter & ~ndimage.binary_dilation(given, iterations=4)
    for label, axis in zip(REAL, (0, 1)):
        region = np.roll(given, 12, axis) & far
        if wanted('fill', label) and region.sum() > 300:
            real = measures.see_untouched(t1w, brain, wm_mask, given | region, given | region)
            labels = masks.label_lesions(region)[0]
            yield row('fill', label, measures.look_at(image, image, labels, real, sign, is_t1w).whole)


def moved_masks(mask):
    """Return a mask as it is, and where it does not belong, by name."""
    moved = {'moved by 10 mm sideways': np.roll(mask, 10, 0), 'moved by 10 mm to the front': np.roll(mask, 10, 1)}
    return {'as it is': mask} | moved | {'flipped left to right': mask[::-1]}


def place(image, mask, tissue, wm_mask, sign):
    """Return the steps at the border of a mask, and the share of faint lesions that was checked before 0.3.0."""
    used = masks.restrict_to_white_matter(mask, wm_mask)
    step, moved = measures.place_of_mask(image, mask & used, wm_mask, tissue, sign)
    grown = masks.dilate_within(used, wm_mask)
    faint_below = checks.FAINT_BELOW_SD * tables.deviation_of(image, wm_mask & ~grown)
    rows = tables.describe_lesions(image, image, mask, grown, wm_mask, np.eye(4), sign * image, faint_below)
    known = [row for row in rows if checks.is_known(row['faint_percent'])]
    volume = sum(row['volume_mm3'] for row in known)
    faint = sum(row['volume_mm3'] * row['faint_percent'] for row in known) / volume / 100
    return {'step': step, 'step_moved': moved, 'faint': float(faint)}


def alarms_of(row):
    """Return the names of the checks that an image fails by its values."""
    modality = naming.suffix_of(row['image'])
    record = FillRecord(**{key: row[name] for name, key in KEYS.items() if row[name] == row[name]})
    lesions = [{'volume_mm3': 1000, 'faint_percent': 100 * row['faint']}]
    found = {'grain': checks.check_grain(record, []), 'glow': checks.check_glow(record, [], modality)}
    found |= {'wall': checks.check_wall(record, []), 'place': checks.check_place(lesions, record, modality)}
    return [name for name, check in found.items() if check and not check.passed]


def print_tables(rows):
    """Print how often each check rings, by what was filled and by where the mask lay."""
    for kind, names in (('fill', ('grain', 'glow', 'wall')), ('mask', ('place', 'faint, as before 0.3.0'))):
        columns = [*names, 'any'] if kind == 'fill' else names
        print(f'\n| {kind} | images | {" | ".join(columns)} |\n|---|---|{"---|" * len(columns)}')
        of_kind = [row for row in rows if row['kind'] == kind]
        for modality in ('T1w', 'FLAIR'):
            for name in dict.fromkeys(row['name'] for row in of_kind):
                chosen = [r for r in of_kind if r['name'] == name and r['image'].endswith(modality)]
                alarms = [alarms_of(r) + [names[1]] * (r['faint'] > checks.MAX_SHARE_FAINT) for r in chosen]
                counts = [str(sum(check in of_image for of_image in alarms)) for check in names]
                if kind == 'fill':
                    counts.append(str(sum(bool(set(of_image) & set(names)) for of_image in alarms)))
                print(f'| {modality}, {name} | {len(chosen)} | {" | ".join(counts)} |')


if __name__ == '__main__':
    main(sys.argv[1:])
