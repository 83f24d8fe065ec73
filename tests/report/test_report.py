from __future__ import annotations

import base64
import csv
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Orientation
from torch import nn

from dinomix_monai.metrics import CaseScores, SoundRule
from dinomix_monai.report import ReportHandler, charts, read_run
from dinomix_monai.report import report as report_module
from dinomix_monai.report.case_views import draw_case

NAMES = ["background", "spleen", "left kidney", "gland"]
SPACING = (1.0, 2.0, 3.0)


class Shown(nn.Module):
    """Its prediction is the image: a case says itself what is predicted for it."""

    def forward(self, x):
        return x


def make_case(name, label, prediction=None):
    meta = {"filename_or_obj": f"/data/{name}.nii.gz"}
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    image = MetaTensor((label if prediction is None else prediction)[None].float(), affine=affine, meta=dict(meta))
    return {"image": image, "label": MetaTensor(label[None].float(), affine=affine, meta=dict(meta))}


def cubes(classes=(1, 2, 3), shift=0):
    """A cube of 2^3 voxels for each class, along the diagonal of a volume of 12^3."""
    label = torch.zeros(12, 12, 12, dtype=torch.long)
    for c in classes:
        start = 3 * c - 2
        label[start + shift : start + shift + 2, start : start + 2, start : start + 2] = c
    return label


def report(tmp_path, cases, prepare_batch=None, **kwargs):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases), batch_size=1) if cases else cases,
        epoch_length=max(len(cases), 1),
        network=Shown(),
        val_handlers=[ReportHandler(NAMES, tmp_path, **kwargs)],
        **({} if prepare_batch is None else {"prepare_batch": prepare_batch}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator.run()
    return tmp_path / "report"


# For tests that look at no picture.
renders_nothing = pytest.mark.usefixtures("pictures_are_empty")


@pytest.fixture
def drawn(monkeypatch):
    """Views and caption of each case that is drawn, in order."""
    found = []

    def note(path, views, class_names, caption):
        found.append((views, caption))
        return draw_case(path, views, class_names, caption)

    monkeypatch.setattr(report_module, "draw_case", note)
    return found


def pictures(folder):
    found = {path.name: imread(path) for path in folder.glob("*.png")}
    for pixels in found.values():
        assert pixels.std() > 0.02  # something is drawn
    return set(found)


def three_cases():
    """Of Dice 1, 0.5 for each class (half of each cube is hit), and 0."""
    return [
        make_case("good", cubes()),
        make_case("fair", cubes(), cubes(shift=1)),
        make_case("bad", cubes(), cubes(())),
    ]


@renders_nothing
def test_the_table_has_the_means_of_each_class_by_hand(tmp_path, capsys):
    report(tmp_path, three_cases(), title="Validation")
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Validation")
    assert lines[start + 1].startswith("sound rule: ")
    assert lines[start + 2].split()[:2] == ["class", "Dice"]
    for line, name in zip(lines[start + 3 :], NAMES[1:]):
        assert line.startswith(name)
        assert line[len("left kidney") :].split()[0] == "0.500"
        assert line.endswith("1 of 3")
    assert lines[start + 6].split()[:2] == ["mean", "0.500"]


@renders_nothing
def test_the_csv_file_has_a_row_for_each_case_and_class(tmp_path):
    report(tmp_path, three_cases())
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows] == [
        (f"{case}.nii.gz", name) for case in ("good", "fair", "bad") for name in NAMES[1:]
    ]
    assert [float(row["dice"]) for row in rows] == [1, 1, 1, 0.5, 0.5, 0.5, 0, 0, 0]
    assert {row["hd95_mm"] for row in rows[3:6]} == {"1"}  # moved by a voxel along the axis of 1 mm
    assert {row["outcome"] for row in rows[6:]} == {"missed"}


@renders_nothing
def test_distances_are_in_mm_along_each_axis(tmp_path):
    moved = cubes((1,)).roll(1, dims=2)
    report(tmp_path, [make_case("a", cubes((1,)), moved)])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["hd95_mm"]) == SPACING[2]


@renders_nothing
def test_each_rule_has_its_table_its_rows_and_its_name(tmp_path, capsys):
    folder = report(tmp_path, three_cases()[::2], rules=["published", "sound"])
    lines = capsys.readouterr().out.splitlines()
    tables = [i for i, line in enumerate(lines) if " rule: " in line]
    assert [lines[i].split()[0] for i in tables] == ["published", "sound"]
    assert [lines[i + 5].split()[:2] for i in tables] == [["mean", "50.00"], ["mean", "0.500"]]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rule"] for row in rows] == ["published"] * 6 + ["sound"] * 6
    assert {row["asd_voxels"] for row in rows[3:6]} == {"128"}
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "published rule: " in page
    assert "sound rule: " in page


def test_pictures_go_by_the_first_rule(tmp_path, drawn):
    folder = report(tmp_path, three_cases()[::2], rules=["published", "sound"])
    assert drawn[0][1] == "Worst case, bad.nii.gz: mean Dice % 0.00"
    # Half of the width of the axes is filled: the bars of Dice 50 reach as far as those of 0.5 do.
    bars = [imread(folder / "dice.png")]
    report(tmp_path, three_cases()[::2])
    bars.append(imread(folder / "dice.png"))
    blue = [np.argwhere(pixels[..., 2] > pixels[..., 0] + 0.3) for pixels in bars]
    assert np.ptp(blue[0][:, 1]) == pytest.approx(np.ptp(blue[1][:, 1]), abs=3)


def test_the_report_has_its_pictures_and_a_page_with_all_of_them(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,loss,val_mean_dice\n1,0.9,\n2,0.7,0.31\n")
    folder = report(tmp_path, three_cases(), title="A < B", notes=["Teacher: none & all."])
    assert pictures(folder) == {"dice.png", "losses.png", "worst_case.png", "median_case.png"}

    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    assert sorted(page.images) == sorted((folder / name).read_bytes() for name in pictures(folder))
    assert "A < B" in page.text
    assert "Teacher: none & all." in page.text
    assert "left kidney" in page.text


class Page(HTMLParser):
    """Text, embedded pictures and whatever the page would have to load."""

    def __init__(self, content):
        super().__init__()
        self.images, self.text, self.loaded = [], "", []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href"):
                kind, _, data = value.partition(";base64,")
                target = self.images if kind == "data:image/png" else self.loaded
                target.append(base64.b64decode(data))

    def handle_data(self, data):
        self.text += data


def page_of(folder):
    return Page((folder / "index.html").read_text(encoding="utf-8"))


@renders_nothing
def test_the_page_needs_no_other_file(tmp_path):
    folder = report(tmp_path, three_cases())
    assert page_of(folder).loaded == []
    assert not re.search(r"url\(|@import|<script", (folder / "index.html").read_text(encoding="utf-8"))


@renders_nothing
def test_the_page_says_what_product_data_set_and_day_it_is_of_and_what_to_look_for(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "teacher.png").write_bytes(b"")
    folder = report(tmp_path, three_cases(), dataset_dir="/data", title="Evaluation on test", is_synthetic=True)
    text = page_of(folder).text
    day = read_run(tmp_path / "run.json")["finished"][:10]
    assert f"DINO-Mix for MONAI: Evaluation on test, data, {day}" in text
    assert "The scans are synthetic" in text
    assert "Points far below their bar" in text
    assert "What the teacher sees" in text
    assert "synthetic" not in page_of(report(tmp_path / "own", three_cases())).text


@renders_nothing
def test_failures_are_called_failures_with_classes_and_cases(tmp_path):
    cases = [*three_cases(), make_case("odd", cubes((1, 2)), cubes((1, 3)))]
    text = page_of(report(tmp_path, cases)).text
    failures = text[text.index("Failures") : text.index("Scores")]
    assert "Spleen was missed in 1 of 4 cases: bad.nii.gz." in failures
    assert "Left kidney was missed in 2 of 4 cases: bad.nii.gz, odd.nii.gz." in failures
    assert "Gland was invented in 1 of 1 cases: odd.nii.gz." in failures
    text = page_of(report(tmp_path, three_cases()[:1])).text
    assert "No class was missed in any case." in text


@renders_nothing
def test_the_page_says_what_was_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["train.py", "--seed", "3"])
    facts = {"seed": 3, "protocol": {"name": "skcdf", "labeled": 20}, "nothing": None}
    text = page_of(report(tmp_path, three_cases(), facts=facts)).text
    run = text[text.index("What was run") :]
    assert "train.py --seed 3" in run
    assert f"torch {torch.__version__.split('+')[0]}" in run
    assert "protocol: name" in run
    assert "skcdf" in run
    assert "nothing" not in run
    written = read_run(tmp_path / "run.json")
    assert (written["seed"], written["protocol"]) == (3, facts["protocol"])
    assert read_run(tmp_path / "nowhere.json") is None


def test_baselines_are_marked_and_what_the_numbers_support_is_said(tmp_path, capsys):
    report(tmp_path / "ours", three_cases())
    without = imread(tmp_path / "ours" / "report" / "dice.png")
    folder = report(tmp_path / "again", three_cases(), baselines={"CutMix": str(tmp_path / "ours")})
    text = page_of(folder).text
    expected = "Mean Dice 0.500, not shown to differ from CutMix with 0.500: difference +0.000"
    assert expected in text
    assert expected in capsys.readouterr().out
    assert imread(folder / "dice.png").shape != without.shape  # there is a line more


@renders_nothing
def test_a_baseline_that_is_not_there_or_of_other_cases_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder must hold metrics\.csv"):
        report(tmp_path, three_cases(), baselines={"CutMix": str(tmp_path / "nowhere")})
    report(tmp_path / "other", three_cases()[:2])
    with pytest.raises(ValueError, match="runs must be scored on the same cases"):
        report(tmp_path, three_cases(), baselines={"CutMix": str(tmp_path / "other")})


def test_what_pic_pasted_is_drawn(tmp_path):
    lines = [
        f"{epoch},{origin},{name},0.{epoch},{epoch * number}"
        for epoch in (1, 2)
        for origin in ("labeled", "unlabeled")
        for number, name in enumerate(NAMES[1:])
    ]
    (tmp_path / "mix.csv").write_text("\n".join(["epoch,origin,class,probability,voxels", *lines]))
    assert "mix.png" in pictures(report(tmp_path, three_cases()))


def test_without_a_history_there_are_no_curves(tmp_path):
    assert "losses.png" not in pictures(report(tmp_path, three_cases()))


@pytest.mark.parametrize("text", ["epoch,loss,val_mean_dice\n", "epoch,loss,val_mean_dice\n1,0.5,\n"])
def test_a_history_that_has_hardly_begun_is_drawn(tmp_path, text):
    (tmp_path / "history.csv").write_text(text)
    assert (report(tmp_path, three_cases()) / "losses.png").stat().st_size > 1000


@renders_nothing
def test_worst_and_median_case_are_the_ones_with_that_dice(tmp_path, drawn):
    report(tmp_path, three_cases())
    assert [caption for _, caption in drawn] == [
        "Worst case, bad.nii.gz: mean Dice 0.000",
        "Median case, fair.nii.gz: mean Dice 0.500",
    ]


@renders_nothing
def test_the_picture_of_a_case_is_its_own_even_if_files_share_a_name(tmp_path, drawn):
    report(tmp_path, [make_case("image", cubes(), prediction) for prediction in (cubes(), cubes(()))])
    assert sum(view.prediction.sum() for view in drawn[0][0]) == 0
    assert sum(view.prediction.sum() for view in drawn[1][0]) > 0


@renders_nothing
def test_the_slices_shown_have_most_classes_and_the_second_axis_points_up(tmp_path, drawn):
    label = torch.zeros(4, 5, 6, dtype=torch.long)
    label[1, 3, 2], label[1, 0, 2] = 1, 2
    report(tmp_path, [make_case("a", label)])
    axial, coronal, sagittal = (view.label for view in drawn[0][0])
    assert [view.shape for view in (axial, coronal, sagittal)] == [(5, 4), (6, 4), (6, 5)]
    # The patient's right is on the left of the picture.
    assert np.argwhere(axial).tolist() == [[5 - 1 - 3, 4 - 1 - 1], [5 - 1 - 0, 4 - 1 - 1]]
    assert np.argwhere(sagittal).tolist() == [[6 - 1 - 2, 0], [6 - 1 - 2, 3]]
    assert all(np.array_equal(view.prediction, view.label) for view in drawn[0][0])


@renders_nothing
def test_the_picture_does_not_depend_on_how_the_volume_is_stored(tmp_path, drawn):
    label = torch.zeros(4, 5, 6, dtype=torch.long)
    label[1, 3, 2], label[1, 0, 2] = 1, 2
    stored = make_case("a", label)
    turn = Orientation(axcodes="SRP", labels=None)
    for case in (stored, {key: turn(value) for key, value in stored.items()}):
        report(tmp_path, [case])
    as_stored, turned = drawn[0][0], drawn[2][0]
    for a, b in zip(as_stored, turned):
        assert np.array_equal(a.label, b.label)
        assert np.array_equal(a.image, b.image)
        assert a.aspect == pytest.approx(b.aspect)


def test_one_case_is_enough(tmp_path):
    folder = report(tmp_path, three_cases()[1:2])
    assert pictures(folder) == {"dice.png", "worst_case.png", "median_case.png"}


@renders_nothing
def test_a_class_that_no_label_has_is_left_out(tmp_path, capsys):
    report(tmp_path, [make_case("a", cubes((1, 2))), make_case("b", cubes((1,)), cubes(()))])
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["gland"].split() == ["gland", "-", "-", "-", "-", "0", "of", "2"]
    assert lines["spleen"].split()[1] == "0.500"
    assert lines["mean"].split()[1] == "0.750"  # of spleen 0.5 and kidney 1


@renders_nothing
def test_a_case_without_any_class_is_neither_worst_nor_median(tmp_path, drawn):
    report(tmp_path, [make_case("empty", cubes(())), make_case("void", cubes(())), *three_cases()[:1]])
    assert [caption.split(",")[1] for _, caption in drawn] == [" good.nii.gz: mean Dice 1.000"] * 2


def test_an_evaluation_of_empty_cases_only_still_has_its_report(tmp_path):
    assert len(pictures(report(tmp_path, [make_case("empty", cubes(()))]))) == 3


@renders_nothing
def test_what_was_written_is_listed_and_what_was_not_is_left_out(tmp_path, capsys):
    (tmp_path / "model.pt").write_text("weights")
    written = {"best model": str(tmp_path / "model.pt"), "state for resume.json": str(tmp_path / "state.pt")}
    report(tmp_path, three_cases(), notes="Teacher: none.", written=written)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Written:")
    assert lines[start - 1] == "Teacher: none."
    assert lines[start + 1 :] == [
        f"  {tmp_path / 'model.pt'}  (best model)",
        f"  {tmp_path / 'metrics.csv'}  (scores per case and class)",
        f"  {tmp_path / 'report' / 'index.html'}  (report)",
    ]


@renders_nothing
def test_a_second_evaluation_begins_anew(tmp_path):
    handler = ReportHandler(NAMES, tmp_path)
    loader = DataLoader(Dataset(three_cases()), batch_size=2)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=loader, network=Shown(), val_handlers=[handler]
    )
    evaluator.run()
    evaluator.run()
    assert len(handler.scores[0].cases) == 3


def test_an_evaluation_without_a_case_is_refused(tmp_path):
    with pytest.raises(ValueError, match="The evaluation must have at least one case to report, got none"):
        report(tmp_path, [])


def test_rules_are_checked_at_once(tmp_path):
    with pytest.raises(ValueError, match="score rule must be one of sound, published, galoss, got 'fair'"):
        ReportHandler(NAMES, tmp_path, rules=["sound", "fair"])
    with pytest.raises(ValueError, match="rules must name at least one rule to score by, got none"):
        ReportHandler(NAMES, tmp_path, rules=[])


def test_an_image_without_a_spacing_is_refused(tmp_path):
    with pytest.raises(TypeError, match="image must be a MetaTensor, whose affine tells the spacing, got Tensor"):
        report(tmp_path, three_cases(), prepare_batch=lambda batch, *_, **__: (batch["image"].as_tensor(), None))


def test_marks_of_a_baseline_stand_in_the_rows_of_their_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "save_figure", lambda figure, _: figure)

    def scores(names, values):
        return CaseScores(names, SoundRule(), ["a"], [[]], [np.array([values, *[[0.0] * len(values)] * 3])])

    own = scores(NAMES, [0.1, 0.2, 0.3])
    baseline = scores(["background", "gland", "spleen", "liver"], [0.9, 0.7, 0.5])
    figure = charts.draw_class_scores(tmp_path / "dice.png", own, {"other": baseline})
    (marks,) = (line for line in figure.axes[0].lines if line.get_label() == "other")
    np.testing.assert_array_equal(marks.get_xdata(), [0.7, np.nan, 0.9])
