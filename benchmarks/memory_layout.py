"""
What the layout of the network's weights costs on a CPU, and how many layers change that of what they are given.

    python benchmarks/memory_layout.py

PyTorch's convolutions follow the layout of their weights. Its instance norm gives its result with the channels first,
whatever it is given, so that with weights whose channels are last every convolution puts its input in order again. The
times are those of one core, in CPU seconds, the least of some repetitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import fire
import torch
from monai.bundle import ConfigParser

CONFIG = Path(__file__).parents[1] / "bundle" / "configs" / "inference.json"
LAYOUTS = {"channels last": torch.channels_last_3d, "channels first": torch.contiguous_format}
PATCHES = [(64, 64, 32), (96, 96, 64)]


def main(patches: int = 3, repetitions: int = 5) -> None:
    """Prints the table, for a step on so many patches and for a pass of them without gradients."""
    torch.set_num_threads(1)
    networks = {name: _network(layout) for name, layout in LAYOUTS.items()}
    print("| patch | weights | layers that change the layout | step | pass without gradients |\n|---|---|---|---|---|")
    for patch in PATCHES:
        image = torch.rand(patches, 1, *patch)
        times: dict[tuple[str, str], float] = {}
        # In turns, because other programs on the machine slow some of them down.
        for _ in range(repetitions):
            for name, network in networks.items():
                for what, run in {"step": _step, "pass": torch.no_grad()(torch.nn.Module.__call__)}.items():
                    times[name, what] = min(times.get((name, what), float("inf")), _seconds(run, network, image))
        for name, network in networks.items():
            text = f"{_changes(network, image)} of {len(_layers(network))}"
            print(
                f"| {' x '.join(map(str, patch))} | {name} | {text} | {times[name, 'step']:.3f} s "
                f"| {times[name, 'pass']:.3f} s |",
                flush=True,
            )


def _network(layout: torch.memory_format) -> torch.nn.Module:
    parser = ConfigParser({"network_def": {**ConfigParser.load_config_file(CONFIG)["network_def"], "out_channels": 14}})
    torch.manual_seed(0)
    return parser.get_parsed_content("network_def").to(memory_format=layout)


def _step(network: torch.nn.Module, image: torch.Tensor) -> None:
    network(image).square().mean().backward()


def _seconds(run: Callable, network: torch.nn.Module, image: torch.Tensor) -> float:
    start = time.process_time()
    run(network, image)
    return time.process_time() - start


def _layers(network: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in network.modules() if not list(module.children())]


@torch.no_grad()
def _changes(network: torch.nn.Module, image: torch.Tensor) -> int:
    """Layers whose input and output differ in where the channels are; of one channel, it is both first and last."""
    found = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal found
        orders = (
            {layout for layout in LAYOUTS.values() if x.is_contiguous(memory_format=layout)}
            for x in (inputs[0], output)
        )
        found += not set.intersection(*orders)

    hooks = [layer.register_forward_hook(count) for layer in _layers(network)]
    network(image)
    for hook in hooks:
        hook.remove()
    return found


if __name__ == "__main__":
    fire.Fire(main)
