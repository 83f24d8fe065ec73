"""The one description of the federated job, from which ``flare_app`` is exported."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.app_common.executors.client_api_executor import ClientAPIExecutor, ExecutionMode
from nvflare.app_opt.pt.job_config.model import PTModel
from nvflare.client.config import ExchangeFormat
from nvflare.job_config.base_fed_job import BaseFedJob
from nvflare.recipe import add_experiment_tracking
from nvflare.recipe.spec import Recipe

from dinomix_monai.data.anatomy import ORGANS
from dinomix_monai.federated.promotion import read_checkpoint
from dinomix_monai.federated.server.controller import FederatedController
from dinomix_monai.federated.site.privacy import GaussianPrivacy
from dinomix_monai.run import check_counts

__all__ = ["PHANTOM_SETTINGS", "build_recipe", "client_arguments", "continued_run"]

PHANTOM_SETTINGS: Mapping[str, Any] = {"steps_per_epoch": 25, "val_interval": 4}
"""Settings with which a run of two sites on the phantom takes less than eight minutes on two cores."""

_CLIENT_FILE = "client.py"
_CLIENT_SOURCE = '''"""What a job with code carries to the sites: the package that they have installed does the rest."""

from dinomix_monai.federated.site.client import main

main()
'''


def client_arguments(
    settings_file: str | None = None,
    dataset_dir: str | None = None,
    folder: str = "{WORKSPACE}/dinomix",
    phantom_sites: int = 2,
    unlabeled_sites: int = 0,
) -> list[str]:
    """
    Makes the command line of the client at a site; NVFlare fills in ``{SITE_NAME}`` and ``{WORKSPACE}`` there.

    Args:
        settings_file: path of the site's JSON file with its own settings.
        dataset_dir: folder of the site's data set.
        folder: where the site keeps its own state.
        phantom_sites: number of shares of the phantom, which is used without a settings file and a data set.
        unlabeled_sites: how many of these shares have no labels.

    Returns:
        The words of the command line.

    Raises:
        ValueError: When a path has white space, at which NVFlare would split it.

    Example:
        >>> client_arguments(settings_file="/etc/dinomix/{SITE_NAME}.json")[2:]
        ['--settings_file', '/etc/dinomix/{SITE_NAME}.json']
    """
    paths = {"folder": folder, "settings_file": settings_file, "dataset_dir": dataset_dir}
    if split := [path for path in paths.values() if path and len(path.split()) > 1]:
        raise ValueError(f"Paths must have no white space, got {split[0]!r}.")
    if settings_file is None and dataset_dir is None:
        paths |= {"phantom_sites": str(phantom_sites), "unlabeled_sites": str(unlabeled_sites)}
    return [part for name, value in paths.items() if value is not None for part in (f"--{name}", value)]


def continued_run(
    checkpoint: str | Path,
    workspace: str | Path,
    start_round: int = 0,
    rounds: int | None = None,
    is_elsewhere: bool = False,
) -> tuple[str, int, int]:
    """
    Finds out where a run goes on whose server has died.

    Args:
        checkpoint: global model that the server has left.
        workspace: folder of the run that goes on. A copy of the model is kept there, because a simulation begins by
            clearing the folder that the model may lie in.
        start_round: round to go on with, where the file is at a server elsewhere; otherwise the file says it.
        rounds: rounds of the whole run, by which schedules go; by default those of the file.
        is_elsewhere: whether ``checkpoint`` may be a path at a server elsewhere.

    Returns:
        Absolute path of the model, the round to go on with, and the rounds of the whole run.

    Raises:
        FileNotFoundError: When there is no such file here, and none can be elsewhere.
        ValueError: When it is not a global model.
    """
    path = Path(checkpoint)
    if path.is_file():
        about = read_checkpoint(path)["meta_props"]
        start_round, rounds = about["next_round"], rounds or about["rounds"]
        kept = Path(workspace) / "continued_from.pt"
        kept.parent.mkdir(parents=True, exist_ok=True)
        path = Path(shutil.copyfile(path, kept))
    elif not is_elsewhere or start_round < 1:
        raise FileNotFoundError(
            f"continue_from must be a global model that a server has left, got {checkpoint}, which is no file. "
            "For a file at a server elsewhere give --env prod and --start_round."
        )
    if rounds is None:
        raise ValueError("rounds must be given where the model is at a server elsewhere, got none.")
    return str(path.absolute()), start_round, rounds


def build_recipe(
    name: str = "dinomix",
    num_sites: int = 2,
    num_rounds: int = 4,
    epochs_per_round: int = 2,
    settings: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = ("background", *ORGANS),
    arguments: Sequence[str] | None = None,
    with_code: bool = True,
    external: bool = False,
    initial_ckpt: str | None = None,
    clip_norm: float | None = None,
    noise_multiplier: float = 0.0,
    **controller: Any,
) -> Recipe:
    """
    Describes the federated job: what runs at the server and at the sites.

    With the defaults two sites share the built-in phantom.

    Args:
        name: name of the job.
        num_sites: number of sites that must be connected.
        num_rounds: number of rounds.
        epochs_per_round: epochs that a site trains in a round.
        settings: see :class:`~dinomix_monai.federated.protocol.RunPlan`; :data:`PHANTOM_SETTINGS` by default.
        class_names: names of the model's classes by label value, background first; with ``union_labels`` those that
            the model begins with.
        arguments: command line of the client, see :func:`client_arguments`.
        with_code: whether a script of three lines travels with the job, as NVFlare has it by default. Without it each
            site runs the module of its installed package, in a process of its own, and has to allow the job's classes.
        external: whether the script, too, runs in a process of its own.
        initial_ckpt: checkpoint of the global model to begin with, an absolute path at the server.
        clip_norm: see :class:`~dinomix_monai.federated.site.privacy.GaussianPrivacy`; no noise and no clipping if not
            given.
        noise_multiplier: see :class:`~dinomix_monai.federated.site.privacy.GaussianPrivacy`.
        **controller: further arguments of
            :class:`~dinomix_monai.federated.server.controller.FederatedController`.

    Raises:
        ValueError: When an argument is outside of its range, or ``clip_norm`` is given and weights are sent in full.
    """
    check_counts(sites=num_sites, epochs_per_round=epochs_per_round)
    if num_rounds < 1:
        done = controller.get("start_round", 0)
        raise ValueError(f"rounds must be more than the {done} that are done, got {done + num_rounds}.")
    if clip_norm is None and noise_multiplier:
        raise ValueError(f"clip_norm must be given with noise_multiplier, got none with {noise_multiplier}.")
    if clip_norm is not None and controller.get("transfer", "full") == "full":
        raise ValueError(
            f"transfer must be difference or half_difference with clip_norm, got full with {clip_norm}. Only a change "
            "can be clipped."
        )
    settings = dict(PHANTOM_SETTINGS if settings is None else settings)
    arguments = list(client_arguments(phantom_sites=num_sites) if arguments is None else arguments)
    # An empty metric leaves NVFlare's model selector out: the controller itself keeps the best model, which may be the
    # last one, and the selector never sees that.
    job = BaseFedJob(name=name, min_clients=num_sites, key_metric="")
    # The package is installed at every site. Without this line NVFlare would copy its source into the job.
    job.set_app_packages(["dinomix_monai"])
    network = {"num_classes": len(class_names), "settings": settings, "overlays": list(controller.get("overlays", ()))}
    model = {"path": "dinomix_monai.federated.protocol.bundle_network.bundle_network", "args": network}
    persistor_id = job.to_server(PTModel(model=model, initial_ckpt=initial_ckpt), id="persistor")["persistor_id"]
    job.to_server(
        FederatedController(
            class_names=class_names,
            num_clients=num_sites,
            num_rounds=num_rounds,
            epochs_per_round=epochs_per_round,
            settings=settings,
            persistor_id=persistor_id,
            **controller,
        )
    )
    if external or not with_code:
        module = [f"custom/{_CLIENT_FILE}"] if with_code else ["-m", "dinomix_monai.federated.site.client"]
        mode: dict[str, Any] = {
            "execution_mode": ExecutionMode.EXTERNAL_PROCESS,
            "command": ["python3", "-u", *module, *arguments],
            # Each task has a process of its own, so a site whose process was killed is back in the next task.
            "launch_once": False,
        }
    else:
        mode = {
            "execution_mode": ExecutionMode.IN_PROCESS,
            "task_script_path": _CLIENT_FILE,
            "task_script_args": " ".join(arguments),
        }
    job.to_clients(ClientAPIExecutor(params_exchange_format=ExchangeFormat.PYTORCH, **mode), tasks=["*"])
    recipe = Recipe(job)
    if with_code:
        # NVFlare copies the content of a folder as it is. The copy of a file would lie below the folders that lead to
        # it from an entry of sys.path.
        folder = tempfile.TemporaryDirectory()
        weakref.finalize(recipe, folder.cleanup)
        Path(folder.name, _CLIENT_FILE).write_text(_CLIENT_SOURCE)
        job.to_clients(folder.name)
    add_experiment_tracking(recipe, "tensorboard")
    if clip_norm is not None:
        recipe.add_client_output_filter(GaussianPrivacy(clip_norm, noise_multiplier), tasks=["train"])
    return recipe
