"""Which epoch comes next, agreed upon by all processes that iterate over one queue.

The worker processes of one round of a torch DataLoader each iterate over a copy of the queue. They
must agree on the epoch, the next round must get the next one, and what ``set_epoch`` says in the
parent must reach workers that live on (``persistent_workers=True``). So the count lies in an
unnamed file that forked and spawned processes share, and that nothing is left of.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

from .errors import VoxpatchError

#: Rounds that are remembered: more than can be under way at once.
_ROUNDS = 16

#: The epoch of a round, and the state from which it resumes.
Claim = tuple[int, Optional[str]]


class Epochs:
    """The count of epochs, and a state that the next one resumes from."""

    def __init__(self, content: dict[str, Any] | None = None, *, descriptor: int | None = None) -> None:
        self._own = (os.getpid(), threading.Lock())
        if descriptor is not None:
            self._descriptor = descriptor
            return
        import tempfile  # and much with it, which only queues need

        with tempfile.TemporaryFile(prefix="voxpatch-") as file:
            self._descriptor = os.dup(file.fileno())
        self._write(content or {"next": 0, "resume": None, "rounds": []})

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    @property
    def next(self) -> int:
        """The epoch of the next round."""
        return int(self._read()["next"])

    @property
    def resume(self) -> str | None:
        """The state that the next round resumes from."""
        state = self._read()["resume"]
        return None if state is None else str(state)

    def set(self, epoch: int) -> None:
        """Choose the epoch of the next round; a state of another one is forgotten."""
        with self._locked() as content:
            if content["resume"] is not None and content["next"] != epoch:
                content["resume"] = None
            content.update(next=epoch, rounds=[])

    def load(self, epoch: int, state: str) -> None:
        """Resume with the next round from a state, which is of this epoch."""
        with self._locked() as content:
            content.update(next=epoch, resume=state, rounds=[])

    def claim(self, round_key: str | None, own: Claim | None = None) -> Claim:
        """Return the epoch and state of a round: the same for all callers with its key, the next one for a caller
        without. A caller that resumes from a state of its own gives it."""
        with self._locked() as content:
            for key, epoch, state in content["rounds"]:
                if key == round_key and round_key is not None:
                    return own or (epoch, state)
            claim = own or (content["next"], content["resume"])
            content.update(next=claim[0] + 1, resume=None)
            if round_key is not None:
                shared = claim if own is None else (claim[0], None)
                content["rounds"] = [*content["rounds"], [round_key, *shared]][-_ROUNDS:]
            return claim

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        if self._own[0] != os.getpid():
            # Another thread may have held the lock when this process was forked.
            self._own = (os.getpid(), threading.Lock())
        # The file's lock keeps other processes out, and ends with the process that holds it.
        with self._own[1]:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
            try:
                content = self._read()
                yield content
                self._write(content)
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _read(self) -> dict[str, Any]:
        text = os.pread(self._descriptor, 1 << 16, 0)
        content = json.loads(text)
        if not isinstance(content, dict):
            raise VoxpatchError(f"the file of epochs holds {text[:100]!r}")
        return content

    def _write(self, content: dict[str, Any]) -> None:
        # One write of one length: a concurrent reader sees the old or the new text.
        text = json.dumps(content).encode().ljust(1 << 13)
        os.pwrite(self._descriptor, text, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing import context, reduction

        if context.get_spawning_popen() is not None:
            return _shared, (reduction.DupFd(self._descriptor),)
        return Epochs, (self._read(),)


def _shared(descriptor: Any) -> Epochs:
    return Epochs(descriptor=descriptor.detach())

