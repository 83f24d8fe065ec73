from __future__ import annotations

import math
import warnings

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted
from torch import nn

from dinomix_monai.baselines import CrossTrainer
from dinomix_monai.engines import DinoMixTrainer, FeatureDistiller
from dinomix_monai.networks import EMATeacher
from dinomix_monai.transforms import PICCutMixd
from tests.engines.conftest import ORDER_OF_EVENTS, events_of_a_run


class MeanTeacher(nn.Module):
    """Its one token per cell is the mean intensity there."""

    embed_dim = 1
    fingerprint = "mean"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.volumes = []

    def forward(self, volume, grid, cells=None):
        self.volumes.append(volume)
        tokens = self.weight * nn.functional.adaptive_avg_pool3d(volume, grid)
        return tokens if cells is None else tokens[..., cells]


class Mix:
    """Notes the batch that it is given, and mixes nothing."""

    def __init__(self):
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch)
        unlabeled = [i for i, labeled in enumerate(batch["labeled"]) if not labeled]
        return {key: batch[key][unlabeled] for key in batch if key not in ("labeled", "position")}


@pytest.fixture
def make_distiller():
    def make(teacher=None, **kwargs):
        teacher = MeanTeacher() if teacher is None else teacher
        return lambda network: FeatureDistiller(network, ["features"], teacher, patch_size=(8, 8, 8), **kwargs)

    return make


def losses(trainer, *names):
    """What these terms were at each step of a run."""
    found = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: found.append([float(engine.state.output[0].get(name, math.nan)) for name in names or ("loss",)]),
    )
    trainer.run()
    return found


def weights(module):
    return [value.clone() for value in module.state_dict().values()]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def test_with_both_weights_0_it_is_exactly_the_supervised_trainer(make_trainer, make_distiller):
    reference = make_trainer(SupervisedTrainer)
    trainer = make_trainer(unsupervised_weight=0, distillation_weight=0, mix=Mix(), distiller=make_distiller())
    assert losses(trainer) == losses(reference)
    assert same(weights(trainer.network), weights(reference.network))
    assert not trainer.mix.batches
    assert not trainer.distiller.teacher.volumes


def test_a_supervised_start_is_exactly_the_supervised_trainers(make_trainer):
    reference, trainer = make_trainer(SupervisedTrainer), make_trainer(unsupervised_weight=0)
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=4), lambda engine: setattr(engine, "unsupervised_weight", 1.0)
    )
    expected, found = losses(reference), losses(trainer, "loss", "unsupervised")
    assert [loss for loss, _ in found[:3]] == [loss for (loss,) in expected[:3]]
    assert [math.isnan(term) for _, term in found] == [True] * 3 + [False] * 3
    assert found[3][0] > expected[3][0]


def precisions(module):
    """What the module computes in from now on."""
    found = set()
    module.register_forward_hook(lambda module, inputs, output: found.add(output.dtype))
    return found


def test_on_a_cpu_mixed_precision_is_for_pseudo_labels_alone(make_trainer):
    trainer = make_trainer(amp=True)
    student, teacher = precisions(trainer.network), precisions(trainer.ema_teacher)
    found = losses(trainer)
    assert (student, teacher) == ({torch.float32}, {torch.bfloat16})
    assert found[0] == pytest.approx(losses(make_trainer())[0], rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("unsupervised_weight", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_mixed_precision_is_for_all_and_float16_scales_gradients(make_trainer, dtype, unsupervised_weight):
    settings = {"device": torch.device("cuda"), "unsupervised_weight": unsupervised_weight}
    trainer = make_trainer(amp=True, amp_kwargs={"dtype": dtype}, **settings)
    student = precisions(trainer.network)
    found = losses(trainer)
    assert student == {dtype}
    assert (trainer.scaler is not None) == (dtype == torch.float16)
    assert found[0] == pytest.approx(losses(make_trainer(**settings))[0], rel=0.02)


@pytest.mark.parametrize("loader", [None, []], ids=["missing", "empty"])
def test_without_unlabeled_images_there_is_one_warning_and_supervised_training(make_trainer, loader):
    parts = {"ema_teacher": None, "pseudo_labeler": None, "unlabeled_loss_function": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(unlabeled_data_loader=loader, **parts)
    assert [str(w.message) for w in caught] == ["There are no unlabeled images: training is supervised."]
    reference = make_trainer(SupervisedTrainer)
    assert losses(trainer) == losses(reference)
    assert same(weights(trainer.network), weights(reference.network))


@pytest.mark.parametrize("part", ["ema_teacher", "pseudo_labeler", "unlabeled_loss_function"])
def test_a_missing_part_is_refused(make_trainer, part):
    with pytest.raises(ValueError, match=f"{part} must be given when there are unlabeled images, got None"):
        make_trainer(**{part: None})


def test_accumulation_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"accumulation_steps must be 1, got 2\. Use a larger batch"):
        make_trainer(accumulation_steps=2)
    assert make_trainer(accumulation_steps=1).accumulation_steps == 1


def test_a_stream_without_a_batch_is_refused(make_trainer):
    trainer = make_trainer(unlabeled_data_loader=iter(()))
    with pytest.raises(RuntimeError, match="unlabeled_data_loader must yield batches, got none"):
        trainer.next_unlabeled()


def test_the_loss_is_the_weighted_sum_of_its_terms(make_trainer, make_distiller):
    trainer = make_trainer(unsupervised_weight=0.3, distillation_weight=0.7, distiller=make_distiller())
    rows = losses(trainer, "loss", "supervised", "unsupervised", "distillation")
    assert len(rows) == 6
    for loss, supervised, unsupervised, distillation in rows:
        assert min(supervised, unsupervised, distillation) > 0
        assert loss == pytest.approx(supervised + 0.3 * unsupervised + 0.7 * distillation, rel=1e-5)


def test_the_first_step_has_the_gradient_of_the_sum_written_plainly(make_trainer):
    trainer = make_trainer(unsupervised_weight=0.3, decollate=False)
    network, teacher = trainer.network, trainer.ema_teacher
    labeled, unlabeled = trainer.data_loader[0], trainer.unlabeled_data_loader[0]
    pseudo = teacher(unlabeled["image"]).argmax(1)
    loss = nn.functional.cross_entropy(network(labeled["image"]), labeled["label"][:, 0])
    loss = loss + 0.3 * nn.functional.cross_entropy(network(unlabeled["strong"]), pseudo)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    expected = [p.detach() - 0.1 * g for p, g in zip(network.parameters(), gradients)]
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda engine: engine.terminate())
    trainer.run()
    for parameter, value in zip(network.parameters(), expected):
        torch.testing.assert_close(parameter.detach(), value)


def test_the_student_sees_labeled_and_mixed_patches_in_one_pass(make_trainer):
    trainer = make_trainer(max_epochs=1)
    trainer.run()
    assert [tuple(x.shape) for x in trainer.network.inputs] == [(3, 1, 8, 8, 8)] * 3
    for seen, labeled, unlabeled in zip(trainer.network.inputs, trainer.data_loader, trainer.unlabeled_data_loader):
        assert torch.equal(seen[:2], labeled["image"])
        assert torch.equal(seen[2:], unlabeled["strong"])


def test_the_ema_teacher_sees_the_weak_view(make_trainer):
    trainer, seen = make_trainer(max_epochs=1), []
    trainer.ema_teacher.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    trainer.run()
    assert same(seen, [batch["image"] for batch in trainer.unlabeled_data_loader])


def test_without_a_strong_view_the_student_sees_the_weak_one(make_trainer):
    trainer = make_trainer(max_epochs=1)
    for batch in trainer.unlabeled_data_loader:
        del batch["strong"]
    trainer.run()
    assert torch.equal(trainer.network.inputs[0][2:], trainer.unlabeled_data_loader[0]["image"])


def test_neither_teacher_is_changed_by_the_steps(make_trainer, make_distiller):
    trainer = make_trainer(distiller=make_distiller())
    before = weights(trainer.ema_teacher), weights(trainer.distiller.teacher), weights(trainer.network)
    trainer.run()
    assert same(weights(trainer.ema_teacher), before[0])
    assert same(weights(trainer.distiller.teacher), before[1])
    assert not same(weights(trainer.network), before[2])
    assert not trainer.ema_teacher.training
    assert all(p.grad is None for p in trainer.ema_teacher.parameters())
    assert trainer.distiller.teacher.weight.grad is None


@pytest.mark.parametrize("trainer_class", [SupervisedTrainer, DinoMixTrainer])
def test_the_events_of_a_step_come_in_monais_order(make_trainer, trainer_class):
    seen = events_of_a_run(make_trainer(trainer_class, max_epochs=1, decollate=False))
    assert [event for event, _ in seen[:4]] == ORDER_OF_EVENTS
    assert len(seen) == 4 * 3
    assert seen[0][1] == ["image", "label", "pred"]
    assert "loss" in seen[1][1]


def test_at_its_event_the_backward_pass_has_been_and_the_step_has_not(make_trainer):
    trainer = make_trainer(max_epochs=1)
    start, seen = weights(trainer.network), []
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda engine: seen.append((same(weights(engine.network), start), engine.network.up.weight.grad.abs().sum())),
    )
    trainer.run()
    assert seen[0][0]
    assert seen[0][1] > 0


def test_the_output_is_decollated_and_postprocessed(make_trainer):
    trainer = make_trainer(
        max_epochs=1,
        postprocessing=AsDiscreted(keys="pred", argmax=True),
        key_train_metric={"dice": MeanDice(num_classes=3, output_transform=from_engine(["pred", "label"]))},
    )
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    assert [len(output) for output in outputs] == [2] * 3  # the labeled patches, not the mixed ones
    for item in outputs[0]:
        assert item["pred"].shape == item["label"].shape == (1, 8, 8, 8)
        assert set(item["pred"].unique().tolist()) <= {0, 1, 2}
        assert not torch.as_tensor(item["loss"]).requires_grad
    assert 0 <= trainer.state.metrics["dice"] <= 1


def test_without_decollation_the_output_is_the_batch(make_trainer):
    trainer = make_trainer(max_epochs=1, decollate=False)
    trainer.run()
    assert trainer.state.output["pred"].shape == (2, 3, 8, 8, 8)


def test_the_unlabeled_stream_starts_over_when_it_is_exhausted(make_trainer):
    trainer = make_trainer(max_epochs=1, steps=5)
    trainer.unlabeled_data_loader = trainer.unlabeled_data_loader[:2]
    trainer.run()
    first, second = (batch["strong"] for batch in trainer.unlabeled_data_loader)
    assert same([x[2:] for x in trainer.network.inputs], [first, second, first, second, first])


def test_the_unlabeled_stream_starts_over_in_each_epoch(make_trainer):
    """Otherwise a resumed run would be elsewhere in it than one that was never interrupted."""
    trainer = make_trainer(steps=2)
    trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: setattr(engine, "unsupervised_weight", float(engine.state.iteration > 1)),
    )
    trainer.run()
    first, second, _ = (batch["strong"] for batch in trainer.unlabeled_data_loader)
    assert same([x[2:] for x in trainer.network.inputs if len(x) > 2], [first, first, second])


def test_mix_is_given_both_kinds_of_patches_and_told_which_is_which(make_trainer):
    trainer = make_trainer(mix=Mix(), max_epochs=1)
    labeled, unlabeled = trainer.data_loader[0], trainer.unlabeled_data_loader[0]
    labeled["position"], unlabeled["position"] = torch.ones(2, 3), torch.zeros(1, 3)
    pseudo = trainer.ema_teacher(unlabeled["image"]).argmax(1, keepdim=True)
    trainer.run()
    given = trainer.mix.batches[0]
    assert given["labeled"] == [True, True, False]
    assert torch.equal(given["image"], torch.cat([labeled["image"], unlabeled["strong"]]))
    assert torch.equal(given["label"], torch.cat([labeled["label"], pseudo]))
    assert torch.equal(given["weight"][:2], torch.ones(2, 1, 8, 8, 8))
    assert given["position"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert "position" not in trainer.mix.batches[1]


def test_the_weight_of_a_voxel_below_the_threshold_is_0(make_trainer):
    trainer = make_trainer(mix=Mix(), max_epochs=1)
    trainer.pseudo_labeler.threshold = trainer.pseudo_labeler.floor = 1.0
    terms = losses(trainer, "unsupervised")
    assert terms == [[0]] * 3
    assert trainer.mix.batches[0]["weight"].flatten(1).sum(1).tolist() == [512, 512, 0]


def test_pic_pastes_organs_of_labeled_patches_into_what_the_student_learns(make_trainer):
    """The network passes its input on, and the image of a labeled patch is its label: it shows what was pasted."""

    class Identity(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.inputs = []

        def forward(self, x):
            if self.training:
                self.inputs.append(x.detach().clone())
            return self.scale * torch.cat([0.5 - x, x - 0.5, -9 + 0 * x], dim=1)  # class 1 where the image is 1

    label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.long)
    label[..., 2:4, 2:4, 2:4] = 1
    seen = []

    def note(logits, target, weight):
        seen.append((target, weight))
        return weighted_by_hand(logits, target, weight)

    network = Identity()
    trainer = make_trainer(
        network=network,
        max_epochs=1,
        train_data_loader=[{"image": label.float(), "label": label}] * 2,
        unlabeled_data_loader=[{"image": torch.zeros(1, 1, 8, 8, 8)}],
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        mix=PICCutMixd("image", [504, 8, 0], directions={"labeled_to_unlabeled": 1}, num_boxes=1, blind_share=0.0),
        unlabeled_loss_function=note,
    )
    trainer.mix.set_random_state(seed=0)
    trainer.run()
    for x, (target, weight) in zip(network.inputs, seen):
        assert torch.equal(x[:1], label.float())  # the clean labeled patch
        assert x[1:].sum() > 0
        assert torch.equal(x[1:], target.float())
        assert torch.equal(weight, torch.ones_like(weight))


def weighted_by_hand(logits, target, weight):
    return -(logits.log_softmax(1).gather(1, target) * weight).mean()


def test_distillation_alone_teaches_labeled_and_unlabeled_patches_as_they_are(make_trainer, make_distiller):
    trainer = make_trainer(unsupervised_weight=0, max_epochs=1, mix=Mix(), distiller=make_distiller())
    rows = losses(trainer, "loss", "supervised", "distillation")
    pairs = zip(trainer.data_loader, trainer.unlabeled_data_loader)
    expected = [torch.cat([labeled["image"], unlabeled["strong"]]) for labeled, unlabeled in pairs]
    assert same(trainer.distiller.teacher.volumes, expected)
    assert all(loss == pytest.approx(a + b, rel=1e-5) for loss, a, b in rows)
    assert not trainer.mix.batches


def test_distillation_does_without_unlabeled_patches_where_there_are_none(make_trainer, make_distiller):
    with pytest.warns(UserWarning, match="There are no unlabeled images"):
        trainer = make_trainer(unlabeled_data_loader=None, max_epochs=1, distiller=make_distiller())
    assert all(term >= 0 for (term,) in losses(trainer, "distillation"))
    assert same(trainer.distiller.teacher.volumes, [batch["image"] for batch in trainer.data_loader])


@pytest.mark.parametrize(("weight", "taught"), [(0.0, 3), (1.0, 2)], ids=["as they are", "mixed"])
def test_without_distill_mixed_only_patches_that_were_not_mixed_are_taught(
    make_trainer, make_distiller, weight, taught
):
    trainer = make_trainer(unsupervised_weight=weight, distill_mixed=False, max_epochs=1, distiller=make_distiller())
    assert all(term >= 0 for (term,) in losses(trainer, "distillation"))
    assert [len(volume) for volume in trainer.distiller.teacher.volumes] == [taught] * 3
    first = next(iter(trainer.data_loader))["image"]
    assert torch.equal(trainer.distiller.teacher.volumes[0][:2], first)


def test_without_labels_and_distill_mixed_nothing_is_left_to_teach(make_trainer, make_distiller):
    trainer = make_trainer(train_data_loader=None, distill_mixed=False, max_epochs=1, distiller=make_distiller())
    assert all(math.isnan(term) for (term,) in losses(trainer, "distillation"))


def test_the_frozen_teacher_sees_what_the_student_sees(make_trainer, make_distiller):
    trainer = make_trainer(max_epochs=1, distiller=make_distiller())
    trainer.network.inputs.clear()
    trainer.run()
    assert same(trainer.distiller.teacher.volumes, trainer.network.inputs)


def test_the_frozen_teacher_can_look_at_another_entry_of_the_batches(make_trainer, make_distiller):
    trainer = make_trainer(max_epochs=1, teacher_key="content", mix=Mix(), distiller=make_distiller())
    for number, batch in enumerate((*trainer.data_loader, *trainer.unlabeled_data_loader)):
        batch["content"] = torch.full_like(batch["image"], number)
    trainer.run()
    values = [volume.flatten(1).amax(1).tolist() for volume in trainer.distiller.teacher.volumes]
    assert values == [[0, 0, 3], [1, 1, 4], [2, 2, 5]]


def test_distillation_is_left_out_between_its_intervals(make_trainer, make_distiller):
    trainer = make_trainer(distiller=make_distiller(interval=3))
    terms = losses(trainer, "distillation")
    assert [math.isnan(term) for (term,) in terms] == [True, True, False] * 2
    assert len(trainer.distiller.teacher.volumes) == 2


def test_what_the_teacher_looks_at_is_mixed_in_every_step_because_donors_outlive_theirs(make_trainer, make_distiller):
    mix = Mix()
    trainer = make_trainer(max_epochs=1, teacher_key="content", mix=mix, distiller=make_distiller(interval=3))
    for batch in (*trainer.data_loader, *trainer.unlabeled_data_loader):
        batch["content"] = batch["image"]
    trainer.run()
    assert len(trainer.distiller.teacher.volumes) == 1
    assert ["content" in batch for batch in mix.batches] == [True] * 3


def test_the_share_of_voxels_whose_pseudo_label_counts_is_told(make_trainer):
    trainer = make_trainer(max_epochs=1, mix=Mix())
    trainer.pseudo_labeler.threshold = trainer.pseudo_labeler.floor = 0.4
    found = losses(trainer, "confident_share")
    assert [share for (share,) in found] == [float(batch["weight"][2:].mean()) for batch in trainer.mix.batches]
    assert 0 < found[0][0] < 1
    assert math.isnan(losses(make_trainer(unsupervised_weight=0), "confident_share")[0][0])


def test_all_that_has_a_state_is_saved(make_trainer, make_distiller):
    trainer = make_trainer(mix=PICCutMixd("image", [9, 9, 9]), distiller=make_distiller())
    stateful = {name for name, part in vars(trainer).items() if hasattr(part, "state_dict")}
    # The student is the network and the heads; the losses have nothing that changes.
    assert stateful - {"student"} == set(trainer.to_save)


def test_the_ema_teacher_of_another_network_labels_the_patches(make_trainer):
    """Its labels, not the student's, are learned: a teacher that says class 2 everywhere is heard."""
    trainer = make_trainer(max_epochs=1, unlabeled_loss_function=lambda logits, label, weight: label.float().mean())
    with torch.no_grad():
        trainer.ema_teacher.module.up.bias.copy_(torch.tensor([0.0, 0.0, 99.0]))
    assert losses(trainer, "unsupervised") == [[2.0]] * 3
    assert isinstance(trainer.ema_teacher, EMATeacher)


@pytest.mark.parametrize("loader", [None, []], ids=["missing", "empty"])
def test_without_labels_a_step_has_the_gradient_of_the_pseudo_labeled_loss_alone(make_trainer, loader):
    trainer = make_trainer(train_data_loader=loader, unsupervised_weight=0.3, decollate=False)
    network, unlabeled = trainer.network, trainer.unlabeled_data_loader[0]
    pseudo = trainer.ema_teacher(unlabeled["image"]).argmax(1)
    loss = 0.3 * nn.functional.cross_entropy(network(unlabeled["strong"]), pseudo)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    expected = [p.detach() - 0.1 * g for p, g in zip(network.parameters(), gradients)]
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda engine: engine.terminate())
    trainer.run()
    for parameter, value in zip(network.parameters(), expected):
        torch.testing.assert_close(parameter.detach(), value)


def test_without_labels_an_epoch_goes_over_the_unlabeled_images(make_trainer):
    trainer = make_trainer(train_data_loader=None, max_epochs=1, mix=Mix())
    found = losses(trainer, "loss", "supervised", "unsupervised")
    assert [math.isnan(supervised) for _, supervised, _ in found] == [True] * 3
    assert [loss for loss, *_ in found] == [term for *_, term in found]
    assert same(trainer.network.inputs, [batch["strong"] for batch in trainer.unlabeled_data_loader])
    assert [batch["labeled"] for batch in trainer.mix.batches] == [[False]] * 3


def test_without_labels_a_step_with_nothing_to_learn_from_changes_nothing(make_trainer, make_distiller):
    teacher = MeanTeacher()
    teacher.embed_dim, call = 2, teacher.forward
    # Normalized, a single channel would have no gradient.
    teacher.forward = lambda *args: torch.cat([call(*args), 1 - call(*args)], dim=1)
    parts = {"distiller": make_distiller(teacher, interval=2), "distillation_weight": 1.0}
    trainer = make_trainer(train_data_loader=None, max_epochs=1, unsupervised_weight=0, **parts)
    steps, changed, found, before = [], [], [], [weights(trainer.network)]

    def note(engine):
        changed.append(not same(weights(engine.network), before[0]))
        before[0] = weights(engine.network)
        output = engine.state.output if isinstance(engine.state.output, dict) else engine.state.output[0]
        found.append([float(output.get(name, math.nan)) for name in ("loss", "distillation")])

    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda engine: steps.append(engine.state.iteration))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    assert steps == [2]
    assert changed == [False, True, False]
    assert all(math.isnan(term) for terms in found[::2] for term in terms)
    assert found[1][0] == found[1][1] > 0


def test_without_images_of_either_kind_there_is_an_error(make_trainer):
    with pytest.raises(ValueError, match="train_data_loader or unlabeled_data_loader must yield batches, got none"):
        make_trainer(train_data_loader=None, unlabeled_data_loader=None)


@pytest.mark.parametrize("trainer", [DinoMixTrainer, CrossTrainer])
def test_an_argument_without_its_name_is_refused(trainer):
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 "):
        trainer(torch.device("cpu"))


@pytest.mark.parametrize("unsupervised_weight", [0.0, 1.0])
def test_without_decollation_the_output_carries_no_graph(make_trainer, unsupervised_weight):
    trainer = make_trainer(max_epochs=1, decollate=False, unsupervised_weight=unsupervised_weight)
    trainer.run()
    output = trainer.state.output
    assert ("unsupervised" in output) == bool(unsupervised_weight)
    assert output["loss"].item() > 0
    assert not any(value.requires_grad for value in output.values() if isinstance(value, torch.Tensor))
