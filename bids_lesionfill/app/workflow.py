"""Participants and sessions as nodes of nipype: several at once on one machine, or on a cluster by a plugin."""

import configparser
import contextlib
import importlib.util
import logging
import math
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib

from .. import text_files
from ..layout import errors
from ..layout import status as layout_status
from ..layout.inputs import Inputs
from . import log, participant, progress
from .options import Options

logger = logging.getLogger('bids_lesionfill')


FOLDER = 'bids_lesionfill_wf'  # in the work folder
# Memory of one process: 4 GB for 256 voxels a side, 8.2 for 512 (benchmarks/large.py).
NODE_GB, GB_PER_MEGAVOXEL = 3.3, 0.037
LOST = 'its process ended without a word, as one that is killed does; if memory was short, ' + errors.LESS_MEMORY


def run(options: Options) -> int:
    """Process all participants of `options` (cli.Options) in subprocesses; return the exit code.

    The results are those of one process: seeds depend on the image alone. What is there already is not done again; this
    is seen in the output folder, so the work folder holds nothing that is needed later.
    """
    if importlib.util.find_spec('nipype') is None:
        raise errors.UsageError("--nprocs and --use-plugin need nipype: pip install 'bids_lesionfill[cluster]'")
    plugin, plugin_args = read_plugin(options)
    derivatives, found, donor = participant.prepare(options)
    os.environ.setdefault('LOGNAME', 'bids_lesionfill')  # nipype's SLURM and SGE name jobs by it; containers lack it
    with participant.writing(options, derivatives) as run_id:
        base_dir = make_base_dir(options.work_dir, run_id)
        logger.info('%d participant(s) as nodes of nipype, plugin %s', len(found), plugin)
        try:
            with settings_for_workers(options, base_dir):
                run_nodes(found, donor, options, run_id, base_dir, plugin, plugin_args)
                for subject in lost(found, options, run_id):  # a process that is killed takes those beside it with it
                    logger.warning('sub-%s has no result: once more, alone', subject)
                    run_nodes({subject: found[subject]}, donor, options, run_id, base_dir, plugin, plugin_args)
        except KeyboardInterrupt:  # or a signal to end: see `cli.Terminated`
            shutil.rmtree(base_dir, ignore_errors=True)
            raise
        for subject in lost(found, options, run_id):
            layout_status.write_status(
                options.output_dir, subject, run_id, {'status': 'failed', 'images': 0, 'message': LOST}
            )
        statuses = {subject: layout_status.read_status(options.output_dir, subject, run_id) for subject in found}
        code = participant.conclude(statuses, options, derivatives)
        if code == participant.OK:
            shutil.rmtree(base_dir, ignore_errors=True)
        return code


def nipype_settings(options: Options, base_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of nipype for a run (dict of dict): its own lines are not shown, but for `--verbose`."""
    level = 'WARNING' if options.verbose else 'CRITICAL'  # its errors are tracebacks
    levels = dict.fromkeys(('workflow_level', 'interface_level', 'utils_level'), level)
    return {
        'logging': {**levels, 'log_to_file': False},
        'execution': {
            'crashdump_dir': str(base_dir),
            'crashfile_format': 'txt',
            'stop_on_first_crash': options.stop_on_first_crash,
            'check_version': False,  # it asks a server
            'create_report': False,  # it lists all variables of the environment, also secret ones
            'poll_sleep_duration': 0.5,
        },
    }


@contextlib.contextmanager
def settings_for_workers(options: Options, base_dir: Path) -> Iterator[None]:
    """Write the nipype settings to a file that worker processes read when they import nipype."""
    parser = configparser.ConfigParser()
    parser.read_dict(nipype_settings(options, base_dir))
    with open(base_dir / 'nipype.cfg', 'w', encoding='utf-8') as file:
        parser.write(file)
    before = os.environ.get('NIPYPE_CONFIG_DIR')
    os.environ['NIPYPE_CONFIG_DIR'] = str(base_dir)
    try:
        yield
    finally:
        del os.environ['NIPYPE_CONFIG_DIR']
        if before is not None:
            os.environ['NIPYPE_CONFIG_DIR'] = before


def make_base_dir(work_dir: Path | None, run_id: str) -> Path:
    """Return a new private folder for the nodes of a run; nipype stores environment variables there."""
    if work_dir is None:
        return Path(tempfile.mkdtemp(prefix=f'{FOLDER}_')).resolve()
    base_dir = Path(work_dir).resolve() / FOLDER / run_id
    base_dir.mkdir(mode=0o700, parents=True)
    return base_dir


def run_nodes(
    found: dict[str, list[Inputs]],
    donor: Inputs | None,
    options: Options,
    run_id: str,
    base_dir: Path,
    plugin: str,
    plugin_args: dict[str, Any],
) -> None:
    """Run participants as nodes; what went wrong is logged, and seen by the statuses that are not there."""
    flow = build(found, donor, options, run_id, base_dir)
    runner = None
    with progress.bar(len(found), 'participants', 'participant') as bar:
        if not plugin.endswith('Graph'):  # those hand all nodes over at once
            plugin_args = plugin_args | {'status_callback': count_nodes(bar, len(found))}
        try:
            runner = make_runner(plugin_args) if plugin == 'MultiProc' else None
            flow.run(plugin=runner or plugin, plugin_args=plugin_args)
        except KeyboardInterrupt:
            end_workers(runner)
            raise
        except Exception as error:
            *_, sentence = f'{error}'.strip().splitlines() or [type(error).__name__]  # above: the traceback of a node
            logger.error('nipype: %s; see %s', sentence, base_dir)


def end_workers(runner: Any) -> None:
    """End the processes of `make_runner` at once: what they write is whole or absent, and is done again."""
    pool = getattr(runner, 'pool', None)
    processes = list((getattr(pool, '_processes', None) or {}).values())
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def start_worker(options: Options) -> None:
    """Set up the worker process of a node: its log, and its end with the parent process."""
    log.set_up(options, is_worker=True)
    end_with_parent()


def end_with_parent() -> None:
    """End this process when the run that started it is gone, even if that was killed: nobody waits for it then."""
    parent = multiprocessing.parent_process()
    if parent is not None and not any(thread.name == 'end_with_parent' for thread in threading.enumerate()):

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, name='end_with_parent', daemon=True).start()


def make_runner(plugin_args: dict[str, Any]) -> Any:
    """Return a nipype `MultiProc` plugin that reports a killed process as failed, not waiting forever."""
    from nipype.pipeline.plugins.multiproc import MultiProcPlugin

    class Runner(MultiProcPlugin):
        def _async_callback(self, future: Any) -> None:
            if future.exception() is None:
                super()._async_callback(future)

        def _get_result(self, taskid: int) -> Any:
            future = self._task_obj[taskid]
            if future.done() and future.exception() is not None:
                raise future.exception()
            return super()._get_result(taskid)

    # Processes of their own, not forks: torch with several threads hangs in a fork of a process that used it.
    return Runner({'mp_context': 'spawn', **plugin_args})


def lost(found: dict[str, list[Inputs]], options: Options, run_id: str) -> list[str]:
    """List participants without a status; empty if the run was to stop at the first failure."""
    if options.stop_on_first_crash:
        return []
    return [subject for subject in found if not layout_status.has_status(options.output_dir, subject, run_id)]


def count_nodes(bar: Any, n_all: int) -> Callable[[Any, str], None]:
    """Return a callback for nipype that counts finished participants in the bar and the log."""
    started, n_done = time.monotonic(), 0

    def report(node: Any, status: str) -> None:
        nonlocal n_done
        if status in ('end', 'exception') and '_ses_' not in node.name:
            n_done += 1
            bar.update()
            name, left = node.name.replace('_', '-', 1), progress.time_left(started, n_done, n_all)
            logger.info('%s is done (%d of %d%s)', name, n_done, n_all, left if n_done < n_all else '')

    return report


def build(found: dict[str, list[Inputs]], donor: Inputs | None, options: Options, run_id: str, base_dir: Path) -> Any:
    """Return a workflow with one independent node per participant.

    Where there are several sessions, each is a node of its own, and the participant's, which writes the report, waits
    for them. It finds their files, and tries once more what failed. Sessions that are registered are one node.
    """
    from nipype import Function, Node, Workflow, config
    from nipype import logging as nipype_logging

    config.update_config(nipype_settings(options, base_dir))
    nipype_logging.update_logging(config)
    flow = Workflow('participants', base_dir=str(base_dir))
    is_apart = options.reference == 'sessionwise' and not options.reports_only
    n_procs = min(options.omp_nthreads or 1, options.nprocs)

    def add(function: Callable, name: str, output: str, waits_for: Any = (), **values: Any) -> Any:
        interface = Function([*values, *(node.name for node in waits_for)], [output], function)
        node = Node(interface, name, n_procs=n_procs, mem_gb=memory_gb(values['images']))
        node.inputs.trait_set(**values)
        flow.add_nodes([node])
        for before in waits_for:
            flow.connect(before, 'done', node, before.name)
        return node

    for subject, images in found.items():
        shared = {'donor': donor, 'options': replace(options, participant_labels=(subject,)), 'run_id': run_id}
        sessions = dict.fromkeys(image.session for image in images)
        before = [
            add(
                run_session_node,
                f'sub_{subject}_ses_{session}',
                'done',
                subject=subject,
                session=session,
                images=[image for image in images if image.session == session],
                **shared,
            )
            for session in (sessions if len(sessions) > 1 and is_apart else ())
        ]
        add(run_node, f'sub_{subject}', 'status', before, subject=subject, images=images, **shared)
    return flow


def memory_gb(images: Iterable[Inputs]) -> float:
    """Compute the memory that a process needs for the largest of some images; GB."""
    return NODE_GB + GB_PER_MEGAVOXEL * max((count_voxels(image.image_file) for image in images), default=0) / 1e6


def count_voxels(image_file: Path) -> int:
    """Return the number of voxels of an image, by its header; 0 if it cannot be read: its participant says why."""
    try:
        return math.prod(nib.load(image_file).shape)
    except Exception:
        return 0


def run_node(
    subject: str, images: 'list[Inputs]', donor: 'Inputs | None', options: 'Options', run_id: str, **sessions: str
) -> str:
    """Process one participant in a worker; imports are inside because nipype copies it as text."""
    from bids_lesionfill.app import participant, workflow
    from bids_lesionfill.layout import files

    workflow.start_worker(options)
    with files.lock(options.top_dir, shared=True):  # also when the run that started it is dead
        status = participant.run_all({subject: images}, donor, options, run_id)[subject]
    if status == 'failed' and options.stop_on_first_crash:
        raise RuntimeError(f'sub-{subject} failed')
    return status


def run_session_node(
    subject: str, session: str | None, images: 'list[Inputs]', donor: 'Inputs | None', options: 'Options', run_id: str
) -> bool:
    """Process one session in a worker; the node of the participant reports the outcome."""
    from bids_lesionfill.app import participant, workflow
    from bids_lesionfill.layout import files

    workflow.start_worker(options)
    folder = options.output_dir / f'sub-{subject}'
    with (
        files.lock(options.top_dir, shared=True),
        files.lock(folder, shared=True),
        files.lock(folder / f'ses-{session}' if session else folder / 'anat'),
    ):
        participant.run_images(images, donor, options, run_id)
    return True


def read_plugin(options: Options) -> tuple[str, dict[str, Any]]:
    """Name and arguments of nipype's plugin: of `--use-plugin` (YAML), or processes on this machine.

    Raises
    ------
    UsageError
        If the file is none.
    """
    if options.plugin_file is None:
        plugin_args: dict[str, Any] = {'n_procs': options.nprocs, 'raise_insufficient': False}
        if options.mem_gb:
            plugin_args['memory_gb'] = options.mem_gb
        return 'MultiProc', plugin_args
    import yaml

    try:
        content = yaml.safe_load(text_files.read_text(options.plugin_file))
        plugin_args = content.get('plugin_args', {})
        if content['plugin'] == 'MultiProc':  # a large image then has all the memory to itself, and is not refused
            plugin_args = {'raise_insufficient': False} | plugin_args
        return content['plugin'], plugin_args
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise errors.UsageError(
            f'--use-plugin {options.plugin_file} is no plugin file of nipype (plugin: SLURM, plugin_args: ...): {error}'
        ) from None


def clean(work_dir: Path) -> None:
    """Remove what runs left in a work folder; other things in it stay."""
    shutil.rmtree(Path(work_dir) / FOLDER, ignore_errors=True)
