from __future__ import annotations

import json
import re

import pytest

from dinomix_monai.data import Protocol, read_protocol
from dinomix_monai.data.protocol import DATASETS

EVERY = [
    *(("synapse", "skcdf"), ("synapse", "dhc"), ("synapse", "genericssl")),
    *(("amos", "dhc"), ("acdc", "ssl4mis"), ("la", "uamt")),
]
# Of the publications: cases of training, validation and test, and labeled ones by share.
SIZES = {
    "synapse": ((20, 4, 6), {"10": 2, "20": 4, "40": 8}),
    "amos": ((216, 24, 120), {"2": 4, "5": 10, "10": 21}),
    "acdc": ((140, 20, 40), {"5": 6, "10": 14, "20": 28}),
    "la": ((80, 0, 20), {"5": 4, "10": 8, "20": 16}),
}


def test_every_data_set_has_its_protocols_and_the_first_is_the_default():
    found = [(dataset, name) for dataset in DATASETS for name in names_of(dataset)]
    assert found == EVERY
    assert [read_protocol(dataset).name for dataset in DATASETS] == ["skcdf", "dhc", "ssl4mis", "uamt"]


def names_of(dataset: str) -> list[str]:
    with pytest.raises(ValueError, match="protocol must be one of") as error:
        read_protocol(dataset, "none")
    return re.search(r"one of (.+) for", str(error.value))[1].split(", ")


@pytest.mark.parametrize(("dataset", "name"), EVERY)
def test_a_protocol_has_the_published_numbers_of_cases_and_none_twice(dataset, name):
    protocol = read_protocol(dataset, name)
    parts = (protocol.train, protocol.validation, protocol.test)
    numbers, labeled = SIZES[dataset]
    assert tuple(map(len, parts)) == numbers
    assert len(set().union(*parts)) == sum(numbers)
    for share, cases in protocol.labeled.items():
        assert len(set(cases)) == labeled[share]
        assert set(cases) <= set(protocol.train)
    assert str(protocol.default_labeled) in protocol.labeled


@pytest.mark.parametrize("name", ["skcdf", "dhc", "genericssl"])
def test_synapse_is_split_without_a_remainder(name):
    protocol = read_protocol("synapse", name)
    every = {f"{number:04d}" for number in (*range(1, 11), *range(21, 41))}  # the challenge's 30 training scans
    assert {*protocol.train, *protocol.validation, *protocol.test} == every


def test_synapse_splits_are_those_of_their_publications():
    # As the split files in each repository have them.
    skcdf, dhc, genericssl = (read_protocol("synapse", name) for name in ("skcdf", "dhc", "genericssl"))
    assert skcdf.test == genericssl.test == ["0008", "0027", "0029", "0033", "0037", "0039"]
    assert dhc.test == ["0004", "0007", "0010", "0033", "0035", "0036"]
    assert [split.validation for split in (skcdf, dhc, genericssl)] == [
        ["0035", "0036", "0038", "0040"],
        ["0006", "0025", "0026", "0040"],
        ["0001", "0007", "0023", "0030"],
    ]
    assert [split.labeled["20"] for split in (skcdf, dhc, genericssl)] == [
        ["0021", "0023", "0028", "0032"],
        ["0002", "0023", "0034", "0039"],
        ["0009", "0021", "0025", "0034"],
    ]


def test_amos_5_percent_are_ten_cases_of_which_three_are_mri():
    protocol = read_protocol("amos")
    labeled = ["0078", "0158", "0170", "0192", "0391", "0396", "0410", "0514", "0548", "0578"]
    assert protocol.sections(5)["training"] == labeled
    parts = (protocol.train, protocol.validation, protocol.test, labeled)
    assert [sum(int(case) >= 500 for case in part) for part in parts] == [34, 6, 20, 3]


def test_acdc_is_split_by_patient():
    protocol = read_protocol("acdc")
    parts = [{case.split("_")[0] for case in part} for part in (protocol.train, protocol.validation, protocol.test)]
    assert [len(part) for part in parts] == [70, 10, 20]
    assert set().union(*parts) == {f"patient{number:03d}" for number in range(1, 101)}


@pytest.mark.parametrize(("dataset", "count"), [("synapse", 14), ("amos", 16), ("acdc", 4), ("la", 2)])
def test_classes_begin_with_the_background(dataset, count):
    names = read_protocol(dataset).class_names
    assert names[0] == "background"
    assert len(set(names)) == count


def test_unlabeled_cases_are_the_other_training_cases():
    protocol = read_protocol("synapse", "skcdf")
    sections = protocol.sections(10)
    assert sections["training"] == ["0007", "0030"]
    assert sorted(sections["training"] + sections["unlabeled"]) == sorted(protocol.train)
    assert (sections["validation"], sections["test"]) == (protocol.validation, protocol.test)


def test_with_all_labels_no_case_is_unlabeled():
    sections = read_protocol("amos").sections(100)
    assert sections["unlabeled"] == []
    assert len(sections["training"]) == 216


def test_a_share_that_is_not_published_is_refused():
    message = r"labeled must be one of 20, 100 \(percent\) in protocol genericssl of synapse, got 10\."
    with pytest.raises(ValueError, match=message):
        read_protocol("synapse", "genericssl").sections(10)


def test_a_protocol_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"protocol must be one of dhc for amos, got skcdf\."):
        read_protocol("amos", "skcdf")


def test_a_data_set_that_is_not_there_is_refused():
    message = r"dataset must be one of synapse, amos, acdc, la or a \.json of protocols, got btcv\."
    with pytest.raises(ValueError, match=message):
        read_protocol("btcv")


def test_a_file_of_ones_own_is_read_like_those_of_the_package(tmp_path):
    split = {"name": "mine", "source": "us", "default_labeled": 50, "labeled": {"50": ["a"]}}
    lists = {"train": ["a", "b"], "validation": [], "test": ["c"]}
    about = {"title": "T", "description": "D", "class_names": ["background", "liver"], "files": [{"image": "{id}.h5"}]}
    path = tmp_path / "clinic.json"
    path.write_text(json.dumps({**about, "protocols": [{**split, **lists}]}))
    assert read_protocol(path) == Protocol(dataset="clinic", **about, **split, **lists)
