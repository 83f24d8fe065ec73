from __future__ import annotations

import pytest
import torch

from dinomix_monai.core.precision import autocast_dtype, computing_in, has_half_precision, without_float16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_half_precision_is_for_cpus_that_multiply_bfloat16(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_half_precision("cpu") is expected


def test_a_cpu_that_pytorch_cannot_describe_is_taken_to_emulate_it(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_half_precision(torch.device("cpu")) is False


def test_half_precision_is_for_every_gpu():
    assert has_half_precision("cuda:1") is True


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_gpus_without_bfloat16_compute_in_float16(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert autocast_dtype("cuda:0", amp=True) is expected


def test_on_a_cpu_it_is_bfloat16_where_it_is_wanted():
    assert autocast_dtype("cpu", amp=True) is torch.bfloat16
    assert autocast_dtype("cpu", amp=False) is None


def test_a_word_is_no_truth_value():
    with pytest.raises(TypeError, match=r"^amp must be true or false, got 'true'\. .* write --amp True or --amp False"):
        autocast_dtype("cpu", amp="true")


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_device_computes_in_what_was_chosen_and_in_none_as_it_is(dtype):
    weight = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.float16), computing_in(dtype, "cpu"):
        assert (weight @ weight).dtype == (dtype or torch.float32)


def test_float16_alone_has_too_small_a_range_for_a_teacher():
    assert [without_float16(dtype) for dtype in (torch.float16, torch.bfloat16, None)] == [None, torch.bfloat16, None]
