"""Training with Hugging Face Accelerate: `accelerate launch` starts one process for each GPU.

    accelerate launch python/examples/train_accelerate.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import made
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from train_and_predict import network, queue


def main(folder: Path) -> list[float]:
    """Train, and return the losses of this process."""
    accelerator = Accelerator()
    with accelerator.main_process_first():
        subjects = [made.scan(folder, number) for number in range(3)]
    net = network()
    net, optimizer = accelerator.prepare(net, torch.optim.Adam(net.parameters(), lr=1e-2))
    # The queue has the patches of this rank already: it does not go through prepare, which would split or dispatch them again.
    batches = DataLoader(queue(subjects), batch_size=None)
    losses = []
    for _ in range(2):
        for batch in batches:
            inputs, target = (batch[name].to(accelerator.device) for name in ("ct", "label"))
            loss = torch.nn.functional.cross_entropy(net(inputs.float() / 100), target[:, 0].long())
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    print(f"rank {accelerator.process_index}: {len(losses)} batches, loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    return losses


if __name__ == "__main__":
    main(Path(sys.argv[1]))
