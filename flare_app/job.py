"""
The federated job by NVFlare's recipe API: in a simulation, a proof of concept on one machine, or at real sites.

    python flare_app/job.py --env sim --sites 2 --rounds 4
    python flare_app/job.py --env prod --startup_kit DIR --settings_file /etc/{SITE_NAME}.json --labels dataset.json
    python flare_app/job.py --export --export-dir DIR

The last one writes the job folder, of which ``flare_app`` itself is the export without options.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fire
from nvflare.recipe import PocEnv, ProdEnv, SimEnv

from dinomix_monai.data import read_datalist
from dinomix_monai.federated import read_checkpoint
from dinomix_monai.federated.recipe import build_recipe, client_arguments
from dinomix_monai.federated.site.privacy import GaussianPrivacy


def main(
    env: str = "sim",
    sites: int = 2,
    rounds: int = 4,
    epochs_per_round: int = 2,
    threads: int | None = None,
    workspace: str = "fl_workspace",
    settings_file: str | None = None,
    dataset_dir: str | None = None,
    unlabeled_sites: int = 0,
    labels: str | None = None,
    settings: dict[str, Any] | None = None,
    continue_from: str | None = None,
    start_round: int = 0,
    clip_norm: float | None = None,
    noise_multiplier: float = 0.0,
    startup_kit: str | None = None,
    username: str = "admin@nvidia.com",
    **options: Any,
) -> None:
    """
    Builds the job and runs it.

    Args:
        env: sim, poc or prod.
        sites: number of sites.
        rounds: rounds of the whole run.
        epochs_per_round: local epochs of a round.
        threads: sites that the simulation runs at a time; all by default.
        workspace: folder of the simulation.
        settings_file: JSON file at each site with the site's own settings; {SITE_NAME} stands for its name.
        dataset_dir: folder at each site with its data set. With neither of both the sites share the phantom.
        unlabeled_sites: how many of the sites that share the phantom have no labels.
        labels: a dataset.json whose ``labels`` name the classes; the phantom's by default.
        settings: numbers in train.json that are other at all sites, such as "{'steps_per_epoch': 100}".
        continue_from: global model of a server that died, with which the run goes on.
        start_round: round to go on with, where continue_from is a path at a server elsewhere.
        clip_norm: clip what each site sends to this norm, and add noise; needs --transfer difference.
        noise_multiplier: standard deviation of the noise over clip_norm.
        startup_kit: folder of the startup kit of who submits the job.
        username: name that the kit was made for.
        **options: see ``build_recipe`` and ``FederatedController``, such as --min_responses or --external.
    """
    if env not in ("sim", "poc", "prod"):
        raise ValueError(f"env must be sim, poc or prod, got {env!r}.")
    if labels is not None:
        options["class_names"] = read_datalist(Path(labels).parent, file=Path(labels).name).class_names
    if continue_from is not None:
        checkpoint = Path(continue_from)
        if checkpoint.is_file():
            start_round = read_checkpoint(checkpoint)["meta_props"]["next_round"]
            # A simulation begins by clearing the folder that it may lie in.
            kept = Path(workspace) / "continued_from.pt"
            kept.parent.mkdir(parents=True, exist_ok=True)
            checkpoint = Path(shutil.copyfile(checkpoint, kept))
        elif env != "prod" or start_round < 1:
            raise FileNotFoundError(
                f"continue_from must be a global model that a server has left, got {continue_from}, which is no file. "
                "For a file at a server elsewhere give --env prod and --start_round."
            )
        options["initial_ckpt"] = str(checkpoint.absolute())
    if settings is None and (settings_file or dataset_dir):
        # Those for the phantom are for the phantom.
        settings = {}
    recipe = build_recipe(
        num_sites=sites,
        num_rounds=rounds - start_round,
        start_round=start_round,
        epochs_per_round=epochs_per_round,
        settings=settings,
        arguments=client_arguments(settings_file, dataset_dir, phantom_sites=sites, unlabeled_sites=unlabeled_sites),
        **options,
    )
    if clip_norm is not None:
        recipe.add_client_output_filter(GaussianPrivacy(clip_norm, noise_multiplier), tasks=["train"])
    root = str(Path(workspace).absolute())
    if env == "sim":
        where: Any = SimEnv(num_clients=sites, num_threads=threads or sites, workspace_root=root)
    elif env == "poc":
        where = PocEnv(num_clients=sites)
    else:
        where = ProdEnv(startup_kit_location=startup_kit, username=username)
    try:
        run = recipe.execute(where)
    except RuntimeError as error:  # such as a simulation that has ended with an exit code, which its log explains
        raise SystemExit(str(error)) from error
    if env == "sim":
        summary = Path(root, recipe.name, "server", "simulate_job", "summary.json")
        if not summary.is_file():
            raise SystemExit("The run has not come to its end; the log above says why.")
        print(f"Best {json.loads(summary.read_text())['best']} on validation. Written to {summary.parent}.")
    elif env == "poc":
        print(f"Results: {run.get_result(clean_up=False)}")
        where.stop()
    else:
        print(f"Job {run.get_job_id()} is submitted.")


if __name__ == "__main__":
    fire.Fire(main)
