from __future__ import annotations

import json

import pytest

from dinomix_monai.data import make_phantom, read_datalist, split_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("phantom"), cases=(3, 5, 2, 2), size=(16, 16, 16)).parent


def cases(path, section):
    return [case["image"] for case in json.loads(path.read_text())[section]]


@pytest.mark.parametrize("unlabeled", [0, 1])
def test_every_case_goes_to_one_site_and_labels_to_those_that_may_have_them(folder, unlabeled):
    paths = split_dataset(folder, 3, unlabeled)
    whole = json.loads((folder / "dataset.json").read_text())
    for section in ("training", "unlabeled", "validation", "test"):
        dealt = [cases(path, section) for path in paths]
        assert sorted(image for of_site in dealt for image in of_site) == sorted(
            case["image"] for case in whole[section]
        )
        if section != "unlabeled":
            assert dealt[3 - unlabeled :] == [[]] * unlabeled
    assert [len(cases(path, "training")) for path in paths] == ([2, 1, 0] if unlabeled else [1, 1, 1])
    assert [len(cases(path, "unlabeled")) for path in paths] == [2, 2, 1]


def test_a_share_is_a_datalist_of_the_same_phantom(folder):
    first = split_dataset(folder, 2)[0]
    opened = read_datalist(folder, file=first.name)
    assert opened.is_phantom
    assert opened.class_names == read_datalist(folder).class_names


@pytest.mark.parametrize(("sites", "unlabeled"), [(0, 0), (2, 2), (2, -1)])
def test_at_least_one_site_has_labels(folder, sites, unlabeled):
    with pytest.raises(ValueError, match="sites and unlabeled_sites must leave at least one site with labels"):
        split_dataset(folder, sites, unlabeled)


def test_each_site_with_labels_has_a_case(folder):
    with pytest.raises(ValueError, match="training must list a case for each of 4 sites with labels, got 3"):
        split_dataset(folder, 4)
