"""The examples run, and do what they say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    yield importlib.import_module
    for name in ("made", "train_and_predict", "monai_network"):
        sys.modules.pop(name, None)


def test_training_learns_resumes_and_predicts(example: Any, tmp_path: Path) -> None:
    done = example("train_and_predict").main(tmp_path)
    losses = done["losses"]
    assert len(losses) == 3 * 24 and np.mean(losses[-8:]) < 0.5 * losses[0]
    np.testing.assert_allclose(done["resumed"], losses, rtol=1e-3)
    assert done["dice"] > 0.8
    assert done["segmentation"].shape == (1, 64, 72, 80) and done["segmentation"].spacing == (2.0, 1.0, 1.0)


def test_monai_s_network_runs_from_disk_to_disk(example: Any, tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="monai is not installed")
    done = example("monai_network").main(tmp_path)
    assert done["gap"] < 1e-4 * done["scale"]
    assert done["labels"].dtype == np.uint8 and set(np.unique(done["labels"][...])) <= {0, 1}
