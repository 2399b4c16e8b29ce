"""References of the methods text."""

from typing import NamedTuple


class Reference(NamedTuple):
    """A work, and how the paragraph cites it."""

    cited: str
    kind: str  # of BibTeX
    authors: str
    title: str
    where: str

    @property
    def year(self):
        return self.cited[-4:]


WHERE = {'article': 'journal', 'inproceedings': 'booktitle', 'mastersthesis': 'school', 'misc': 'howpublished'}

REFERENCES = {
    'uhr2024': Reference(
        'Uhr, 2024',
        'mastersthesis',
        'Uhr, V.',
        'Diffusion-Based Filling and Synthesis of Multiple Sclerosis Lesions',
        'University of Bern',
    ),
    'gorgolewski2017': Reference(
        'Gorgolewski et al., 2017',
        'article',
        'Gorgolewski, K. J. and others',
        'BIDS Apps: Improving ease of use, accessibility, and reproducibility of neuroimaging data analysis methods',
        'PLOS Computational Biology 13(3)',
    ),
    'song2021': Reference(
        'Song et al., 2021',
        'inproceedings',
        'Song, J. and Meng, C. and Ermon, S.',
        'Denoising Diffusion Implicit Models',
        'ICLR',
    ),
    'salimans2022': Reference(
        'Salimans and Ho, 2022',
        'inproceedings',
        'Salimans, T. and Ho, J.',
        'Progressive Distillation for Fast Sampling of Diffusion Models',
        'ICLR',
    ),
    'lugmayr2022': Reference(
        'Lugmayr et al., 2022',
        'inproceedings',
        'Lugmayr, A. and others',
        'RePaint: Inpainting Using Denoising Diffusion Probabilistic Models',
        'CVPR',
    ),
    'lesjak2018': Reference(
        'Lesjak et al., 2018',
        'article',
        'Lesjak, Z. and others',
        'A Novel Public MR Image Dataset of Multiple Sclerosis Patients With Lesion Segmentations Based on Multi-rater '
        'Consensus',
        'Neuroinformatics 16(1)',
    ),
    'marcus2007': Reference(
        'Marcus et al., 2007',
        'article',
        'Marcus, D. S. and others',
        'Open Access Series of Imaging Studies (OASIS): Cross-sectional MRI Data in Young, Middle Aged, Nondemented, '
        'and Demented Older Adults',
        'Journal of Cognitive Neuroscience 19(9)',
    ),
    'guarnera2025': Reference(
        'Guarnera et al., 2025',
        'article',
        'Guarnera, F. and others',
        'MSLesSeg: baseline and benchmarking of a new Multiple Sclerosis Lesion Segmentation dataset',
        'Scientific Data 12',
    ),
    'avants2008': Reference(
        'Avants et al., 2008',
        'article',
        'Avants, B. B. and others',
        'Symmetric diffeomorphic image registration with cross-correlation',
        'Medical Image Analysis 12(1)',
    ),
    'fisch2024': Reference(
        'Fisch et al., 2024',
        'article',
        'Fisch, L. and others',
        'deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks',
        'Computers in Biology and Medicine 179',
    ),
    'tustison2010': Reference(
        'Tustison et al., 2010',
        'article',
        'Tustison, N. J. and others',
        'N4ITK: Improved N3 Bias Correction',
        'IEEE Transactions on Medical Imaging 29(6)',
    ),
    'mattes2003': Reference(
        'Mattes et al., 2003',
        'article',
        'Mattes, D. and others',
        'PET-CT image registration in the chest using free-form deformations',
        'IEEE Transactions on Medical Imaging 22(1)',
    ),
    'cerri2021': Reference(
        'Cerri et al., 2021',
        'article',
        'Cerri, S. and others',
        'A contrast-adaptive method for simultaneous whole-brain and lesion segmentation in multiple sclerosis',
        'NeuroImage 225',
    ),
    'wiltgen2024': Reference(
        'Wiltgen et al., 2024',
        'article',
        'Wiltgen, T. and others',
        'LST-AI: A deep learning ensemble for accurate MS lesion segmentation',
        'NeuroImage: Clinical 42',
    ),
    'billot2023': Reference(
        'Billot et al., 2023',
        'article',
        'Billot, B. and others',
        'SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without retraining',
        'Medical Image Analysis 86',
    ),
    'dahnke2013': Reference(
        'Dahnke et al., 2013',
        'article',
        'Dahnke, R. and Yotter, R. A. and Gaser, C.',
        'Cortical thickness and central surface estimation',
        'NeuroImage 65',
    ),
    'das2009': Reference(
        'Das et al., 2009',
        'article',
        'Das, S. R. and others',
        'Registration based cortical thickness measurement',
        'NeuroImage 45(3)',
    ),
    'rebsamen2020': Reference(
        'Rebsamen et al., 2020',
        'article',
        'Rebsamen, M. and others',
        'Direct cortical thickness estimation using deep learning-based anatomy segmentation and cortex parcellation',
        'Human Brain Mapping 41(17)',
    ),
    'fischl2012': Reference('Fischl, 2012', 'article', 'Fischl, B.', 'FreeSurfer', 'NeuroImage 62(2)'),
    'henschel2020': Reference(
        'Henschel et al., 2020',
        'article',
        'Henschel, L. and others',
        'FastSurfer - A fast and accurate deep learning based neuroimaging pipeline',
        'NeuroImage 219',
    ),
    'desikan2006': Reference(
        'Desikan et al., 2006',
        'article',
        'Desikan, R. S. and others',
        'An automated labeling system for subdividing the human cerebral cortex on MRI scans into gyral based regions '
        'of interest',
        'NeuroImage 31(3)',
    ),
    'fonov2011': Reference(
        'Fonov et al., 2011',
        'article',
        'Fonov, V. and others',
        'Unbiased average age-appropriate atlases for pediatric studies',
        'NeuroImage 54(1)',
    ),
    'tustison2021': Reference(
        'Tustison et al., 2021',
        'article',
        'Tustison, N. J. and others',
        'The ANTsX ecosystem for quantitative biological and medical imaging',
        'Scientific Reports 11',
    ),
    'tustison2014': Reference(
        'Tustison et al., 2014',
        'article',
        'Tustison, N. J. and others',
        'Large-scale evaluation of ANTs and FreeSurfer cortical thickness measurements',
        'NeuroImage 99',
    ),
    'paszke2019': Reference(
        'Paszke et al., 2019',
        'inproceedings',
        'Paszke, A. and others',
        'PyTorch: An Imperative Style, High-Performance Deep Learning Library',
        'NeurIPS',
    ),
    'vonplaten2022': Reference(
        'von Platen et al., 2022',
        'misc',
        'von Platen, P. and others',
        'Diffusers: State-of-the-art diffusion models',
        'GitHub, huggingface/diffusers',
    ),
    'lowekamp2013': Reference(
        'Lowekamp et al., 2013',
        'article',
        'Lowekamp, B. C. and others',
        'The Design of SimpleITK',
        'Frontiers in Neuroinformatics 7',
    ),
}


def citation(text):
    """Contents of `logs/CITATION.md` and `.bib`: a paragraph of methods and the works that it cites, no others."""
    cited = {key: reference for key, reference in REFERENCES.items() if reference.cited in text}
    lines = [f'- {r.authors} ({r.year}). {r.title}. {r.where}.' for r in cited.values()]
    entries = [
        f'@{r.kind}{{{key},\n  author = {{{r.authors}}},\n  title = {{{r.title}}},\n  year = {{{r.year}}},\n'
        f'  {WHERE[r.kind]} = {{{r.where}}}\n}}'
        for key, r in cited.items()
    ]
    return {'md': f'{text}\n\n' + '\n'.join(lines) + '\n', 'bib': '\n\n'.join(entries) + '\n'}
