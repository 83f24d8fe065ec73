from __future__ import annotations

from monai.bundle import ConfigParser

from dinomix_monai.run import idle_settings, present_parser


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
    assert idle_settings(config) == ["idle", "idle_list", "nothing", "described"]
