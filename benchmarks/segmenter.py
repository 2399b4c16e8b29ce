"""Do synthetic lesions help a segmenter? `segmenter.md`.

    python benchmarks/segmenter.py BIDS_DIR ... --models MODELS --work-dir WORK [--cpu-minutes 2] [--patients 26 07]

MODELS: see `held_out.py`. A small pseudo-3D U-Net is trained leave-one-patient-out, once per arm (`ARMS`), always with
the same number of updates. New lesions are painted into the images of the training patients by the model that did not
see the test patient. Run it again to go on, or in several processes on different patients.
"""

import argparse
import json
import time
from pathlib import Path

import held_out
import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from bids_lesionfill import text_files
from bids_lesionfill.diffusion import models as diffusion_models
from bids_lesionfill.diffusion import tiles, unet
from bids_lesionfill.images import anatomy, masks
from bids_lesionfill.layout import files
from bids_lesionfill.lesions import library, sampling, synthesis
from bids_lesionfill.train import brains
from bids_lesionfill.train import cases as train_cases

# Arm -> share of the crops that are synthetic, and whether the patients' own lesions are filled in those.
ARMS = {
    'real': (0.0, False),
    'real + synthetic, 1:1': (0.5, False),
    'real + synthetic, 1:3': (0.75, False),
    'synthetic only': (1.0, True),
}
SCORES = ('dice', 'f1', 'sensitivity', 'precision')
CROP = (48, 48, 8)
BATCH_SIZE = 2
LEARNING_RATE = 2e-3
WARMUP_UPDATES = 20
OVERLAP_SLICES = 2  # of slabs, that see too little above or below
SLAB_SLICES = 16
NOTES = """\
Written by `segmenter.py`, which says how. {channels}, tested on {n_people} patient(s) ({n_visits} visit(s)),
trained on the others; {n_updates} updates of {batch_size} crops of {crop} voxels in every training, a network of
{n_weights:.1f} M weights from random numbers, one training per arm and fold, threshold 0.5; what is smaller than
{min_voxels} voxels is left out. New lesions: {n_variants} variant(s) of every image, about {n_lesions} lesions and
{load_ml:g} ml each, sampled in {steps} steps. In `real + synthetic` the patient's lesions stay in the image and in the
mask; in `synthetic only` they are filled (fill-FLAIR, fill-T1w, which have seen tissue of all patients) and the new
lesions are all there is. Mean over visits and 95 % bootstrap interval, patients drawn first. A real lesion is found if
a voxel of it is; a lesion that is said to be there is right if it touches a real one. With so few patients and
trainings of minutes an arm must be far better for its interval to show it.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    held_out.add_arguments(parser)
    parser.set_defaults(modality=['FLAIR'])
    parser.add_argument('--arms', nargs='+', default=list(ARMS), choices=ARMS)
    parser.add_argument('--cpu-minutes', type=float, default=2, help='per training; sets the number of updates')
    parser.add_argument('--n-variants', type=int, default=1)
    parser.add_argument('--n-lesions', type=int, default=10)
    parser.add_argument('--load-ml', type=float, default=3.0)
    parser.add_argument('--steps', type=int, default=1, help='of the sampling')
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.work_dir / 'segmenter'
    read = [held_out.read_sessions(options.bids_dir, m, options.work_dir, options.visits) for m in options.modality]
    visits = list(zip(*read))
    labels = list(dict.fromkeys(visit[0].label for visit in visits))
    for label in options.patients or labels:
        models = [held_out.load_model(options.models, modality, label) for modality in options.modality]
        if None in models:
            continue
        train = [visit for visit in visits if visit[0].label != label]
        test = [visit for visit in visits if visit[0].label == label]
        for arm in options.arms:
            file = folder / f'{"".join(c if c.isalnum() else "-" for c in arm)}_{label}.tsv'
            held_out.finished(file, train_and_test, arm, train, test, models, options)
            report(folder, options)


def train_and_test(arm, train, test, models, options):
    """One row per visit of the test patient."""
    share, filled = ARMS[arm]
    cases = {'real': [case_of(visit) for visit in train], 'synthetic': []}
    if share:
        for variant in range(options.n_variants):
            cases['synthetic'] += [
                synthetic_case(visit, variant, test[0][0].label, models, filled, options) for visit in train
            ]
    n_updates = count_updates(cases['real'], options)
    network = fit(cases, share, n_updates, options.seed)
    rows = []
    for visit in test:
        channels, truth, _ = case_of(visit)
        found = segment(network, channels, visit[0].anatomy.brain_mask)
        row = {'name': visit[0].name, 'arm': arm, 'updates': n_updates} | compare(truth, found)
        print(row, flush=True)
        rows.append(row)
    return rows


def case_of(visit):
    """Channels (channels, X, Y, Z), lesion mask, patient."""
    return np.stack([session.image for session in visit]), visit[0].lesion_mask, visit[0].label


def synthetic_case(visit, variant, test_label, models, filled, options):
    """As `case_of`, with new lesions; the old ones are filled or stay."""
    folder = options.work_dir / 'segmenter' / 'painted'
    file = folder / f'{"-".join(options.modality)}_without-{test_label}_{visit[0].name}_{variant}.npz'
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rng = visit[0].generator(options.seed, variant)
        atlas = synthesis.find_places(visit[0].anatomy, library.load_lesion_library())
        new = synthesis.draw(visit[0].anatomy, atlas, rng, 'auto', options.n_lesions, options.load_ml)
        labels, seed, painted = np.asarray(new.mask_img.dataobj), int(rng.integers(2**31)), []
        for session, model in zip(visit, models):
            asked = held_out.app_contrasts(
                session.image, labels, new.strengths, session.lesion_mask, session.anatomy.wm_mask, model
            )
            lesions, _ = held_out.sample(session, labels, asked, model, seed, options.steps, texture=True)
            painted.append(held_out.with_halo(session, lesions, labels, model))
        changed = np.any([image != session.image for image, session in zip(painted, visit)], axis=0)
        np.savez_compressed(file, mask=labels > 0, changed=changed, values=np.stack(painted)[:, changed])
        print(file.name, int((labels > 0).sum()), flush=True)
    channels, lesion_mask, label = case_of(visit)
    if filled:
        channels = np.stack([without_lesions(session, options) for session in visit])
        lesion_mask = np.zeros_like(lesion_mask)
    with np.load(file) as arrays:
        channels[:, arrays['changed']] = arrays['values']
        return channels, lesion_mask | arrays['mask'], label


def without_lesions(session, options):
    """The visit's image, its lesions filled; kept."""
    file = options.work_dir / 'segmenter' / 'filled' / f'{session.modality}_{session.name}.npy'
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        patient = anatomy.Patient(session.image, session.anatomy.tissue_seg, session.lesion_mask)
        np.save(file, brains.without_lesions(patient, diffusion_models.load_model(f'fill-{session.modality}')))
    return np.load(file)


def count_updates(cases, options):
    """Updates of every training: so many as the first one could do in the CPU time that is given."""
    file = options.work_dir / 'segmenter' / 'updates.json'
    if not file.is_file():
        started = time.process_time()
        fit({'real': cases, 'synthetic': []}, 0.0, 15, options.seed)
        seconds = (time.process_time() - started) / 15
        files.write_json(file, {'updates': max(1, int(60 * options.cpu_minutes / seconds))})
    return json.loads(file.read_text())['updates']


def fit(cases, share, n_updates, seed):
    """Train a network from random weights.

    Parameters
    ----------
    cases : dict of lists, see `case_of`
    share : float
        Of the crops that are synthetic.
    n_updates, seed : int
    """
    torch.manual_seed(seed)  # the first weights
    rng = np.random.default_rng(seed)
    network = unet.build_unet('small', len(cases['real'][0][0]))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda n: min(1, (n + 1) / WARMUP_UPDATES) * 0.5 * (1 + np.cos(np.pi * min(1, n / n_updates))),
    )
    places = {name: [places_of(case) for case in group] for name, group in cases.items()}
    for _ in range(n_updates):
        crops = []
        for _ in range(BATCH_SIZE):
            kind = 'synthetic' if rng.random() < share else 'real'
            crops.append(draw_crop(cases[kind], places[kind], rng))
        channels, truth = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*crops))
        logits = predict(network, channels)
        loss = functional.binary_cross_entropy_with_logits(logits, truth) + soft_dice_loss(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def predict(network, channels):
    """Logits; there is no time here."""
    return network(channels, torch.zeros(len(channels)))


def soft_dice_loss(logits, truth):
    """1 - Dice of the probabilities, over the batch (Milletari et al. 2016)."""
    probability = logits.sigmoid()
    return 1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)


def places_of(case):
    """Where crops may have their middle: voxels of each lesion, and of the brain."""
    channels, lesion_mask, _ = case
    labels, n_lesions = masks.label_lesions(lesion_mask)
    voxels = np.argwhere(labels)
    numbers = labels[tuple(voxels.T)]
    order = np.argsort(numbers, kind='stable')
    lesions = np.split(voxels[order], np.cumsum(np.bincount(numbers, minlength=n_lesions + 1)[1:])[:-1])
    return lesions, np.argwhere(channels[0] > -1)[::7]


def draw_crop(cases, places, rng):
    """Channels and truth of a crop, as slabs: the patient first, then the visit; half of them around a lesion."""
    labels = [label for _, _, label in cases]
    label = rng.choice(np.unique(labels))
    number = rng.choice([n for n, owner in enumerate(labels) if owner == label])
    (channels, lesion_mask, _), (lesions, brain) = cases[number], places[number]
    voxels = lesions[rng.integers(len(lesions))] if rng.random() < 0.5 else brain
    centre = voxels[rng.integers(len(voxels))]
    start = [np.clip(c - n // 2, 0, size - n) for c, n, size in zip(centre, CROP, lesion_mask.shape)]
    box = tuple(slice(s, s + n) for s, n in zip(start, CROP))
    images, truth = list(channels[(slice(None), *box)]), lesion_mask[box]
    background = images[0] <= -1
    images = [np.where(background, -1, image) for image in train_cases.augment_intensity(images, rng)]
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)  # left and right
    slabs = (tiles.to_slab(np.stack(images)[:, flip]), tiles.to_slab(truth[None, flip]))
    return tuple(np.ascontiguousarray(slab, dtype=np.float32) for slab in slabs)


@torch.no_grad()
def segment(network, channels, brain_mask):
    """Lesion mask of an image, (X, Y, Z) bool array: whole slices, slab by slab."""
    low, high = np.argwhere(brain_mask).min(axis=0), np.argwhere(brain_mask).max(axis=0) + 1
    box = tuple(slice(a, a + -(-(b - a) // 8) * 8) for a, b in zip(low, high))  # what three halvings leave whole
    crop = channels[(slice(None), *box)]
    missing = [8 * -(-n // 8) - n for n in crop.shape[1:]]
    crop = np.pad(crop, [(0, 0), *((0, n) for n in missing)], constant_values=-1)
    slabs = torch.from_numpy(tiles.to_slab(crop).astype(np.float32))
    logits = torch.full(slabs.shape[1:], -10.0)
    n_slices, step = slabs.shape[1], SLAB_SLICES - 2 * OVERLAP_SLICES
    for first in range(0, n_slices, step):
        start, stop = max(first - OVERLAP_SLICES, 0), min(first + step + OVERLAP_SLICES, n_slices)
        inner = slice(first - start, first - start + step)
        logits[first : first + step] = predict(network, slabs[None, :, start:stop])[0, 0, inner]
    found = np.zeros(brain_mask.shape, dtype=bool)
    inside = found[box]
    inside[:] = (tiles.from_slab(logits.numpy()) > 0)[tuple(slice(n) for n in inside.shape)]
    parts, _ = masks.label_lesions(found & brain_mask)
    large = np.bincount(parts.flat) >= sampling.MIN_VOXELS
    large[0] = False
    return large[parts]


def compare(truth, found):
    """Dice of the voxels; sensitivity, precision and F1 of the lesions of 3 voxels and more."""
    scores = {'dice': 2 * (truth & found).sum() / max(truth.sum() + found.sum(), 1)}
    shares = []
    for one, other in ((truth, found), (found, truth)):
        parts, n_parts = masks.label_lesions(one)
        sizes = np.bincount(parts.flat, minlength=n_parts + 1)[1:]
        hit = ndimage.maximum(other, parts, np.arange(1, n_parts + 1)) if n_parts else np.zeros(0)
        counted = np.asarray(hit)[sizes >= sampling.MIN_VOXELS]
        shares.append(float(counted.mean()) if len(counted) else 0.0)
    sensitivity, precision = shares
    f1 = 2 * sensitivity * precision / max(sensitivity + precision, 1e-9)
    scores |= {'f1': f1, 'sensitivity': sensitivity, 'precision': precision}
    return scores | {'true_ml': truth.sum() / 1000, 'found_ml': found.sum() / 1000}


def report(folder, options):
    """Tables of all trainings that are finished, by whichever process."""
    rows = [
        row | {'label': held_out.label_of(row)} for file in folder.glob('*.tsv') for row in text_files.read_tsv(file)
    ]
    arms = [arm for arm in ARMS if any(row['arm'] == arm for row in rows)]
    done = {arm: {row['name'] for row in rows if row['arm'] == arm} for arm in arms}
    shared = set.intersection(*done.values())  # visits that all arms have
    rows = sorted((row for row in rows if row['name'] in shared), key=lambda row: row['name'])
    if not rows:
        return
    by_arm = {arm: [row for row in rows if row['arm'] == arm] for arm in arms}
    people = [row['label'] for row in by_arm[arms[0]]]
    lines = []
    for arm in arms:
        cells = [held_out.with_interval([row[score] for row in by_arm[arm]], people, '.2f') for score in SCORES]
        for score in ('dice', 'f1'):
            gains = [row[score] - other[score] for row, other in zip(by_arm[arm], by_arm[arms[0]])]
            cells.append('–' if arm == arms[0] else held_out.with_interval(gains, people, '+.2f'))
        lines.append([arm, *cells])
    names = ['Dice', 'lesion-wise F1', 'sensitivity', 'precision', f'Dice, minus {arms[0]}', f'F1, minus {arms[0]}']
    notes = NOTES.format(
        channels=' and '.join(options.modality),
        n_people=len(set(people)),
        n_visits=len(people),
        n_updates=int(rows[0]['updates']),
        batch_size=BATCH_SIZE,
        crop='x'.join(map(str, CROP)),
        n_weights=unet.count_parameters(unet.build_unet('small', len(options.modality))) / 1e6,
        min_voxels=sampling.MIN_VOXELS,
        n_variants=options.n_variants,
        n_lesions=options.n_lesions,
        load_ml=options.load_ml,
        steps=options.steps,
    )
    text = f'# Do synthetic lesions help a segmenter?\n\n{notes}\n' + held_out.table(['trained on', *names], lines)
    lines = [
        [
            row['name'],
            f'{row["true_ml"]:.1f}',
            *(f'{by["dice"]:.2f} / {by["f1"]:.2f}' for by in same_visit(by_arm, row)),
        ]
        for row in by_arm[arms[0]]
    ]
    text += '\nDice / F1 of every visit:\n\n' + held_out.table(['visit', 'ml', *arms], lines)
    Path(__file__).with_suffix('.md').write_text(text)


def same_visit(by_arm, row):
    """The rows of one visit, arm by arm."""
    return [next(other for other in rows if other['name'] == row['name']) for rows in by_arm.values()]


if __name__ == '__main__':
    main()
