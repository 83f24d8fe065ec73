"""
A device that PyTorch takes for a GPU, and whose memory is the host's.

Every operation runs on the CPU after a check that a GPU makes, too: tensors on the device and tensors on the host do
not meet. As on CUDA, single numbers may be on the host; unlike there, an index may not, because CUDA would copy it in
silence. Mixed precision changes nothing here.

Memory moves to the other side without a copy: DLPack describes a tensor in a header that says where it lies, and one
number in it is replaced. Views are made by the code of the CPU, which looks at no memory.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch._C import DispatchKey, DispatchKeySet
from torch.utils import backend_registration

import dinomix_monai

__all__ = ["CAN_REGISTER", "Crossings", "Generator", "is_on_device", "register"]

NAME = "hostgpu"

# Operations whose result depends on values: the host waits for them.
_READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "bincount")
_PACKAGE = str(Path(dinomix_monai.__file__).parent)


class Crossings:
    """
    While it is entered, ``found`` counts what goes from one side to the other.

    That is a "copy to the device", a "copy to the host" or a "read", and in brackets the module and the function of the
    package that have asked for it, if it was asked for there.
    """

    active: ClassVar[list[Crossings]] = []

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def __enter__(self) -> Crossings:
        self.active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.active.remove(self)


def _note(what: str) -> None:
    if Crossings.active:
        frame: Any = sys._getframe()
        while frame and not (frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_code.co_name[0] != "<"):
            frame = frame.f_back
        who = f" ({Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name})" if frame else ""
        for each in Crossings.active:
            each.found[what + who] += 1


def is_on_device(tensor: torch.Tensor) -> bool:
    return tensor.device.type == NAME


class Generator(torch.Generator):
    """Stands for ``torch.Generator``: what is drawn for the device is drawn by the CPU."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu" if torch.device(device).type == NAME else device)


_HOST, _DEVICE = 1, 12  # DLPack's numbers of kinds
_header = ctypes.pythonapi.PyCapsule_GetPointer
_header.restype, _header.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _relabeled(tensor: torch.Tensor, kind: int) -> torch.Tensor:
    capsule = torch._C._to_dlpack(tensor)
    # The kind follows the pointer to the data.
    ctypes.c_int32.from_address(_header(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)).value = kind
    return torch._C._from_dlpack(capsule)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return _relabeled(tensor, _HOST) if is_on_device(tensor) else tensor


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if is_on_device(tensor) else _relabeled(tensor, _DEVICE)


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """An argument or a result with its tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)(_each(part, change) for part in value) if isinstance(value, (list, tuple)) else value


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation that PyTorch hands to the device."""
    schema = op._schema
    values = {argument.name: value for argument, value in zip(schema.arguments, args)} | kwargs
    _check(op, values)
    effects = [result.alias_info for result in schema.returns]
    if schema.name == "aten::set_" or any(effect and not effect.is_write for effect in effects):
        return op.redispatch(DispatchKeySet(DispatchKey.CPU), *args, **kwargs)
    written = {
        each.name: values[each.name] for each in schema.arguments if each.alias_info and each.alias_info.is_write
    }
    host = {name: _each(value, _on_host) for name, value in values.items()}
    if host.get("device") is not None:
        host["device"] = torch.device("cpu")
    # A result without a size yet: its memory is made by the operation.
    unsized = [name for name, tensor in written.items() if not tensor.numel()]
    host |= {name: torch.empty(0, dtype=values[name].dtype) for name in unsized}
    result = op(*(host[each.name] for each, _ in zip(schema.arguments, args)), **{name: host[name] for name in kwargs})
    for name in unsized:
        values[name].set_(_on_device(host[name]))
    if not written:
        return _each(result, _on_device)
    return next(iter(written.values())) if len(written) == 1 else tuple(written.values())


def _check(op: Any, values: dict[str, Any]) -> None:
    tensors: list[torch.Tensor] = []
    _each(list(values.values()), lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
    on_host = [tuple(tensor.shape) for tensor in tensors if tensor.ndim and not is_on_device(tensor)]
    if on_host and any(map(is_on_device, tensors)):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu: {op} got {on_host} on the host."
        )
    name = op._schema.name.partition("::")[2]
    # Indexing by a mask looks for its voxels by nonzero, but assigning does so within.
    by_mask = name == "_index_put_impl_" and any(tensor.dtype == torch.bool for tensor in tensors[1:])
    if name in _READS or by_mask:
        _note("read")


def _copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if is_on_device(source) != is_on_device(target):
        _note("copy to the device" if is_on_device(target) else "copy to the host")
    _on_host(target).copy_(_on_host(source))
    return target


def _convolution(*args: Any) -> Any:
    return _run(torch.ops.aten.convolution.default, *args)


def _convolution_backward(gradient: torch.Tensor, image: torch.Tensor, weight: torch.Tensor, *args: Any) -> Any:
    bias_size = [weight.shape[1] if args[3] else weight.shape[0]]
    return _run(torch.ops.aten.convolution_backward.default, gradient, image, weight, bias_size, *args)


class _Module:
    """What PyTorch asks of ``torch.cuda`` for a GPU."""

    @staticmethod
    def is_available() -> bool:
        return True

    is_initialized = is_available

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """What is drawn for the device is drawn by the CPU, which has a seed already."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_copy_of = torch.UntypedStorage.clone


def _copy_of_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    return _bytes_of(storage).clone().untyped_storage() if storage.device.type == NAME else _copy_of(storage)


def _loaded_storage(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    return _bytes_of(storage).to(NAME).untyped_storage() if location.startswith(NAME) else None


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


CAN_REGISTER = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@cache
def register() -> torch.device:
    """
    Makes the device known to PyTorch, for the rest of the process; returns it.

    This must come before the first backward pass, for which autograd starts its threads: one for each device, once.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend([everything, aten])
    everything.fallback(_run, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten.impl("_copy_from", _copy, "PrivateUse1")
    aten.impl("convolution_overrideable", _convolution, "PrivateUse1")
    aten.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
    # Copies of storages, which deepcopy and torch.load make, would otherwise ask for an allocator.
    torch.UntypedStorage.clone = _copy_of_storage  # type: ignore[method-assign]
    torch.serialization.register_package(0, lambda _: None, _loaded_storage)
    return torch.device(NAME, 0)


# As long as they live, what they have registered does.
_libraries: list[torch.library.Library] = []
