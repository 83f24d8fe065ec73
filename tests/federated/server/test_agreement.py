from __future__ import annotations

import re

import pytest

from dinomix_monai.federated.server.agreement import check_agreement, union_of_labels, version_differences

NAMES = ["background", "liver", "spleen"]


def answers(**changes):
    """Of three sites, the last without labels; ``site_2=...`` changes what the second says."""
    found = {}
    for number, voxels in enumerate(([10, 2, 0], [5, 0, 1], [0, 0, 0]), start=1):
        site = {"teacher": "aaaa", "class_names": NAMES, "labeled_voxels": voxels, "versions": {"monai": "1.6.1"}}
        site["annotated"] = NAMES[1:] if any(voxels) else []
        site["patch_voxels"] = [count / 4 for count in voxels]
        site["channel_names"] = ["T1"]
        site["network"] = {"stem.weight": [16, 1, 3], "stem.bias": [16]}
        found[f"site-{number}"] = {**site, **changes.get(f"site_{number}", {})}
    return found


def test_voxels_of_all_sites_are_summed_by_class():
    assert check_agreement(answers(), NAMES) == {"labeled_voxels": [15, 2, 1], "patch_voxels": [3.75, 0.5, 0.25]}


@pytest.mark.parametrize(
    ("changes", "teacher", "message"),
    [
        ({"site_2": {"teacher": "bbbb"}}, "", "got bbbb at site-2 and aaaa at site-1."),
        ({}, "cccc", "got aaaa at site-1 and cccc in the job."),
        (
            {"site_3": {"class_names": ["background", "spleen", "liver"]}},
            "",
            f"`labels` must be the same everywhere, got ['background', 'spleen', 'liver'] at site-3 and {NAMES} in the",
        ),
        (
            {"site_3": {"network": {"stem.weight": [32, 1, 3], "stem.bias": [32]}}},
            "",
            "Networks must be the same everywhere, got stem.weight of shape [32, 1, 3] at site-3 and [16, 1, 3] at",
        ),
        (
            {"site_2": {"network": {"stem.weight": [16, 1, 3]}}},
            "",
            "got stem.bias of shape None at site-2 and [16] at site-1. Settings of the network belong in the job",
        ),
        (
            {"site_2": {"network": {"stem.weight": [16, 1, 3], "stem.bias": [16], "norm.weight": [16]}}},
            "",
            "got norm.weight of shape [16] at site-2 and None at site-1.",
        ),
        ({"site_2": {"channel_names": ["T1", "T2"]}}, "", "got 2 at site-2 and 1 in the job, whose settings say"),
        ({"site_3": {"channel_names": ["T2"]}}, "", "in the same order everywhere, got T2 at site-3 and T1 at site-1."),
        ({"site_1": {"labeled_voxels": [1, 2]}}, "", "labeled_voxels must have 3 numbers, got 2 at site-1."),
        ({"site_3": {"patch_voxels": []}}, "", "patch_voxels must have 3 numbers, got 0 at site-3."),
        (
            {"site_1": {"labeled_voxels": [9, 0, 0]}, "site_2": {"labeled_voxels": [9, 0, 0]}},
            "",
            "Some site must have labels, got none at site-1, site-2, site-3.",
        ),
    ],
)
def test_a_mismatch_is_one_sentence_with_the_site_and_both_values(changes, teacher, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_agreement(answers(**changes), NAMES, teacher=teacher)


def test_versions_that_differ_are_named_with_their_sites():
    assert version_differences(answers()) == []
    sentence = "monai: 1.6.1 at site-1, 1.6.0 at site-2, 1.6.1 at site-3"
    assert version_differences(answers(site_2={"versions": {"monai": "1.6.0"}})) == [sentence]


def test_a_site_need_not_name_its_channels():
    assert check_agreement(answers(site_2={"channel_names": [""]}), NAMES)


def test_the_union_begins_with_the_classes_of_the_job_and_goes_by_the_names_of_the_sites():
    labels = {"b": ["Background", "spleen", "vein"], "a": ["bg", "liver"], "c": ["bg"]}
    assert union_of_labels(labels) == ["background", "liver", "spleen", "vein"]
    assert union_of_labels(labels, ["background", "vein"]) == ["background", "vein", "liver", "spleen"]


def test_one_name_for_two_values_is_no_union():
    message = "must have the same value in the `labels` of all sites, got spleen as 1 at site-2 and as 2 at site-1."
    with pytest.raises(ValueError, match=re.escape(message)):
        union_of_labels({"site-1": NAMES, "site-2": ["background", "spleen"]})


def test_a_class_has_the_share_that_it_has_where_somebody_has_looked_for_it():
    one = {"annotated": ["liver"], "labeled_voxels": [90, 10, 0], "patch_voxels": [90, 10, 0]}
    two = {"annotated": ["spleen"], "labeled_voxels": [294, 0, 6], "patch_voxels": [294, 0, 6]}
    both = check_agreement(answers(site_1=one, site_2=two), NAMES)
    assert both == {"labeled_voxels": [384, 10, 6], "patch_voxels": pytest.approx([352, 40, 8])}
