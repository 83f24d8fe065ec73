from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dinomix_monai.networks import EMATeacher


class Number(nn.Module):
    """A network of one weight, one averaged and one counted buffer."""

    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(value)))
        self.register_buffer("statistic", torch.tensor(float(value)))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        return self.weight * x

    def set(self, value):
        with torch.no_grad():
            self.weight.fill_(value)
            self.statistic.fill_(-value)
            self.count += 1
        return self


def follow(teacher, values):
    student, weights = Number(), []
    for value in values:
        teacher.update(student.set(value))
        weights.append(teacher.module.weight.item())
    return weights


@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_gives_what_its_network_gives(count):
    network = nn.Sequential(nn.Conv3d(1, 3, 3), nn.InstanceNorm3d(3))
    teacher, x = EMATeacher(network), torch.rand(count, 1, 8, 8, 8)
    torch.testing.assert_close(teacher(x), network(x))


def test_the_first_updates_are_those_counted_by_hand():
    # Kept: nothing, 2/11, 3/12. (2 * 1 + 9 * 12) / 11 = 10, (10 + 3 * 2) / 4 = 4.
    assert follow(EMATeacher(Number(77)), [1, 12, 2]) == pytest.approx([1, 10, 4])


def test_the_warm_up_ends_at_the_decay():
    # Kept: nothing, 2/11 < 0.2, 0.2 < 3/12. 0.2 * 10 + 0.8 * 5 = 6.
    assert follow(EMATeacher(Number(77), decay=0.2), [1, 12, 5]) == pytest.approx([1, 10, 6])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_average_is_the_formula_written_plainly(decay):
    values = torch.rand(30).tolist()
    average, expected = values[0], [values[0]]
    for n, value in enumerate(values[1:], start=1):
        keep = min(decay, (1 + n) / (10 + n))
        average = keep * average + (1 - keep) * value
        expected.append(average)
    assert follow(EMATeacher(Number(77), decay), values) == pytest.approx(expected)


def test_buffers_are_averaged_and_counters_copied():
    teacher = EMATeacher(Number(77))
    follow(teacher, [1, 12, 2])
    assert teacher.module.statistic.item() == pytest.approx(-4)
    assert teacher.module.count.item() == 3
    assert teacher.n_averaged.item() == 3


def test_the_student_is_not_touched():
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    student(torch.rand(4, 3))
    state = copy.deepcopy(student.state_dict())
    teacher = EMATeacher(student)
    for _ in range(3):
        teacher.update(student)
    with torch.no_grad():
        for value in teacher.module.state_dict().values():
            value.fill_(5)  # nothing is shared
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert student.training
    assert all(p.requires_grad for p in student.parameters())


def test_it_stays_in_evaluation_mode():
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    teacher = EMATeacher(student)
    assert teacher.train() is teacher
    assert not any(module.training for module in teacher.modules())
    x = torch.rand(4, 3)
    assert torch.equal(teacher(x), copy.deepcopy(student).eval()(x))


def test_it_has_no_gradient():
    teacher = EMATeacher(Number(2))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.rand(3)).requires_grad
    student = Number(1)
    teacher.update(student)
    teacher.update(student)
    assert not teacher(torch.rand(3)).requires_grad


def test_going_on_from_a_state_dict_equals_going_on():
    values = torch.rand(6).tolist()
    uninterrupted = follow(EMATeacher(Number()), values)
    first, second = EMATeacher(Number()), EMATeacher(Number(77))
    follow(first, values[:3])
    second.load_state_dict(first.state_dict(), strict=True)
    assert follow(second, values[3:]) == uninterrupted[3:]


def test_the_network_loads_the_average():
    teacher, network = EMATeacher(Number()), Number(77)
    follow(teacher, [1, 12])
    network.load_state_dict(teacher.module.state_dict(), strict=True)
    assert network.weight.item() == pytest.approx(10)


def test_a_wrapped_network_is_unwrapped():
    class Wrapper(nn.Module):
        """What DistributedDataParallel looks like."""

        def __init__(self, module):
            super().__init__()
            self.module = module

    teacher = EMATeacher(Wrapper(Number(1)))
    assert isinstance(teacher.module, Number)
    teacher.update(Wrapper(Number(3)))
    assert teacher.module.weight.item() == 3


@pytest.mark.parametrize("decay", [1, 1.5, -0.1, float("nan")])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\), got {decay}"):
        EMATeacher(Number(), decay)
