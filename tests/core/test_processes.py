from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from monai.engines.utils import IterationEvents
from torch import distributed, multiprocessing, nn

from dinomix_monai.baselines import (
    ClassWeightedDiceCELoss,
    CrossTrainer,
    DifficultyWeighting,
    DistributionWeighting,
    StudentPair,
)
from dinomix_monai.core.processes import (
    data_parallel,
    gather_over_processes,
    process_count,
    rank_seed,
    sum_over_processes,
)
from dinomix_monai.engines import DinoMixTrainer, FeatureDistiller, PseudoLabeler
from dinomix_monai.handlers import ClipGradientHandler, EMAUpdateHandler
from dinomix_monai.losses import FeatureDistillationLoss, VoxelWeightedDiceCELoss
from dinomix_monai.networks import EMATeacher
from dinomix_monai.transforms import PICCutMix

CLASSES, STEPS = 3, 4
COUNTS = [5000.0, 800.0, 60.0]
TERMS = ("loss", "supervised", "unsupervised", "distillation")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1, bias=False), nn.InstanceNorm3d(4, affine=True), nn.Tanh()
        )
        self.head = nn.Conv3d(4, CLASSES, 1)

    def forward(self, x):
        return self.head(self.features(x))


class Intensities:
    """A frozen teacher; the first column of cells is beyond what it has seen."""

    embed_dim, fingerprint = 2, "intensities"

    def __call__(self, volume, grid, cells=None):
        tokens = torch.cat([volume, 1 - volume], 1)
        # More of them in some patches than in others, so that means over processes would not do.
        tokens[volume.mean(dim=(1, 2, 3, 4)) > 0.5, :, :5] = 0
        return tokens


def batches(seed, size, rank, world_size, with_label):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        image = torch.rand(size, 1, 8, 8, 8, generator=generator)
        label = torch.randint(0, CLASSES, image.shape, generator=generator) * (image > 0.3)
        batch = {"image": image, "label": label} if with_label else {"image": image}
        share = size // world_size
        yield {key: value[rank * share : (rank + 1) * share] for key, value in batch.items()}


def settings_of(network, rank, world_size):
    """What all trainers of these tests have in common."""
    loss = VoxelWeightedDiceCELoss(class_weight=[1.0, 2.0, 5.0])
    return {
        "device": torch.device("cpu"),
        "max_epochs": 1,
        "train_data_loader": list(batches(1, 4, rank, world_size, with_label=True)),
        "unlabeled_data_loader": list(batches(2, 4, rank, world_size, with_label=False)),
        "network": network,
        "parallel": partial(data_parallel, device="cpu") if world_size > 1 else None,
        "loss_function": loss,
        "unlabeled_loss_function": loss,
        "ema_teacher": EMATeacher(network),
        "train_handlers": [ClipGradientHandler(0.5, on_bad_loss="stop"), EMAUpdateHandler()],
    }


def run(trainer):
    """The terms of the loss at each step, and all that training has changed."""
    losses = []

    @trainer.on(IterationEvents.LOSS_COMPLETED)
    def note():
        output = trainer.state.output
        losses.append({term: output[term].item() for term in TERMS if term in output})

    trainer.run()
    saved = {name: part for name, part in trainer.to_save.items() if name != "optimizer"}
    parts = {f"{name}.{key}": value for name, part in saved.items() for key, value in part.state_dict().items()}
    return losses, parts


def trainer_of(rank, world_size, **changes):
    torch.manual_seed(0)
    network = Network()
    distiller = FeatureDistiller(network, ["features"], Intensities(), patch_size=(8, 8, 8))
    if rank:
        # What is trained outside of the network must not depend on what each process drew for it.
        nn.init.normal_(distiller.heads[0].layers.weight)
    own = {
        "optimizer": torch.optim.AdamW([*network.parameters(), *distiller.parameters()], lr=0.02),
        "pseudo_labeler": PseudoLabeler(CLASSES, 0.35, 0.3, decay=0.9, alignment=1.0, labeled_voxels=COUNTS),
        "distiller": distiller,
    }
    return DinoMixTrainer(**{**settings_of(network, rank, world_size), **own, **changes})


def pair_trainer_of(rank, world_size):
    torch.manual_seed(0)
    network = StudentPair(Network())
    own = {
        "optimizer": torch.optim.AdamW(network.parameters(), lr=0.02),
        "loss_function": ClassWeightedDiceCELoss(),
        "unlabeled_loss_function": ClassWeightedDiceCELoss(),
        "weightings": nn.ModuleList([DifficultyWeighting(CLASSES, 0.9), DistributionWeighting(COUNTS, 0.9)]),
    }
    return CrossTrainer(**{**settings_of(network, rank, world_size), **own})


def bad_step(rank, world_size):
    """The step at which a run stops whose third batch has a patch that is not finite, in the share of the last."""
    trainer = trainer_of(rank, world_size)
    if rank == world_size - 1:
        trainer.data_loader[2]["image"][-1] = math.nan
    with pytest.raises(FloatingPointError):
        trainer.run()
    return trainer.state.iteration


def pic_counts(rank, world_size):
    """Moving averages of PIC after two batches of pseudo-labels."""
    mix = PICCutMix(COUNTS, count_decay=0.9)
    for batch in batches(3, 4, rank, world_size, with_label=True):
        label = batch["label"]
        patches = list(zip(label, torch.ones_like(label), torch.zeros(len(label), 3), batch["image"]))
        mix.add_donors(patches, [False] * len(label))
    return torch.from_numpy(mix.class_curriculum.unlabeled_counts)


def gradients(rank, world_size):
    """Gradients of both losses with respect to inputs whose shares are unlike."""
    generator = torch.Generator().manual_seed(5)
    share = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    logits, features, tokens = (torch.randn(4, c, 4, 4, 4, generator=generator) for c in (CLASSES, 2, 2))
    target = torch.randint(0, CLASSES, (4, 1, 4, 4, 4), generator=generator)
    weight = (torch.rand(4, 1, 4, 4, 4, generator=generator) > 0.4).float()
    # Class 2 counts in the second half alone.
    weight[:2] *= target[:2] != 2
    logits, features, tokens, target, weight = (part[share] for part in (logits, features, tokens, target, weight))
    logits.requires_grad_()
    features.requires_grad_()
    value = VoxelWeightedDiceCELoss([1.0, 3.0, 2.0])(logits, target, weight)
    value = value + FeatureDistillationLoss("uniqueness")(features, tokens)
    value.backward()
    # DistributedDataParallel divides by the number of processes.
    return value.detach(), logits.grad / world_size, features.grad / world_size


def everything(rank, world_size):
    # Where there are no labels, the first of these steps have nothing that the network's head learns from.
    unlabeled = {"train_data_loader": None, "unsupervised_weight": 0.0}
    return {
        "runs": {
            "DINO-Mix": run(trainer_of(rank, world_size)),
            "without labels": run(trainer_of(rank, world_size, **unlabeled)),
            "CPS": run(pair_trainer_of(rank, world_size)),
        },
        "bad step": bad_step(rank, world_size),
        "counts": pic_counts(rank, world_size),
        "grads": gradients(rank, world_size),
    }


def work(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    assert process_count() == world_size
    gathered = gather_over_processes(torch.tensor([rank, 10 + rank]))
    assert gathered.tolist() == [0, 10, 1, 11]
    torch.save(everything(rank, world_size), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone():
    return everything(0, 1)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("processes")
    # Both are forked from one process that has imported this module, which takes longer than all that they do.
    multiprocessing.set_forkserver_preload([__name__])
    multiprocessing.start_processes(work, (2, str(folder)), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


RUNS = {
    "DINO-Mix": {
        "pseudo_labeler.class_confidence",
        "pseudo_labeler.predicted_shares",
        "distiller.heads.0.layers.weight",
    },
    "without labels": {"network.features.0.weight", "distiller.heads.0.layers.weight"},
    "CPS": {"weightings.0.unreached", "weightings.1.weights", "ema_teacher.module.second.head.bias"},
}


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(name, alone, together):
    losses, _ = alone["runs"][name]
    assert len(losses) == STEPS
    assert all(value > 0 for step in losses for value in step.values())
    for found in together:
        for step, expected in zip(found["runs"][name][0], losses, strict=True):
            assert step == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", RUNS)
def test_all_that_is_trained_and_counted_is_that_of_one_process(name, alone, together):
    _, parts = alone["runs"][name]
    assert set(parts) > RUNS[name]
    for found in together:
        _, others = found["runs"][name]
        assert set(others) == set(parts)
        for part, expected in parts.items():
            torch.testing.assert_close(others[part], expected, atol=2e-5, rtol=1e-4, msg=part)


def test_processes_leave_out_the_same_steps(alone, together):
    assert [found["bad step"] for found in (alone, *together)] == [3, 3, 3]


def test_counts_of_pic_are_exactly_those_of_one_process(alone, together):
    assert alone["counts"].min() > 0
    for found in together:
        assert torch.equal(found["counts"], alone["counts"])


def test_averaged_gradients_of_both_losses_are_those_of_one_process(alone, together):
    value, *expected = alone["grads"]
    for found in together:
        torch.testing.assert_close(found["grads"][0], value)
    for part, gradient in enumerate(expected):
        shares = [found["grads"][1 + part] for found in together]
        torch.testing.assert_close(torch.cat(shares), gradient)


def test_one_process_sums_and_gathers_nothing():
    value = torch.tensor([2.0])
    assert sum_over_processes(value) is value
    assert gather_over_processes(value) is value
    assert process_count() == 1


def test_rank_0_keeps_its_seed_and_others_have_their_own():
    seeds = [rank_seed(2**32 - 1, rank) for rank in range(4)]
    assert seeds[0] == 2**32 - 1
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
