"""Participants as nodes of nipype: several at once on one machine, or on a cluster by a plugin of nipype."""

import logging
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from . import layout, participant, progress

logger = logging.getLogger('bids_lesionfill')

FOLDER = 'bids_lesionfill_wf'  # in the work folder
NODE_GB = 4  # memory of one process: torch, a model, a head of 256 voxels a side


def run(options):
    """Do all participants that `options` (cli.Options) name, each in a process of its own; return the exit code.

    The results are those of one process: seeds depend on the image alone. What is there already is not done again; this
    is seen in the output folder, so the work folder holds nothing that is needed later.
    """
    derivatives, found, donor, run_id = participant.prepare(options)
    base_dir = Path(options.work_dir or tempfile.gettempdir()).resolve() / FOLDER / run_id
    plugin, plugin_args = read_plugin(options)
    os.environ.setdefault('LOGNAME', 'bids_lesionfill')  # nipype's SLURM and SGE name jobs by it; containers lack it
    flow = build(found, donor, options, run_id, base_dir)
    logger.info('%d participant(s) as nodes of nipype, plugin %s', len(found), plugin)
    with progress.bar(len(found), 'participants', 'participant') as bar:
        if not plugin.endswith('Graph'):  # those hand all nodes over at once
            plugin_args = plugin_args | {'status_callback': count_nodes(bar, len(found))}
        try:
            flow.run(plugin=plugin, plugin_args=plugin_args)
        except RuntimeError as error:  # some nodes failed: what they did not write says which
            logger.error('nipype: %s', error)
    statuses = {subject: layout.read_status(options.output_dir, subject, run_id) for subject in found}
    code = participant.conclude(statuses, options, derivatives)
    if code == participant.OK:
        shutil.rmtree(base_dir, ignore_errors=True)
    return code


def count_nodes(bar, n_all):
    """What nipype calls when a node starts or ends: the bar moves on, and the log says who is done."""
    started, n_done = time.monotonic(), 0

    def report(node, status):
        nonlocal n_done
        if status in ('end', 'exception'):
            n_done += 1
            bar.update()
            name, left = node.name.replace('_', '-', 1), progress.time_left(started, n_done, n_all)
            logger.info('%s is through (%d of %d%s)', name, n_done, n_all, left if n_done < n_all else '')

    return report


def build(found, donor, options, run_id, base_dir):
    """A workflow with one node for each participant, none of which waits for another."""
    from nipype import Function, Node, Workflow, config
    from nipype import logging as nipype_logging

    config.update_config(
        {
            'logging': {'workflow_level': 'WARNING', 'interface_level': 'WARNING', 'log_to_file': False},
            'execution': {
                'crashdump_dir': str(base_dir),
                'crashfile_format': 'txt',
                'stop_on_first_crash': options.stop_on_first_crash,
                'check_version': False,  # it asks a server
                'poll_sleep_duration': 0.5,
            },
        }
    )
    nipype_logging.update_logging(config)
    flow = Workflow('participants', base_dir=str(base_dir))
    n_procs = min(options.omp_nthreads or 1, options.nprocs)
    for subject, images in found.items():
        interface = Function(['subject', 'images', 'donor', 'options', 'run_id'], ['status'], run_node)
        node = Node(interface, f'sub_{subject}', n_procs=n_procs, mem_gb=min(NODE_GB, options.mem_gb or NODE_GB))
        node.inputs.trait_set(
            subject=subject,
            images=images,
            donor=donor,
            options=replace(options, participant_labels=(subject,)),
            run_id=run_id,
        )
        flow.add_nodes([node])
    return flow


def run_node(subject, images, donor, options, run_id):
    """What a node does, in a process of its own; nipype takes this function as text, so it imports what it needs."""
    from bids_lesionfill import participant

    status = participant.run_all({subject: images}, donor, options, run_id)[subject]
    if status == 'failed' and options.stop_on_first_crash:
        raise RuntimeError(f'sub-{subject} failed')
    return status


def read_plugin(options):
    """Name and arguments of nipype's plugin: of `--use-plugin` (YAML), or processes on this machine.

    Raises
    ------
    UsageError
        If the file is none.
    """
    if options.plugin_file is None:
        # Processes of their own, not forks: torch with several threads hangs in a fork of a process that used it.
        plugin_args = {'n_procs': options.nprocs, 'raise_insufficient': False, 'mp_context': 'spawn'}
        if options.mem_gb:
            plugin_args['memory_gb'] = options.mem_gb
        return 'MultiProc', plugin_args
    import yaml

    try:
        content = yaml.safe_load(options.plugin_file.read_text())
        return content['plugin'], content.get('plugin_args', {})
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise layout.UsageError(
            f'--use-plugin {options.plugin_file} is no plugin file of nipype (plugin: SLURM, plugin_args: ...): {error}'
        ) from None


def clean(work_dir):
    """Remove what runs left in a work folder; other things in it stay."""
    shutil.rmtree(Path(work_dir) / FOLDER, ignore_errors=True)
