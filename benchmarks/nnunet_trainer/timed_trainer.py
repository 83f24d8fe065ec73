"""nnU-Net's own trainer for a given number of short epochs; nnU-Net finds it by ``nnUNet_extTrainer``."""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

STEPS = 10
"""Steps of an epoch, in place of 250: a training of minutes has few of them."""


class TimedTrainer(nnUNetTrainer):
    """
    As nnU-Net trains, with epochs that a CPU can bear; ``timing.json`` tells how long they took.

    The environment gives ``BENCHMARK_EPOCHS`` and ``BENCHMARK_SEED``. Validation patches, which choose nothing here
    since the last model is taken, are one for each epoch, and validation cases are not segmented at the end.
    """

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["BENCHMARK_EPOCHS"])
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = STEPS, 1
        self.epoch_s: list[float] = []
        np.random.seed(int(os.environ["BENCHMARK_SEED"]))
        torch.manual_seed(int(os.environ["BENCHMARK_SEED"]))

    def on_epoch_start(self) -> None:
        """Begins to time an epoch."""
        self.start = time.perf_counter()
        super().on_epoch_start()

    def on_epoch_end(self) -> None:
        """Times the epoch with its validation patch and its checkpoint."""
        super().on_epoch_end()
        self.epoch_s.append(time.perf_counter() - self.start)

    def on_train_end(self) -> None:
        """Writes the times beside nnU-Net's own files."""
        super().on_train_end()
        (Path(self.output_folder) / "timing.json").write_text(json.dumps({"epoch_s": self.epoch_s, "steps": STEPS}))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Leaves it out."""
