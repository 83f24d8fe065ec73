"""The process at a site, which does what the server asks: ``python -m dinomix_monai.federated.site.client``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import nvflare.client as flare
import torch
from nvflare.client.tracking import SummaryWriter

from dinomix_monai.federated.protocol import MetaKeys, RunPlan, ScoredModel, TaskName
from dinomix_monai.federated.site.replies import answer_reply, not_ready_reply, send_curves, update_reply
from dinomix_monai.federated.site.site import Site
from dinomix_monai.federated.site.site_settings import SiteSettings, phantom_site

__all__ = ["main", "perform_task"]

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Performs the server's tasks, one after the other, until the run is over.

    Args:
        arguments: command line, ``sys.argv`` by default. ``--settings_file`` and ``--dataset_dir`` are paths at the
            site, and ``--folder`` is where the site keeps its own state. A site with neither a settings file nor a data
            set gets a share of the phantom: one of ``--phantom_sites``, of which the last ``--unlabeled_sites`` have no
            labels.

    Raises:
        RuntimeError: When a task fails. The error names the exception's class and the task; the rest is a warning in
            the site's log.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="dinomix")
    parser.add_argument("--settings_file")
    parser.add_argument("--dataset_dir")
    parser.add_argument("--phantom_sites", type=int, default=2)
    parser.add_argument("--unlabeled_sites", type=int, default=0)
    options = parser.parse_args(arguments)
    flare.init()
    writer = SummaryWriter()
    site: Site | None = None
    while flare.is_running():
        message = flare.receive()
        if message is None:
            break
        task = flare.get_task_name()
        plan = RunPlan.from_message(message.meta[MetaKeys.PLAN])
        if task in (TaskName.LABELS, TaskName.HANDSHAKE):
            flare.send(_introduction(options, plan, task))
            continue
        try:
            site = site or Site(_read_settings(options), plan)
            reply = perform_task(site, task, message, writer)
        except Exception as error:
            # NVFlare logs every raised exception as an error, and a site may be set to stream its errors to the server.
            logger.warning("The task %s has failed.", task, exc_info=True)
            raise RuntimeError(f"{type(error).__name__} in the task {task}; the warning above says what.") from None
        flare.send(reply)


def perform_task(site: Site, task: str, message: flare.FLModel, writer: SummaryWriter) -> flare.FLModel:
    """
    Performs a task that comes with weights.

    Args:
        site: the site.
        task: one of :class:`~dinomix_monai.federated.protocol.TaskName`, other than those before there is a model.
        message: the server's message: weights by name, the number of the round, and meta data.
        writer: sends the curves of a round to the server.

    Returns:
        The reply, which :mod:`~dinomix_monai.federated.site.replies` has made.

    Raises:
        ValueError: When there is no such task.
    """
    round_number = int(message.current_round)
    if task == TaskName.TRAIN:
        metrics = site.validate(message.params, round_number)
        result = site.train(message.params, round_number)
        send_curves(writer, round_number, metrics, result.losses)
        return update_reply(result, metrics, site.plan.transfer)
    if task == TaskName.VALIDATE:
        return answer_reply(site.validate(message.params, round_number))
    if task == TaskName.SCORE:
        is_best_global_model = message.meta[MetaKeys.SCORED_MODEL] == ScoredModel.AFTER
        return answer_reply(site.score(message.params, with_local_norm=is_best_global_model))
    if task == TaskName.ALONE:
        return answer_reply(site.train_alone(message.params))
    raise ValueError(f"task must be one of {', '.join(TaskName)}, got {task!r}.")


def _introduction(options: argparse.Namespace, plan: RunPlan, task: str) -> flare.FLModel:
    try:
        site = Site(_read_settings(options), plan)
        return answer_reply(site.labels() if task == TaskName.LABELS else site.describe())
    except Exception as error:
        # The log gets a warning and no error, because a site may be set to stream its errors to the server.
        logger.warning("This site is not ready.", exc_info=True)
        # MONAI wraps the exception of a component that a config builds in a RuntimeError.
        return not_ready_reply(error.__cause__ or error)


def _read_settings(options: argparse.Namespace) -> SiteSettings:
    name = flare.get_site_name()
    settings = SiteSettings.read(name, Path(options.folder), options.settings_file, options.dataset_dir)
    if "dataset_dir" in settings.overrides:
        return settings
    if options.settings_file:
        raise ValueError(f"settings_file must give the dataset_dir of the site, got none in {options.settings_file}.")
    # All sites run on one machine. If each had as many threads as there are cores, they would slow each other down.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.phantom_sites))
    share = phantom_site(name, settings.bundle.root, options.phantom_sites, options.unlabeled_sites)
    return SiteSettings(name, settings.folder, settings.bundle, {**share, **settings.overrides})


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        # After an exception alone the process lingers. NVFlare's launcher notices the end of a process at once, and
        # missing heartbeats only after half a minute.
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
