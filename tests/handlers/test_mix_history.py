from __future__ import annotations

import csv

import numpy as np
from ignite.engine import Engine, Events

from dinomix_monai.handlers import CurriculumHandler, MixHistoryHandler
from dinomix_monai.transforms import PICCutMixd


def run(path, mix, epochs, start=0):
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", start))
    CurriculumHandler(4, mix).attach(engine)
    MixHistoryHandler(path, mix, ["background", "liver", "gland"]).attach(engine)
    engine.run([0], max_epochs=epochs)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_epoch_has_the_probability_of_each_class_and_origin(tmp_path):
    mix = PICCutMixd("image", [900, 99, 0], beta=1.0)
    mix.mixer.class_curriculum.unlabeled_counts = np.array([50.0, 30.0, 7.0])
    rows = run(tmp_path / "new" / "mix.csv", mix, epochs=4)
    assert [(row["epoch"], row["origin"], row["class"]) for row in rows[:4]] == [
        ("1", "labeled", "liver"),
        ("1", "labeled", "gland"),
        ("1", "unlabeled", "liver"),
        ("1", "unlabeled", "gland"),
    ]
    assert [row["voxels"] for row in rows[:4]] == ["99", "0", "30", "7"]
    # Tail-heavy at first: 1/100 to 1/1, then linearly to one half each; an epoch has one step here, and 4 are planned.
    tail = 1 / 1.01
    expected = [(1 - s) * tail + s / 2 for s in (0, 0.25, 0.5, 0.75)]
    found = [float(row["probability"]) for row in rows if (row["origin"], row["class"]) == ("labeled", "gland")]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_resumed_run_goes_on_with_its_rows(tmp_path):
    mix, path = PICCutMixd("image", [900, 99, 0]), tmp_path / "mix.csv"
    run(path, mix, epochs=3)
    rows = run(path, mix, epochs=4, start=2)
    assert [row["epoch"] for row in rows[::4]] == ["1", "2", "3", "4"]
