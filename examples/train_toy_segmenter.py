"""Synthesize a training set and train a toy segmenter on it, a network of three layers that sees 7 mm.

    python examples/train_toy_segmenter.py BIDS_DIR OUT PARTICIPANT

For example with demo, a new folder, and 07. Two variants of one T1w get five new lesions each. The network is trained
on the lesions of the first, and then looks for those of the second. It finds few of them: five small lesions and 200
steps are a toy. Put your own segmenter in its place.
"""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

bids_dir, out, participant = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
command = [sys.executable, '-m', 'bids_lesionfill', bids_dir, out, 'participant', '--participant-label', participant]
command += ['--mode', 'synth', '--modality', 'T1w', '--n-variants', '2', '--n-lesions', '5']
subprocess.run([*command, '--lesion-intensity', '0.8', '--num-inference-steps', '2'], check=True)  # 20 by default


def read(variant):
    """Return T1w (white matter near 0) and mask of the new lesions of a variant, (1, 1, X, Y, Z) each."""
    (image,) = out.glob(f'sub-{participant}/**/*_desc-synth{variant}_T1w.nii.gz')
    mask = image.with_name(image.name.replace(f'desc-synth{variant}_T1w', f'label-lesion_desc-synth{variant}new_mask'))
    t1w = nib.load(image).get_fdata(dtype=np.float32)
    new = np.asarray(nib.load(mask).dataobj) > 0
    t1w = 10 * (t1w / np.percentile(t1w[t1w > 0], 80) - 1) * (t1w > 0)
    return tuple(torch.from_numpy(array.astype(np.float32))[None, None] for array in (t1w, new))


torch.manual_seed(0)
network = torch.nn.Sequential(
    *(torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU()),
    *(torch.nn.Conv3d(8, 8, 3, padding=1), torch.nn.ReLU()),
    torch.nn.Conv3d(8, 1, 3, padding=1),
)
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
loss_of = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(20.0))
t1w, new = read(1)
voxels = torch.nonzero(new[0, 0])
for step in range(200):
    middle = voxels[torch.randint(len(voxels), (1,))[0]]  # a cube around a voxel of a lesion
    cube = (..., *(slice(max(int(m) - 16, 0), int(m) + 16) for m in middle))
    loss = loss_of(network(t1w[cube]), new[cube])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, 49, 99, 149, 199):
        print(f'step {step + 1}: loss {loss.item():.3f}')

t1w, new = read(2)
with torch.no_grad():
    found = network(t1w) > 0
share = (found & (new > 0)).sum() / new.sum()
print(f'second variant: {share:.0%} of the new lesion voxels found')
print(f'elsewhere: {(found & (new == 0)).sum()} voxels found')
