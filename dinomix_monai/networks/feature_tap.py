"""Reading features out of a network without changing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["FeatureTap"]


class FeatureTap:
    """
    Gives the outputs of named modules of a network along with its own.

    The network stays what it is: no wrapper, no new parameters, the same keys in its state dict. Calling the network
    itself collects nothing, so other passes hold no features in memory. Copies of the network, such as an EMA, are not
    tapped.

    Args:
        network: any network.
        modules: names as ``network.named_modules()`` gives them.

    Raises:
        ValueError: When a name is not one of the network's.

    Example:
        >>> import torch
        >>> from dinomix_monai.networks import FeatureTap, VNet
        >>> logits, features = FeatureTap(VNet(n_filters=4), ["decoder.1"])(torch.rand(2, 1, 16, 16, 16))
        >>> features[0].shape
        torch.Size([2, 8, 8, 8, 8])
    """

    def __init__(self, network: nn.Module, modules: Sequence[str]) -> None:
        available = dict(network.named_modules())
        available.pop("", None)
        self.network = network
        self.modules = tuple(modules)
        self._collects = False
        self._features: dict[str, torch.Tensor] = {}
        for name in self.modules:
            if name not in available:
                shown = ", ".join(n for n in available if n.count(".") < 2)
                raise ValueError(f"modules must name modules of {type(network).__name__} ({shown}), got {name!r}.")
            # It stays, and is switched: a compiled network would be compiled anew when a hook comes or goes.
            available[name].register_forward_hook(self._recorder(name, available[name]))

    def _recorder(self, name: str, tapped: nn.Module) -> Callable[[nn.Module, tuple, torch.Tensor], None]:
        # A closure is not copied along with the network: the hook of a copy is this very one and must let it pass.
        def record(module: nn.Module, _: tuple, output: torch.Tensor) -> None:
            if self._collects and module is tapped:
                self._features[name] = output

        return record

    def __call__(self, image: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
        """
        One forward pass, in the mode that the network is in.

        Args:
            image: its input, shape (B, C, H, W[, D]).

        Returns:
            Its output, and the features of that pass in the order of ``modules``.
        """
        self._collects = True
        try:
            output = self.network(image)
            return output, [self._features[name] for name in self.modules]
        finally:
            self._collects = False
            self._features.clear()

    def features_of(self, network: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
        """
        Features of images (B, C, H, W[, D]) in evaluation mode, in the order of ``modules``, without gradient.

        Args:
            network: the network or one of the same architecture, in which no trace of this stays.
            image: its input.
        """
        features: dict[str, torch.Tensor] = {}
        modules = dict(network.named_modules())
        handles = [
            modules[name].register_forward_hook(lambda _, __, output, name=name: features.update({name: output}))
            for name in self.modules
        ]
        modes = {module: module.training for module in network.modules()}
        try:
            with torch.no_grad():
                network.eval()(image)
        finally:
            for module, mode in modes.items():
                module.training = mode
            for handle in handles:
                handle.remove()
        return [features[name] for name in self.modules]
