"""Does filling bring thickness back to the truth? Healthy brains, lesions of patients painted in, engine `pbt`.

    python benchmarks/thickness_recovery.py measure BIDS_DIR MASKS WORK [--brains 4] [--masks 6] [--rescans 4]
    python benchmarks/thickness_recovery.py measure BIDS_DIR MASKS WORK --engine ants --brains 2 --masks 1
    python benchmarks/thickness_recovery.py report WORK [--figure docs/thickness.png]

`measure` goes on where it stopped: what is in WORK is not measured again, and asking for more adds to it. Validation
brains come first, and of the lesion masks only those are taken that no model was trained on. All lesions of one
patient are painted with the contrast and the soft edge of real ones (`patient` of the evaluation); the mask that is
handed over is their half maximum, the app grows it, and every filler fills the mask that the app used. Bias, tissue
classes and thickness are found on each image by itself; brain mask and template are those of the untouched image, so
that what differs is what the lesions do. Three noises stand beside the errors: the untouched image again with another
seed for the classes alone (`reseed`, the one to compare the errors with) and for the registration too (`rerun`, the
app's), and another scan of the same person (`rescan`). `report` prints Markdown and draws.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_lesionfill import statistics
from bids_lesionfill.diffusion import classical, models
from bids_lesionfill.evaluate import cases
from bids_lesionfill.images import nifti, tissues
from bids_lesionfill.layout import datasets, files, naming
from bids_lesionfill.lesions import fill, settings
from bids_lesionfill.thickness import anatomy, cortex, reproducibility
from bids_lesionfill.thickness.engines import ants
from bids_lesionfill.train import brains as train_brains

FILLERS = ('unfilled', 'fill-T1w', 'biharmonic', 'local white matter')
RESEED, RERUN, RESCAN = 'reseed', 'rerun', 'rescan'


def image_of(volume):
    """A normalised volume as an image whose white matter is 1000 and whose background is 0."""
    return nib.Nifti1Image(np.maximum((volume + 1) / 1.5 * 1000, 0).astype(np.float32), np.eye(4))


def cpu_seconds():
    """CPU time of this process and of those it started and that have ended (DiReCT runs in one), seconds."""
    return sum(os.times()[:4])


def measure(t1w_img, brain_mask_img, seed, registered=None, lesion_mask=None, engine='pbt'):
    """Thickness, tissue volumes, and the classes of a lesion's voxels; a dict, and the registration."""
    started = cpu_seconds()
    t1w, brain_mask, affine = anatomy.prepare(t1w_img, brain_mask_img)
    rng = np.random.default_rng(seed)
    template = anatomy.read_template()
    if registered is None:
        registered = anatomy.register(t1w, brain_mask, affine, template, rng)
    found = anatomy.find_anatomy(t1w, brain_mask, affine, template, registered, np.random.default_rng([seed, 1]))
    thickness = ants.direct_thickness(found) if engine == 'ants' else cortex.projection_thickness(found.ribbon)
    table = anatomy.average(thickness, found)
    result = {
        'regions_mm': list(table.thickness_mm.values()),
        'hemispheres_mm': list(table.hemisphere_mm.values()),
        'tissue_ml': [float((found.tissue_seg == tissue).sum()) / 1000 for tissue in (1, 2, 3)],
        'cpu_s': round(cpu_seconds() - started, 1),
    }
    if lesion_mask is not None:
        seg = np.asarray(found.seg_img(t1w_img).dataobj)[lesion_mask]
        result['lesion_share'] = [float((seg == tissue).mean()) for tissue in (1, 2, 3)]
    return result, registered


def paint(image, tissue_seg, mask_file, seed):
    """A brain with all lesions of a patient; evaluation_cases.Case."""
    mask_img = nib.load(mask_file)
    moved = cases.move_lesions(np.asarray(mask_img.dataobj) > 0, mask_img.affine, tissue_seg > 0)
    return cases.patient_case('', image, tissue_seg, moved, np.random.default_rng(seed), dilation=0)


def fill_all(case, model):
    """The seen image filled by every filler in the mask that the app used; dict of filler -> normalised volume."""
    seen_img = image_of(case.seen)
    mask_img = nib.Nifti1Image(case.lesion_mask.astype(np.uint8), np.eye(4))
    filling = fill.fill_alone(seen_img, settings.Lesions(mask_img), model)
    used = np.asarray(filling.used_mask_img.dataobj) > 0
    ours = np.where(used, nifti.as_loaded(filling.filled_img).get_fdata() / 1000 * 1.5 - 1, case.seen)
    white = np.where(used, classical.local_white_matter(case.seen, used, case.wm_mask), case.seen)
    smooth = classical.biharmonic(case.seen, used)
    return dict(zip(FILLERS, (case.seen, ours, smooth, white))), used


class Store:
    """Results of one brain in a JSON file, and its registration; what is there is not measured again."""

    def __init__(self, work, name, engine):
        self.name, self.file = name, Path(work) / f'{name}_{engine}.json'
        self.registration_file = Path(work) / f'{name}_registration.npy'
        self.results = json.loads(self.file.read_text()) if self.file.is_file() else {'cases': {}}

    def put(self, key, result, case=None):
        place = self.results if case is None else self.results['cases'].setdefault(case, {})
        place[key] = result
        files.write_json(self.file, self.results)
        print(f'{self.name} {case or ""} {key}: {result.get("cpu_s", "")}', file=sys.stderr, flush=True)

    def registration(self):
        if self.registration_file.is_file():
            return anatomy.Registration(np.load(self.registration_file), {})
        return None


def run_measure(options):
    model = models.load_model('fill-T1w')
    _, held_out = datasets.split_lesion_masks(datasets.find_lesion_masks(options.lesion_masks))
    people = datasets.find_people(options.bids_dir)
    scans = {
        Path(t1w_file).name.split('_')[0]: (t1w_file, dseg_file)
        for split in ('validation', 'train')
        for t1w_file, dseg_file in datasets.find_training(options.bids_dir, split)
    }
    rescans = {person: name for name, person in people.items() if name != person}
    brains = [name for name in scans if people[name] == name]
    chosen = brains[: options.brains]
    with_rescan = [name for name in brains if name in rescans][: options.rescans] if options.engine == 'pbt' else []
    labels = options.participant_label
    for name in dict.fromkeys(chosen + with_rescan):
        if labels and name.removeprefix('sub-') not in labels:
            continue
        store = Store(options.work, name, options.engine)
        image, tissue_seg = train_brains.read_tissues(*scans[name])
        brain_img = nib.Nifti1Image((tissue_seg > 0).astype(np.uint8), np.eye(4))
        if 'truth' not in store.results:
            result, registered = measure(image_of(image), brain_img, 0, store.registration(), None, options.engine)
            np.save(store.registration_file, registered.points_mm)
            store.put('truth', result)
        if RESCAN not in store.results and name in with_rescan:
            other, other_seg = train_brains.read_tissues(*scans[rescans[name]])
            other_brain_img = nib.Nifti1Image((other_seg > 0).astype(np.uint8), np.eye(4))
            store.put(RESCAN, measure(image_of(other), other_brain_img, 0)[0])
        if name in chosen:
            for mask_file in held_out[: options.masks]:
                measure_case(store, image, tissue_seg, brain_img, mask_file, brains.index(name), model, options)
            if RESEED not in store.results:
                result, _ = measure(image_of(image), brain_img, 1, store.registration(), engine=options.engine)
                store.put(RESEED, result)
            if RERUN not in store.results:
                store.put(RERUN, measure(image_of(image), brain_img, 1, engine=options.engine)[0])


def measure_case(store, image, tissue_seg, brain_img, mask_file, number, model, options):
    """Paint a patient's lesions, fill them, measure every image."""
    patient = naming.strip_extension(mask_file.name).split('_')[0]
    if set(FILLERS) <= set(store.results['cases'].get(patient, {})):
        return
    case = paint(image, tissue_seg, mask_file, [options.seed, number])
    volumes, used = fill_all(case, model)
    painted = case.lesion_mask
    near = ndimage.binary_dilation(painted) & (tissue_seg == tissues.GREY_MATTER)
    about = {'lesion_ml': painted.sum() / 1000, 'used_ml': used.sum() / 1000, 'grey_voxels_touched': int(near.sum())}
    store.put('about', about, patient)
    for filler, volume in volumes.items():
        result, _ = measure(image_of(volume), brain_img, 0, store.registration(), painted, options.engine)
        store.put(filler, result, patient)


def errors_of(truth, test):
    """Global and ROI-average reproducibility error of a measurement against the truth, and the regions' errors."""
    regions = reproducibility.error_percent(truth['regions_mm'], test['regions_mm'])
    overall = reproducibility.error_percent(np.mean(truth['hemispheres_mm']), np.mean(test['hemispheres_mm']))
    return float(overall), float(np.nanmean(regions)), regions


def global_change(truth, test):
    """Signed change of the global mean against the truth, percent."""
    return float(reproducibility.change_percent(np.mean(truth['hemispheres_mm']), np.mean(test['hemispheres_mm'])))


def comparisons(brains):
    """What is compared with which truth: dict of name -> list of (brain, lesion ml, truth, test)."""
    rows = {what: [] for what in (*FILLERS, RESEED, RERUN, RESCAN)}
    for name, results in brains.items():
        for case in results['cases'].values():
            for what in FILLERS:
                if set(FILLERS) <= set(case):  # whole cases only: they are compared in pairs
                    rows[what].append((name, case['about']['lesion_ml'], results['truth'], case[what]))
        for what in (RESEED, RERUN, RESCAN):
            if what in results:
                rows[what].append((name, np.nan, results['truth'], results[what]))
    return {what: row for what, row in rows.items() if row}


def run_report(options):
    for engine in ('pbt', 'ants'):
        stores = sorted(Path(options.work).glob(f'*_{engine}.json'))
        rows = comparisons({path.name.split('_')[0]: json.loads(path.read_text()) for path in stores})
        if rows:
            print_report(engine, rows)
            if engine == 'pbt' and options.figure:
                draw(rows, options.figure)


def print_report(engine, rows):
    """Tables of thickness, of tissue volumes and lesion classes, and of every case."""
    rng = np.random.default_rng(0)
    loads = [ml for _, ml, _, _ in rows['unfilled']]
    people = {name for name, *_ in rows['unfilled']}
    print(f'\n### {engine}: {len(loads)} cases in {len(people)} brains, {min(loads):.1f} to {max(loads):.1f} ml\n')
    print(
        '| against the untouched image | n | global error % | ROI-average error % | global change % | worst region % |'
    )
    print('|---|---|---|---|---|---|')
    for what, row in rows.items():
        clusters = [name for name, *_ in row]
        has_interval = len(set(clusters)) >= reproducibility.FEWEST_PARTICIPANTS
        errors = [errors_of(truth, test) for _, _, truth, test in row]
        cells = [what, str(len(row))]
        columns = [[error[column] for error in errors] for column in range(2)]
        columns.append([global_change(truth, test) for _, _, truth, test in row])
        for values, sign in zip(columns, ('', '', '+')):
            mean, low, high = statistics.bootstrap_mean(values, rng, clusters=clusters)
            interval = f' ({low:{sign}.3f} to {high:{sign}.3f})' if has_interval else ''
            cells.append(f'{mean:{sign}.3f}{interval}')
        cells.append(f'{np.mean([np.nanmax(error[2]) for error in errors]):.2f}')
        print(f'| {" | ".join(cells)} |')
    pairs = [(filler, 'unfilled') for filler in FILLERS[1:]] + [('fill-T1w', other) for other in FILLERS[2:]]
    for pair in pairs if len(people) >= reproducibility.FEWEST_PARTICIPANTS else ():
        errors = [[errors_of(truth, test)[:2] for _, _, truth, test in rows[what]] for what in pair]
        clusters = [name for name, *_ in rows['unfilled']]
        words = []
        for column, what in enumerate(('global error', 'ROI-average error')):
            values = [[error[column] for error in of_filler] for of_filler in errors]
            difference = statistics.paired_bootstrap(*values, rng, clusters=clusters)
            words.append(f'{what} {"{:+.3f} ({:+.3f} to {:+.3f})".format(*difference)} %')
        print(f'\n{" minus ".join(pair)}: {", ".join(words)}')
    print('\n| change against the untouched image | CSF ml | grey ml | white ml | lesion voxels: CSF, grey, white % |')
    print('|---|---|---|---|---|')
    for what, row in rows.items():
        changes = np.mean([np.subtract(b['tissue_ml'], a['tissue_ml']) for _, _, a, b in row], axis=0)
        shares = [b['lesion_share'] for *_, b in row if 'lesion_share' in b]
        share = ', '.join(f'{100 * value:.1f}' for value in np.mean(shares, axis=0)) if shares else 'n/a'
        print(f'| {what} | ' + ' | '.join(f'{value:+.2f}' for value in changes) + f' | {share} |')
    print('\nROI-average error % and, in brackets, global change % of every case:\n')
    print('| brain | lesions ml | ' + ' | '.join(FILLERS) + ' |\n|' + '---|' * (2 + len(FILLERS)))
    for number, (name, ml, _, _) in enumerate(rows['unfilled']):
        pairs = [rows[what][number][2:] for what in FILLERS]
        values = [f'{errors_of(*pair)[1]:.3f} ({global_change(*pair):+.3f})' for pair in pairs]
        print(f'| {name} | {ml:.1f} | ' + ' | '.join(values) + ' |')
    truths = {name: truth for row in rows.values() for name, _, truth, _ in row}
    print('\nUntouched: ' + ', '.join(f'{n} {np.mean(t["hemispheres_mm"]):.2f} mm' for n, t in truths.items()))


def draw(rows, path):
    """ROI-average error by lesion load, and the errors of all regions; the noises as lines and boxes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    palette = ('#b2182b', '#2166ac', '#e08214', '#7fbc41', '#333333', '#777777', '#bbbbbb')
    colours = dict(zip((*FILLERS, RESEED, RERUN, RESCAN), palette))
    figure = Figure(figsize=(10, 4), dpi=130, layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for what, row in rows.items():
        values = [errors_of(truth, test)[1] for _, _, truth, test in row]
        if what in FILLERS:
            left.plot(
                [ml for _, ml, _, _ in row], values, 'o', color=colours[what], label=what, markersize=5, alpha=0.8
            )
        else:
            left.axhline(np.mean(values), color=colours[what], linestyle='--', label=f'{what}, mean of {len(row)}')
    left.set(xscale='log', yscale='log', xlabel='painted lesions, ml', ylabel='ROI-average error, %')
    left.legend(fontsize=8, frameon=False, loc='lower right')
    regions = [np.concatenate([errors_of(truth, test)[2] for _, _, truth, test in row]) for row in rows.values()]
    looks = {'showfliers': False, 'patch_artist': True, 'whis': (5, 95), 'medianprops': {'color': 'white'}}
    boxes = right.boxplot(regions, orientation='horizontal', **looks)
    for box, what in zip(boxes['boxes'], rows):
        box.set_facecolor(colours[what])
    right.set(xlabel='error of a region, % (whiskers: 5 to 95 %)', yticks=range(1, len(rows) + 1), xscale='log')
    right.set_xlim(0.005, None)
    for axis in (left.xaxis, left.yaxis, right.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter('{x:g}')
        axis.set_tick_params(labelsize=8)
    right.set_yticklabels(rows, fontsize=8)
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[['top', 'right']].set_visible(False)
    FigureCanvasAgg(figure).print_png(str(path), metadata={'Software': None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    measuring = commands.add_parser('measure')
    measuring.add_argument('bids_dir', type=Path)
    measuring.add_argument('lesion_masks', type=Path)
    measuring.add_argument('work', type=Path)
    measuring.add_argument('--brains', type=int, default=4)
    measuring.add_argument('--participant-label', nargs='+', help='of these brains; the others in another process')
    measuring.add_argument('--masks', type=int, default=6)
    measuring.add_argument('--rescans', type=int, default=4)
    measuring.add_argument('--engine', choices=['pbt', 'ants'], default='pbt')
    measuring.add_argument('--seed', type=int, default=0)
    reporting = commands.add_parser('report')
    reporting.add_argument('work', type=Path)
    reporting.add_argument('--figure', type=Path)
    options = parser.parse_args()
    (run_measure if options.command == 'measure' else run_report)(options)


if __name__ == '__main__':
    main()
