from __future__ import annotations

import json
import math
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dinomix_monai.baselines import StudentPair
from dinomix_monai.bundle import Bundle
from dinomix_monai.data.anatomy import ORGANS
from dinomix_monai.run import failure_text
from tests.bundle.conftest import WITHOUT_REPORT

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundle" / "configs"
SCHEMA = ROOT / "bundle" / "docs" / "meta_schema.json"
METADATA = json.loads((CONFIGS / "metadata.json").read_text())
FILES = {file.relative_to(CONFIGS).with_suffix("").as_posix(): file for file in sorted(CONFIGS.rglob("*.json"))}
# A bound of the benchmarks, which changes the bundle as its overlays do.
CONTENT = "../../benchmarks/configs/fkd_content"
FILES[CONTENT] = CONFIGS / f"{CONTENT}.json"
ARMS = {Path(name).name: name for name in FILES if name.startswith(("ablation/", "baseline/", CONTENT))}
# What an overlay sets must not be taken back by the toy settings.
TOY_STEPS = {"epochs": 1, "steps_per_epoch": 3, "val_interval": 9, "warm_up": 0.0, "distiller#interval": 1}

# For MONAI itself, MONAI Label, NVFlare and the overlays.
RELIED_ON = {
    "train": [
        *(
            "bundle_root",
            "device",
            "dataset_dir",
            "network_def",
            "network",
            "optimizer",
            "initialize",
            "run",
            "training",
        ),
        *(
            "train#trainer",
            "train#trainer#max_epochs",
            "train#dataset",
            "train#dataset#data",
            "train#unlabeled_dataset",
        ),
        *("train#inferer", "train#handlers"),
        *("validate#evaluator", "validate#dataset", "validate#handlers"),
    ],
    "inference": [
        *("bundle_root", "device", "dataset_dir", "network_def", "network", "initialize", "run", "inferring"),
        *("preprocessing", "postprocessing", "inferer", "evaluator", "dataset", "handlers"),
    ],
}


def read(name: str) -> dict:
    return json.loads(FILES[name].read_text())


def strings(item: object) -> list[str]:
    if isinstance(item, dict):
        return [found for key, value in item.items() if key != "_desc_" for found in strings(value)]
    if isinstance(item, list):
        return [found for value in item for found in strings(value)]
    return [item] if isinstance(item, str) else []


def settings_for(overlay: str) -> dict:
    """The toy settings but for those that the overlay sets."""
    content = read(overlay)
    return {**{name: value for name, value in TOY_STEPS.items() if name not in content}, **in_overlay(overlay)}


def in_overlay(overlay: str) -> dict:
    # Given once more, because the fixture's toy settings would come after the overlay.
    toys = ("spacing_mm", "patch_size", "warm_up", "teacher_weights", "distiller#layers", "distiller#interval")
    return {name: value for name, value in read(overlay).items() if name in toys}


@pytest.fixture
def model_file(workflow, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    network = workflow("inference", kind="infer", model_file=str(path)).parser.get_parsed_content("network_def")
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("configs", "kind"),
    [
        (("train",), "train"),
        (("train", "evaluate"), "train"),
        (("train", "resume"), "train"),
        (("inference",), "infer"),
    ],
)
def test_monai_finds_every_property_under_its_id(
    workflow, phantom: Path, model_file: Path, configs: tuple[str, ...], kind: str
) -> None:
    paths = {"model_file": str(model_file), "dataset_dir": str(phantom / "images" if kind == "infer" else phantom)}
    if "resume" in configs:
        paths["state_file"] = str(model_file)
    built = workflow(*configs, kind=kind, **paths)
    built.initialize()
    assert built.check_properties() == []


def test_a_training_lets_cudnn_choose_its_algorithms(workflow) -> None:
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        workflow("train", distillation_weight=0).initialize()
        assert torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.deterministic


def test_a_missing_property_would_be_noticed(workflow, phantom: Path) -> None:
    built = workflow("train", **{"datalist#phantom_dir": str(phantom)})
    del built.parser.config["bundle_root"]
    built.initialize()
    with pytest.raises(KeyError, match="bundle_root"):
        built.check_properties()


@pytest.mark.parametrize("configs", [("train",), ("train", "evaluate"), ("train", "resume"), ("inference",)])
def test_ids_that_others_rely_on_exist(configs: tuple[str, ...]) -> None:
    parser = ConfigParser()
    parser.read_config([str(FILES[name]) for name in configs])
    assert [name for name in RELIED_ON[configs[0]] if name not in parser] == []


def test_each_command_has_its_run_id_as_a_copy_of_run() -> None:
    assert [read(name)[run] for name, run in (("train", "training"), ("evaluate", "evaluating"))] == ["%run", "%run"]
    assert read("inference")["inferring"] == "%run"


def test_there_are_few_enough_ids_to_read_and_each_component_is_described() -> None:
    train = read("train")
    assert len(train.keys() - {"_desc_", "imports"}) <= 56
    components = {name: value for name, value in train.items() if isinstance(value, dict) and name != "_desc_"}
    simple = {"bundle_root", "output_dir", "amp", "amp_dtype", "scale_intensity"}
    assert [name for name, value in components.items() if "_desc_" not in value and name not in simple] == []
    assert train["_desc_"].keys() - train.keys() == {"train.json"}


def test_train_handlers_are_a_literal_list_that_others_can_add_to() -> None:
    assert isinstance(read("train")["train"]["handlers"], list)
    assert all(isinstance(handler, dict) for handler in read("train")["train"]["handlers"])
    assert read("train")["train"]["trainer"]["train_handlers"] == "$@train#handlers + @train#writers"


@pytest.mark.parametrize("name", ["scale_intensity", "device", "amp"])
def test_training_and_inference_agree_on(name: str) -> None:
    assert read("train")[name] == read("inference")[name]


def test_training_on_the_phantom_and_inference_have_the_same_numbers() -> None:
    train, inference = (Bundle.find().parser(name) for name in ("train", "inference"))
    for name in ("spacing_mm", "patch_size", "intensity_window", "network_def#strides", "network_def#stem_stride"):
        assert train.get_parsed_content(name) == inference.get(name), name
    others = {name: value for name, value in read("inference")["network_def"].items() if "stride" not in name}
    assert others == {name: value for name, value in read("train")["network_def"].items() if "stride" not in name}


def test_training_and_inference_use_the_same_sliding_window() -> None:
    assert read("train")["validate"]["inferer"] == read("inference")["inferer"]["inferer"]


def test_inference_and_the_report_of_training_have_one_preprocessing_of_images() -> None:
    inference, report = read("inference")["preprocessing"], read("train")["report"]["preprocessing"]
    of_labels = [step for step in report["transforms"] if isinstance(step, dict) and step["keys"] == "label"]
    assert inference["transforms"] == [step for step in report["transforms"] if step not in of_labels]
    assert len(of_labels) == 2


def test_metadata_follows_the_schema() -> None:
    verify_metadata(meta_file=str(FILES["metadata"]), filepath=str(SCHEMA))


@pytest.mark.parametrize(
    "broken",
    [
        {"version": 1},
        {"changelog": {"0.1.0": ["a list"]}},
        {"network_data_format": {}},
        {"required_packages_version": {"timm": 1.0}},
    ],
    ids=lambda value: next(iter(value)),
)
def test_schema_rejects_broken_metadata(tmp_path: Path, broken: dict) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({**METADATA, **broken}))
    with pytest.raises(ValueError, match="schema") as error:
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))
    assert isinstance(error.value.__cause__, jsonschema.ValidationError)


def test_network_has_the_inputs_and_outputs_of_the_metadata() -> None:
    paths = {"meta_file": str(FILES["metadata"]), "config_file": str(FILES["inference"])}
    verify_net_in_out("network_def", device="cpu", **paths)
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out("network_def", device="cpu", num_classes=3, **paths)


def test_metadata_describes_patch_and_classes_of_the_phantom() -> None:
    image, prediction = (METADATA["network_data_format"][side] for side in ("inputs", "outputs"))
    assert list(prediction["pred"]["channel_def"].values()) == ["background", *ORGANS]
    assert list(prediction["pred"]["channel_def"]) == [str(value) for value in range(len(ORGANS) + 1)]
    assert prediction["pred"]["num_channels"] == len(ORGANS) + 1
    assert image["image"]["spatial_shape"] == prediction["pred"]["spatial_shape"]
    assert image["image"]["spatial_shape"] == read("inference")["patch_size"]
    scaler = Bundle.find().parser("inference").get_parsed_content("scale_intensity").scaler
    assert image["image"]["value_range"] == [scaler.b_min, scaler.b_max]


def test_version_is_that_of_the_package_and_stands_first_in_the_changelog() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert METADATA["version"] == re.search(r'^version = "(.+)"$', pyproject, re.MULTILINE)[1]
    assert METADATA["version"] == next(iter(METADATA["changelog"]))
    assert METADATA["version"] == METADATA["required_packages_version"]["dinomix-monai"]


def test_required_versions_are_those_that_the_package_requires() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    for package, version in METADATA["required_packages_version"].items():
        if package != "dinomix-monai":
            minimum = re.search(rf'"{package}>=([0-9.]+)', pyproject)[1]
            assert version.split(".")[: len(minimum.split("."))] == minimum.split("."), package


@pytest.mark.parametrize("name", FILES)
def test_no_config_knows_a_place_on_disk(name: str) -> None:
    # A quoted part that begins with a slash is fine where it is added to something.
    absolute = re.compile(r"""^[/~\\]|^[A-Za-z]:[\\/]|(?<!\+ )['"][/~]|/home/|/mnt/""")
    assert [text for text in strings(read(name)) if absolute.search(text)] == []


@pytest.mark.parametrize("overlay", ["acdc", "synapse", "amos", "memory_map", *ARMS.values()])
def test_overlay_changes_what_is_there(overlay: str) -> None:
    # An overlay for training and inference may have settings of training alone, so train.json is what it is held to.
    # What is new is what the overlay itself refers to.
    parser = ConfigParser(read("train"))
    for name in read(overlay):
        if name == "_desc_" or f"@{name}" in json.dumps(read(overlay)):
            continue
        # An argument that the base leaves at its default may be new, the object that it belongs to may not.
        owner = name.lstrip("+").rpartition("#")[0] or name.lstrip("+")
        assert owner in parser, name


def test_the_list_of_the_all_labels_arm_is_one_that_the_phantom_has(phantom: Path) -> None:
    assert (phantom / read("ablation/all_labels")["datalist#file"]).is_file()


def names_of_switched(overlay: str) -> set[str]:
    """Last part of the ``_target_`` of what an overlay switches by its place in a list of train.json."""
    train = ConfigParser(read("train"))
    switched = [name.removesuffix("#_disabled_") for name in read(overlay) if re.search(r"#\d+#_disabled_$", name)]
    return {train[name]["_target_"].rpartition(".")[2] for name in switched}


def test_of_several_processes_the_first_writes_and_checks() -> None:
    writers = {handler["_target_"].rpartition(".")[2] for handler in read("train")["train"]["writers"]}
    others = {"start_run", "verify_dataset", "check_patch_size", "print_plan"}
    others |= {"TensorBoardStatsHandler", "TensorBoardImageHandler"}
    assert names_of_switched("multi_gpu_train") == writers | others
    overlay = read("multi_gpu_train")
    assert overlay["train#events#_disabled_"] == "$@rank > 0"
    assert all("@rank > 0" in value for name, value in overlay.items() if name.endswith("#_disabled_"))
    assert "@rank == 0" in overlay["train#handlers#3#folder"]
    assert "folder" in read("train")["train"]["handlers"][3]


def test_a_round_of_a_federation_neither_validates_nor_draws() -> None:
    assert names_of_switched("federated") == {"ValidationHandler", "LastModelHandler", "TeacherViewHandler"}
    assert read("train")["initialize"][6]["_target_"].endswith(".verify_dataset")
    assert read("federated")["initialize#6#needs_labels"] is False


def test_an_online_teacher_needs_no_token_cache() -> None:
    assert names_of_switched("online_teacher") == {"AddToTokenCached", "SourceCoordinatesd"}
    assert names_of_switched(CONTENT) == {"AddToTokenCached", "SourceCoordinatesd"}


@pytest.mark.parametrize("overlay", ["acdc", "resume"])
def test_overlay_builds_its_trainer(workflow, overlay: str, model_file: Path) -> None:
    # Without distillation: the token cache of patients in the fine spacing of the heart takes a minute.
    settings = {"state_file": str(model_file), "distillation_weight": 0, **in_overlay(overlay)}
    built = workflow("train", overlay, **settings)
    built.initialize()
    trainer = built.parser.get_parsed_content("train#trainer")
    if overlay == "acdc":
        assert trainer.network.stem[0].stride == (2, 2, 1)
        assert tuple(trainer.data_loader.dataset[0][0]["image"].shape[1:]) == (96, 96, 8)


@pytest.mark.parametrize(
    ("arm", "terms"),
    {
        "supervised": set(),
        "all_labels": set(),
        "ema": {"unsupervised"},
        "cutmix": {"unsupervised"},
        "self_training": set(),
        "bcp": {"unsupervised"},
        "cps": {"unsupervised"},
        "pic": {"unsupervised"},
        "probe": {"unsupervised"},
        "fkd_untrained": {"unsupervised", "distillation"},
        "fkd_content": {"unsupervised", "distillation"},
    }.items(),
)
def test_each_arm_adds_the_terms_of_its_name_to_the_supervised_loss(
    workflow, model_file: Path, monkeypatch: pytest.MonkeyPatch, arm: str, terms: set[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    first = {"first_model": str(model_file)} if arm == "self_training" else {}
    built = workflow("train", ARMS[arm], **settings_for(ARMS[arm]), **first)
    built.initialize()
    trainer = built.parser.get_parsed_content("train#trainer")
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(dict(engine.state.output)))
    trainer.run()
    assert [set(loss) & {"unsupervised", "distillation"} for loss in losses] == [terms] * 3
    assert all(math.isfinite(loss["loss"]) for loss in losses)
    # The sum of nothing else.
    weights = {
        "supervised": 1.0,
        "unsupervised": trainer.unsupervised_weight,
        "distillation": getattr(trainer, "distillation_weight", 0.0),
    }
    for loss in losses if terms else ():
        expected = sum(weight * float(loss[name]) for name, weight in weights.items() if name in loss)
        assert float(loss["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arm", "share", "placement"),
    [
        *(("ema", None, None), ("cps", None, None), ("cutmix", 1.0, "same"), ("bcp", 1.0, "same")),
        *(("pic", None, "anatomical"), ("probe", None, "anatomical"), ("fkd_untrained", None, "anatomical")),
    ],
)
def test_each_arm_mixes_as_its_name_says(workflow, arm: str, share: float | None, placement: str | None) -> None:
    parser = workflow("train", ARMS[arm]).parser
    mix = parser.get("mix")
    assert (mix or {}).get("placement") == placement
    assert (mix or {}).get("blind_share") == share
    assert (parser.get_parsed_content("mix") is None) == (placement is None)


def test_every_arm_is_tested() -> None:
    tested = test_each_arm_adds_the_terms_of_its_name_to_the_supervised_loss.pytestmark[0].args[1]
    assert {arm for arm, _ in tested} == set(ARMS)


def test_all_labels_trains_on_the_labels_of_all_cases_and_supervised_on_few(workflow) -> None:
    sizes = {}
    for arm in ("supervised", "all_labels"):
        built = workflow("train", ARMS[arm])
        sizes[arm] = len(built.parser.get_parsed_content("datalist").training)
    assert sizes == {"supervised": 2, "all_labels": 4}


def test_training_twice_in_one_process_trains_twice(workflow, tmp_path: Path) -> None:
    built: ConfigWorkflow = workflow("train", epochs=1, **WITHOUT_REPORT)
    built.initialize()
    steps = []
    trainer = built.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(1))
    built.run()
    built.run()
    assert len(steps) == 2 * 3
    # Initialized anew, it is another trainer, with another network and a fresh schedule.
    built.initialize()
    again = built.parser.get_parsed_content("train#trainer")
    assert again is not trainer
    before = [parameter.detach().clone() for parameter in again.network.parameters()]
    built.run()
    assert again.state.iteration == 3
    assert any(not torch.equal(old, new) for old, new in zip(before, again.network.parameters()))


def test_an_overlay_that_brings_a_network_of_its_own_keeps_it_with_several_processes(
    workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    torch.manual_seed(1)
    model = workflow("train").parser.get_parsed_content("network_def")
    torch.save(model.state_dict(), tmp_path / "start.pt")
    torch.manual_seed(2)
    tuned = workflow("train", "finetune", "multi_gpu_train", start_file=str(tmp_path / "start.pt"))
    network = tuned.parser.get_parsed_content("network")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in network.state_dict().items())
    pair = workflow("train", "baseline/cps", "multi_gpu_train").parser.get_parsed_content("network")
    assert isinstance(pair, StudentPair)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_volumes_and_the_grids_that_deform_them_are_on_the_device(device: str, phantom: Path) -> None:
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    parser.update({"device": device, "dataset_dir": str(phantom)})
    assert str(parser.get_parsed_content("mix").mixer.sampler.affine_grid.device) == device
    assert str(parser.get_parsed_content("volume_transforms")[-1].converter.device) == device


@pytest.mark.parametrize("name", ["train", "inference"])
@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("cuda:1", True)])
def test_mixed_precision_is_for_the_device_that_is_used(name: str, device: str, expected: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    parser = ConfigParser()
    parser.read_config(str(FILES[name]))
    parser["device"] = device
    assert parser.get_parsed_content("amp") is expected
    assert parser.get_parsed_content("amp_dtype") is (torch.bfloat16 if expected else None)


@pytest.mark.parametrize("names", [("train",), ("inference",), ("train", "evaluate")], ids="+".join)
def test_a_word_for_mixed_precision_is_refused_before_anything_is_made(workflow, names, tmp_path: Path) -> None:
    kind = "infer" if "inference" in names else "train"
    with pytest.raises(RuntimeError) as caught:
        workflow(*names, kind=kind, amp="true", model_file=str(tmp_path / "nothing.pt")).initialize()
    assert "amp must be true or false, got 'true'" in failure_text(caught.value)
    assert not (tmp_path / "events").exists()


def test_in_mixed_precision_patches_are_still_deformed_and_taught(run) -> None:
    # On a CPU it is bfloat16, which NumPy does not know, and for pseudo-labels alone.
    trained = run("train", epochs=1, amp=True, warm_up=0.0, **{"distiller#interval": 1}, **WITHOUT_REPORT)
    output = trained.parser.get_parsed_content("train#trainer").state.output
    assert math.isfinite(output["unsupervised"])
    assert math.isfinite(output["distillation"])


def test_a_short_training_is_validated_at_its_end(run, tmp_path: Path) -> None:
    run("train", epochs=1, val_interval=7, **WITHOUT_REPORT)
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows[-1].split(",")[-1]


def test_tensorboard_shows_losses_rates_shares_scores_and_overlays(run, tmp_path: Path) -> None:
    trained = run("train", epochs=2, warm_up=0.0, **{"distiller#interval": 1}, **WITHOUT_REPORT)
    (file,) = (tmp_path / "events").iterdir()
    events = EventAccumulator(str(file)).Reload()

    def steps(tag: str) -> list[int]:
        return [event.step for event in events.Scalars(tag)]

    assert steps("train_loss") == steps("learning_rate") == [1, 2, 3, 4, 5, 6]
    for tag in ("loss", "supervised", "unsupervised", "distillation", "gradient_norm", "confident_share"):
        assert steps(tag) == [1, 2], tag
    assert steps("confident_share/background") == steps("val_dice/liver") == steps("val_mean_dice") == [1, 2]
    names = trained.parser.get_parsed_content("datalist").class_names[1:]
    scores = [events.Scalars(f"val_dice/{name}")[-1].value for name in names]
    assert np.mean(scores) == pytest.approx(events.Scalars("val_mean_dice")[-1].value, abs=1e-6)
    for tag in ("input_0_CHW", "input_1_CHW", "output_CHW"):
        assert [image.step for image in events.Images(tag)] == [1, 2]


@pytest.mark.parametrize("name", FILES)
def test_no_target_is_a_module_as_well(name: str) -> None:
    # From Python 3.13 on, MONAI would find the module.
    targets = {text for text in strings(read(name)) if text.startswith("dinomix_monai.")}
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / "dinomix_monai").rglob("*.py")
    }
    assert targets & modules == set()
