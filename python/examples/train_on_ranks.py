"""Training by two processes: torch's DistributedDataParallel, each rank with its own half of every epoch's patches.

    python python/examples/train_on_ranks.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import made
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from train_and_predict import network, queue

RANKS = 2


def work(rank: int, folder: Path, results: Any) -> None:
    """Train in one process."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=RANKS)
    net = DistributedDataParallel(network())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    # The queue asks torch.distributed for its rank.
    patches = queue([made.scan(folder, number) for number in range(3)])
    seen, losses = [], []
    for _ in range(2):
        for batch in patches:
            inputs, target = torch.from_numpy(batch["ct"]).float() / 100, torch.from_numpy(batch["label"])[:, 0].long()
            loss = torch.nn.functional.cross_entropy(net(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen += [(patches.epoch, subject["name"], *at) for subject, at in zip(batch["subject"], batch["location"].tolist())]
    weights = [parameter.detach().flatten()[0].item() for parameter in net.parameters()]
    results.put((rank, {"seen": seen, "losses": losses, "weights": weights}))
    distributed.destroy_process_group()


def main(folder: Path) -> dict[int, Any]:
    """Train, and return what each rank saw."""
    for number in range(3):
        made.scan(folder, number)
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    torch.multiprocessing.start_processes(work, (folder, results), RANKS, join=False)
    done = dict(results.get(timeout=300) for _ in range(RANKS))
    for rank, told in sorted(done.items()):
        print(f"rank {rank}: {len(told['seen'])} patches, loss {told['losses'][0]:.3f} at first, {told['losses'][-1]:.3f} at last")
    return done


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
