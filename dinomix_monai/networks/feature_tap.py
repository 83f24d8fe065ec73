"""Reading features out of a network without changing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

__all__ = ["FeatureTap"]


class FeatureTap:
    """
    Records the outputs of named modules while a network runs in training mode.

    The network stays what it is: no wrapper, no new parameters, the same keys in its state dict. In evaluation mode
    nothing is recorded, so validation and inference hold no features in memory. Copies of the network, such as an EMA,
    are not recorded.

    Args:
        network: any network.
        modules: names as ``network.named_modules()`` gives them.

    Raises:
        ValueError: When a name is not one of the network's.

    Example:
        >>> import torch
        >>> from dinomix_monai.networks import FeatureTap, VNet
        >>> network = VNet(n_filters=4).train()
        >>> tap = FeatureTap(network, ["decoder.1"])
        >>> _ = network(torch.rand(2, 1, 16, 16, 16))
        >>> tap.take()[0].shape
        torch.Size([2, 8, 8, 8, 8])
    """

    def __init__(self, network: nn.Module, modules: Sequence[str]) -> None:
        available = dict(network.named_modules())
        available.pop("", None)
        self.modules = tuple(modules)
        self._features: dict[str, torch.Tensor] = {}
        for name in self.modules:
            if name not in available:
                shown = ", ".join(n for n in available if n.count(".") < 2)
                raise ValueError(f"modules must name modules of {type(network).__name__} ({shown}), got {name!r}.")
            available[name].register_forward_hook(self._recorder(name, available[name]))

    def _recorder(self, name: str, tapped: nn.Module) -> Callable[[nn.Module, tuple, torch.Tensor], None]:
        # A closure is not copied along with the network: the hook of a copy is this very one and must let it pass.
        def record(module: nn.Module, _: tuple, output: torch.Tensor) -> None:
            if module is tapped and module.training:
                self._features[name] = output

        return record

    def take(self) -> list[torch.Tensor]:
        """
        Features of the last forward pass in training mode, in the order of ``modules``; they are let go here.

        Raises:
            RuntimeError: When there was no such pass since the last call.
        """
        if len(self._features) < len(self.modules):
            raise RuntimeError("take() must follow a forward pass in training mode, got none since the last call.")
        features = [self._features[name] for name in self.modules]
        self._features.clear()
        return features

    def look(self, network: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
        """
        Features of images (B, C, H, W[, D]) in evaluation mode, in the order of ``modules``, without gradient.

        No trace of it stays in the network.
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
