"""The learning-rate schedule against the reference's, epoch by epoch."""

import re

import torch
from limpet.optim import build_optimiser, build_schedule, learning_rate
from limpet.recipe import OptimConfig


def test_every_case_of_the_pack(golden):
    case = golden("lr_schedule")
    names = [name for name in case.tensors if not name.endswith(".f64")]
    assert names
    for name in names:
        meaning = case.json["tensors"][name]["meaning"]
        base, epochs, warmup = (
            float(re.search(pattern, meaning)[1])
            for pattern in (r"base ([\d.e-]+)", r"(\d+) epochs", r"warm-up (\d+) epoch")
        )
        config = OptimConfig(lr=base, warmup=int(warmup))
        rates = [learning_rate(config, epoch, int(epochs)) for epoch in range(int(epochs))]
        torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), case.tensors[name].double(), rtol=1e-9, atol=1e-12)


def test_the_optimiser_follows_the_schedule():
    config = OptimConfig(lr=0.0035)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = build_optimiser([parameter], config)
    schedule, rates = build_schedule(optimiser, config, 5), []
    for _ in range(5):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    # 1e-5, then the cosine from its peak: figures of the reference's logs for MaPLe
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([1e-5, 3.5e-3, 3.1658e-3, 2.2908e-3, 1.2092e-3]), rtol=1e-4, atol=0)
