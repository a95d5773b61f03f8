"""Packed weights give the bits of the weights as they are, and are no more than they may be."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from comfyloop.serve.embedded.packed import Packer

bfloat16 = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this processor does not compute in bfloat16"
)


@bfloat16
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 33])
@pytest.mark.parametrize("biased", [False, True])
def test_a_packed_layer_answers_as_the_weight_does(rows: int, biased: bool) -> None:
    torch.manual_seed(rows)
    weight = torch.randn(96, 576).bfloat16()
    bias = torch.randn(96).bfloat16() if biased else None
    pack = Packer(weight.nbytes)
    layer = pack(weight, bias)
    assert pack.bytes == weight.nbytes
    x = torch.randn(rows, 576).bfloat16()
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    plain, packed = functional.linear(x, weight, bias), layer(x)
    assert packed.dtype == torch.bfloat16
    assert torch.equal(packed, layer(x))  # the same bits every time: a roll back answers as before
    assert (packed - exact).norm() <= 1.1 * (plain - exact).norm()


@bfloat16
def test_no_more_is_packed_than_the_limit_allows() -> None:
    weight = torch.randn(64, 32).bfloat16()
    pack = Packer(2 * weight.nbytes + 1)
    for _ in range(4):
        assert torch.allclose(pack(weight, None)(torch.ones(1, 32).bfloat16()), weight.sum(1), atol=0.2)
    assert pack.bytes == 2 * weight.nbytes


def test_other_numbers_are_left_as_they_are() -> None:
    weight, x = torch.randn(8, 4), torch.randn(3, 4)
    pack = Packer(1 << 20)
    assert torch.equal(pack(weight, None)(x), functional.linear(x, weight))
    assert pack.bytes == 0
