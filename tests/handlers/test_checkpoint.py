from __future__ import annotations

import errno
import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler, MeanDice, ValidationHandler, from_engine
from monai.transforms import AsDiscreted, Compose, RandGaussianNoised
from torch import nn

from dinomix_monai.data import patch_stream
from dinomix_monai.engines import DinoMixTrainer, FeatureDistiller, PseudoLabeler
from dinomix_monai.handlers import (
    BestModelHandler,
    CurriculumHandler,
    EMAUpdateHandler,
    EpochSeedHandler,
    LastModelHandler,
    RampUpHandler,
    RunStateLoader,
    RunStateSaver,
)
from dinomix_monai.losses import VoxelWeightedDiceCELoss
from dinomix_monai.models import read_class_names
from dinomix_monai.networks import EMATeacher
from dinomix_monai.transforms import PICCutMixd

NAMES = ["background", "spleen", "adrenal gland"]
STEPS = 3


class Network(nn.Module):
    """With a buffer, a random draw and a module to tap."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv3d(1, 4, 2, stride=2)
        self.norm = nn.BatchNorm3d(4)
        self.dropout = nn.Dropout3d(0.3)
        self.up = nn.ConvTranspose3d(4, len(NAMES), 2, stride=2)

    def forward(self, x):
        return self.up(self.dropout(self.norm(self.features(x)).relu()))


class Teacher(nn.Module):
    embed_dim = 2

    def __init__(self, fingerprint):
        super().__init__()
        self.fingerprint = fingerprint
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, volume, grid, cells=None):
        tokens = nn.functional.adaptive_avg_pool3d(torch.cat([volume, 1 - volume], 1), grid)
        return tokens if cells is None else tokens[..., cells]


class Run:
    """A whole training as the bundle builds it, with toys in it; each one is built anew, as in a new process."""

    def __init__(
        self, folder, epochs=2, fingerprint="a", resume=False, seed=0, warm_up=0.0, planned=2, lr=0.01, **changes
    ):
        torch.manual_seed(seed)
        self.file = folder / "last" / "state.pt"
        network = Network()
        self.ema_teacher = EMATeacher(network, decay=0.5)
        mix = PICCutMixd("image", [400, 100, 12], bank_size=2)
        distiller = FeatureDistiller(network, ["features"], Teacher(fingerprint), (8, 8, 8), layers=2, interval=2)
        optimizer = torch.optim.AdamW([*network.parameters(), *distiller.parameters()], lr=lr)
        self.scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=planned * STEPS)
        labeled, unlabeled = stream(5, 2), stream(4, 1, unlabeled=True)
        self.best = BestModelHandler(folder / "model.pt", NAMES)
        self.evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(cases(2)), batch_size=1),
            network=self.ema_teacher.module,
            postprocessing=AsDiscreted(keys="pred", argmax=True),
            key_val_metric={"val_mean_dice": MeanDice(num_classes=3, output_transform=from_engine(["pred", "label"]))},
            val_handlers=[self.best],
        )
        objects = {"best_model": self.best, "nothing": None}
        loss = VoxelWeightedDiceCELoss()
        self.trainer = DinoMixTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=labeled,
            network=network,
            optimizer=optimizer,
            loss_function=loss,
            train_handlers=[
                *([RunStateLoader(self.file, objects, self.scheduler)] if resume else []),
                EpochSeedHandler(seed=7, randomizables=[labeled, unlabeled, mix, distiller, None]),
                CurriculumHandler(total_epochs=2, transform=mix),
                RampUpHandler("unsupervised_weight", 1.0, warm_up=warm_up, ramp_up=0.2),
                EMAUpdateHandler(),
                LrScheduleHandler(self.scheduler, epoch_level=False, print_lr=False),
                ValidationHandler(validator=self.evaluator, interval=1),
                RunStateSaver(self.file, objects),
            ],
            **{
                "unlabeled_data_loader": unlabeled,
                "ema_teacher": self.ema_teacher,
                "pseudo_labeler": PseudoLabeler(3, threshold=0.4, floor=0.3, decay=0.8),
                "mix": mix,
                "unlabeled_loss_function": loss,
                "distiller": distiller,
                **changes,
            },
        )
        self.rows = []
        terms = ("loss", "supervised", "unsupervised", "distillation")
        self.trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: self.rows.append([float(engine.state.output[0].get(term, -1)) for term in terms]),
        )

    def run(self):
        self.trainer.run()
        return self


def cases(number, unlabeled=False):
    generator = torch.Generator().manual_seed(number)
    found = []
    for _ in range(number):
        label = torch.randint(0, 3, (1, 8, 8, 8), generator=generator)
        image = label / 2 + 0.1 * torch.rand(label.shape, generator=generator)
        found.append({"image": image} if unlabeled else {"image": image, "label": label})
    return found


def stream(number, batch_size, unlabeled=False):
    noise = Compose([RandGaussianNoised("image", prob=1.0, std=0.05)])
    return patch_stream(Dataset(cases(number, unlabeled), transform=noise), batch_size, STEPS)


def flat(state, prefix=""):
    """All tensors and numbers of nested states, by path."""
    if isinstance(state, dict):
        state = state.items()
    elif isinstance(state, (list, tuple)):
        state = enumerate(state)
    else:
        return {prefix: state}
    return {name: leaf for key, value in state for name, leaf in flat(value, f"{prefix}/{key}").items()}


def is_equal(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    different = [
        name for name, a in one.items() if not (torch.equal(a, other[name]) if torch.is_tensor(a) else a == other[name])
    ]
    assert different == []
    return True


def evaluation(value, epoch=1, network=None, handler=None):
    """An evaluator that has just come to this value of its key metric."""
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=[None], network=network or nn.Linear(1, 1)
    )
    evaluator.state.metrics["val_mean_dice"] = value
    evaluator.state.epoch = epoch
    if handler is not None:
        handler(evaluator)
    return evaluator


def killed_halfway(content, file):
    """Stands for ``torch.save`` in a process that is killed while it writes."""
    file.write(b"half of it")
    raise KeyboardInterrupt


class TestBestModel:
    def test_the_model_is_written_only_when_it_is_better(self, tmp_path):
        handler, network = BestModelHandler(tmp_path / "models" / "model.pt", NAMES), nn.Linear(1, 1, bias=False)
        written = []
        for epoch, value in enumerate([0.2, 0.5, 0.5, 0.4, math.nan, 0.6], start=1):
            nn.init.constant_(network.weight, epoch)
            evaluation(value, epoch, network, handler)
            written.append(torch.load(handler.path, weights_only=True)["weight"].item())
        assert written == [1, 2, 2, 2, 2, 6]
        assert handler.state_dict() == {"best": 0.6, "epoch": 6, "waited": 0, "has_written": True}

    def test_without_a_score_the_last_model_is_kept_and_that_is_said_once(self, tmp_path):
        handler, network = BestModelHandler(tmp_path / "model.pt", NAMES), nn.Linear(1, 1, bias=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for epoch in (1, 2, 3):
                nn.init.constant_(network.weight, epoch)
                evaluation(math.nan, epoch, network, handler)
        assert [str(one.message).partition(",")[0] for one in caught] == ["No validation case has any of the classes"]
        assert torch.load(handler.path, weights_only=True)["weight"].item() == 3
        assert handler.state_dict() == {"best": None, "epoch": 3, "waited": 0, "has_written": True}
        assert not list(tmp_path.glob("*.previous.*"))
        evaluation(0.0, 4, network, handler)
        assert handler.state_dict() == {"best": 0.0, "epoch": 4, "waited": 0, "has_written": True}

    def test_it_loads_strictly_and_the_names_of_the_classes_stand_beside_it(self, tmp_path):
        network, other = Network(), Network()
        handler = BestModelHandler(tmp_path / "model.pt", NAMES)
        evaluation(0.5, network=network, handler=handler)
        other.load_state_dict(torch.load(handler.path, weights_only=True), strict=True)
        assert is_equal(other.state_dict(), network.state_dict())
        named = json.loads((tmp_path / "labels.json").read_text())
        assert named == {"0": "background", "1": "spleen", "2": "adrenal gland"}
        assert read_class_names(handler.path) == NAMES
        assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.json", "model.pt"]

    def test_the_names_have_no_prefix_of_a_parallel_network(self, tmp_path):
        handler = BestModelHandler(tmp_path / "model.pt", NAMES)
        evaluation(0.5, network=nn.DataParallel(nn.Linear(1, 1)), handler=handler)
        assert list(torch.load(handler.path, weights_only=True)) == ["weight", "bias"]

    def test_a_kill_while_it_is_written_leaves_the_old_one(self, tmp_path, monkeypatch):
        handler, network = BestModelHandler(tmp_path / "model.pt", NAMES), nn.Linear(1, 1)
        evaluation(0.2, network=network, handler=handler)
        old = handler.path.read_bytes()

        monkeypatch.setattr(torch, "save", killed_halfway)
        with pytest.raises(KeyboardInterrupt):
            evaluation(0.9, network=network, handler=handler)
        assert handler.path.read_bytes() == old

    def test_a_resumed_run_remembers_the_best(self, tmp_path):
        first, resumed = (BestModelHandler(tmp_path / "model.pt", NAMES) for _ in range(2))
        evaluation(0.7, 3, handler=first)
        before = first.path.read_bytes()
        resumed.load_state_dict(first.state_dict())
        evaluation(0.6, 4, network=nn.Linear(2, 2), handler=resumed)
        assert first.path.read_bytes() == before
        assert resumed.state_dict() == {"best": 0.7, "epoch": 3, "waited": 1, "has_written": True}

    def test_an_unknown_metric_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"key_metric must name a metric .*\(val_mean_dice\), got 'accuracy'"):
            evaluation(0.5, handler=BestModelHandler(tmp_path / "model.pt", NAMES, key_metric="accuracy"))

    def test_it_holds_the_network_that_was_scored_and_the_epoch_of_the_trainer(self, tmp_path):
        run = Run(tmp_path, epochs=1).run()
        saved = torch.load(tmp_path / "model.pt", weights_only=True)
        assert is_equal(saved, run.ema_teacher.module.state_dict())
        assert run.best.epoch == 1
        assert run.best.best == run.evaluator.state.metrics["val_mean_dice"]


class TestResume:
    # With a warm-up of 2/3 of an epoch the unlabeled stream is in its midst when the first epoch ends.
    @pytest.mark.parametrize("warm_up", [0.0, 0.3])
    def test_a_resumed_run_is_the_run_that_was_never_interrupted(self, tmp_path, warm_up):
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

    def test_a_run_that_is_made_longer_goes_on_with_the_learning_rates_of_the_longer_one(self, tmp_path):
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

    def test_a_run_that_is_resumed_in_its_first_epoch_leaves_alone_what_an_earlier_one_has_kept(self, tmp_path):
        earlier = Run(tmp_path, epochs=1).run().file.read_bytes()
        stopped = Run(tmp_path, epochs=1)
        stopped.trainer.add_event_handler(Events.STARTED, lambda engine: engine.terminate())
        stopped.run()
        Run(tmp_path, epochs=1, resume=True).run()
        assert stopped.file.with_name("state.previous.pt").read_bytes() == earlier

    def test_every_part_of_the_run_is_in_the_file_and_nothing_of_the_teacher(self, tmp_path):
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

    def test_a_part_that_changes_between_save_and_load_is_restored(self, tmp_path):
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

    def test_a_kill_while_it_is_written_leaves_the_old_one(self, tmp_path, monkeypatch):
        run = Run(tmp_path, epochs=1).run()
        old = run.file.read_bytes()

        monkeypatch.setattr(torch, "save", killed_halfway)
        with pytest.raises(KeyboardInterrupt):
            RunStateSaver(run.file)(run.trainer)
        assert run.file.read_bytes() == old
        monkeypatch.undo()
        RunStateSaver(run.file)(run.trainer)
        assert "best_model" not in torch.load(run.file, weights_only=True)

    def test_another_teacher_is_refused(self, tmp_path):
        Run(tmp_path, epochs=1, fingerprint="one").run()
        message = r"had the teacher one, and now it is other\. Pass the same teacher_weights"
        with pytest.raises(ValueError, match=message):
            Run(tmp_path, fingerprint="other", resume=True).run()
        with pytest.raises(ValueError, match="had the teacher one, and now it is None"):
            Run(tmp_path, distiller=None, resume=True).run()

    def test_a_run_goes_on_where_gradients_are_scaled_and_back(self, tmp_path):
        Run(tmp_path, epochs=1).run()
        half = Run(tmp_path, resume=True)
        half.trainer.scaler = torch.amp.GradScaler("cpu")
        half.run()
        assert half.trainer.state.epoch == 2
        assert "scaler" in torch.load(half.file, weights_only=True)
        assert Run(tmp_path, epochs=3, resume=True).run().trainer.state.epoch == 3

    def test_a_missing_part_is_refused(self, tmp_path):
        file = Run(tmp_path, epochs=1, mix=None).run().file
        with pytest.raises(
            ValueError, match=r"state.pt must have the state of trainer, network, .*, got none of mix\."
        ):
            Run(tmp_path, resume=True).run()
        torch.save(Network().state_dict(), file)
        with pytest.raises(ValueError, match=r"got none of trainer, network, optimizer, ema_teacher, pseudo_labeler"):
            Run(tmp_path, distiller=None, resume=True).run()

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"path must be the state of a run, got .*nothing\.pt.*Train first"):
            RunStateLoader(tmp_path / "nothing.pt")

    def test_a_finished_run_is_reported_and_left_as_it_is(self, tmp_path):
        whole = Run(tmp_path, epochs=1).run()
        resumed = Run(tmp_path, epochs=1, resume=True, seed=3)
        with pytest.warns(UserWarning, match="has all of its 1 epochs: nothing is left to train"):
            resumed.run()
        assert resumed.rows == []
        assert is_equal(resumed.trainer.network.state_dict(), whole.trainer.network.state_dict())

    def test_later_rounds_of_a_federation_are_not_sent_back(self, tmp_path):
        Run(tmp_path, epochs=1).run()
        run = Run(tmp_path, epochs=2, resume=True).run()
        nn.init.constant_(run.trainer.network.up.bias, 50)  # what a server sends
        run.trainer.state.max_epochs = 3
        run.run()
        assert run.trainer.state.epoch == 3
        assert run.trainer.network.up.bias.min() > 49
        assert len(run.rows) == 2 * STEPS

    def test_an_epoch_of_another_length_begins_at_its_start(self, tmp_path):
        Run(tmp_path, epochs=1).run()
        run = Run(tmp_path, epochs=2, resume=True)
        run.trainer.state.epoch_length = STEPS - 1
        run.run()
        assert len(run.rows) == STEPS - 1
        assert run.trainer.state.iteration == 2 * (STEPS - 1)


class TestNothingIsLost:
    def test_the_state_is_written_before_the_first_step_and_restores_it(self, tmp_path):
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

    def test_a_new_run_keeps_state_and_model_of_the_one_before(self, tmp_path, caplog):
        first = Run(tmp_path, epochs=1).run()
        before = {path: path.read_bytes() for path in (first.file, first.best.path)}
        Run(tmp_path, epochs=1, seed=1).run()
        for path, content in before.items():
            assert path.with_name(f"{path.stem}.previous.pt").read_bytes() == content != path.read_bytes()
        assert f"{first.file} was there from an earlier run and is now state.previous.pt." in caplog.text

    def test_without_validation_the_model_of_the_one_before_is_kept_too(self, tmp_path):
        best = BestModelHandler(tmp_path / "model.pt", NAMES)
        best.path.write_bytes(b"earlier")
        network = Network()
        with pytest.warns(UserWarning, match="No validation has chosen a model"):
            LastModelHandler(best)(SimpleNamespace(ema_teacher=EMATeacher(network)))
        assert best.path.with_name("model.previous.pt").read_bytes() == b"earlier"
        assert is_equal(torch.load(best.path, weights_only=True), network.state_dict())

    def test_a_resumed_run_keeps_nothing_of_itself(self, tmp_path):
        Run(tmp_path, epochs=1).run()
        Run(tmp_path, epochs=2, resume=True).run()
        assert sorted(path.name for path in tmp_path.rglob("*.pt")) == ["model.pt", "state.pt"]

    @pytest.mark.parametrize("file", ["state.pt", "model.pt"])
    def test_on_a_full_disk_what_was_there_stays_and_the_message_is_clear(self, tmp_path, monkeypatch, file):
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
        with pytest.raises(
            OSError, match=f"{file} must be a file that can be written to, got: No space left"
        ) as caught:
            run.run()
        assert caught.value.errno == errno.ENOSPC
        assert path.read_bytes() == kept[path]
        assert not list(tmp_path.rglob("*.partial"))

    def test_other_errors_of_writing_are_not_blamed_on_the_disk(self, tmp_path, monkeypatch):
        def save(content, handle):
            raise RuntimeError("Something else.")

        monkeypatch.setattr(torch, "save", save)
        with pytest.raises(RuntimeError, match="Something else"):
            Run(tmp_path).run()


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
