from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinomix_monai.bundle import Bundle, config_files, open_configuration

ROOT = Path(__file__).parents[1]


@pytest.fixture
def files(tmp_path):
    """A configuration and an overlay."""
    contents = {"train": {"epochs": 3, "trainer": {"max_epochs": "@epochs"}}, "overlay": {"trainer#device": "cpu"}}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return [str(tmp_path / f"{name}.json") for name in contents]


@pytest.mark.parametrize("join", [list, tuple, ",".join])
def test_overlays_and_settings_are_applied_in_their_order(files, join):
    parser = open_configuration(join(files), epochs=5, **{"trainer#device": "cuda"})
    assert parser.get_parsed_content("trainer") == {"max_epochs": 5, "device": "cuda"}
    assert open_configuration(files).get_parsed_content("trainer#device") == "cpu"
    assert open_configuration(files[0]).get("trainer") == {"max_epochs": "@epochs"}


def test_in_any_folder_the_bundle_is_that_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    came = str(ROOT / "bundle" / "configs" / "train.json")
    assert config_files("bundle/configs/train.json,bundle/own.json") == [came, "bundle/own.json"]
    assert Bundle.present() == Bundle.find()
    Bundle.find().copy("bundle")
    assert Bundle.present().root == tmp_path / "bundle"
    assert config_files(["bundle/configs/train.json"]) == ["bundle/configs/train.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config_file must be a configuration of the bundle, got .*a\.json, which does not exist\. Start from"),
        ("{", r"config_file must be JSON or YAML, got .*a\.json: Expecting property name"),
        ("[1]", r"config_file must have settings by name, got .*a\.json with a list\."),
    ],
    ids=["missing", "no JSON", "a list"],
)
def test_what_is_no_configuration_is_named(files, tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_configuration([*files, tmp_path / "a.json"])


def test_a_setting_that_does_nothing_is_refused(files):
    with pytest.raises(ValueError, match=r"--epoch must be a setting, .* Did you mean epochs\?"):
        open_configuration(files, epoch=5)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_in_an_overlay_is_named(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"epochs": 3}', encoding=encoding)
    with pytest.raises(ValueError, match=r"config_file must be in UTF-8 without a byte order mark, .* got .*a\.json"):
        open_configuration(tmp_path / "a.json")


@pytest.fixture
def bundle(tmp_path):
    """A bundle with a training, an inference and settings of its own."""
    (tmp_path / "configs" / "baseline").mkdir(parents=True)
    contents = {
        "train": {"epochs": 3, "trainer": {"max_epochs": "@epochs"}, "where": "$@bundle_root + '/data'"},
        "baseline/long": {"epochs": 30},
        "inference": {"spacing": 4, "grid": {"pixdim": "@spacing"}},
        "metadata": {},
    }
    for name, content in contents.items():
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "settings.json").write_text(
        json.dumps({"trainer#amp": True, "grid#mode": "nearest", "_desc_": "Ours."})
    )
    return Bundle(tmp_path)


def test_configs_go_by_name_or_by_path(bundle, files):
    assert bundle.parser("train", "baseline/long").get_parsed_content("trainer") == {"max_epochs": 30}
    assert bundle.parser("train", files[1]).get_parsed_content("trainer#device") == "cpu"
    assert bundle.parser("train", Path(files[1])).get_parsed_content("trainer#device") == "cpu"


def test_settings_have_the_last_word_and_the_bundle_is_known(bundle, tmp_path):
    parser = bundle.parser("train", "baseline/long", epochs=5)
    assert parser.get_parsed_content("trainer#max_epochs") == 5
    assert parser.get_parsed_content("where") == f"{tmp_path}/data"


def test_the_settings_of_a_bundle_come_last_and_pass_by_components_that_are_not_there(bundle, tmp_path):
    own = Bundle(bundle.root, tmp_path / "settings.json")
    assert own.files("train")[-1] == str(tmp_path / "settings.json")
    assert own.parser("train").get_parsed_content("trainer") == {"max_epochs": 3, "amp": True}
    assert own.parser("inference").get_parsed_content("grid") == {"pixdim": 4, "mode": "nearest"}
    assert "trainer" not in own.parser("inference")


def test_a_missing_config_is_named(bundle):
    with pytest.raises(FileNotFoundError, match=r"A config must be one of the bundle .*, got .*configs/nothing\.json"):
        bundle.parser("train", "nothing")


def test_a_workflow_has_the_settings_and_is_not_initialized(bundle, tmp_path):
    (tmp_path / "configs" / "run.json").write_text(
        json.dumps({"initialize": ["$1 / 0"], "run": ["$@epochs"], "epochs": 1})
    )
    workflow = bundle.workflow("run", epochs=4)
    assert workflow.parser["epochs"] == 4
    assert workflow.run() == [4]
    with pytest.raises(RuntimeError):
        workflow.initialize()


def test_the_bundle_beside_the_package_is_found_and_another_folder_is_refused(tmp_path):
    assert Bundle.find().root == ROOT / "bundle"
    assert Bundle.find(ROOT / "bundle") == Bundle.find()
    with pytest.raises(FileNotFoundError, match=r"bundle must be the folder of the bundle, got .*, which has no"):
        Bundle.find(tmp_path, "bundle")
