"""
The federated job by NVFlare's recipe API: in a simulation, a proof of concept on one machine, or at real sites.

    python flare_app/job.py --env sim --sites 2 --rounds 4
    python flare_app/job.py --env prod --startup_kit DIR --settings_file /etc/{SITE_NAME}.json --labels dataset.json
    python flare_app/job.py --export --export-dir DIR

The last one writes the job folder, of which ``flare_app`` itself is the export without options.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fire.decorators import SetParseFn
from monai.utils import ensure_tuple

from dinomix_monai.data import read_datalist
from dinomix_monai.data.anatomy import ORGANS
from dinomix_monai.federated.execution import make_environment, run_recipe
from dinomix_monai.federated.recipe import build_recipe, client_arguments, continued_run
from dinomix_monai.run import run_command_line


@SetParseFn(str, "workspace", "settings_file", "dataset_dir", "labels", "continue_from", "startup_kit", "teacher")
def main(
    env: str = "sim",
    sites: int = 2,
    rounds: int | None = None,
    epochs_per_round: int = 2,
    threads: int | None = None,
    workspace: str = "fl_workspace",
    settings_file: str | None = None,
    dataset_dir: str | None = None,
    unlabeled_sites: int = 0,
    labels: str | None = None,
    union_labels: bool = False,
    settings: Mapping[str, Any] | None = None,
    overlays: str | Sequence[str] = (),
    transfer: str = "full",
    fedprox_mu: float | None = None,
    local_norm: bool = False,
    server_learning_rate: float = 1.0,
    server_momentum: float = 0.0,
    min_responses: int = 0,
    grace_period: int = 60,
    round_timeout: int = 0,
    handshake_timeout: int = 600,
    norm_bound: float = 0.0,
    unlabeled_share: float = 1 / 3,
    unlabeled_from_dice: float = 0.25,
    unlabeled_learning_rate: float = 0.5,
    aggregation_weights: Mapping[str, float] | None = None,
    clip_norm: float | None = None,
    noise_multiplier: float = 0.0,
    teacher: str = "",
    compare_alone: bool = True,
    external: bool = False,
    with_code: bool = True,
    continue_from: str | None = None,
    start_round: int = 0,
    startup_kit: str | None = None,
    detach: bool = False,
) -> None:
    """
    Builds the job and runs it to its end; the exit code is 1 where it does not come to its end.

    NVFlare itself takes --export --export-dir DIR, which writes the job to DIR and runs nothing.

    Args:
        env: sim for a simulation, poc for server and sites as processes of this machine, prod for real sites.
        sites: number of sites.
        rounds: rounds of the whole run; 4 if not given, or those of the run that goes on.
        epochs_per_round: local epochs of a round.
        threads: sites that the simulation runs at a time; all if not given.
        workspace: folder of the simulation, or of the result that is downloaded from the server.
        settings_file: JSON file at each site with the site's own settings; {SITE_NAME} stands for its name.
        dataset_dir: folder at each site with its data set. With neither of both the sites share the phantom.
        unlabeled_sites: how many of the sites that share the phantom have no labels.
        labels: a dataset.json whose labels name the classes; those of the phantom if not given.
        union_labels: sites may have different classes, and the model has those of all.
        settings: numbers in train.json that are other at all sites, such as "{'steps_per_epoch': 100}".
        overlays: configs of the bundle, which each site has itself, such as acdc.
        transfer: what the sites send, full, difference or half_difference: their weights or what has changed.
        fedprox_mu: weight of FedProx's term; no such term if not given.
        local_norm: normalization layers stay at each site (FedBN).
        server_learning_rate: learning rate of the server's SGD on the average change (FedOpt).
        server_momentum: momentum of that.
        min_responses: number of sites whose answer is enough; 0 for all.
        grace_period: seconds that the others have left then.
        round_timeout: seconds after which a round goes on with the answers that have come; 0 for no limit.
        handshake_timeout: seconds that the sites have for the handshake.
        norm_bound: largest norm of an update; 0 for no bound.
        unlabeled_share: largest share of the average that the sites without labels have together.
        unlabeled_from_dice: mean validation Dice of the global model from which on what they have learned counts.
        unlabeled_learning_rate: share of the learning rate at which they learn.
        aggregation_weights: what a step of a site counts, site by site, such as "{'site-1': 0.5}".
        clip_norm: clip what each site sends to this norm, and add noise; needs --transfer difference.
        noise_multiplier: standard deviation of the noise over clip_norm.
        teacher: fingerprint that all teachers must have; only that they are the same if not given.
        compare_alone: each site trains alone as well after the federation, which doubles the work.
        external: a process of its own for each task of a site.
        with_code: a script of three lines travels with the job; without it each site must allow the job's classes.
        continue_from: global model of a server that died, with which the run goes on.
        start_round: round to go on with, where continue_from is a path at a server elsewhere.
        startup_kit: folder of the startup kit of who submits the job to real sites.
        detach: submit the job to real sites, and do not wait for its end.
    """
    # Before the job is built: what is mistyped is told at once.
    environment = make_environment(env, sites, workspace, threads, startup_kit)
    class_names = ["background"] if union_labels else ["background", *ORGANS]
    if labels is not None:
        class_names = read_datalist(Path(labels).parent, file=Path(labels).name, allow_outside=True).class_names
    if continue_from is not None:
        continue_from, start_round, rounds = continued_run(
            continue_from, workspace, start_round, rounds, is_elsewhere=env == "prod"
        )
    rounds = 4 if rounds is None else rounds
    if settings is None and (settings_file or dataset_dir):
        # Those for the phantom are for the phantom.
        settings = {}
    recipe = build_recipe(
        num_sites=sites,
        num_rounds=rounds - start_round,
        start_round=start_round,
        epochs_per_round=epochs_per_round,
        settings=settings,
        class_names=class_names,
        union_labels=union_labels,
        arguments=client_arguments(settings_file, dataset_dir, phantom_sites=sites, unlabeled_sites=unlabeled_sites),
        with_code=with_code,
        external=external,
        initial_ckpt=continue_from,
        overlays=ensure_tuple(overlays),
        transfer=transfer,
        fedprox_mu=fedprox_mu,
        local_norm=local_norm,
        server_learning_rate=server_learning_rate,
        server_momentum=server_momentum,
        min_responses=min_responses,
        grace_period=grace_period,
        round_timeout=round_timeout,
        handshake_timeout=handshake_timeout,
        norm_bound=norm_bound,
        unlabeled_share=unlabeled_share,
        unlabeled_from_dice=unlabeled_from_dice,
        unlabeled_learning_rate=unlabeled_learning_rate,
        aggregation_weights=aggregation_weights,
        teacher=teacher,
        compare_alone=compare_alone,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
    )
    sys.exit(0 if run_recipe(recipe, environment, workspace, detach) else 1)


if __name__ == "__main__":
    run_command_line(main, name="job.py")
