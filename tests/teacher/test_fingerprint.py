from __future__ import annotations

import hashlib

import pytest
import torch

from dinomix_monai.teacher import fingerprint


def test_it_is_the_sha256_of_what_the_docstring_says():
    state = {"b": torch.tensor([1, 2], dtype=torch.uint8), "a": torch.tensor([[256]], dtype=torch.int16)}
    plain = b"a torch.int16 (1, 1)\n" + b"\x00\x01" + b"b torch.uint8 (2,)\n" + b"\x01\x02"
    assert fingerprint(state) == hashlib.sha256(plain).hexdigest()


def test_order_and_memory_layout_do_not_count():
    weight = torch.rand(3, 4)
    first = fingerprint({"a": weight, "b": torch.ones(2)})
    assert first == fingerprint({"b": torch.ones(2), "a": weight.t().contiguous().t()})


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.5])},
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(0)},
    ],
    ids=["value", "name", "shape", "dtype", "one more"],
)
def test_every_difference_counts(other):
    assert fingerprint(other) != fingerprint({"a": torch.tensor([1.0, 2.0])})


def test_bfloat16_and_tensors_without_axes_are_accepted():
    assert len(fingerprint({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.tensor(1.0)})) == 64


def test_only_a_query_or_value_bias_of_zeros_is_left_out():
    weight = {"blocks.0.attn.qkv.weight": torch.ones(6, 2)}
    zeros = {"blocks.0.attn.q_bias": torch.zeros(2), "blocks.0.attn.v_bias": torch.zeros(2)}
    assert fingerprint(weight | zeros) == fingerprint(weight)
    assert fingerprint(weight | {"blocks.0.attn.q_bias": torch.tensor([0.0, 1.0])}) != fingerprint(weight)
    assert fingerprint(weight | {"blocks.0.norm1.bias": torch.zeros(2)}) != fingerprint(weight)
