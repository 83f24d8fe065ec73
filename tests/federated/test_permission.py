from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinomix_monai.federated import permit_classes
from dinomix_monai.federated.permission import CLASSES


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "site-1" / "local").mkdir(parents=True)
    resources = {"class_allow_list": ["nvflare.a.B"], "servers": [{"heart_beat_timeout": 600}]}
    (tmp_path / "site-1" / "local" / "resources.json.default").write_text(json.dumps(resources))
    return tmp_path / "site-1"


def test_the_classes_are_added_to_those_of_the_kit_and_all_else_stays(kit: Path):
    default = (kit / "local" / "resources.json.default").read_text()
    path, new = permit_classes(kit)
    assert path == kit / "local" / "resources.json"
    assert new == list(CLASSES)
    written = json.loads(path.read_text())
    assert written == {**json.loads(default), "class_allow_list": ["nvflare.a.B", *CLASSES]}
    assert (kit / "local" / "resources.json.default").read_text() == default


def test_a_second_time_changes_nothing(kit: Path):
    path, _ = permit_classes(kit)
    before = path.read_text()
    assert permit_classes(kit) == (path, [])
    assert path.read_text() == before


def test_what_an_administrator_has_written_is_what_is_added_to(kit: Path):
    own = kit / "local" / "resources.json"
    own.write_text(json.dumps({"class_allow_list": ["mine.C", CLASSES[0]], "allow_log_streaming": False}))
    assert permit_classes(kit)[1] == list(CLASSES[1:])
    written = json.loads(own.read_text())
    assert written == {"class_allow_list": ["mine.C", *CLASSES], "allow_log_streaming": False}


def test_a_kit_that_permits_all_stays_as_it_is(kit: Path):
    file = kit / "local" / "resources.json.default"
    file.write_text('{"class_allow_list": ["*"]}')
    assert permit_classes(kit) == (file, [])


def test_what_is_no_kit_of_a_server_or_a_site_is_refused(kit: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"startup_kit must be the kit of a server or a site, got .*nowhere"):
        permit_classes(tmp_path / "nowhere")
    file = kit / "local" / "resources.json.default"
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"without a class_allow_list\. Users submit jobs and permit none"):
        permit_classes(kit)
    file.write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        permit_classes(kit)
    file.write_text("{")
    with pytest.raises(ValueError, match="must be a JSON file"):
        permit_classes(kit)
