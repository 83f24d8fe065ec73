"""``python -m dinomix_monai COMMAND``: what is done around a training; training is ``python -m monai.bundle``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from typing import Any

from fire.decorators import SetParseFn

from dinomix_monai.bundle import Bundle, config_files, open_configuration, prepare_volumes, token_cache_of
from dinomix_monai.run import check_port, describe_versions, read_configuration, run_command_line

__all__ = [
    "allow",
    "autolabel",
    "bundle",
    "cache_tokens",
    "check",
    "compare",
    "configure",
    "export",
    "init",
    "label",
    "next",
    "phantom",
    "plan",
    "predict",
    "prepare",
    "probe",
    "promote",
    "split",
    "train",
]

# Each command imports what it runs: MONAI and PyTorch take many seconds, and a help text needs neither.


@SetParseFn(str, "startup_kit")
def allow(startup_kit: str) -> None:
    """
    Permits the classes of a federation without code at a server or a site, in local/resources.json of its startup kit.

    What the list holds already stays. The server or the site reads it when it starts.

    Args:
        startup_kit: folder of the kit of a server or a site, as nvflare provision makes it.
    """
    from dinomix_monai.federated import permit_classes

    path, new = permit_classes(startup_kit)
    print("\n".join([f"{path} permits the job:", *new]) if new else f"{path} permits the job already.")


@SetParseFn(str, "folder")
def bundle(folder: str = "bundle") -> None:
    """
    Makes a bundle in the present folder, from the configs that came with the package; a repository has one already.

    Args:
        folder: folder to make.
    """
    print(Bundle.find().copy(folder))


@SetParseFn(str, "dataset_dir")
def check(
    dataset_dir: str,
    datalist_file: str = "dataset.json",
    patch_size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    intensity_window: Sequence | None = None,
    json: bool = False,
    allow_outside: bool = False,
) -> None:
    """
    Reads a data set once and prints all that is wrong with it; the exit code is 1 where training must not begin.

    Args:
        dataset_dir: folder of the data set.
        datalist_file: name of its list.
        patch_size: patch that will be trained on, to warn of smaller volumes.
        spacing_mm: voxel size that it will be trained at.
        intensity_window: intensities that will be mapped to [0, 1], to warn of images that do not fit them; of several
            channels also a list, with null for one that has no window.
        json: print one JSON object instead of a table.
        allow_outside: accept a list that names files outside of its folder.
    """
    from dinomix_monai.data import check_dataset, findings_table

    findings = check_dataset(
        dataset_dir,
        file=datalist_file,
        patch_size=patch_size,
        spacing_mm=spacing_mm,
        intensity_window=intensity_window,
        allow_outside=allow_outside,
    )
    severities = [finding.severity for finding in findings]
    counts = {"errors": severities.count("error"), "warnings": severities.count("warning")}
    if json:
        print(dumps({**counts, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print(findings_table(findings) if findings else "No problem found.")
    sys.exit(1 if counts["errors"] else 0)


@SetParseFn(str, "dataset_dir", "labels", "images_dir", "labels_dir", "patient", "datalist_file")
def init(
    dataset_dir: str,
    labels: str | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    patient: str | None = None,
    images_dir: str | None = None,
    labels_dir: str | None = None,
    channel: int | None = None,
    datalist_file: str = "dataset.json",
    overwrite: bool = False,
) -> None:
    """
    Makes dataset.json for a folder of scans, and checks the data set; the exit code is 1 where training must not begin.

    Scans and label maps are found in two folders or one, in a folder for each case, and as nnU-Net, the Medical
    Segmentation Decathlon, TotalSegmentator and MONAI Label lay them out. Scans without a label map are unlabeled.

    Args:
        dataset_dir: folder of the scans.
        labels: names of the label values 1, 2, ..., separated by commas; of a mask for each class, the classes to take.
        validation: labeled patients that choose the best model; a fifth of them if not given.
        test: labeled patients that are kept to score it; a fifth of ten or more if not given.
        seed: of the split into lists.
        patient: regular expression whose first group finds the patient in the name of a scan.
        images_dir: folder of the images in dataset_dir, where its name does not tell.
        labels_dir: folder of the label maps in dataset_dir, where its name does not tell.
        channel: the only one to take of several channels, counted from 0; all if not given.
        datalist_file: name of the list to write.
        overwrite: replace a list that is there, which is kept as *.previous.json.
    """
    from dinomix_monai.data import make_datalist

    made = make_datalist(
        dataset_dir,
        class_names=None if labels is None else [name.strip() for name in labels.split(",")],
        validation=validation,
        test=test,
        seed=seed,
        patient=patient,
        images=images_dir,
        labels=labels_dir,
        channel=channel,
        file=datalist_file,
        overwrite=overwrite,
    )
    print(f"{made.description}\n{made.path} is written. The check says:", flush=True)
    check(dataset_dir, datalist_file)


# As typed: fire would take 1,2 for numbers, and those are folders too.
@SetParseFn(str, "run_a", "run_b")
def compare(run_a: str, run_b: str, rule: str = "sound", metric: str | None = None, json: bool = False) -> None:
    """
    Compares two runs on the same cases: means, spread over seeds, intervals, tests, and in words what they support.

    Args:
        run_a: folder with a metrics.csv, or several separated by commas, one for each seed.
        run_b: the same for the run to compare with.
        rule: rule of scoring to compare by.
        metric: column of metrics.csv to compare; the rule's Dice if not given.
        json: print one JSON object instead of the table.
    """
    from dinomix_monai.metrics import compare_runs, read_scores

    a, b = ({folder: read_scores(folder, rule) for folder in run.split(",")} for run in (run_a, run_b))
    comparison = compare_runs(a, b, metric)
    print(dumps(comparison.to_dict(), indent=1) if json else comparison.table())


@SetParseFn(str, "dataset_dir")
def phantom(dataset_dir: str, seed: int = 0) -> None:
    """
    Makes the procedural abdominal phantom, a data set on which everything runs without a download.

    Args:
        dataset_dir: folder to write to.
        seed: seed of the patients; 0 is what the bundle makes on first use.
    """
    from dinomix_monai.data import make_phantom

    print(make_phantom(dataset_dir, seed=seed))


@SetParseFn(str, "dataset_dir", "teacher", "weights")
def cache_tokens(
    dataset_dir: str,
    teacher: str | None = None,
    weights: str | None = None,
    config_file: str | Sequence[str] = "bundle/configs/train.json",
    **settings: Any,
) -> None:
    """
    Computes the frozen teacher's tokens of all training volumes, labeled and unlabeled, before training asks for them.

    What is there already is left as it is, so a killed run goes on where it stopped.

    Args:
        dataset_dir: folder of the data set.
        teacher: name of a ViT or ConvNeXt of timm, instead of the configuration's ``teacher#model_name``.
        weights: ``auto``, ``none`` or the path of a file, instead of its ``teacher_weights``.
        config_file: the bundle's training configuration and its overlays, as training is given them.
        **settings: ids of the configuration with other values, as training is given them, such as
            ``--token_cache#folder``.

    Raises:
        ValueError: When the configuration makes no use of a token cache.
    """
    parser = open_configuration(config_file, **settings)
    given = {"dataset_dir": dataset_dir, "teacher#model_name": teacher, "teacher_weights": weights}
    parser.update({name: value for name, value in given.items() if value is not None})
    token_cache = token_cache_of(parser)
    if token_cache is None:
        raise ValueError(
            "config_file must have a distillation_weight above 0 and the token cache as distiller#teacher, got a "
            f"weight of {parser.get_parsed_content('distillation_weight')} in {config_file}: training would make no "
            "token cache."
        )
    prepare_volumes(parser)
    print(token_cache.describe())


@SetParseFn(str, "dataset_dir", "out_file", "modality")
def configure(
    dataset_dir: str,
    out_file: str = "plan.json",
    hours: float | None = None,
    memory_gb: float | None = None,
    modality: str | None = None,
    overwrite: bool = False,
    config_file: str | Sequence[str] = "bundle/configs/train.json",
    **settings: Any,
) -> None:
    """
    Chooses settings for a data set, from what its scans are like, and writes them as an overlay with their reasons.

    Voxel size, patch, strides, intensities, flips and the cells of the teacher go by the labeled and the unlabeled
    training scans. The overlay belongs behind train.json. Nothing is trained, but with --hours a few steps are taken
    to time them.

    Args:
        dataset_dir: folder of the data set.
        out_file: overlay to write.
        hours: length of the training on this machine; 2000 steps on a CPU and 12000 on a GPU if not given.
        memory_gb: memory that a training may take; that of the GPU if not given, and on a CPU what is soon computed.
        modality: CT where one intensity means the same in all scans, MR or PET where not, or one for each channel with
            commas between; as the scans show it if not given.
        overwrite: replace a file that is there, which is kept as *.previous.json.
        config_file: the bundle's training configuration and its overlays, as training is given them.
        **settings: ids of the configuration with other values, as training is given them; they win over the plan.
    """
    from dinomix_monai.configuring import configure_training

    parser = open_configuration(config_file, dataset_dir=dataset_dir, **settings)
    print(
        configure_training(
            parser,
            out_file,
            hours=hours,
            memory_gb=memory_gb,
            modality=modality,
            overwrite=overwrite,
            given=settings,
            config_file=config_file,
        )
    )


@SetParseFn(str, "dataset_dir", "output_dir", "modality")
def train(
    dataset_dir: str,
    output_dir: str = "OUT",
    hours: float | None = None,
    memory_gb: float | None = None,
    modality: str | None = None,
    config_file: str | Sequence[str] = "bundle/configs/train.json",
    **settings: Any,
) -> None:
    """
    Chooses settings for a data set as configure does, and trains with them; what comes out is a bundle of the model.

    It stands for the commands configure and ``python -m monai.bundle run training``, which are printed.

    Args:
        dataset_dir: folder of the data set.
        output_dir: folder to train in, which becomes the bundle; the plan is plan.json there.
        hours: length of the training on this machine; 2000 steps on a CPU and 12000 on a GPU if not given.
        memory_gb: memory that a training may take; that of the GPU if not given, and on a CPU what is soon computed.
        modality: CT where one intensity means the same in all scans, MR or PET where not, or one for each channel with
            commas between; as the scans show it if not given.
        config_file: the bundle's training configuration and its overlays.
        **settings: ids of the configuration with other values, such as --teacher_weights; they win over the plan.
    """
    from pathlib import Path

    from monai.bundle import run

    from dinomix_monai.configuring import configure_training

    parser = open_configuration(config_file, dataset_dir=dataset_dir, **settings)
    overlay = Path(output_dir) / "plan.json"
    given = {**settings, "output_dir": output_dir}
    print(
        configure_training(
            parser, overlay, hours, memory_gb, modality, overwrite=True, given=given, config_file=config_file
        ),
        flush=True,
    )
    run("training", config_file=[*config_files(config_file), str(overlay)], dataset_dir=dataset_dir, **given)


@SetParseFn(str, "dataset_dir")
def plan(
    dataset_dir: str | None = None,
    config_file: str | Sequence[str] = "bundle/configs/train.json",
    repetitions: int = 6,
    **settings: Any,
) -> None:
    """
    Prints what a training will do and take, from a few steps on this machine, and trains nothing.

    Args:
        dataset_dir: folder of the data set, the built-in phantom if not given.
        config_file: the bundle's training configuration and its overlays, as training is given them.
        repetitions: steps of each kind to time.
        **settings: ids of the configuration with other values, as training is given them.
    """
    from dinomix_monai.training_plan import plan_training

    parser = open_configuration(config_file, **settings)
    if dataset_dir:
        parser.update({"dataset_dir": dataset_dir})
    print(plan_training(parser, repetitions))


@SetParseFn(str, "dataset_dir", "teacher", "weights", "out_dir", "proposals")
def probe(
    dataset_dir: str,
    teacher: str | None = None,
    weights: str | None = None,
    layers: int | Sequence[int] | None = None,
    cells: Sequence[Sequence[int]] | None = None,
    max_scans: int = 8,
    out_dir: str | None = None,
    proposals: str | None = None,
    config_file: str | Sequence[str] = "bundle/configs/train.json",
    **settings: Any,
) -> None:
    """
    Tells in minutes whether a frozen teacher sees the organs of a data set, before any training.

    A linear classifier is fitted to the teacher's tokens of the labeled scans. Its Dice on the validation cases is
    printed beside those of an untrained teacher and of the intensities alone. Scans are preprocessed as for training,
    so pass the overlay of the data. Layer and size of a token are chosen by cross-validation over the labeled scans.

    Args:
        dataset_dir: folder of the data set.
        teacher: name of a model of timm, instead of the configuration's ``teacher#model_name``.
        weights: ``auto``, ``none`` or the path of a file, instead of its ``teacher_weights``.
        layers: layers of the teacher to try, such as 6,8,11; four of its second half if not given.
        cells: voxels of a token along each axis, to try, such as [[3,3,2],[2,2,2]]; those of the configuration's
            report#probe#cell if not given.
        max_scans: the first scans of each list that are looked at.
        out_dir: folder for pictures of the labeled scans: tokens, their weights, and what the classifier says.
        proposals: folder for label maps of all scans without a label in the training list: a first answer.
        config_file: the bundle's training configuration and its overlays, as training is given them.
        **settings: ids of the configuration with other values, as training is given them.
    """
    from monai.utils import ensure_tuple

    from dinomix_monai.probe import probe_dataset

    parser = open_configuration(config_file, **settings)
    given = {"dataset_dir": dataset_dir, "teacher#model_name": teacher, "teacher_weights": weights}
    parser.update({name: value for name, value in given.items() if value is not None})
    found = probe_dataset(
        parser,
        layers=None if layers is None else ensure_tuple(layers),
        cells=cells,
        max_scans=max_scans,
    )
    print(found)
    if out_dir is not None:
        weighting = parser.get_parsed_content("distiller#loss_function#weighting")
        print("\n".join(map(str, found.draw(out_dir, weighting))))
    if proposals is not None:
        datalist = parser.get_parsed_content("datalist")
        cases = [*datalist.unlabeled, *datalist.validation, *datalist.test]
        print(f"{len(list(found.propose(cases, proposals)))} label maps in {proposals}")


@SetParseFn(str, "dataset_dir")
def next(
    dataset_dir: str,
    count: int = 4,
    seed: int = 0,
    config_file: str | Sequence[str] = "bundle/configs/train.json",
    **settings: Any,
) -> None:
    """
    Tells which unlabeled scans to label next, the first one first, with a reason for each; no label is needed.

    Scans are drawn by lot, because no strategy was found that is better than chance on CT. Scans that are nearly the
    same as one before, or of the same patient, come after all others.

    Args:
        dataset_dir: folder of the data set.
        count: how many scans to name.
        seed: of the lots; the same one goes on with the same order when scans have been labeled.
        config_file: the bundle's training configuration and its overlays, as training is given them.
        **settings: ids of the configuration with other values, as training is given them.
    """
    from dinomix_monai.selection import next_scans

    parser = open_configuration(config_file, dataset_dir=dataset_dir, **settings)
    for place, scan in enumerate(next_scans(parser, count, seed), start=1):
        print(f"{place}. {scan.name}: {scan.reason}")


@SetParseFn(str, "bundle_root", "scans", "output_dir", "teacher_weights")
def predict(
    bundle_root: str, scans: str, output_dir: str | None = None, uncertainty: bool = False, **settings: Any
) -> None:
    """
    Segments scans by a trained model, with the settings of its training, and prints the volumes of the classes.

    Args:
        bundle_root: output_dir of the training.
        scans: NIfTI file, or folder of such.
        output_dir: folder of the label maps, NAME_seg.nii.gz for NAME.nii.gz; output in the bundle if not given.
        uncertainty: write NAME_uncertainty.nii.gz as well, from 0 for certain to 1 for all classes alike.
        **settings: ids of the bundle's inference.json with other values, such as --teacher_weights or --device.
    """
    from dinomix_monai import load_model

    model = load_model(bundle_root, **settings)
    for path, volumes in model.predict_all(scans, output_dir or model.root / "output", uncertainty):
        found = ", ".join(
            f"{name} {volume:.0f} ml" if volume >= 100 else f"{name} {volume:.3g} ml"
            for name, volume in volumes.items()
            if volume
        )
        print(f"{path}: {found or 'none of the classes'}", flush=True)


@SetParseFn(str, "bundle_root", "scan", "formats")
def export(bundle_root: str, scan: str, formats: str = "torchscript,onnx", overwrite: bool = False) -> None:
    """
    Writes the network of a trained model as TorchScript and ONNX, and proves on a scan that they segment alike.

    The files are model.ts and model.onnx beside model.pt. They take patches in [0, 1] and give logits; what comes
    before and after is in the bundle's inference.json.

    Args:
        bundle_root: output_dir of the training.
        scan: NIfTI file to compare their label maps on.
        formats: torchscript, onnx or both, separated by a comma.
        overwrite: whether files that are there are replaced.
    """
    from dinomix_monai.export import export_model

    names = [name.strip() for name in formats.split(",") if name.strip()]
    for exported in export_model(bundle_root, scan, names, overwrite):
        print(f"{exported.path}: labels differ in {exported.different} of {exported.voxels} voxels", flush=True)


@SetParseFn(str, "bundle_root", "dataset_dir", "out_dir", "layout", "datalist_file", "teacher_weights")
def autolabel(
    bundle_root: str,
    dataset_dir: str,
    out_dir: str,
    layout: str = "monailabel",
    copy: bool = False,
    datalist_file: str = "dataset.json",
    allow_outside: bool = False,
    **settings: Any,
) -> None:
    """
    Segments all unlabeled scans of a data set by a trained model, for people to correct or for another training.

    A data set is made of them and of the labeled training scans. uncertainty.csv in it lists the scans that the model
    has segmented, the least certain one first, and uncertainty has a map of each.

    Args:
        bundle_root: output_dir of the training.
        dataset_dir: folder of the data set.
        out_dir: folder to make.
        layout: monailabel for a datastore of MONAI Label, nnunet for a raw data set of nnU-Net v2.
        copy: copy the scans; otherwise they are links to where they lie.
        datalist_file: name of the list of the data set.
        allow_outside: whether the list may name files that are not in the folder.
        **settings: ids of the bundle's inference.json with other values, such as --teacher_weights or --device.
    """
    from dinomix_monai import load_model
    from dinomix_monai.autolabel import autolabel as label_all
    from dinomix_monai.data import open_datalist

    datalist = open_datalist(dataset_dir, file=datalist_file, allow_outside=allow_outside)
    for name, uncertainty in label_all(load_model(bundle_root, **settings), datalist, out_dir, layout, copy):
        print(f"{name}: uncertainty {uncertainty:.3f}", flush=True)
    print(out_dir)


@SetParseFn(str, "dataset", "raw_dir", "out_dir", "protocol")
def prepare(
    dataset: str, raw_dir: str, out_dir: str, labeled: int | None = None, protocol: str | None = None, workers: int = 4
) -> None:
    """
    Makes the data set of a published protocol from the raw folder of its publisher.

    Args:
        dataset: synapse, amos, acdc or la.
        raw_dir: folder of the raw data set.
        out_dir: folder to make; it appears when it is complete.
        labeled: share of labeled training cases in percent, by default the one that the protocol is known for.
        protocol: name of the split; synapse has skcdf, dhc and genericssl, the others one each.
        workers: processes; each holds one case at a time.
    """
    from dinomix_monai.data import prepare_dataset, read_protocol

    chosen = read_protocol(dataset, protocol)
    labeled = chosen.default_labeled if labeled is None else labeled
    counts = ", ".join(f"{len(cases)} {section}" for section, cases in chosen.sections(labeled).items())
    print(f"{chosen.title}, protocol {chosen.name}, {labeled} % labeled: {counts}.", flush=True)
    print(prepare_dataset(chosen, raw_dir, out_dir, labeled, workers))


# As typed, for the same reason: a folder, a label or a host may look like a number.
@SetParseFn(str, "studies", "model", "app", "labels", "settings", "teacher_weights", "bundle", "host")
def label(
    studies: str,
    model: str | None = None,
    app: str = "label_app",
    labels: str | None = None,
    settings: str | None = None,
    teacher_weights: str = "none",
    bundle: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """
    Starts MONAI Label on a folder of scans: annotators label a few of them, and the model learns from all.

    Args:
        studies: folder of the scans (NIfTI), or the address of a DICOMweb server.
        model: weights to begin with, with labels.json beside them; without, the first training begins anew.
        app: folder of the app, made if missing; an app that is there goes on with its own model and settings.
        labels: names of the classes of a new app, separated by commas, without background.
        settings: JSON file with other values of the bundle's ids for a new app, such as configs/acdc.json.
        teacher_weights: weights of the frozen teacher for a new app: none (no FKD), auto or a file.
        bundle: folder of the bundle; that in the present folder, or else the one that came with the package, if not
            given.
        host: address to listen on; another than this machine's own needs authentication.
        port: port to listen on.
    """
    check_port(host, port)

    from dinomix_monai.label import check_server, prepare_app_folder, serve

    check_server(studies, host)
    names = None if labels is None else [name.strip() for name in labels.split(",")]
    chosen = {} if settings is None else read_configuration(settings, "settings")
    folder = prepare_app_folder(app, bundle or Bundle.present().root, model, names, chosen, teacher_weights)
    print(f"App in {folder.root}, classes: {', '.join(folder.class_names[1:])}.", flush=True)
    serve(folder, studies, host, port)


@SetParseFn(str, "checkpoint", "model_file", "bundle_root")
def promote(
    checkpoint: str,
    model_file: str | None = None,
    config_file: str | Sequence[str] | None = None,
    bundle_root: str = "bundle",
) -> None:
    """
    Makes a global model of a federation the bundle's own, which evaluating and inferring use.

    Args:
        checkpoint: folder of the run, of which the best model is taken: the workspace of a simulation, or a result
            that was downloaded; or FL_global_model.pt (the last one) or best_FL_global_model.pt itself.
        model_file: file to write; models/model.pt of the bundle if not given.
        config_file: a training configuration and the overlays of the run; configs/train.json of the bundle if not
            given.
        bundle_root: the bundle; also the output_dir of a training of the same classes, voxel size and network.
    """
    from pathlib import Path

    from dinomix_monai.federated import find_checkpoint, promote_checkpoint, read_checkpoint

    found, root = find_checkpoint(checkpoint), Path(bundle_root)
    path = promote_checkpoint(
        found, model_file or root / "models" / "model.pt", config_file or root / "configs" / "train.json"
    )
    run = read_checkpoint(found)["meta_props"]
    print(f"{path} is {found}: {len(run['class_names'])} classes, after {run['next_round']} of {run['rounds']} rounds.")
    print(f"Teacher of the sites: {run['teacher']}.")


@SetParseFn(str, "dataset_dir", "datalist_file")
def split(
    dataset_dir: str,
    sites: int,
    unlabeled_sites: int = 0,
    datalist_file: str = "dataset.json",
    allow_outside: bool = False,
) -> None:
    """
    Writes a datalist for each of several sites beside that of a data set, to try a federation on one machine.

    Args:
        dataset_dir: folder of the data set.
        sites: number of sites.
        unlabeled_sites: how many of them have no labels.
        datalist_file: name of the list to split.
        allow_outside: whether the list may name files that are not in the folder.
    """
    from dinomix_monai.data import split_dataset

    for path in split_dataset(dataset_dir, sites, unlabeled_sites, file=datalist_file, allow_outside=allow_outside):
        print(path)


def main() -> None:
    """What ``python -m dinomix_monai`` and the installed command ``dinomix`` run."""
    commands = {
        "allow": allow,
        "autolabel": autolabel,
        "bundle": bundle,
        "cache_tokens": cache_tokens,
        "check": check,
        "compare": compare,
        "configure": configure,
        "export": export,
        "init": init,
        "label": label,
        "next": next,
        "phantom": phantom,
        "plan": plan,
        "predict": predict,
        "prepare": prepare,
        "probe": probe,
        "promote": promote,
        "split": split,
        "train": train,
    }
    if sys.argv[1:] == ["--version"]:
        print(describe_versions())
    else:
        run_command_line(commands, name="dinomix_monai")


if __name__ == "__main__":
    main()
