from __future__ import annotations

import logging
import math

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from dinomix_monai.handlers import ClipGradientHandler
from dinomix_monai.networks import EMATeacher

MIXED_PRECISION = pytest.mark.filterwarnings("ignore:.*GradScaler", "ignore:CUDA is not available")  # without a GPU


class Product(nn.Module):
    """Its weights start at 0, and when outputs are summed their gradient is the input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.weight * x


TOO_LONG = 1e31
"""A gradient that becomes infinite, with a loss that is finite all the same."""


def trained(gradients, max_norm=1.0, extra=None, scale=None, momentum=0.0, handler=None, **kwargs):
    """The trainer after a step of plain descent with each of the gradients; ``extra`` is a parameter outside of it."""
    network = Product()
    network.weight.register_hook(lambda gradient: torch.where(gradient > 1e30, math.inf, gradient))
    groups = [{"params": network.parameters()}] + ([] if extra is None else [{"params": [extra]}])
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.tensor([g]), "label": torch.zeros(1, 2)} for g in gradients],
        network=network,
        optimizer=torch.optim.SGD(groups, lr=1.0, momentum=momentum),
        loss_function=lambda pred, label: pred.sum() + (0 if extra is None else 12 * extra),
        train_handlers=[handler or ClipGradientHandler(max_norm)],
        decollate=False,
        **kwargs,
    )
    if scale is not None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine, "scaler", scaler))
    trainer.run()
    return trainer


def weights(trainer):
    return trainer.network.weight.tolist()


def test_a_long_gradient_is_scaled_to_the_largest_norm():
    assert weights(trained([[3.0, 4.0]])) == pytest.approx([-0.6, -0.8], rel=1e-5)


def test_a_short_gradient_is_left_as_it_is():
    assert weights(trained([[3.0, 4.0]], max_norm=6)) == [-3, -4]


def test_the_norm_is_that_of_all_parameters_of_the_optimizer():
    head = nn.Parameter(torch.tensor(0.0))
    trainer = trained([[3.0, 4.0]], extra=head, max_norm=6.5)  # 3, 4 and 12: a norm of 13
    assert [*weights(trainer), head.item()] == pytest.approx([-1.5, -2, -6], rel=1e-5)
    assert trainer.state.output["gradient_norm"].item() == pytest.approx(13)


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("bad", "what"),
    [(math.nan, "its loss is nan"), (math.inf, "its loss is -inf"), (TOO_LONG, "its gradient is not finite")],
)
@pytest.mark.parametrize("optim_set_to_none", [True, False])
def test_a_step_that_is_not_finite_is_left_out_and_reported(bad, what, optim_set_to_none, caplog):
    trainer = trained([[0.5, 0.0], [bad, 0.5], [0.0, 0.5]], momentum=0.5, optim_set_to_none=optim_set_to_none)
    # The momentum of the first step survives the second and acts in the third.
    assert weights(trainer) == [-0.75, -0.5]
    assert warned(caplog) == [f"Step 2 is left out: {what}."]


def test_a_step_that_is_not_finite_stops_the_run_if_it_shall():
    handler = ClipGradientHandler(1.0, on_bad_loss="stop")
    with pytest.raises(FloatingPointError, match=r"Step 2 is left out: its loss is nan. With on_bad_loss 'skip'"):
        trained([[0.5, 0.0], [math.nan, 0.5], [0.0, 0.5]], handler=handler)


def test_ten_bad_steps_in_a_row_end_the_run(caplog):
    bad, good = [math.nan, 0.0], [0.0, 0.1]
    assert weights(trained([bad] * 9 + [good] + [bad] * 9 + [good])) == pytest.approx([0, -0.2])
    with pytest.raises(FloatingPointError, match=r"Step 11 .* So were the 9 before it: try a lower learning_rate"):
        trained([good] + [bad] * 10)


def test_the_batches_of_the_first_ten_bad_steps_are_kept(tmp_path, caplog):
    bad, good = [math.nan, 0.5], [0.0, 0.1]
    trained(([bad] * 6 + [good]) * 2, handler=ClipGradientHandler(1.0, folder=tmp_path / "bad"))
    kept = sorted(path.name for path in (tmp_path / "bad").iterdir())
    assert kept == [f"step_{step:07d}.pt" for step in (*range(1, 7), *range(8, 12))]
    assert f"Its batch is in {tmp_path / 'bad' / kept[0]}." in warned(caplog)[0]


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(x)


def test_running_means_that_have_seen_the_step_come_back_from_the_ema_teacher():
    network = Shifted()
    teacher = EMATeacher(network, decay=0.5)
    teacher.module.norm.running_mean.copy_(torch.tensor([3.0, 4.0]))
    batch = {"image": torch.tensor([[math.nan, 0.0], [0.0, 2.0]]), "label": torch.zeros(2, 2)}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda pred, label: pred.sum(),
        train_handlers=[ClipGradientHandler(1.0)],
        decollate=False,
    )
    trainer.ema_teacher = teacher
    trainer.run()
    # That of the second channel is finite all over, but a buffer is put back as a whole.
    assert network.norm.running_mean.tolist() == [3, 4]
    assert all(value.isfinite().all() for value in network.state_dict().values())


@MIXED_PRECISION
def test_with_mixed_precision_the_gradient_is_clipped_at_its_own_scale():
    assert weights(trained([[3.0, 4.0]], amp=True, scale=1024.0)) == weights(trained([[3.0, 4.0]]))
    assert weights(trained([[3.0, 4.0]], max_norm=6, amp=True, scale=1024.0)) == [-3, -4]


@MIXED_PRECISION
def test_with_mixed_precision_the_scaler_leaves_the_step_out_in_silence(caplog):
    trainer = trained([[0.5, 0.0], [TOO_LONG, 0.5], [0.0, 0.5]], amp=True, scale=1024.0)
    assert weights(trainer) == [-0.5, -0.5]
    assert trainer.scaler.get_scale() == 512
    assert not warned(caplog)


@MIXED_PRECISION
def test_with_mixed_precision_a_loss_that_is_not_finite_is_reported(caplog):
    trainer = trained([[0.5, 0.0], [math.nan, 0.5], [0.0, 0.5]], amp=True, scale=1024.0)
    assert weights(trainer) == [-0.5, -0.5]
    assert warned(caplog) == ["Step 2 is left out: its loss is nan."]


@MIXED_PRECISION
@pytest.mark.skipif(torch.cuda.is_available(), reason="the scaler is disabled only without a GPU")
def test_with_mixed_precision_on_a_cpu_the_step_is_left_out_too(caplog):
    trainer = trained([[0.5, 0.0], [math.nan, 0.5]], amp=True)
    assert not trainer.scaler.is_enabled()
    assert weights(trainer) == [-0.5, 0]
    assert "Step 2 is left out" in caplog.text


@pytest.mark.parametrize("max_norm", [0, -1, math.nan])
def test_a_norm_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(ValueError, match=f"max_norm must be > 0, got {max_norm}"):
        ClipGradientHandler(max_norm)


def test_what_to_do_with_a_bad_loss_is_skip_or_stop():
    with pytest.raises(ValueError, match="on_bad_loss must be 'skip' or 'stop', got 'ignore'"):
        ClipGradientHandler(1.0, on_bad_loss="ignore")
