"""The process at a site: it answers what the server asks. ``python -m dinomix_monai.federated.site.client``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nvflare.client as flare
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.client.tracking import SummaryWriter

from dinomix_monai.federated.protocol import MetaKeys, Models, RunPlan, Tasks
from dinomix_monai.federated.site.site import Site
from dinomix_monai.federated.site.site_settings import SiteSettings, phantom_site

__all__ = ["answer", "main"]

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Answers until the run is over.

    Args:
        arguments: command line, ``sys.argv`` by default. ``--settings_file`` and ``--dataset_dir`` are paths of the
            site; ``--folder`` is where it keeps what is its own. With neither of the first two it has a share of the
            phantom.
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
        if task == Tasks.HANDSHAKE:
            flare.send(_handshake(options, plan))
            continue
        try:
            site = site or Site(_settings(options), plan)
            reply = answer(site, task, message, writer)
        except Exception as error:
            # NVFlare logs what is raised as an error, and sites may be set to stream those logs to the server.
            logger.warning("The task %s has failed.", task, exc_info=True)
            raise RuntimeError(f"{type(error).__name__} in the task {task}; the warning above says what.") from None
        flare.send(reply)


def answer(site: Site, task: str, message: Any, writer: Any) -> Any:
    """
    What a site says to a message that carries weights.

    Args:
        site: the site.
        task: one of :class:`~dinomix_monai.federated.protocol.Tasks`.
        message: an ``FLModel``.
        writer: gets the curves, which the server shows beside those of other sites.

    Returns:
        An ``FLModel``: the update of a round with its number of steps, or scores.

    Raises:
        ValueError: When there is no such task.
    """
    round_number = int(message.current_round)
    if task == Tasks.TRAIN:
        metrics = site.validate(message.params, round_number)
        result = site.train(message.params, round_number)
        for name, value in metrics.items():
            writer.add_scalar(f"global_{name}", value, global_step=round_number)
        for row in result.losses:
            epoch = int(row.pop("epoch"))
            for name, value in row.items():
                writer.add_scalar(f"train_{name}", value, global_step=epoch)
        full = site.plan.transfer == "full"
        return flare.FLModel(
            params=dict(result.update),
            params_type=flare.ParamsType.FULL if full else flare.ParamsType.DIFF,
            metrics=metrics,
            meta={FLMetaKey.NUM_STEPS_CURRENT_ROUND: result.steps},
        )
    if task == Tasks.VALIDATE:
        found: Any = site.validate(message.params, round_number)
    elif task == Tasks.SCORE:
        found = site.score(message.params, own_norms=message.meta[MetaKeys.NAME] == Models.AFTER)
    elif task == Tasks.ALONE:
        found = site.train_alone(message.params)
    else:
        raise ValueError(f"task must be one of {', '.join(Tasks)}, got {task!r}.")
    return flare.FLModel(params={}, meta={str(MetaKeys.ANSWER): found})


def _handshake(options: argparse.Namespace, plan: RunPlan) -> Any:
    try:
        found = Site(_settings(options), plan).describe()
    except Exception as error:
        # The server has to hear that this site is not ready. What exactly is wrong may name files, so it stays here,
        # and is no error in the log, because NVFlare may stream those to the server.
        logger.warning("This site is not ready.", exc_info=True)
        # A bundle wraps what goes wrong in an error of its own.
        cause = error.__cause__ or error
        return flare.FLModel(params={}, meta={str(MetaKeys.ERROR): type(cause).__name__})
    return flare.FLModel(params={}, meta={str(MetaKeys.ANSWER): found})


def _settings(options: argparse.Namespace) -> SiteSettings:
    name = flare.get_site_name()
    settings = SiteSettings.read(name, Path(options.folder), options.settings_file, options.dataset_dir)
    if "dataset_dir" not in settings.overrides:
        if options.settings_file:
            raise ValueError(
                f"settings_file must give the dataset_dir of the site, got none in {options.settings_file}."
            )
        # All on one machine. With as many threads as it has cores each would wait for the others most of the time.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.phantom_sites))
        shares = (options.phantom_sites, options.unlabeled_sites)
        overrides = {**phantom_site(name, settings.bundle_root, *shares), **settings.overrides}
        settings = SiteSettings(name, settings.folder, settings.bundle_root, overrides)
    return settings


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        # A launcher that waits for heartbeats notices a process at once only when it is gone.
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
