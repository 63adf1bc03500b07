"""Ranks that compute the contrastive loss around a ring, for ``test_losses``.

A module of its own that imports little, since every rank imports it.
"""

import importlib.util
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# Without the packages around it, which import transformers.
_SPEC = importlib.util.spec_from_file_location(
    "losses", Path(__file__).parents[1] / "siglip_flowers" / "model" / "losses.py"
)
losses = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(losses)

# Batch sizes of the participating ranks, and whether texts are frozen; of a pool of processes.
CASES = {
    "two ranks": ([4, 4], False),
    "two ranks, text frozen": ([4, 4], True),
    "three ranks": ([3, 3, 3], False),
    "three ranks of unequal batches": ([1, 5, 2], False),
}
POOL = 3


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class TwoTowers(nn.Module):
    """Tiny towers of different widths with a learnable calibration."""

    def __init__(self, freeze_text=False, group=None):
        super().__init__()
        self.group = group
        torch.manual_seed(3)
        self.image_tower = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.text_tower = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5))
        self.text_tower.requires_grad_(not freeze_text)
        self.logit_scale = nn.Parameter(torch.tensor([1.2]))
        self.logit_bias = nn.Parameter(torch.tensor([-2.0]))

    def forward(self, pixels, texts, labels):
        return losses.contrastive_sigmoid_loss(
            self.image_tower(pixels),
            self.text_tower(texts),
            labels,
            self.logit_scale,
            self.logit_bias,
            self.group,
        )


def make_global_batch(size):
    labels = torch.arange(size) % 5  # classes repeat within and across ranks
    return (
        draw(size, 6, seed=5, dtype=torch.float32),
        draw(size, 4, seed=6, dtype=torch.float32),
        labels,
    )


def train_two_steps(model, batch):
    """Take two steps: the second depends on the gradients of the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    values = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        values.append(loss.detach())
    return torch.stack(values)


def run_case(rank, group, sizes, freeze_text):
    start = sum(sizes[:rank])
    batch = [t[start : start + sizes[rank]] for t in make_global_batch(sum(sizes))]
    model = TwoTowers(freeze_text, group)
    values = train_two_steps(DistributedDataParallel(model, process_group=group), batch)
    dist.all_reduce(values, group=group)
    with torch.no_grad():
        evaluated = model(*batch)
    dist.all_reduce(evaluated, group=group)
    return {
        "losses": values / len(sizes),
        "evaluated": evaluated / len(sizes),
        "grads": {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        "weights": model.state_dict(),
    }


def find_refusal(width, group):
    ones = torch.ones(2, width)
    try:
        losses.contrastive_sigmoid_loss(
            ones, ones, torch.zeros(2).long(), torch.ones(1), torch.ones(1), group
        )
    except ValueError as error:
        return str(error)
    return ""


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=POOL
    )
    results = {"different widths": find_refusal(width=6 if rank == 0 else 5, group=None)}
    for name, (sizes, freeze_text) in CASES.items():
        # Not the first ranks, so that ranks in the group and in the world differ.
        members = list(range(POOL - len(sizes), POOL))
        group = dist.new_group(members) if len(sizes) < POOL else None
        if rank in members:
            results[name] = run_case(members.index(rank), group, sizes, freeze_text)
        else:
            results["no member"] = find_refusal(5, group)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
