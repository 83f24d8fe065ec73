from __future__ import annotations

import errno
import re

import pytest
import torch
from ignite.engine import Events
from torch import nn

from dinomix_monai.handlers import RunStateLoader, RunStateSaver
from tests.handlers.toy_run import STEPS, Network, Run, is_equal, killed_halfway


def stopped_by_hand():
    raise KeyboardInterrupt


class Full:
    """A file on a disk with no room for more than a little."""

    def __init__(self, handle):
        self.handle, self.room = handle, 600

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.handle.write(data)

    def __getattr__(self, name):
        return getattr(self.handle, name)


# With a warm-up of 2/3 of an epoch the unlabeled stream is in its midst when the first epoch ends.
@pytest.mark.parametrize("warm_up", [0.0, 0.3])
def test_a_resumed_run_is_the_run_that_was_never_interrupted(tmp_path, warm_up):
    whole = Run(tmp_path / "whole", epochs=2, warm_up=warm_up).run()
    first = Run(tmp_path / "parts", epochs=1, warm_up=warm_up).run()
    resumed = Run(tmp_path / "parts", epochs=2, warm_up=warm_up, seed=99, resume=True).run()
    assert first.rows + resumed.rows == whole.rows
    assert len(whole.rows) == 2 * STEPS
    assert min(whole.rows[-1][:3]) > 0  # mixed patches were learned from
    assert max(row[3] for row in whole.rows) > 0  # and so was the frozen teacher
    assert resumed.evaluator.state.metrics == whole.evaluator.state.metrics
    a, b = (torch.load(run.file, weights_only=True) for run in (whole, resumed))
    assert is_equal(a, b)
    a, b = (torch.load(tmp_path / part / "model.pt", weights_only=True) for part in ("whole", "parts"))
    assert is_equal(a, b)


def test_a_run_that_is_made_longer_goes_on_with_the_learning_rates_of_the_longer_one(tmp_path):
    first = Run(tmp_path, epochs=2).run()
    assert first.trainer.optimizer.param_groups[0]["lr"] == 0
    resumed = Run(tmp_path, epochs=3, resume=True, planned=4, lr=0.02)
    rates = []
    resumed.trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: rates.append(engine.optimizer.param_groups[0]["lr"])
    )
    resumed.run()
    steps = range(2 * STEPS, 3 * STEPS)
    assert rates == pytest.approx([0.02 * (1 - step / (4 * STEPS)) for step in steps])


def test_a_run_that_is_resumed_in_its_first_epoch_leaves_alone_what_an_earlier_one_has_kept(tmp_path):
    earlier = Run(tmp_path, epochs=1).run().file.read_bytes()
    stopped = Run(tmp_path, epochs=1)
    stopped.trainer.add_event_handler(Events.STARTED, lambda engine: engine.terminate())
    stopped.run()
    Run(tmp_path, epochs=1, resume=True).run()
    assert stopped.file.with_name("state.previous.pt").read_bytes() == earlier


def test_every_part_of_the_run_is_in_the_file_and_nothing_of_the_teacher(tmp_path):
    run = Run(tmp_path, epochs=1, fingerprint="abc").run()
    state = torch.load(run.file, weights_only=True)
    parts = {
        "network",
        "optimizer",
        "ema_teacher",
        "pseudo_labeler",
        "mix",
        "distiller",
        "best_model",
    }
    assert set(state) == {*parts, "trainer", "teacher"}
    assert state["teacher"] == "abc"
    assert state["trainer"] == {"epoch": 1, "iteration": STEPS}
    assert all(name.startswith("heads.") for name in state["distiller"])
    assert len(state["mix"]["bank"]["patches"]) > 0


def test_the_docstring_lists_all_that_a_file_may_hold(tmp_path):
    state = torch.load(Run(tmp_path, epochs=1).run().file, weights_only=True)
    listed = re.findall(r"^\s*- ``(\w+)``", RunStateSaver.__doc__, re.MULTILINE)
    # A scaler is there in float16 on a GPU only, and class weights in the trainer of CPS only.
    assert sorted(listed) == sorted([*state, "scaler", "weightings"])


def test_a_part_that_changes_between_save_and_load_is_restored(tmp_path):
    saved = torch.load(Run(tmp_path, epochs=1).run().file, weights_only=True)
    run = Run(tmp_path, epochs=2, seed=5, resume=True)
    restored = {}
    run.trainer.add_event_handler(
        Events.STARTED,
        lambda engine: restored.update(
            {name: getattr(engine, name).state_dict() for name in ("network", "optimizer", "mix", "distiller")}
        ),
    )
    run.trainer.add_event_handler(Events.STARTED, lambda engine: engine.terminate())
    run.run()
    assert is_equal(restored, {name: saved[name] for name in restored})


def test_a_kill_while_it_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    run = Run(tmp_path, epochs=1).run()
    old = run.file.read_bytes()

    monkeypatch.setattr(torch, "save", killed_halfway)
    with pytest.raises(KeyboardInterrupt):
        RunStateSaver(run.file)(run.trainer)
    assert run.file.read_bytes() == old
    monkeypatch.undo()
    RunStateSaver(run.file)(run.trainer)
    assert "best_model" not in torch.load(run.file, weights_only=True)


def test_another_teacher_is_refused(tmp_path):
    Run(tmp_path, epochs=1, fingerprint="one").run()
    message = r"had the teacher one, and now it is other\. Pass the same teacher_weights"
    with pytest.raises(ValueError, match=message):
        Run(tmp_path, fingerprint="other", resume=True).run()
    with pytest.raises(ValueError, match="had the teacher one, and now it is None"):
        Run(tmp_path, distiller=None, resume=True).run()


def test_a_run_goes_on_where_gradients_are_scaled_and_back(tmp_path):
    Run(tmp_path, epochs=1).run()
    half = Run(tmp_path, resume=True)
    half.trainer.scaler = torch.amp.GradScaler("cpu")
    half.run()
    assert half.trainer.state.epoch == 2
    assert "scaler" in torch.load(half.file, weights_only=True)
    assert Run(tmp_path, epochs=3, resume=True).run().trainer.state.epoch == 3


def test_a_missing_part_is_refused(tmp_path):
    file = Run(tmp_path, epochs=1, mix=None).run().file
    with pytest.raises(ValueError, match=r"state.pt must have the state of trainer, network, .*, got none of mix\."):
        Run(tmp_path, resume=True).run()
    torch.save(Network().state_dict(), file)
    with pytest.raises(ValueError, match=r"got none of trainer, network, optimizer, ema_teacher, pseudo_labeler"):
        Run(tmp_path, distiller=None, resume=True).run()


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be the state of a run, got .*nothing\.pt.*Train first"):
        RunStateLoader(tmp_path / "nothing.pt")


def test_a_finished_run_is_reported_and_left_as_it_is(tmp_path):
    whole = Run(tmp_path, epochs=1).run()
    resumed = Run(tmp_path, epochs=1, resume=True, seed=3)
    with pytest.warns(UserWarning, match="has all of its 1 epochs: nothing is left to train"):
        resumed.run()
    assert resumed.rows == []
    assert is_equal(resumed.trainer.network.state_dict(), whole.trainer.network.state_dict())


def test_later_rounds_of_a_federation_are_not_sent_back(tmp_path):
    Run(tmp_path, epochs=1).run()
    run = Run(tmp_path, epochs=2, resume=True).run()
    nn.init.constant_(run.trainer.network.up.bias, 50)  # what a server sends
    run.trainer.state.max_epochs = 3
    run.run()
    assert run.trainer.state.epoch == 3
    assert run.trainer.network.up.bias.min() > 49
    assert len(run.rows) == 2 * STEPS


def test_an_epoch_of_another_length_begins_at_its_start(tmp_path):
    Run(tmp_path, epochs=1).run()
    run = Run(tmp_path, epochs=2, resume=True)
    run.trainer.state.epoch_length = STEPS - 1
    run.run()
    assert len(run.rows) == STEPS - 1
    assert run.trainer.state.iteration == 2 * (STEPS - 1)


def test_the_state_is_written_before_the_first_step_and_restores_it(tmp_path):
    run = Run(tmp_path)
    steps = []
    run.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: steps.append(run.file.is_file()))
    expected = run.run().rows
    assert all(steps)

    stopped = Run(tmp_path / "b")
    stopped.trainer.add_event_handler(Events.ITERATION_STARTED(once=2), stopped_by_hand)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert Run(tmp_path / "b", resume=True, seed=5).run().rows == expected


def test_a_new_run_keeps_state_and_model_of_the_one_before(tmp_path, caplog):
    first = Run(tmp_path, epochs=1).run()
    before = {path: path.read_bytes() for path in (first.file, first.best.path)}
    Run(tmp_path, epochs=1, seed=1).run()
    for path, content in before.items():
        assert path.with_name(f"{path.stem}.previous.pt").read_bytes() == content != path.read_bytes()
    assert f"{first.file} was there from an earlier run and is now state.previous.pt." in caplog.text


def test_a_resumed_run_keeps_nothing_of_itself(tmp_path):
    Run(tmp_path, epochs=1).run()
    Run(tmp_path, epochs=2, resume=True).run()
    assert sorted(path.name for path in tmp_path.rglob("*.pt")) == ["model.pt", "state.pt"]


@pytest.mark.parametrize("file", ["state.pt", "model.pt"])
def test_on_a_full_disk_what_was_there_stays_and_the_message_is_clear(tmp_path, monkeypatch, file):
    run = Run(tmp_path, epochs=2)
    path = next(path for path in (run.file, run.best.path) if path.name == file)
    write, kept = torch.save, {}

    def save(content, handle):
        if handle.name.endswith(f"{file}.partial") and run.trainer.state.epoch == 2:
            kept[path] = path.read_bytes()
            handle = Full(handle)
        write(content, handle)

    monkeypatch.setattr(torch, "save", save)
    run.evaluator.add_event_handler(Events.STARTED, lambda: setattr(run.best, "best", -1))
    with pytest.raises(OSError, match=f"{file} must be a file that can be written to, got: No space left") as caught:
        run.run()
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == kept[path]
    assert not list(tmp_path.rglob("*.partial"))


def test_other_errors_of_writing_are_not_blamed_on_the_disk(tmp_path, monkeypatch):
    def save(content, handle):
        raise RuntimeError("Something else.")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="Something else"):
        Run(tmp_path).run()
