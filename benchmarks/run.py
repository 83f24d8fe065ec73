"""
All comparisons of cost in one table.

    python benchmarks/run.py [--out_file benchmarks/results/costs.md]

Runs the scripts below one after another and gathers the tables that they print. Nothing else should run on the
machine meanwhile. Comparisons of scores, which take hours, are made by ``compare.py``.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import fire

HERE = Path(__file__).parent
SCRIPTS = {
    "step, FKD": ("step_cost.py",),
    "step, against two networks": ("step_cost.py", "--peers", "--repetitions", "6"),
    "inference": ("inference.py",),
    "start": ("start.py",),
}


def main(out_file: str | Path = HERE / "results" / "costs.md") -> None:
    """Writes the table, anew after each script."""
    lines = ["| benchmark | form | figures |", "|---|---|---|"]
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    for name, (script, *options) in SCRIPTS.items():
        command = [sys.executable, str(HERE / script), *options]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        lines += [f"| {name} | {form} | {figures} |" for form, figures in table_rows(printed)]
        Path(out_file).write_text("\n".join(lines) + "\n")
    # At the end, because it imports PyTorch, and while a script runs this process had better be small.
    text = "\n".join([*lines, "", f"`python benchmarks/run.py` on {_machine()}."]) + "\n"
    Path(out_file).write_text(text)
    print(text)


def _machine() -> str:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {gpu}, torch {torch.__version__}"


def table_rows(printed: str) -> list[tuple[str, str]]:
    """For each row of the Markdown table in a text, its first cell, and the others with their headings."""
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    header, _, *rows = cells
    return [(row[0], ", ".join(f"{name} {value}" for name, value in zip(header[1:], row[1:]))) for row in rows]


if __name__ == "__main__":
    fire.Fire(main)
