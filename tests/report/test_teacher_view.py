from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from dinomix_monai.losses import FeatureDistillationLoss, semantic_rarity, semantic_uniqueness
from dinomix_monai.report import TeacherViewHandler, teacher_view

NAMES = ("background", "left", "right")


class Distiller:
    """Two kinds of cells, patient's left and right, and one without a token; each call agrees more than the last."""

    def __init__(self, weighting="rarity"):
        self.calls = []
        self.loss_function = FeatureDistillationLoss(weighting)

    def agreement(self, network, image, volume):
        self.calls.append(volume)
        tokens = torch.zeros(1, 4, 4, 2, 2)
        tokens[:, 0, :2] = tokens[:, 1, 2:] = 1
        tokens[0, :, 3, 1, 1] = 0
        return tokens, torch.full((1, 4, 2, 2), 0.25 * len(self.calls))


@pytest.fixture
def sample():
    label = torch.zeros(1, 8, 4, 4)
    label[0, 6:, :, 0] = 1  # one class in the lowest slice, and much of it
    label[0, 0, 0, 2], label[0, 7, 3, 2] = 1, 2  # both in the third
    return {"image": torch.arange(8 * 4 * 4.0).view(1, 8, 4, 4), "label": label, "source": torch.ones(4, 8, 4, 4)}


@pytest.fixture
def draw(sample, tmp_path, monkeypatch):
    """The figure of a training that did nothing."""

    def call(weighting="rarity"):
        figures = []
        save = teacher_view.save_figure
        monkeypatch.setattr(
            teacher_view, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path)
        )
        distiller, engine = Distiller(weighting), Engine(lambda *_: None)
        path = tmp_path / "report" / "teacher.png"
        TeacherViewHandler([sample], nn.Conv3d(1, 1, 1), distiller, path, NAMES, "source").attach(engine)
        engine.run([0])
        assert path.read_bytes().startswith(b"\x89PNG")
        assert len(distiller.calls) == 2
        assert all(torch.equal(volume[0], sample["source"]) for volume in distiller.calls)
        return figures[0]

    return call


@pytest.fixture
def figure(draw):
    return draw()


def shown(ax):
    return ax.images[-1].get_array()


def test_the_slice_with_most_classes_is_drawn_with_right_on_the_left_and_front_on_top(figure, sample):
    image = figure.axes[0].images[0].get_array()
    assert image.shape == (4, 8)
    plane = sample["image"][0, :, :, 2].numpy()
    assert image[0, 0] == plane[7, 3]
    assert image[3, 7] == plane[0, 0]
    opacity = figure.axes[0].images[1].get_array()[..., 3]
    assert (opacity > 0).sum() == 2
    assert opacity[0, 0] > 0
    assert opacity[3, 7] > 0


def test_the_means_of_the_cosines_stand_above_them(figure):
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == [
        "slice and ground truth",
        "teacher's tokens",
        "weight (rarity)",
        "cosine before, mean 0.25",
        "cosine after, mean 0.50",
    ]


def test_cells_of_one_kind_have_one_color_and_cells_without_a_token_none(figure):
    tokens, uniqueness, before = (shown(figure.axes[i]) for i in (1, 2, 3))
    # (rows from the front, columns from the patient's right); the cell at the front right has no token.
    assert tokens.shape == (2, 4, 3)
    assert np.ma.getmaskarray(np.ma.masked_invalid(tokens))[0, 0].all()
    np.testing.assert_array_equal(tokens[1, 0], tokens[1, 1])
    np.testing.assert_array_equal(tokens[0, 2], tokens[1, 3])
    assert np.abs(tokens[1, 0] - tokens[1, 3]).max() > 0.5
    for values in (uniqueness, before):
        assert np.ma.getmaskarray(np.ma.masked_invalid(values)).sum() == 1
    # Three cells against four: the rarer kind is the more unique one.
    assert uniqueness[1, 0] > uniqueness[1, 3]


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [("uniqueness", semantic_uniqueness), ("rarity", semantic_rarity), ("plain", lambda tokens, mask: mask.float())],
)
def test_the_weights_are_those_of_the_loss(draw, weighting, weights):
    figure = draw(weighting)
    assert figure.axes[2].get_title() == f"weight ({weighting})"
    tokens = Distiller().agreement(None, None, None)[0][..., 1]
    expected = weights(tokens, tokens.any(dim=1))[0].numpy()
    expected[3, 1] = np.nan  # the cell without a token
    # As radiologists look at it: rows from the front, columns from the patient's right.
    np.testing.assert_allclose(np.ma.filled(shown(figure.axes[2]), np.nan), expected[::-1].T[::-1], rtol=1e-6)


def test_a_volume_without_tokens_is_drawn_in_white(sample, tmp_path):
    distiller = Distiller()
    distiller.agreement = lambda *_: (torch.zeros(1, 4, 4, 2, 2), torch.zeros(1, 4, 2, 2))
    engine, path = Engine(lambda *_: None), tmp_path / "teacher.png"
    TeacherViewHandler([sample], nn.Conv3d(1, 1, 1), distiller, path, NAMES, "source").attach(engine)
    engine.run([0])
    assert path.is_file()
