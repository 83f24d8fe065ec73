from __future__ import annotations

import json
import logging
import sys

import pytest
from monai.bundle import ConfigParser

from dinomix_monai.run import start_run


def parsed(folder, **config):
    started = {"_target_": "dinomix_monai.run.start_run", "output_dir": str(folder), "name": "training"}
    parser = ConfigParser({"started": started, **config})
    return parser.get_parsed_content("started")


def test_the_configuration_that_is_written_runs_again(tmp_path):
    config = {
        "epochs": 3,
        "double": "$2 * @epochs",
        "object": {"_target_": "SpatialPadd", "keys": "a", "spatial_size": 3},
    }
    log_file = parsed(tmp_path / "out", **config)
    assert log_file.parent == tmp_path / "out" / "logs"
    written = log_file.with_suffix(".json")
    assert {name: json.loads(written.read_text())[name] for name in config} == config
    again = ConfigParser()
    again.read_config(written)
    assert again.get_parsed_content("double") == 6


def test_an_object_in_the_configuration_is_written_as_its_text(tmp_path):
    log_file = parsed(tmp_path, device=sys)
    assert "module 'sys'" in json.loads(log_file.with_suffix(".json").read_text())["device"]


def test_the_log_has_command_and_versions_and_what_this_package_says(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run", "--epochs", "3"])
    log_file = start_run(tmp_path, "training")
    logging.getLogger("dinomix_monai.somewhere").info("Something happens.")
    text = log_file.read_text()
    assert all(part in text for part in ("run --epochs 3", "torch ", "monai ", "Something happens."))
    assert not log_file.with_suffix(".json").exists()


def test_a_second_run_has_a_log_of_its_own_and_leaves_the_first(tmp_path):
    first, second = start_run(tmp_path / "a", "training"), start_run(tmp_path / "b", "training")
    logging.getLogger("dinomix_monai").warning("Of the second.")
    assert "Of the second." in second.read_text()
    assert "Of the second." not in first.read_text()


def test_ignite_does_not_repeat_the_error_on_the_console_but_in_the_log(tmp_path, capsys):
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING)
    logging.getLogger().addHandler(console)
    log_file = start_run(tmp_path, "training")
    logging.getLogger("ignite").error("Engine run is terminating due to exception: x")
    logging.getLogger("ignite").error("Something else.")
    assert capsys.readouterr().err == "Something else.\n"
    assert "terminating" in log_file.read_text()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"output_dir must be a folder that can be written to, got .*file \(Not a dir"):
        start_run(tmp_path / "file", "training")
    with pytest.raises(OSError, match=r"report_dir must be a folder .* Pass another by --report_dir\."):
        start_run(tmp_path / "file", "evaluating", setting="report_dir")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "--epoch",
            "--epoch must be a setting, got a name that nothing in the configuration refers to. Did you mean epochs",
        ),
        ("--epoch=3", "Did you mean epochs?"),
        ("--dry_run", "refers to. `python -m dinomix_monai plan` tells what a training would do, and trains nothing."),
        ("--xyz", "--xyz must be a setting, .* All settings stand at the top"),
    ],
)
def test_a_mistyped_setting_is_an_error(tmp_path, monkeypatch, typed, message):
    monkeypatch.setattr(sys, "argv", ["run", typed])
    with pytest.raises(RuntimeError) as caught:
        parsed(tmp_path, epochs=3, epoch=3, dry_run=True, xyz=4, max_epochs="@epochs", run=[])
    with pytest.raises(ValueError, match=message):
        raise caught.value.__cause__


def test_settings_that_are_used_or_not_typed_may_stand_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run", "--epochs", "3", "--part#number=3"])
    parsed(tmp_path, epochs=3, part={"number": 3}, max_epochs="@epochs", idle=3)
