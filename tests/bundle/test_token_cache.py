from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from dinomix_monai.__main__ import cache_tokens
from dinomix_monai.teacher import TokenCache
from dinomix_monai.teacher.token_files import TokenFiles
from dinomix_monai.transforms import LoadVolumed
from tests.bundle.conftest import TOY_RUN, WITHOUT_REPORT
from tests.toys import TOY

CONFIG = str(Path(__file__).parents[2] / "bundle" / "configs" / "train.json")
TEACHER = TOY_RUN["teacher#model_name"]


def files_of(folder: Path) -> dict[str, int]:
    return {file.relative_to(folder).as_posix(): file.stat().st_mtime_ns for file in folder.rglob("*.npy")}


def test_the_command_computes_what_training_then_finds(
    run, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "tokens"
    cache_tokens(
        *(str(phantom), TEACHER, "none"), config_file=CONFIG, **{"token_cache#folder": str(folder)}, device="cpu", **TOY
    )
    assert "4 volumes, up to 10 x 10 x 7 tokens each" in capsys.readouterr().out
    computed = files_of(folder)
    assert len(computed) == 8  # in full and reduced
    run("train", **{"token_cache#folder": str(folder)}, epochs=1, **WITHOUT_REPORT)
    assert files_of(folder) == computed


def test_training_is_the_same_with_a_token_cache_made_before_it(run, phantom: Path, tmp_path: Path) -> None:
    histories = []
    for name in ("ahead", "on demand"):
        folder = tmp_path / name
        if name == "ahead":
            settings = {**TOY, "token_cache#folder": str(folder), "device": "cpu", "amp": False}
            cache_tokens(str(phantom), TEACHER, "none", config_file=CONFIG, **settings)
        run("train", **{"token_cache#folder": str(folder)}, output_dir=str(folder / "run"), **WITHOUT_REPORT)
        histories.append((folder / "run" / "history.csv").read_text())
    assert histories[0] == histories[1]
    assert "distillation" in histories[0]


def test_a_configuration_without_a_token_cache_is_refused(phantom: Path, tmp_path: Path) -> None:
    online = str(Path(CONFIG).with_name("online_teacher.json"))
    with pytest.raises(ValueError, match=r"the token cache as distiller#teacher, got a weight of 0.05 in "):
        cache_tokens(
            str(phantom), weights="none", config_file=[CONFIG, online], **{"token_cache#folder": str(tmp_path)}
        )


def test_without_distillation_no_tokens_are_computed(run, tmp_path: Path) -> None:
    settings = {"token_cache#folder": str(tmp_path / "tokens"), "distillation_weight": 0.0}
    run("train", epochs=1, **settings, **WITHOUT_REPORT)
    assert not (tmp_path / "tokens").exists()


def test_volumes_are_read_once_and_then_kept(workflow, edited_phantom) -> None:
    folder = edited_phantom()
    built = workflow("train", dataset_dir=str(folder))
    built.initialize()
    datasets = [built.parser.get_parsed_content(name) for name in ("train#dataset", "train#unlabeled_dataset")]
    for case in (folder / "images").iterdir():
        case.unlink()
    labeled, unlabeled = (dataset[0] for dataset in datasets)
    assert labeled[0]["source"].shape == unlabeled["source"].shape == (4, 32, 32, 16)


def test_a_second_start_reads_what_the_first_has_preprocessed(workflow, tmp_path: Path, monkeypatch) -> None:
    settings = {"distillation_weight": 0.0, "volume_dir": str(tmp_path / "volumes"), "train#preprocessing_threads": 2}
    first = workflow("train", **settings).parser.get_parsed_content("train#dataset")
    monkeypatch.setattr(LoadVolumed, "__call__", None)
    second = workflow("train", **settings).parser.get_parsed_content("train#dataset")
    assert len(first._cache) == len(second._cache) == 2
    for one, other in zip(first._cache, second._cache):
        assert all(torch.equal(one[key], other[key]) for key in ("image", "label"))
    # Where it would not pay.
    assert workflow("train").parser.get_parsed_content("volume_dir") is None


def test_training_is_the_same_whatever_the_order_in_which_threads_preprocess(run, tmp_path: Path, monkeypatch) -> None:
    """The default: as many threads as PyTorch has, here four, the first volumes of which take longest."""
    histories, numbered = [], []
    add, numbers = TokenCache.add, TokenFiles.numbers

    def add_late(self: TokenCache, volume: MetaTensor) -> str:
        time.sleep(0.4 if volume.meta["filename_or_obj"].endswith(("001.nii", "003.nii")) else 0.0)
        name = add(self, volume)
        arrived.append(volume.meta["filename_or_obj"][-7:-4])
        return name

    def note(self: TokenFiles, names: Sequence[str]) -> dict[str, int]:
        numbered.append(numbers(self, names))
        return numbered[-1]

    monkeypatch.setattr(TokenFiles, "numbers", note)
    for threads in (1, 4):
        arrived: list[str] = []
        with monkeypatch.context() as patched:
            patched.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            if threads > 1:
                patched.setattr(TokenCache, "add", add_late)
            folder = tmp_path / str(threads)
            built = run(
                "train", **{"token_cache#folder": str(folder)}, output_dir=str(folder / "run"), **WITHOUT_REPORT
            )
        assert built.parser.get_parsed_content("train#preprocessing_threads") == threads
        histories.append((folder / "run" / "history.csv").read_text())
    assert arrived[:4] == ["002", "001", "004", "003"]
    assert histories[0] == histories[1]
    assert numbered[0] == numbered[-1]
    assert sorted(numbered[0].values()) == [1, 2, 3, 4]


def test_no_patch_writes_to_the_volume_that_it_is_cut_from(workflow) -> None:
    # As large as the volumes: what is cut is all of it.
    built = workflow("train", patch_size=[40, 40, 28], flip_prob=[0.5, 0.5, 0.5])
    for name in ("train#dataset", "train#unlabeled_dataset"):
        dataset = built.parser.get_parsed_content(name)
        kept = [{key: item[key].clone() for key in ("image", "label") if key in item} for item in dataset._cache]
        operations = [len(item["image"].applied_operations) for item in dataset._cache]
        for number in range(4 * len(dataset)):
            dataset[number % len(dataset)]
        for item, before, count in zip(dataset._cache, kept, operations):
            assert all(torch.equal(item[key], before[key]) for key in before)
            assert len(item["image"].applied_operations) == count


def test_the_student_is_taught_the_tokens_of_what_its_patches_are_mixed_of(workflow, monkeypatch) -> None:
    asked = []
    look_up = TokenCache.__call__

    def spy(self: TokenCache, source: object, *args: object) -> object:
        asked.append(source)
        return look_up(self, source, *args)

    monkeypatch.setattr(TokenCache, "__call__", spy)
    built = workflow("train", warm_up=0.0, **{"distiller#interval": 1})
    built.initialize()
    built.parser.get_parsed_content("train#trainer").run()
    # The teacher view at start and end; two labeled patches and a mixed one in each step.
    assert [len(source) for source in asked] == [1, *[3] * 6, 1]
    steps = asked[1:-1]
    assert any(source[2, 0].unique().numel() > 1 for source in steps)  # with boxes from another volume
    assert all(source[i, 0].unique().numel() == 1 for source in steps for i in (0, 1))
