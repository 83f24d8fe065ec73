from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dinomix_monai.engines import FeatureDistiller, TaughtStudent

PATCH = (16, 16, 16)


class Teacher(nn.Module):
    """Of a volume with one value v in each 4^3 block, the token of each cell is (v, 1 - v); it notes what is asked."""

    embed_dim = 2
    fingerprint = "block values"

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.asked = []

    def forward(self, volume, grid, cells=None):
        self.asked.append((grid, cells))
        values = F.interpolate(volume, size=grid, mode="nearest")
        tokens = self.scale * torch.cat([values, 1 - values], dim=1)
        return tokens if cells is None else tokens[..., list(cells)]


class Student(nn.Module):
    """Convolutions to features of stride 2 and 4; their first channel is the mean of the cell."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv3d(1, 3, 2, stride=2)
        self.coarse = nn.Conv3d(3, 3, 2, stride=2)

    def forward(self, x):
        return self.coarse(self.fine(x))


@pytest.fixture
def student():
    torch.manual_seed(0)
    return Student()


@pytest.fixture
def volume():
    """Another value in each 4^3 block, so another in each cell of either module's features."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.rand(2, 1, 4, 4, 4, generator=generator)
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
        .repeat_interleave(4, 4)
    )


def one_pass(distiller, student, seen_by_student, seen_by_teacher):
    layers = distiller.draw_layers()
    _, projected = TaughtStudent(student, distiller)(seen_by_student, len(seen_by_teacher), layers)
    return distiller(projected, seen_by_teacher, layers)


def trained(student, volume, modules=("coarse",), **kwargs):
    """A distiller whose heads have learned to read the values from the features of this student, exactly."""
    distiller = FeatureDistiller(student, modules, Teacher(), PATCH, **kwargs).set_random_state(seed=0)
    optimizer = torch.optim.LBFGS(
        distiller.parameters(), max_iter=200, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = one_pass(distiller, student, volume, volume)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return distiller


def loss_between(distiller, student, seen_by_student, seen_by_teacher):
    with torch.no_grad():
        return one_pass(distiller, student, seen_by_student, seen_by_teacher).item()


def distance(a, b):
    """Mean squared distance of the normalized tokens of two volumes, written plainly."""
    one, other = (torch.cat([x, 1 - x], 1)[..., ::4, ::4, ::4] for x in (a, b))
    one, other = one / one.norm(dim=1, keepdim=True), other / other.norm(dim=1, keepdim=True)
    return (one - other).square().sum(1).mean().item()


@pytest.mark.parametrize("modules", [("coarse",), ("fine",), ("fine", "coarse")])
def test_the_loss_falls_to_0_when_the_heads_have_learned(student, volume, modules):
    distiller = FeatureDistiller(student, modules, Teacher(), PATCH)
    assert loss_between(distiller, student, volume, volume) > 0.1
    distiller = trained(student, volume, modules)
    assert loss_between(distiller, student, volume, volume) < 1e-4


@pytest.mark.parametrize(
    "moved",
    [
        lambda x: x.flip(2),
        lambda x: x.flip(3),
        lambda x: x.flip(4),
        lambda x: x.transpose(2, 3),
        lambda x: x.transpose(3, 4),
        lambda x: x.roll(4, 2),
        lambda x: x.roll(4, 3),
        lambda x: x.roll(-4, 4),
    ],
    ids=["flip H", "flip W", "flip D", "transpose HW", "transpose WD", "shift H", "shift W", "shift D"],
)
@pytest.mark.parametrize("module", ["coarse", "fine"])
def test_what_is_not_aligned_costs_what_the_tokens_differ(student, volume, module, moved):
    distiller = trained(student, volume, (module,))
    expected = distance(volume, moved(volume))
    assert expected > 0.1
    assert loss_between(distiller, student, volume, moved(volume)) == pytest.approx(expected, rel=0.05)
    assert loss_between(distiller, student, moved(volume), moved(volume)) < 1e-4


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_drawn_layers_of_student_and_teacher_are_the_same(student, volume, layers):
    distiller = trained(student, volume)
    distiller.layers = layers
    for _ in range(20):
        assert loss_between(distiller, student, volume, volume) < 1e-4
        assert loss_between(distiller, student, volume, volume.flip(4)) > 0.02


def test_each_step_draws_other_layers_and_in_time_all_of_them(student, volume):
    distiller = FeatureDistiller(student, ["fine"], Teacher(), PATCH, layers=3).set_random_state(seed=0)
    for _ in range(20):
        loss_between(distiller, student, volume, volume)
    drawn = [cells for _, cells in distiller.teacher.asked]
    assert all(cells == sorted(set(cells)) and len(cells) == 3 for cells in drawn)
    assert {cell for cells in drawn for cell in cells} == set(range(8))
    assert len({tuple(cells) for cells in drawn}) > 10


def test_the_same_seed_draws_the_same_layers(student, volume):
    asked = []
    for _ in range(2):
        distiller = FeatureDistiller(student, ["fine"], Teacher(), PATCH, layers=2).set_random_state(seed=3)
        for _ in range(5):
            loss_between(distiller, student, volume, volume)
        asked.append(distiller.teacher.asked)
    assert asked[0] == asked[1]


@pytest.mark.parametrize("layers", [None, 4, 99])
def test_all_layers_are_used_when_no_fewer_are_asked_for(student, volume, layers):
    distiller = FeatureDistiller(student, ["coarse"], Teacher(), PATCH, layers=layers)
    loss_between(distiller, student, volume, volume)
    assert distiller.teacher.asked == [((4, 4, 4), None)]


def test_the_loss_is_the_mean_over_the_modules(student, volume):
    both = FeatureDistiller(student, ["fine", "coarse"], Teacher(), PATCH)
    losses = []
    for index, name in enumerate(("fine", "coarse")):
        one = FeatureDistiller(student, [name], Teacher(), PATCH)
        one.heads[0].load_state_dict(both.heads[index].state_dict())
        losses.append(loss_between(one, student, volume, volume))
    assert loss_between(both, student, volume, volume) == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_with_fewer_samples_the_first_of_the_students_input_are_taught(student, volume):
    distiller = trained(student, volume)
    assert loss_between(distiller, student, volume, volume[:1]) < 1e-4
    assert loss_between(distiller, student, volume, volume[1:]) == pytest.approx(
        distance(volume[:1], volume[1:]), abs=1e-3
    )


def test_the_loss_function_can_be_chosen(student, volume):
    class Squared(nn.Module):
        def forward(self, student_features, teacher_features, mask):
            assert mask.all()
            return F.mse_loss(student_features, teacher_features)

    distiller = FeatureDistiller(student, ["coarse"], Teacher(), PATCH, loss_function=Squared())
    with torch.no_grad():
        features = student(volume)
        expected = F.mse_loss(distiller.heads[0](features), distiller.teacher(volume, (4, 4, 4)))
    assert loss_between(distiller, student, volume, volume) == pytest.approx(expected.item())


def test_gradients_reach_heads_and_student_and_not_the_teacher(student, volume):
    distiller = FeatureDistiller(student, ["coarse"], Teacher(), PATCH)
    one_pass(distiller, student, volume, volume).backward()
    for parameter in (*distiller.parameters(), *student.parameters()):
        assert parameter.grad.abs().sum() > 0
    assert distiller.teacher.scale.grad is None


def test_the_teacher_is_neither_saved_nor_trained(student):
    distiller = FeatureDistiller(student, ["fine", "coarse"], Teacher(), PATCH, hidden_channels=5)
    assert all(name.startswith("heads.") for name in distiller.state_dict())
    assert not any(parameter is distiller.teacher.scale for parameter in distiller.parameters())
    assert not any(isinstance(module, (Teacher, Student)) for module in distiller.modules())
    distiller.train()
    distiller.teacher.eval()
    distiller.train()
    assert not distiller.teacher.training


def test_the_student_keeps_its_keys_mode_and_buffers(student):
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.eval()
    FeatureDistiller(student, ["coarse"], Teacher(), PATCH)
    assert not student.training
    assert list(student.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_fingerprint_is_the_teachers(student):
    assert FeatureDistiller(student, ["coarse"], Teacher(), PATCH).fingerprint == "block values"


def test_it_is_due_in_every_interval_th_step(student):
    distiller = FeatureDistiller(student, ["coarse"], Teacher(), PATCH, interval=3)
    assert [step for step in range(1, 10) if distiller.is_due(step)] == [3, 6, 9]


def test_without_an_interval_it_is_always_due(student):
    assert all(FeatureDistiller(student, ["coarse"], Teacher(), PATCH).is_due(step) for step in range(1, 5))


@pytest.mark.parametrize("numbers", [{"interval": 0}, {"layers": 0}, {"layers": -1}])
def test_numbers_below_1_are_refused(student, numbers):
    shown = {"interval": 1, "layers": None} | numbers
    message = f"interval and layers must be >= 1, got {shown['interval']} and {shown['layers']}"
    with pytest.raises(ValueError, match=message):
        FeatureDistiller(student, ["coarse"], Teacher(), PATCH, **numbers)


def test_agreement_is_the_cosine_at_each_cell_of_the_first_module(student, volume):
    distiller = FeatureDistiller(student, ["coarse", "fine"], Teacher(), PATCH)
    target, cosine = distiller.agreement(student, volume, volume)
    torch.testing.assert_close(target, Teacher()(volume, (4, 4, 4)))
    projected = distiller.heads[0](student(volume))
    for cell in ((0, 0, 0, 0), (1, 3, 2, 1)):
        b, *place = cell
        a, t = projected[(b, slice(None), *place)], target[(b, slice(None), *place)]
        torch.testing.assert_close(cosine[cell], a @ t / (a.norm() * t.norm()))
    assert not cosine.requires_grad


def test_the_students_output_is_its_own_whether_it_is_taught_or_not(student, volume):
    distiller = FeatureDistiller(student, ["fine", "coarse"], Teacher(), PATCH)
    expected = student(volume)
    for taught, size in ((TaughtStudent(student, distiller), 2), (TaughtStudent(student, distiller), 0)):
        output, projected = taught(volume, size, [None, None])
        assert torch.equal(output, expected)
        assert [tuple(each.shape) for each in projected] == [(2, 2, 8, 8, 8), (2, 2, 4, 4, 4)][: 2 * bool(size)]
    output, projected = TaughtStudent(student)(volume)
    assert torch.equal(output, expected)
    assert projected == []


def test_heads_are_among_the_parameters_of_the_pass_and_not_of_the_student(student):
    distiller = FeatureDistiller(student, ["coarse"], Teacher(), PATCH)
    trained_together = {id(parameter) for parameter in TaughtStudent(student, distiller).parameters()}
    assert trained_together == {id(p) for p in (*student.parameters(), *distiller.heads.parameters())}
    assert not {id(p) for p in distiller.heads.parameters()} & {id(p) for p in student.parameters()}
