"""What is wrong with a data set, before time is spent on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dinomix_monai.data.case_check import CaseCheck, CaseReport
from dinomix_monai.data.datalist import HELD_OUT, Datalist, dataset_root, read_datalist, relative_name
from dinomix_monai.data.finding import Finding, findings_table

__all__ = ["check_dataset", "verify_dataset"]

_UNUSABLE = "cannot be used: "
_FEW_WITHOUT = 0.34
"""Share of the labels that lack a class up to which this looks like an omission."""


def check_dataset(
    dataset_dir: str | Path,
    phantom_dir: str | Path | None = None,
    file: str = "dataset.json",
    patch_size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    intensity_window: Sequence | None = None,
    needs_labels: bool = True,
    allow_outside: bool = False,
    sections: Sequence[str] | None = None,
) -> list[Finding]:
    """
    Reads every header and every voxel of a data set once and reports all that is wrong with it.

    Cases are read by several threads, which hold a few MiB each however large the volumes are. A bar on a terminal's
    stderr shows how far they are. Labels of unlabeled cases are not opened.

    Args:
        dataset_dir: see :func:`open_datalist`.
        phantom_dir: see :func:`open_datalist`.
        file: see :func:`open_datalist`.
        patch_size: see :class:`CaseCheck`.
        spacing_mm: see :class:`CaseCheck`.
        intensity_window: see :class:`CaseCheck`.
        needs_labels: whether a list without any labeled training case is an error; at a site of a federation it is not.
        allow_outside: see :func:`open_datalist`.
        sections: lists whose cases are read, for what uses no others; ``None`` for all, and for what is wrong with the
            lists as a whole.

    Returns:
        Errors, then warnings, each in the order of the list; paths are relative to ``dataset_dir`` where they
        can be.

    Raises:
        ValueError: When an argument is not as :class:`CaseCheck` says.
    """
    root = dataset_root(dataset_dir)
    try:
        datalist = read_datalist(root, phantom_dir, file, allow_outside)
    except (FileNotFoundError, ValueError) as error:
        return [Finding("error", file, _UNUSABLE + str(error).removesuffix("."), "Correct the list.")]
    check = CaseCheck(datalist.num_classes, patch_size, spacing_mm, intensity_window, datalist.partial_labels)
    chosen = [(section, case) for section, case in datalist.cases() if sections is None or section in sections]
    names, cases = zip(*chosen) if chosen else ((), ())
    # Threads, because what takes the time (decompression, hashing, NumPy) does not hold Python's lock.
    with ThreadPoolExecutor() as pool:
        progress = tqdm(pool.map(check, names, cases), "Checking data", len(cases), unit="case", disable=None)
        reports = list(progress)
    findings = [finding for report in reports for finding in report.findings]
    findings += _copies(reports, root)
    if sections is None:
        findings += _gaps(datalist, reports, file, needs_labels)
    findings = [replace(finding, file=relative_name(finding.file, root)) for finding in findings]
    return sorted(findings, key=lambda finding: finding.severity)


def verify_dataset(dataset_dir: str | Path, **kwargs: Any) -> None:
    """
    Checks a data set before it is used, and prints the warnings.

    Everything is read, however large the data set is: training caches every volume at its start, one after another and
    resampled, beside which this takes little time, and what spoils a training (NaN, labels of another data set, test
    cases under training) does not show in headers.

    Args:
        dataset_dir: see :func:`check_dataset`.
        **kwargs: see :func:`check_dataset`.

    Raises:
        ValueError: When there is an error; the text is the table of all that was found.
    """
    findings = check_dataset(dataset_dir, **kwargs)
    if any(finding.severity == "error" for finding in findings):
        # Without a list there is nothing to begin with.
        has_list = not findings[0].problem.startswith(_UNUSABLE)
        way_out = " With `check_data` off, the run begins regardless." if has_list else ""
        raise ValueError(
            f"dataset_dir must hold a data set without errors, got {dataset_dir}.{way_out}\n{findings_table(findings)}"
        )
    if findings:
        print(findings_table(findings), flush=True)


def _copies(reports: Sequence[CaseReport], root: Path) -> Iterator[Finding]:
    originals: dict[str, CaseReport] = {}
    for report in reports:
        original = originals.setdefault(report.digest, report) if report.digest else report
        if original is report:
            continue
        problem = f"is, under `{report.section}`, the same volume as {relative_name(original.image, root)}"
        problem += f" under `{original.section}`"
        if report.section in HELD_OUT and report.section == original.section and report.image == original.image:
            remedy = "List it once: a case that is scored twice counts twice, and runs cannot be compared."
            yield Finding("error", report.image, f"is listed twice under `{report.section}`", remedy)
        elif report.section in HELD_OUT and report.section != original.section:
            remedy = "Keep it in one of them: a score must come from cases that have played no part before."
            yield Finding("error", report.image, problem, remedy)
        else:
            yield Finding("warning", report.image, problem, "List it once, unless it is meant to count twice.")


def _gaps(datalist: Datalist, reports: Sequence[CaseReport], file: str, needs_labels: bool) -> Iterator[Finding]:
    if not datalist.training and needs_labels:
        remedy = "List labeled cases under `training`; scans alone can be learned from in a federation only."
        yield Finding("error", file, "lists no labeled cases", remedy)
    found = [report.classes for report in reports if report.section == "training"]
    labeled = frozenset[int]().union(*(classes for classes in found if classes is not None))
    # A label that could not be read may have the class.
    for value in range(1, datalist.num_classes) if found and None not in found else ():
        if value not in labeled:
            problem = f"names {datalist.class_names[value]}, which no label under `training` has"
            yield Finding("warning", file, problem, "It cannot be learned; label it, or take it out of `labels`.")
    yield from _annotations(datalist, reports, file)
    if len(datalist.training) == 1:
        yield Finding("warning", file, "lists one labeled case", "Label more: one patient does not stand for others.")
    if not datalist.unlabeled:
        remedy = "Training will be supervised alone; list images under `unlabeled`."
        yield Finding("warning", file, "lists no unlabeled cases", remedy)
    if not datalist.validation:
        remedy = "The last model will be kept instead of the best; list labeled cases under `validation`."
        yield Finding("warning", file, "lists no validation cases", remedy)
    elif all(report.classes == {0} for report in reports if report.section == "validation"):
        remedy = "No model can be chosen by them: the last one will be kept. List cases that have the classes."
        yield Finding("warning", file, "lists validation cases with nothing but background", remedy)
    if datalist.from_test:
        problem = f"lists cases under `test` without any label ({datalist.from_test})"
        remedy = "They count as unlabeled cases and are learned from; if you will score them, name their labels."
        yield Finding("warning", file, problem, remedy)


def _annotations(datalist: Datalist, reports: Sequence[CaseReport], file: str) -> Iterator[Finding]:
    """Classes that nobody has looked for, and cases that do not say so although they seem to lack one."""
    labeled = [report for report in reports if report.section == "training" and report.classes is not None]
    for value in range(1, datalist.num_classes) if labeled else ():
        name = datalist.class_names[value]
        looking = [report for report in labeled if value in report.looked_for]
        without = [report for report in looking if value not in (report.classes or ())]
        if not looking:
            problem = f"names {name}, which nobody has looked for in any case under `training`"
            yield Finding("warning", file, problem, "It cannot be learned; annotate it in a case, or take it out.")
        elif without and len(without) <= _FEW_WITHOUT * len(looking):
            for report in without:
                problem = (
                    f"has no {name}, as {len(looking) - len(without)} of {len(looking)} labels under `training` do"
                )
                remedy = "If nobody has looked for it there, say so by `annotated`: now its place counts as background."
                yield Finding("warning", report.image, problem, remedy)
