"""Memory of gradients: experts that nobody chose take none."""

from __future__ import annotations

import gc
import json
import sys

import pytest
import torch
from tests.processes import run

from smolmoe.moe.kernels.memory import HUGE_PAGE, zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (4, 1024, 1024), (3, 2 * HUGE_PAGE // 8 + 1)])
def test_zeros_are_zero_and_can_be_written(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    first = zeros(shape, dtype)
    assert first.dtype == dtype
    assert first.shape == shape
    assert first.is_contiguous()
    assert not first.any()
    first.fill_(3)
    assert not zeros(shape, dtype).any()
    view = first[1:]
    del first
    gc.collect()
    assert (view == 3).all()  # the memory lives as long as the last tensor that shows it


LAYER = """
import json, resource
from pathlib import Path
import torch
import smolmoe
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

smolmoe.register()
config = MixtralConfig(hidden_size=512, intermediate_size=1024, num_local_experts=32, num_experts_per_tok=1)
config._experts_implementation = "smolmoe"
layer = MixtralExperts(config)
for parameter in layer.parameters():
    torch.nn.init.uniform_(parameter, -0.05, 0.05)
x, index, weights = torch.randn(1, 512), torch.tensor([[7]]), torch.ones(1, 1)
before = resident()
layer(x, index, weights).sum().backward()
after = resident()
found = [[bool(grad.any()) for grad in parameter.grad] for parameter in layer.parameters()]
print(json.dumps([(after - before) / sum(parameter.nbytes for parameter in layer.parameters()), found]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory")
def test_gradients_of_experts_without_tokens_take_no_memory() -> None:
    """One of 32 experts has the only token: the others' gradients read as zeros that were never written."""
    taken, found = json.loads(run(LAYER))
    assert found == [[expert == 7 for expert in range(32)]] * 2
    assert taken < 0.2
