from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvflare import lighter
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.lighter.provision import prepare_builders, prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import load_yaml

from dinomix_monai.federated import permit_classes
from dinomix_monai.federated.execution import make_environment
from dinomix_monai.federated.permission import CLASSES
from dinomix_monai.federated.recipe import build_recipe, client_arguments

APP = Path(__file__).parents[2] / "flare_app"


def content(folder: Path) -> dict:
    """Parsed JSON and text of all files but those that are not part of the job."""
    files = [folder / "meta.json", *(path for path in (folder / "app").rglob("*") if path.is_file())]
    return {
        str(path.relative_to(folder)): json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()
        for path in files
        if "__pycache__" not in path.parts
    }


@pytest.fixture
def export(tmp_path: Path):
    def build(**options: object) -> dict:
        build_recipe(**options).export(str(tmp_path))
        return content(tmp_path / "dinomix")

    return build


def executor(exported: dict) -> dict:
    return exported["app/config/config_fed_client.json"]["executors"][0]["executor"]["args"]


def test_the_folder_is_what_the_recipe_exports(export) -> None:
    assert content(APP) == export()


def test_the_job_carries_three_lines_of_code_and_no_path_of_a_machine(export) -> None:
    exported = export()
    assert [name for name in exported if name.endswith(".py")] == ["app/custom/client.py"]
    assert "dinomix_monai.federated.site.client import main" in exported["app/custom/client.py"]
    assert not any(word in json.dumps(exported) for word in ('"/', "home", "tmp"))


def test_settings_of_the_controller_are_exported_and_those_of_the_network_go_to_it_too(export) -> None:
    chosen = {"transfer": "half_difference", "local_norm": True, "fedprox_mu": 0.01, "min_responses": 1}
    chosen |= {"round_timeout": 60, "norm_bound": 5.0, "server_momentum": 0.9, "overlays": ["acdc"], "start_round": 2}
    exported = export(settings={"network_def#n_filters": 4}, class_names=["background", "heart"], **chosen)
    server = exported["app/config/config_fed_server.json"]
    arguments = server["workflows"][0]["args"]
    assert {name: arguments[name] for name in chosen} == chosen
    persistor = next(part for part in server["components"] if part["id"] == "persistor")
    expected = {"num_classes": 2, "settings": {"network_def#n_filters": 4}, "overlays": ["acdc"]}
    assert persistor["args"]["model"]["args"] == expected


def test_without_code_the_installed_package_runs_in_a_process_of_its_own(export) -> None:
    exported = export(with_code=False, arguments=client_arguments(settings_file="/etc/dinomix/{SITE_NAME}.json"))
    assert not any(name.startswith("app/custom") for name in exported)
    found = executor(exported)
    assert found["execution_mode"] == "external_process"
    assert found["command"][:4] == ["python3", "-u", "-m", "dinomix_monai.federated.site.client"]
    assert found["command"][-2:] == ["--settings_file", "/etc/dinomix/{SITE_NAME}.json"]
    assert found["launch_once"] is False


def components(value: object) -> Iterator[dict]:
    """All parts of a configuration that name a class."""
    if isinstance(value, dict):
        if "path" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from components(item)


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Startup kits of a server, two sites and their users, as ``nvflare provision`` makes them of its own example."""
    folder = tmp_path_factory.mktemp("kits")
    project = load_yaml(str(Path(lighter.__file__).parent / "dummy_project.yml"))
    Provisioner(str(folder), prepare_builders(project)).provision(prepare_project(project))
    return folder / project["name"] / "prod_00"


def test_the_classes_that_a_kit_allows_permit_a_job_without_code_and_nvflares_own_list_does_not(
    export, kits: Path
) -> None:
    page = (APP.parent / "docs" / "federation_sites.md").read_text()
    found = [
        part for name, config in export(with_code=False).items() if "app/config" in name for part in components(config)
    ]
    privacy = re.search(r'"path": "(dinomix_monai[\w.]+)"', page)[1]
    found.append({"path": privacy})

    def refused(kit: Path) -> set[str]:
        workspace = Workspace(str(kit))
        names = set()
        for part in found:
            try:
                ComponentPathAuthorizer().authorize_component_config(part, workspace=workspace)
            except UnsafeComponentError:
                names.add(part["path"])
        return names

    for party in ("server1", "site-1"):
        own = {name for name in refused(kits / party) if name.startswith("dinomix_monai.")}
        assert own == {
            "dinomix_monai.federated.server.controller.FederatedController",
            "dinomix_monai.federated.protocol.bundle_network.bundle_network",
            "dinomix_monai.federated.site.privacy.GaussianPrivacy",
        }
        written, _ = permit_classes(kits / party)
        assert refused(kits / party) == set()
    # Each of them is needed.
    resources = json.loads(written.read_text())
    for name in CLASSES:
        rest = [other for other in resources["class_allow_list"] if other != name]
        written.write_text(json.dumps({**resources, "class_allow_list": rest}))
        assert refused(kits / party)


def test_a_kit_names_its_user_and_a_kit_of_a_site_has_none(kits: Path, tmp_path: Path) -> None:
    user = "lead@nvidia.com"
    assert make_environment("prod", 2, tmp_path, startup_kit=str(kits / user)).username == user
    with pytest.raises(FileNotFoundError, match=r"startup_kit must be the kit of a user .*, got .*site-2"):
        make_environment("prod", 2, tmp_path, startup_kit=str(kits / "site-2"))
    with pytest.raises(ValueError, match="Users submit jobs and permit none"):
        permit_classes(kits / user)


def test_a_script_can_run_in_a_process_of_its_own(export) -> None:
    found = executor(export(external=True))
    assert found["command"][:3] == ["python3", "-u", "custom/client.py"]


def test_the_curves_of_all_sites_come_to_the_server(export) -> None:
    exported = export()
    receivers = [part["path"] for part in exported["app/config/config_fed_server.json"]["components"]]
    assert "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver" in receivers
    senders = [part["path"] for part in exported["app/config/config_fed_client.json"]["components"]]
    assert senders == ["nvflare.app_common.widgets.convert_to_fed_event.ConvertToFedEvent"]


def test_paths_with_white_space_are_refused() -> None:
    with pytest.raises(ValueError, match="Paths must have no white space, got '/my data'"):
        client_arguments(dataset_dir="/my data")
