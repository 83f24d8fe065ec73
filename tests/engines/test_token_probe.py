from __future__ import annotations

import logging
import re

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from dinomix_monai.engines import ProbedInferer, ScanTokens, TokenProbe, add_probe, open_probe
from dinomix_monai.models import probe_path, write_model
from dinomix_monai.networks import LinearProbe
from dinomix_monai.teacher import FoundationTeacher, SliceTokens, foundation_teacher

NAMES = ("background", "bright", "middling")


class MeanTeacher:
    """The token of a square of 2 x 2 pixels is its mean intensity."""

    stride, embed_dim, fingerprint = 2, 1, "mean"

    def __call__(self, x):
        return F.avg_pool2d(x[:, :1], 2)


def scan(seed, missing=()):
    """A dim body with a bright and a middling organ in it, whose places differ from scan to scan."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(24, 24, 8, dtype=torch.uint8)
    for value in {1, 2} - set(missing):
        x, y, z = (int(torch.randint(0, n, (), generator=generator)) for n in (5, 16, 4))
        label[12 * (value - 1) + x :, y:][:8, :8, z:][..., :4] = value
    image = torch.tensor([0.2, 0.9, 0.5])[label.long()] + 0.02 * torch.rand(label.shape, generator=generator)
    return {"image": MetaTensor(image[None]), "label": MetaTensor(label[None])}


def probe_of(*scans, cell=(2, 2, 1), **arguments):
    probe = TokenProbe(SliceTokens(MeanTeacher(), channels="repeat"), cell, 3, **arguments)
    return probe.fit([probe.scan_tokens(one) for one in scans]) if scans else probe


def dice(found, label, value):
    both = ((found == value) & (label == value)).sum()
    return float(2 * both / ((found == value).sum() + (label == value).sum()))


class Student(nn.Module):
    """Says the same of every voxel."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.view(1, -1, 1, 1, 1).expand(len(x), -1, *x.shape[2:])


def test_the_probe_knows_the_organs_of_a_scan_that_it_was_not_fitted_to():
    other = scan(3)
    probe = probe_of(scan(0), scan(1), scan(2))
    logits = probe.logits(probe.tokens(other["image"]), other["image"].shape[1:])
    assert logits.shape == (3, 24, 24, 8)
    found = logits.argmax(0)
    assert min(dice(found, other["label"][0].long(), value) for value in (1, 2)) > 0.75


def test_logits_are_those_of_the_tokens_at_the_centers_of_the_cells():
    image = scan(0)["image"][:, :22, :, :7]  # 22 x 24 x 7 voxels, in cells of about 4 x 4 x 2
    probe = probe_of(scan(0), cell=(4, 4, 2))
    tokens = probe.tokens(image)
    assert tokens.shape == (1, 6, 6, 4)  # 5.5 and 3.5 are rounded to the even number
    logits = probe.logits(tokens, image.shape[1:])
    expected = probe.linear(F.interpolate(tokens[None], (22, 24, 7), mode="trilinear")[0].movedim(0, -1))
    torch.testing.assert_close(logits.movedim(0, -1), expected, rtol=1e-4, atol=1e-4)


def test_the_classifier_is_that_of_all_voxels_when_few_are_drawn():
    scans = [scan(0), scan(1)]
    few, all_of_them = probe_of(*scans, max_points=2000), probe_of(*scans, max_points=10**6)
    features = torch.cat([few.scan_tokens(one).tokens.repeat_interleave(2, 1).repeat_interleave(2, 2) for one in scans])
    found = [probe.linear(features.flatten()[:, None]).softmax(-1) for probe in (few, all_of_them)]
    assert (found[0] - found[1]).abs().mean() < 0.02


def test_drawn_voxels_have_the_tokens_of_their_places_and_their_own_labels(monkeypatch):
    seen = {}

    def fit(features, labels, num_classes, voxels):
        seen.update(features=features, labels=labels, voxels=voxels)

    monkeypatch.setattr(LinearProbe, "fit", fit)
    # A cell is a voxel here, and each token is where it lies.
    index = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in (5, 6, 7)), indexing="ij"))
    label = (index[0] + 2 * index[1] + index[2]).long() % 3
    probe_of(max_points=60).fit([ScanTokens(index, label)])
    found = seen["features"].round().long()
    torch.testing.assert_close(seen["features"], found.float(), rtol=0, atol=1e-4)
    assert torch.equal(label[tuple(found.T)], seen["labels"])
    assert torch.bincount(seen["labels"]).tolist() == [30, 15, 15]
    assert len({tuple(place) for place in found.tolist()}) == 60
    assert seen["voxels"].tolist() == torch.bincount(label.flatten()).tolist()


def test_a_limit_of_points_is_shared_by_scans_and_classes(monkeypatch):
    counts = []
    monkeypatch.setattr(LinearProbe, "fit", lambda features, labels, *_: counts.append(torch.bincount(labels).tolist()))
    probe_of(scan(0), scan(1), max_points=400)
    assert counts == [[200, 100, 100]]


def test_the_same_scans_give_the_same_probe_and_no_random_number_is_drawn():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(probe_of(scan(0), scan(1), max_points=300).linear.state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_class_that_no_labeled_scan_shows_is_never_named():
    probe = probe_of(scan(0, missing=[2]))
    logits = probe.logits(probe.tokens(scan(3)["image"]), (24, 24, 8))
    assert logits.isfinite().all()
    assert logits[2].max() < -1000


def test_network_and_probe_are_a_product_of_experts():
    probe, image = probe_of(scan(0), scan(1)), scan(3)["image"][None].as_tensor()
    probe.weight = 0.5
    student = Student(0.3, 0.1, -0.4)
    found = ProbedInferer(SimpleInferer(), probe)(image, student).softmax(1)
    own = student(image).softmax(1)
    expert = probe.logits(probe.tokens(image[0]), image.shape[2:]).softmax(0)[None]
    product = own * expert**0.5
    torch.testing.assert_close(found, product / product.sum(1, keepdim=True))


def test_without_a_probe_or_a_weight_the_network_is_alone():
    image, student = scan(3)["image"][None], Student(0.3, 0.1, -0.4)
    for probe in (None, probe_of()):  # one that is not fitted has no weight
        assert torch.equal(ProbedInferer(SimpleInferer(), probe)(image, student), student(image))


def test_the_weight_is_the_one_that_segments_validation_cases_best():
    probe, scans = probe_of(scan(0), scan(1)), [scan(2), scan(3)]
    sure_of_background = Student(2.0, 0.0, 0.0)
    scores = probe.choose_weight(sure_of_background, SimpleInferer(), scans, (0.0, 0.1, 2.0))
    assert probe.weight == 2.0 == max(scores, key=scores.get)
    assert scores[0.0] == 0
    # By hand: the mean over the classes of each case.
    expected = []
    for one in scans:
        logits = sure_of_background(one["image"][None])[0] + 2 * probe.logits(probe.tokens(one["image"]), (24, 24, 8))
        expected += [dice(logits.argmax(0), one["label"][0].long(), value) for value in (1, 2)]
    assert scores[2.0] == pytest.approx(sum(expected) / 4, abs=1e-6)


def test_a_probe_that_does_not_help_gets_no_weight():
    probe, one = probe_of(scan(0)), scan(2)

    class Right(nn.Module):
        def forward(self, x):
            return 50 * F.one_hot(one["label"].long(), 3).movedim(-1, 1).float()

    probe.linear.linear.weight.neg_()
    scores = probe.choose_weight(Right(), SimpleInferer(), [one])
    assert (probe.weight, scores[0.0]) == (0.0, 1.0)
    assert probe.describe() == "not asked beside the model, which is better alone"


def test_a_probe_that_is_not_fitted_bad_cells_and_no_scans_are_refused():
    with pytest.raises(ValueError, match="must be fitted before it is asked"):
        probe_of().logits(torch.zeros(1, 2, 2, 2), (4, 4, 4))
    with pytest.raises(ValueError, match=re.escape("cell must be three numbers of voxels >= 1, got (2, 2).")):
        probe_of(cell=(2, 2))
    with pytest.raises(ValueError, match="scans must be one at least, got none"):
        probe_of().fit([])


@pytest.fixture
def model(tmp_path):
    return write_model(Student(0.5, 0.0, 0.0), tmp_path / "model.pt", NAMES)


def added(model, teacher_file, labeled=(0, 1), validation=(2,), **arguments):
    teacher = FoundationTeacher("test_vit", weights=teacher_file, layer=1, **arguments)
    probe = TokenProbe(SliceTokens(teacher, channels="repeat"), (4, 4, 2), 3)
    cases = [[scan(seed) for seed in seeds] for seeds in (labeled, validation)]
    add_probe(probe, model, Student(9.0, 9.0, 9.0), SimpleInferer(), *cases)
    return probe


def test_a_probe_is_written_beside_its_model_and_opened_again(model, teacher_file, caplog):
    with caplog.at_level(logging.INFO):
        probe = added(model, teacher_file, image_mean=(0.4, 0.5, 0.6))
    assert probe.weight > 0
    assert re.search(r"by the weight of the teacher's probe: 0: 0\.000, 0\.25: ", caplog.text)
    assert f"is asked beside the model with weight {probe.weight:g}" in caplog.text
    opened, image = open_probe(model, teacher_file), scan(3)["image"][None]
    torch.testing.assert_close(opened(image), probe(image))
    assert opened.slice_tokens.teacher.layer == 1


def test_a_new_model_has_no_probe_of_an_earlier_one(model, teacher_file):
    added(model, teacher_file)
    write_model(Student(0.0, 0.0, 0.0), model, NAMES)
    assert not probe_path(model).exists()
    assert open_probe(model, teacher_file) is None


def test_the_student_alone_is_had_without_any_teacher(model, teacher_file):
    assert open_probe(model) is None  # there is no probe
    added(model, teacher_file)
    assert open_probe(model, "none") is None


def test_a_probe_without_weight_is_not_written(model, teacher_file, monkeypatch):
    monkeypatch.setattr(TokenProbe, "choose_weight", lambda *_: {0.0: 0.5})
    assert added(model, teacher_file).weight == 0
    assert not probe_path(model).exists()


def test_without_validation_cases_there_is_no_probe_and_a_warning(model, teacher_file, caplog):
    added(model, teacher_file, validation=())
    assert not probe_path(model).exists()
    assert "there are no validation cases to weigh it on" in caplog.text
    added(model, teacher_file, labeled=())
    add_probe(None, model, Student(0.0, 0.0, 0.0), SimpleInferer(), [scan(0)], [scan(1)])
    assert not probe_path(model).exists()


def test_another_teacher_missing_weights_and_a_damaged_file_are_refused_with_the_way_out(
    model, teacher_file, tmp_path, monkeypatch
):
    added(model, teacher_file)
    alone = r"Or pass teacher_weights=none for the student alone"
    other = tmp_path / "other.safetensors"
    teacher = FoundationTeacher("test_vit", weights="none")
    save_file({name: 2 * value for name, value in teacher.model.state_dict().items()}, other)
    with pytest.raises(
        ValueError, match=rf"teacher_weights must be those of the training, .*Pass the same file. {alone}"
    ):
        open_probe(model, other)
    with pytest.raises(FileNotFoundError, match=rf"trained to be asked with its teacher, .*none.pt.*{alone}"):
        open_probe(model, tmp_path / "none.pt")

    def hub_file(hub_id):
        raise ConnectionError("no network")

    monkeypatch.setattr(foundation_teacher, "hub_file", hub_file)
    with pytest.raises(
        RuntimeError, match=rf"but neither .* \(no network\)\. Pass teacher_weights=FILE, .* {alone}"
    ) as error:
        open_probe(model)
    assert "untrained" not in str(error.value)  # which "none" does not stand for here
    for content in ({"linear": 3}, {"linear": {}}, {}):
        torch.save(content, probe_path(model))
        with pytest.raises(
            ValueError, match=rf"with something else \(\w+\)\. Take it from the training again\. {alone}"
        ):
            open_probe(model, teacher_file)
    probe_path(model).write_bytes(b"none")
    with pytest.raises(ValueError, match="which is damaged, incomplete or holds something else"):
        open_probe(model, teacher_file)
