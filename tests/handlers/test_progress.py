from __future__ import annotations

import csv
import io
import math
import re
import sys

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn
from tqdm import tqdm

from dinomix_monai.handlers import HistoryHandler, ProgressLineHandler

STEPS = 4


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make_trainer(epochs, handlers=(), decollate=True, bad_step=None):
    """
    Its loss is 1, 2, 3, ... step by step; in every second step there is an unsupervised term of ten times that, and an
    eighth of that as the share of confident voxels.
    """

    class Trainer(SupervisedTrainer):
        def _iteration(self, engine, batchdata):
            output = super()._iteration(engine, batchdata)
            step = self.state.iteration
            terms = {
                "loss": torch.tensor(math.nan if step == bad_step else float(step)),
                "supervised": torch.tensor(step / 2),
            }
            if step % 2 == 0:
                terms |= {"unsupervised": torch.tensor(10.0 * step), "confident_share": torch.tensor(step / 8)}
            for item in output if decollate else [output]:
                item.update(terms)
            return output

    network = nn.Linear(1, 1)
    return Trainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[{"image": torch.ones(2, 1), "label": torch.ones(2, 1)}] * STEPS,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=nn.MSELoss(),
        train_handlers=handlers,
        decollate=decollate,
    )


def make_validator():
    """Its key metric is 0.1 for each epoch of the trainer."""
    validator = SupervisedEvaluator(device=torch.device("cpu"), val_data_loader=[0], network=nn.Linear(1, 1))
    validator._process_function = lambda engine, batch: None
    validator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(val_mean_dice=engine.state.epoch / 10)
    )
    return validator


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestHistory:
    @pytest.mark.parametrize("decollate", [True, False])
    def test_each_epoch_has_a_row_with_the_mean_of_each_term_over_the_steps_that_had_it(self, tmp_path, decollate):
        path = tmp_path / "run" / "history.csv"
        make_trainer(2, [HistoryHandler(path)], decollate).run()
        assert path.read_text().splitlines() == [
            "epoch,loss,supervised,unsupervised,distillation,confident_share,val_mean_dice",
            "1,2.50000,1.25000,30.00000,,0.37500,",
            "2,6.50000,3.25000,70.00000,,0.87500,",
        ]

    def test_a_loss_that_is_not_finite_is_left_out_of_the_mean(self, tmp_path):
        path = tmp_path / "history.csv"
        make_trainer(1, [HistoryHandler(path)], bad_step=4).run()
        assert path.read_text().splitlines()[1] == "1,2.00000,1.25000,30.00000,,0.37500,"

    def test_the_key_metric_stands_in_the_row_of_the_epoch_that_was_validated(self, tmp_path):
        validator, path = make_validator(), tmp_path / "history.csv"
        make_trainer(4, [ValidationHandler(2, validator), HistoryHandler(path, validator)]).run()
        assert [row["val_mean_dice"] for row in rows(path)] == ["", "0.20000", "", "0.40000"]

    def test_what_tensorboard_is_to_show_stands_in_the_metrics_of_the_trainer(self, tmp_path):
        class Labeler:
            shares = iter([[0.75, math.nan], [0.5, 0.25]])

            def take_confident_shares(self):
                return torch.tensor(next(self.shares))

        found = []
        trainer = make_trainer(2)
        # What only the first epoch has.
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=1), lambda engine: engine.state.output[0].update(gradient_norm=3.0)
        )
        trainer.add_event_handler(Events.STARTED, lambda engine: engine.state.metrics.update(other=1.0))
        names = ["background", "liver"]
        HistoryHandler(tmp_path / "history.csv", pseudo_labeler=Labeler(), class_names=names).attach(trainer)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: found.append(dict(engine.state.metrics)))
        trainer.run()
        first = {"loss": 2.5, "supervised": 1.25, "unsupervised": 30.0, "confident_share": 0.375, "gradient_norm": 3.0}
        assert found[0] == {"other": 1.0, **first, "confident_share/background": 0.75}
        second = {"loss": 6.5, "supervised": 3.25, "unsupervised": 70.0, "confident_share": 0.875}
        assert found[1] == {"other": 1.0, **second, "confident_share/background": 0.5, "confident_share/liver": 0.25}

    def test_a_run_from_the_first_epoch_begins_the_file_anew(self, tmp_path):
        path = tmp_path / "history.csv"
        make_trainer(3, [HistoryHandler(path)]).run()
        make_trainer(1, [HistoryHandler(path)]).run()
        assert [row["epoch"] for row in rows(path)] == ["1"]

    @pytest.mark.parametrize("resumed_after", [1, 2, 3])
    def test_a_resumed_run_goes_on_with_the_file_and_no_epoch_is_in_it_twice(self, tmp_path, resumed_after):
        path, whole = tmp_path / "history.csv", tmp_path / "whole.csv"
        make_trainer(4, [HistoryHandler(whole)]).run()
        make_trainer(3, [HistoryHandler(path)]).run()
        resumed = make_trainer(4, [HistoryHandler(path)])
        resumed.state.epoch, resumed.state.iteration = resumed_after, resumed_after * STEPS
        resumed.run()
        assert path.read_text() == whole.read_text()

    def test_a_resumed_run_without_the_file_begins_one(self, tmp_path):
        resumed = make_trainer(2, [HistoryHandler(tmp_path / "history.csv")])
        resumed.state.epoch, resumed.state.iteration = 1, STEPS
        resumed.run()
        assert [row["epoch"] for row in rows(tmp_path / "history.csv")] == ["2"]

    def test_rounds_of_a_federation_stand_in_one_file(self, tmp_path):
        trainer = make_trainer(1, [HistoryHandler(tmp_path / "history.csv")])
        for epoch in (1, 2, 3):
            trainer.state.max_epochs = epoch
            trainer.run()
        assert [row["epoch"] for row in rows(tmp_path / "history.csv")] == ["1", "2", "3"]


class TestProgressLine:
    def test_on_a_terminal_it_is_one_live_line_over_the_whole_run(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        validator = make_validator()
        left_open = tqdm(total=3, file=io.StringIO())
        make_trainer(3, [ProgressLineHandler(validator, interval=1), ValidationHandler(1, validator)]).run()
        left_open.close()
        text = terminal.getvalue()
        assert text.count("\n") == 1
        assert text.endswith("\n")
        last = text.strip().split("\r")[-1]
        assert re.match(r"epoch 3/3 100%\|[█#]{20}\| 00:0\d<00:00, ", last)
        # The metric of the last epoch, though the validation came after the last step.
        assert "loss=12.000, supervised=6.000, unsupervised=120.000, val_mean_dice=0.300" in last

    @pytest.mark.parametrize("validation_first", [True, False])
    def test_in_a_log_there_is_a_line_for_each_epoch_with_its_own_metric(self, capsys, validation_first):
        validator = make_validator()
        handlers = [ProgressLineHandler(validator), ValidationHandler(1, validator)]
        make_trainer(3, handlers[::-1] if validation_first else handlers).run()
        error = capsys.readouterr().err
        lines = error.splitlines()
        assert "\r" not in error
        assert [line[:9] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
        assert [re.search(r"(\d+)%", line).group(1) for line in lines] == ["33", "67", "100"]
        assert [re.search(r" loss=(.*?),", line).group(1) for line in lines] == ["4.000", "8.000", "12.000"]
        assert [line[-19:] for line in lines] == [f"val_mean_dice=0.{epoch}00" for epoch in (1, 2, 3)]
        assert all(re.search(r"\| \d\d:\d\d<\d\d:\d\d, ", line) for line in lines)

    def test_a_resumed_run_shows_its_share_of_the_whole(self, capsys):
        trainer = make_trainer(4, [ProgressLineHandler()])
        trainer.state.epoch, trainer.state.iteration = 2, 2 * STEPS
        trainer.run()
        lines = capsys.readouterr().err.splitlines()
        assert [re.match(r"epoch \d/4 +\d+%", line).group() for line in lines] == ["epoch 3/4  75%", "epoch 4/4 100%"]

    def test_each_round_of_a_federation_has_its_lines(self, capsys):
        trainer = make_trainer(1, [ProgressLineHandler()])
        for epoch in (1, 2):
            trainer.state.max_epochs = epoch
            trainer.run()
        assert [line[:9] for line in capsys.readouterr().err.splitlines()] == ["epoch 1/1", "epoch 2/2"]

    def test_between_its_intervals_no_loss_is_read(self, monkeypatch):
        read = []

        class Loss:
            def __float__(self):
                read.append(1)
                return 1.0

        monkeypatch.setattr(sys, "stderr", Terminal())
        engine = Engine(lambda engine, batch: {"loss": 1.0, "supervised": Loss()})
        ProgressLineHandler(interval=5).attach(engine)
        engine.run([0] * 11, max_epochs=1)
        assert len(read) == 3  # steps 5 and 10, and the end of the epoch

    def test_a_loss_is_no_term_that_it_is_not_called(self, capsys):
        engine = Engine(lambda engine, batch: {"loss": 0.25})
        ProgressLineHandler().attach(engine)
        engine.run([0] * 2, max_epochs=1)
        printed = capsys.readouterr().err
        assert "loss=0.250" in printed
        assert "supervised" not in printed

    def test_a_step_without_anything_to_learn_has_no_loss(self, tmp_path, capsys):
        engine = Engine(lambda engine, batch: {} if engine.state.epoch == 1 else {"loss": 0.5, "unsupervised": 0.5})
        for handler in (ProgressLineHandler(), HistoryHandler(tmp_path / "history.csv")):
            handler.attach(engine)
        engine.run([0] * 2, max_epochs=2)
        rows = (tmp_path / "history.csv").read_text().splitlines()
        assert rows[1:] == ["1,,,,,,", "2,0.50000,,0.50000,,,"]
        assert "supervised=0.0" not in capsys.readouterr().err

    def test_without_a_validator_or_its_metric_there_is_no_metric(self, capsys):
        validator = make_validator()
        validator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.clear())
        for handler in (ProgressLineHandler(), ProgressLineHandler(validator)):
            make_trainer(1, [handler, ValidationHandler(1, validator)]).run()
        assert "val_mean_dice" not in capsys.readouterr().err
