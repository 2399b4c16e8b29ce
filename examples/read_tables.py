"""Read the tables of a study with pandas: lesions and volumes per image, and which images to look at.

    python examples/read_tables.py OUTPUT_DIR

OUTPUT_DIR is what the app wrote, for example demo_out of `make demo`.
"""

import sys
from pathlib import Path

import pandas as pd

folder = Path(sys.argv[1])
images = pd.read_csv(folder / 'images.tsv', sep='\t', na_values='n/a')
print(images.to_string(index=False))

tables = []
for path in sorted(folder.glob('sub-*/**/*_desc-lesions_qc.tsv')):
    lesions = pd.read_csv(path, sep='\t', na_values='n/a')
    tables.append(lesions.assign(participant_id=path.name.split('_')[0], file=path.name))
lesions = pd.concat(tables, ignore_index=True)
per_image = lesions.groupby('file')['volume_mm3'].agg(['count', 'median', 'max'])
print('\nVolume of the lesions of each image, mm3:')
print(per_image.to_string())

lesions['difference'] = lesions['mean_after'] - lesions['mean_surrounding']
worst = lesions.sort_values('difference', key=abs).tail(3)
print('\nFilled lesions that differ most from the white matter around them:')
print(worst[['file', 'label', 'volume_mm3', 'mean_after', 'mean_surrounding']].to_string(index=False))
