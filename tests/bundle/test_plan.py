from __future__ import annotations

from pathlib import Path

import pytest

from dinomix_monai import training_plan
from dinomix_monai.data import CaseCheck
from dinomix_monai.training_plan import TrainingPlan, plan_training


def test_the_plan_of_a_training_knows_what_the_training_would_do_and_writes_nothing(
    workflow, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    built = workflow(
        "train",
        epochs=40,
        steps_per_epoch=30,
        warm_up=0.25,
        val_interval=10,
        **{"token_cache#folder": str(tmp_path / "a")},
    )
    plan = plan_training(built.parser, repetitions=2)
    assert list(tmp_path.iterdir()) == []
    assert (plan.epochs, plan.steps_per_epoch, plan.warm_up, plan.validations, plan.cases) == (40, 30, 0.25, 5, 1)
    assert all(seconds > 0 for seconds in (*plan.step_s, plan.validation_s, *plan.seconds.values()))
    assert plan.memory > 1e8
    text = str(plan)
    assert "2 training, 2 unlabeled, 1 validation, 2 test cases" in text
    assert "32 x 32 x 16 voxels of 8 x 8 x 10 mm" in text
    assert "UNTRAINED" in text
    assert capsys.readouterr().err == ""


def test_the_disk_of_the_plan_is_what_the_training_takes(workflow, tmp_path: Path) -> None:
    settings = {"token_cache#folder": str(tmp_path / "tokens"), "volume_dir": str(tmp_path / "volumes")}
    plan = plan_training(workflow("train", volume_dir=str(tmp_path / "planned")).parser, repetitions=1)
    built = workflow("train", **settings)
    datasets = [built.parser.get_parsed_content(f"train#{name}") for name in ("dataset", "unlabeled_dataset")]
    built.parser.get_parsed_content("validate#dataset")
    built.parser.get_parsed_content("token_cache").complete()
    # Beside the tokens there are headers and the components' basis.
    files = [file for file in (tmp_path / "tokens").rglob("*") if file.stat().st_size > 20_000 and file.is_file()]
    expected = sum(file.stat().st_size for file in files)
    assert plan.disk["token cache"] == pytest.approx(expected, rel=0.1)
    kept = [sum(file.stat().st_size for file in (tmp_path / "volumes").glob("*.safetensors"))]
    assert plan.disk["preprocessed volumes"] == plan.volumes
    # Beside the voxels there is what is known of them.
    assert kept == [pytest.approx(plan.volumes, rel=0.03)]
    volumes = [item["image"] for dataset in datasets for item in dataset._cache]
    assert plan.voxels == sum(volume[0].numel() for volume in volumes)


def test_the_memory_of_the_plan_counts_what_grows_later(workflow, monkeypatch) -> None:
    monkeypatch.setattr(training_plan, "_peak_memory", lambda: 1e9)
    beside = []
    for size in (1, 50):
        parser = workflow("train", **{"mix#bank_size": size}).parser
        plan = plan_training(parser, repetitions=1)
        bank = parser.get_parsed_content("mix").mixer.bank
        assert 0 < bank.nbytes < bank.most_nbytes
        beside.append(plan.memory - (bank.most_nbytes - bank.nbytes))
    assert beside[0] == beside[1] > 1e9


@pytest.mark.parametrize("check_data", [True, False])
def test_the_preparation_of_the_plan_counts_the_check_of_one_case_of_each_list(
    workflow, monkeypatch, check_data: bool
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(CaseCheck, "__call__", lambda self, section, case: checked.append(section))
    parser = workflow("train", check_data=check_data).parser
    plan_training(parser, repetitions=1)
    assert checked == (["training", "unlabeled"] if check_data else [])


def test_volumes_that_are_mapped_take_disk_and_no_memory(workflow, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(training_plan, "_peak_memory", lambda: 1e9)

    def planned(*overlays: str, **settings: object) -> TrainingPlan:
        built = workflow("train", *overlays, **{"token_cache#folder": str(tmp_path / "tokens")}, **settings)
        return plan_training(built.parser, repetitions=1)

    held, mapped, kept = planned(), planned("memory_map"), planned(volume_dir=str(tmp_path / "volumes"))
    assert (held.are_mapped, mapped.are_mapped, kept.are_mapped) == (False, True, True)
    assert held.volumes == mapped.volumes == mapped.disk["preprocessed volumes"]
    assert "preprocessed volumes" not in held.disk
    # Three of five volumes are cached by the measurement; all are alike here.
    of_one = 4 * held.voxels / 4
    assert held.memory - mapped.memory == pytest.approx(2 * of_one + of_one / 4)
    assert kept.memory == mapped.memory
