"""A small 3-D network in PyTorch: trained on patches, interrupted in the middle of an epoch, resumed, and run over a whole
scan that it never saw.

    python examples/train_and_predict.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import made
import numpy as np
import torch
import voxpatch
from torch.utils.data import DataLoader

PATCH = 24


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(8, 8, 3, padding=1)]
    return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))


def queue(subjects: list[voxpatch.Subject]) -> voxpatch.Queue:
    # Equally many patches around blobs and elsewhere.
    sampler = voxpatch.LabelSampler(PATCH, "label", {0: 1, 1: 1})
    return voxpatch.Queue(subjects, sampler, samples_per_subject=32, batch_size=4, threads=2, seed=1)


class Training:
    def __init__(self, subjects: list[voxpatch.Subject]) -> None:
        self.net = network()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2)
        self.queue = queue(subjects)
        self.losses: list[float] = []

    def run(self, epochs: int, stop_after: int | None = None) -> None:
        """Train to the end of the last epoch, or for a number of steps."""
        for epoch in range(self.queue.epoch, epochs):
            self.queue.set_epoch(epoch)
            for batch in DataLoader(self.queue, batch_size=None):
                inputs, target = batch["ct"].float() / 100, batch["label"][:, 0].long()
                loss = torch.nn.functional.cross_entropy(self.net(inputs), target)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.losses.append(loss.item())
                if len(self.losses) == stop_after:
                    return

    def state(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "queue": self.queue.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.queue.load_state_dict(state["queue"])


def main(folder: Path) -> dict[str, Any]:
    subjects = [made.scan(folder, number) for number in range(3)]
    whole = Training(subjects)
    whole.run(epochs=3)
    print(f"loss {whole.losses[0]:.3f} at first, {np.mean(whole.losses[-8:]):.3f} at last")

    # The same, interrupted in the middle of the second epoch and resumed.
    first = Training(subjects)
    first.run(epochs=3, stop_after=30)
    torch.save(first.state(), folder / "last.pt")
    second = Training(subjects)
    second.load(torch.load(folder / "last.pt", weights_only=False))
    second.run(epochs=3)
    resumed = [*first.losses, *second.losses]
    print(f"largest difference of a loss after resuming: {np.abs(np.subtract(resumed, whole.losses)).max():.2g}")

    unseen = made.scan(folder, 99)
    segmentation = voxpatch.predict(
        torch.nn.Sequential(Scale(), whole.net),
        unseen["ct"],
        folder / "segmentation.zarr",
        patch_size=32,
        overlap=16,
        batch_size=2,
        reduce="argmax",
        pyramid="mode",
    )
    found, truth = segmentation[0] > 0, unseen["label"][0] > 0
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    print(f"{segmentation}: Dice {dice:.3f}")
    return {"losses": whole.losses, "resumed": resumed, "dice": float(dice), "segmentation": segmentation}


class Scale(torch.nn.Module):
    """The scaling of values that training used."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 100


if __name__ == "__main__":
    main(Path(sys.argv[1]))
