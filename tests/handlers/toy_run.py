"""A whole training as the bundle builds it, with toys in it, and what its tests compare."""

from __future__ import annotations

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
    RampUpHandler,
    RunStateLoader,
    RunStateSaver,
)
from dinomix_monai.losses import VoxelWeightedDiceCELoss
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


def killed_halfway(content, file):
    """Stands for ``torch.save`` in a process that is killed while it writes."""
    file.write(b"half of it")
    raise KeyboardInterrupt
