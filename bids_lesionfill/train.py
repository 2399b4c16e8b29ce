"""Train a model from a BIDS dataset of healthy brains: `python -m bids_lesionfill.train BIDS_DIR OUT --plan NAME`.

The dataset holds T1w images, a derivative with tissue segmentations (`dseg`, 3 = white matter) and, in
`participants.tsv`, a column `split` (train, validation). The result is a model folder: `unet/`, `scheduler/`,
`plan.json`. A run that was killed goes on from its last checkpoint and ends with the same weights.
"""

import argparse
import csv
import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from . import dataset, diffusion, inpaint, layout, metrics, unet

logger = logging.getLogger('bids_lesionfill.train')


@dataclass(frozen=True)
class Plan:
    """All that makes a model; saved beside its weights as `plan.json`."""

    name: str
    task: str = 'fill'
    modality: str = 'T1w'
    size: str = 'compact'
    pseudo_3d: bool = True
    unet_options: dict = field(default_factory=dict)  # single arguments of UNet2DModel that differ from the size's
    noise_schedule: str = 'linear'
    prediction_type: str = 'v_prediction'
    form: inpaint.Form = field(default_factory=inpaint.Form)
    cases: dataset.CasePlan = field(default_factory=dataset.CasePlan)
    share_at_end: float = 0.5  # of the training time steps that are T
    batch_size: int = 6  # slabs
    learning_rate: float = 6e-4
    warmup_updates: int = 150
    num_updates: int = 8000
    decay_updates: int = 1000  # the last ones, in which the learning rate falls to zero along a cosine
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    num_inference_steps: int = 1  # default of the finished model
    validate_every: int = 200
    n_validation_cases: int = 64
    seed: int = 0

    @classmethod
    def from_json(cls, text):
        """Inverse of `to_json`."""
        values = json.loads(text)
        values['cases'] = values['cases'] | {'crop': tuple(values['cases']['crop'])}
        return cls(**(values | {'form': inpaint.Form(**values['form']), 'cases': dataset.CasePlan(**values['cases'])}))

    def to_json(self):
        """Indented JSON."""
        return json.dumps(asdict(self), indent=2) + '\n'

    def build_unet(self):
        """A new network of this plan."""
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.unet_options.items()}
        return unet.build_unet(self.size, self.form.n_channels, self.pseudo_3d, **options)

    def build_scheduler(self):
        """The noise schedule of this plan."""
        return diffusion.build_scheduler(self.noise_schedule, self.prediction_type)


# Table 3.1 of the thesis; the learning rate falls from the end of the warm-up on.
THESIS = Plan(
    name='thesis-mixture',
    size='thesis',
    prediction_type='epsilon',
    form=inpaint.Form(kind='plain', inside_mask_only=False),
    cases=dataset.CasePlan(crop=(256, 256, 16), rim_share=0.0, intensity_augmentation=False),
    share_at_end=0.0,
    batch_size=1,
    learning_rate=1e-4,
    warmup_updates=500,
    num_updates=90_000,
    decay_updates=89_500,
    num_inference_steps=50,
    validate_every=1000,
)
PLANS = {
    'fill-T1w': Plan(name='fill-T1w'),
    'thesis-mixture': THESIS,
    'thesis-lesions': replace(THESIS, name='thesis-lesions', cases=replace(THESIS.cases, ellipsoid_share=0.0)),
    'thesis-circles': replace(THESIS, name='thesis-circles', cases=replace(THESIS.cases, ellipsoid_share=1.0)),
}


def learning_rate_factor(plan, update):
    """Linear warm-up, constant, then a cosine to zero over the last `decay_updates` (1 at full rate)."""
    warmup = min(1.0, (update + 1) / plan.warmup_updates) if plan.warmup_updates else 1.0
    left = (plan.num_updates - update) / plan.decay_updates if plan.decay_updates else 1.0
    return warmup * 0.5 * (1 - math.cos(math.pi * min(1.0, max(0.0, left))))


def train_step(network, batch, scheduler, plan, update):
    """Loss of one batch; the noise and the time steps depend on the seed and the number of the update alone."""
    target, channels, mask = batch
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + update)
    timesteps = diffusion.sample_timesteps(
        len(target), scheduler.config.num_train_timesteps, plan.share_at_end, generator
    )
    noise = torch.randn(target.shape, generator=generator)
    device = next(network.parameters()).device
    target, channels, mask, noise, timesteps = (x.to(device) for x in (target, channels, mask, noise, timesteps))
    return diffusion.diffusion_loss(
        network, target, channels, mask, scheduler, timesteps, noise, plan.form.inside_mask_only
    ).mean()


def validate(network, cases, scheduler, plan):
    """M1 inside the mask of a list of cases (see `dataset.validation_cases`), by kind, and of their classical base."""
    generator = torch.Generator().manual_seed(plan.seed)
    device = next(network.parameters()).device
    scores = {}
    for case in cases:
        channels = torch.from_numpy(inpaint.to_slab(case['channels']).copy())[None]
        noise = torch.randn(1, 1, *channels.shape[2:], generator=generator)
        filled = inpaint.sample_slab(
            network, channels.to(device), noise.to(device), scheduler, plan.form, plan.num_inference_steps
        )
        filled = inpaint.from_slab(filled.cpu().numpy()[0, 0])
        filled = np.where(case['lesion_mask'], plan.form.from_diffusion(filled, case['base']), case['image'])
        for method, image in (('model', filled), ('base', np.where(case['lesion_mask'], case['base'], case['image']))):
            for metric, value in metrics.slice_scores(case['image'], image, case['lesion_mask']).items():
                scores.setdefault(f'{case["kind"]}/{method}_{metric}', []).append(value)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def save_atomically(state, path):
    """Write a checkpoint that is whole or absent."""
    torch.save(state, f'{path}.tmp')
    os.replace(f'{path}.tmp', path)


def save_model(network, plan, model_dir, dtype=torch.float16):
    """Write a model folder: weights as safetensors in half precision, scheduler, plan."""
    half = plan.build_unet().to(dtype)
    half.load_state_dict(network.state_dict())
    half.save_pretrained(model_dir / 'unet')
    plan.build_scheduler().save_pretrained(model_dir / 'scheduler')
    (model_dir / 'plan.json').write_text(plan.to_json())


def train(brains, validation, lesions, plan, output_dir, device='cpu', checkpoint_seconds=300, num_workers=1):
    """Train by a plan, from the last checkpoint in `output_dir` if there is one.

    Parameters
    ----------
    brains : list of (image, wm_mask), see `dataset.read_healthy_brains`
    validation : list of cases, see `dataset.validation_cases`
    lesions : list of bool arrays
    plan : Plan
    output_dir : Path
        Gets `checkpoint.pt`, `log.csv`, TensorBoard events, `last/` and `best/` (by in-mask SSIM) model folders.
    device : str
    checkpoint_seconds : float
    num_workers : int
        Processes that draw cases.

    Returns
    -------
    the network, with averaged weights (EMA)
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / 'plan.json').write_text(plan.to_json())
    torch.manual_seed(plan.seed)
    network = plan.build_unet().to(device, memory_format=torch.channels_last)  # 10 % faster on a CPU
    scheduler = plan.build_scheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: learning_rate_factor(plan, update))
    ema = EMAModel(network.parameters(), decay=plan.ema_decay, use_ema_warmup=True, power=0.75)
    update, best_ssim, seconds = 0, -1.0, 0.0
    checkpoint = output_dir / 'checkpoint.pt'
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state['network'])
        optimizer.load_state_dict(state['optimizer'])
        ema.load_state_dict(state['ema'])
        update, best_ssim, seconds = state['update'], state['best_ssim'], state['seconds']
        rate.last_epoch = update - 1
        rate.step()
        logger.info('resumed at update %d', update)
    keep_rows(output_dir / 'log.csv', update)

    cases = dataset.TrainingCases(brains, lesions, plan.cases, plan.form, plan.seed, plan.num_updates * plan.batch_size)
    loader = DataLoader(
        cases, batch_size=plan.batch_size, num_workers=num_workers, sampler=range(update * plan.batch_size, len(cases))
    )
    writer = SummaryWriter(output_dir)
    started, last_saved, losses = time.monotonic() - seconds, time.monotonic(), []

    def checkpoint_now():
        save_atomically(
            {
                'network': network.state_dict(),
                'optimizer': optimizer.state_dict(),
                'ema': ema.state_dict(),
                'update': update,
                'best_ssim': best_ssim,
                'seconds': time.monotonic() - started,
            },
            checkpoint,
        )

    for batch in loader:
        loss = train_step(network, batch, scheduler, plan, update)
        optimizer.zero_grad()
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(network.parameters(), plan.gradient_clip)
        optimizer.step()
        rate.step()
        ema.step(network.parameters())
        update += 1
        losses.append(loss.item())
        if update % plan.validate_every == 0 or update == plan.num_updates:
            ema.store(network.parameters())
            ema.copy_to(network.parameters())
            network.eval()
            scores = validate(network, validation, scheduler, plan)
            row = {
                'update': update,
                'seconds': round(time.monotonic() - started),
                'loss': np.mean(losses),
                'gradient_norm': gradient_norm.item(),
                'learning_rate': rate.get_last_lr()[0],
                **scores,
            }
            write_row(output_dir / 'log.csv', row)
            for name, value in row.items():
                writer.add_scalar(name, value, update)
            ssim = np.mean([value for name, value in scores.items() if name.endswith('model_ssim')])
            save_model(network, plan, output_dir / 'last')
            if ssim > best_ssim:
                best_ssim = float(ssim)
                save_model(network, plan, output_dir / 'best')
            ema.restore(network.parameters())
            network.train()
            logger.info('%s', {name: float(f'{value:.5g}') for name, value in row.items()})
            losses = []
        if update == plan.num_updates or time.monotonic() - last_saved > checkpoint_seconds:
            checkpoint_now()
            last_saved = time.monotonic()
    writer.close()
    ema.copy_to(network.parameters())
    return network.eval()


def keep_rows(path, update):
    """Drop the rows of a log that come after an update: a resumed run writes them again."""
    if path.exists():
        with open(path, newline='') as file:
            rows = [row for row in csv.DictReader(file) if int(row['update']) <= update]
        path.unlink()
        for row in rows:
            write_row(path, row)


def write_row(path, row):
    """Append a row to a CSV file, with a header if it is new."""
    new = not path.exists()
    with open(path, 'a', newline='') as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def main(argv=None):
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog='python -m bids_lesionfill.train', description=__doc__.split('\n')[0])
    parser.add_argument('bids_dir', type=Path, help='healthy brains: T1w, derivatives with dseg, column split')
    parser.add_argument('output_dir', type=Path)
    parser.add_argument('--plan', default='fill-T1w', help=f'{", ".join(PLANS)}, or a JSON file')
    parser.add_argument('--lesion-masks', type=Path, required=True, help='folder of lesion masks (*_mask.nii.gz)')
    parser.add_argument('--num-updates', type=int, help="instead of the plan's")
    parser.add_argument('--decay-updates', type=int, help="instead of the plan's")
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--num-workers', type=int, default=1)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    plan = PLANS[options.plan] if options.plan in PLANS else Plan.from_json(Path(options.plan).read_text())
    changes = {name: getattr(options, name) for name in ('num_updates', 'decay_updates')}
    plan = replace(plan, **{name: value for name, value in changes.items() if value is not None})
    mask_files = sorted(options.lesion_masks.rglob('*_mask.nii.gz'))
    held_out = max(1, len(mask_files) // 5)  # lesion shapes that validation alone sees
    brains = dataset.read_healthy_brains(layout.find_training(options.bids_dir, 'train'))
    validation_brains = dataset.read_healthy_brains(layout.find_training(options.bids_dir, 'validation'))
    cases = dataset.validation_cases(
        validation_brains,
        dataset.read_lesion_shapes(mask_files[-held_out:]),
        plan.cases,
        plan.form,
        plan.n_validation_cases,
        plan.seed,
    )
    logger.info('%d brains to train, %d to validate', len(brains), len(validation_brains))
    train(
        brains,
        cases,
        dataset.read_lesion_shapes(mask_files[:-held_out]),
        plan,
        options.output_dir,
        options.device,
        num_workers=options.num_workers,
    )


if __name__ == '__main__':
    main()
