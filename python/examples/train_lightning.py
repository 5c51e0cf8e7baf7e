"""Training with Lightning: a data module whose state is that of the queue, so that a checkpoint in the middle of an epoch
resumes with the next batch.

    python python/examples/train_lightning.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
import made
import numpy as np
import torch
import voxpatch
from torch.utils.data import DataLoader
from train_and_predict import network, queue


class PatchDataModule(lightning.LightningDataModule):
    """Batches of a queue."""

    def __init__(self, subjects: list[voxpatch.Subject]) -> None:
        super().__init__()
        self.subjects = subjects
        self.state: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        # Here and not before: the queue takes its rank from torch.distributed, which is running now.
        self.queue = queue(self.subjects)
        if self.state is not None:
            self.queue.load_state_dict(self.state)

    def train_dataloader(self) -> DataLoader:
        # Lightning warns that it cannot resume a DataLoader; the state below does it.
        return DataLoader(self.queue, batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        return self.queue.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state
        self.queue.load_state_dict(state)


class Segmentation(lightning.LightningModule):
    """The network and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        target = batch["label"][:, 0].long()
        loss = torch.nn.functional.cross_entropy(self.net(batch["ct"].float() / 100), target)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def fit(folder: Path, subjects: list[voxpatch.Subject], steps: int, checkpoint: Path | None = None) -> tuple[Any, list[float]]:
    """Train to a number of steps, from the start or from a checkpoint."""
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = Segmentation()
    trainer.fit(model, PatchDataModule(subjects), ckpt_path=checkpoint, weights_only=False)
    return trainer, model.losses


def main(folder: Path) -> dict[str, Any]:
    """Train, and again with an interruption."""
    subjects = [made.scan(folder, number) for number in range(3)]
    _, whole = fit(folder, subjects, 60)
    trainer, first = fit(folder, subjects, 30)
    trainer.save_checkpoint(folder / "last.ckpt")
    _, second = fit(folder, subjects, 60, folder / "last.ckpt")
    print(f"loss {whole[0]:.3f} at first, {whole[-1]:.3f} at last")
    print(f"largest difference of a loss after resuming: {np.abs(np.subtract(first + second, whole)).max():.2g}")
    return {"whole": whole, "resumed": first + second}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
