"""The recipes for training: two ranks share an epoch, and a checkpoint of Lightning resumes with the next batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*words: str | Path, **variables: str) -> str:
    """Run a program, and return what it prints."""
    paths = os.pathsep.join([str(EXAMPLES), *(path for path in sys.path if path)])
    done = subprocess.run(words, env={**os.environ, **variables, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_ranks_share_each_epoch_and_have_the_same_weights(tmp_path: Path) -> None:
    program = f"""
import json, pathlib, train_on_ranks
if __name__ == "__main__":
    found = train_on_ranks.main(pathlib.Path({str(tmp_path)!r}))
    print(json.dumps(found))
"""
    script = tmp_path / "run.py"
    script.write_text(program)
    found = json.loads(run(sys.executable, script).splitlines()[-1])
    ranks = [found[str(rank)] for rank in range(2)]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    seen = [{tuple(patch) for patch in rank["seen"]} for rank in ranks]
    # Three subjects with 32 patches each, in two epochs.
    assert [len(patches) for patches in (ranks[0]["seen"], ranks[1]["seen"])] == [96, 96]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) > 180
    assert np.mean(ranks[0]["losses"][-4:]) < 0.7 * ranks[0]["losses"][0]


def test_a_checkpoint_of_lightning_resumes_with_the_next_batch(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    said = run(sys.executable, EXAMPLES / "train_lightning.py", tmp_path)
    assert float(said.rsplit("after resuming: ", 1)[1].split()[0]) < 1e-5, said


def test_accelerate_runs_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    said = run(*launch, EXAMPLES / "train_accelerate.py", tmp_path, ACCELERATE_USE_CPU="true")
    assert all(f"rank {rank}: 24 batches" in said for rank in range(2)), said
