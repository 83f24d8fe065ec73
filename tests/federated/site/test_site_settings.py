from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinomix_monai.bundle import Bundle
from dinomix_monai.federated.site.site_settings import SiteSettings, phantom_site

ROOT = Path(__file__).parents[3]


def test_a_file_of_the_site_sets_ids_folder_and_bundle(tmp_path):
    file = tmp_path / "site.json"
    content = {
        "dataset_dir": "/data",
        "amp": False,
        "folder": str(tmp_path / "own"),
        "bundle_root": str(ROOT / "bundle"),
    }
    file.write_text(json.dumps(content))
    settings = SiteSettings.read("north", tmp_path / "other", file, dataset_dir="/not/this")
    assert settings == SiteSettings("north", tmp_path / "own", Bundle.find(), {"dataset_dir": "/data", "amp": False})


def test_without_a_file_the_bundle_is_the_one_beside_the_package(tmp_path):
    settings = SiteSettings.read("north", tmp_path, dataset_dir="/data")
    assert settings == SiteSettings("north", tmp_path, Bundle.find(), {"dataset_dir": "/data"})


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"settings_file must be a JSON file of the site, got .*none\.json"):
        SiteSettings.read("north", tmp_path, tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json must hold an object of settings by id, got a list"):
        SiteSettings.read("north", tmp_path, tmp_path / "list.json")


@pytest.mark.parametrize("name", ["north", "site-0", "site-3"])
def test_a_site_without_a_share_of_the_phantom_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"name must end in the number of one of 2 sites, as site-1, got '{name}'"):
        phantom_site(name, tmp_path, 2)


def test_the_phantom_is_made_once_and_dealt_out(tmp_path, monkeypatch):
    from dinomix_monai.data import datalist, make_phantom

    made = []

    def small(folder):
        made.append(folder)
        return make_phantom(folder, cases=(2, 3, 2, 0), size=(16, 16, 16))

    monkeypatch.setattr(datalist, "make_phantom", small)
    found = [phantom_site(f"site-{number}", tmp_path, 2) for number in (1, 2)]
    assert made == [tmp_path / "data" / "phantom"]
    assert [settings["datalist#file"] for settings in found] == ["site-1-of-2.json", "site-2-of-2.json"]
    assert {settings["dataset_dir"] for settings in found} == {str(made[0])}
    assert (made[0] / "site-2-of-2.json").is_file()
