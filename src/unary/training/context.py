"""What a detector's learning needs beside its own configuration: the seed, where its state is kept, what is shown."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from unary.training.tracking import Tracker


@dataclass(frozen=True)
class FitContext:
    """The seed of initial weights and of all draws; where state is kept; whether bars are shown, and what heads them.

    ``checkpoint`` begins the names of files that keep the state of training; None keeps nothing. An interrupted
    learning goes on from them, and what was trained before on the same patches with the same settings is not trained
    again. Losses go to the ``tracker``, if there is one.
    """

    seed: int = 0
    checkpoint: Path | None = None
    progress: bool = True
    title: str = "training"
    tracker: Tracker | None = None

    def name_bar(self, what: str) -> str | None:
        """Return the title of a bar, or None where none is to be shown."""
        return what if self.progress else None

    def find_checkpoint(self, name: str, fingerprint: str) -> Path | None:
        """Return the file of one network: another for another fingerprint, text of all that the weights depend on."""
        if self.checkpoint is None:
            return None
        digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
        return self.checkpoint.with_name(f"{self.checkpoint.name}.{name}-{digest}")
