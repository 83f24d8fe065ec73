from __future__ import annotations

import re

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from dinomix_monai.run import bundle_root, check_paths, folder_above_configs, present_parser, unused_settings


def test_the_parser_is_the_one_that_evaluates_the_caller():
    for _ in range(2):
        parser = ConfigParser({"found": {"_target_": "dinomix_monai.run.present_parser"}})
        assert parser.get_parsed_content("found") is parser


def test_outside_of_a_configuration_there_is_none():
    assert present_parser() is None


def test_settings_are_idle_that_nothing_refers_to():
    config = {
        "_meta_": {},
        "imports": ["$import os"],
        "_desc_": "Not @described.",
        "used": 1,
        "copied": [1, 2],
        "inside": "a",
        "idle": 1,
        "idle_list": [1, [2.5, "b"]],
        "nothing": None,
        "described": 2,
        "part": {"_target_": "Part", "x": "@used", "y": ["%copied"], "z": "$len(@inside)"},
        "parts": [{"_target_": "Part"}],
        "run": ["$@part.run()"],
        "training": "%run",
    }
    assert unused_settings(config) == ["idle", "idle_list", "nothing", "described"]


@pytest.mark.parametrize("value", [2024, 202401, 1e5, True])
def test_a_path_that_came_as_a_number_is_refused(value):
    message = rf"dataset_dir must be a path, got {re.escape(str(value))}, which the command line takes for a number"
    with pytest.raises(ValueError, match=message):
        check_paths(ConfigParser({"dataset_dir": value, "output_dir": "out"}))
    with pytest.raises(ValueError, match=rf"cache#folder must be a path, got {re.escape(str(value))}, "):
        check_paths(ConfigParser({"cache": {"folder": value}, "output_dir": "out"}))


def test_paths_and_what_is_none_are_taken():
    check_paths(ConfigParser({"dataset_dir": "./2024", "raw_dir": None, "output_dir": "out", "epochs": 3}))


def test_outputs_have_a_place_only_where_there_is_a_bundle(tmp_path, monkeypatch):
    parser = ConfigParser({"bundle_root": str(tmp_path), "output_dir": "@bundle_root"})
    with pytest.raises(ValueError, match=r"output_dir must be given where no bundle is known, got none in "):
        check_paths(parser)
    (tmp_path / "configs").mkdir()
    check_paths(parser)


def test_the_bundle_is_that_of_the_configs_wherever_the_run_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bundle_root() == "."
    configs = tmp_path / "elsewhere" / "configs"
    configs.mkdir(parents=True)
    (configs / "a.json").write_text('{"bundle_root": {"_target_": "dinomix_monai.run.bundle_root"}, "run": []}')
    workflow = ConfigWorkflow(str(configs / "a.json"), logging_file=False, workflow_type="train")
    workflow.initialize()
    assert workflow.bundle_root == str(tmp_path / "elsewhere")
    assert folder_above_configs(configs) == str(tmp_path / "elsewhere")
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    assert bundle_root() == "bundle"
    assert folder_above_configs(configs) == str(tmp_path / "elsewhere")
