"""What a detector's learning needs beside its own configuration: the seed, where its state is kept, what is shown."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FitContext:
    """How one learning runs.

    Attributes
    ----------
    seed
        Of initial weights and of all draws.
    checkpoint
        The beginning of the names of files that keep the state of training; None keeps nothing. An interrupted
        learning goes on from them, and what was trained before on the same patches with the same settings is not
        trained again.
    progress
        Whether to show progress bars.
    title
        What the bars are headed with.
    """

    seed: int = 0
    checkpoint: Path | None = None
    progress: bool = True
    title: str = "training"

    def find_checkpoint(self, name: str, fingerprint: str) -> Path | None:
        """Return the file of one network: another one for other settings or other data.

        Parameters
        ----------
        name
            What is trained, fit for a file name.
        fingerprint
            Text on which the weights depend: settings, and a hash of the data.
        """
        if self.checkpoint is None:
            return None
        digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
        return self.checkpoint.with_name(f"{self.checkpoint.name}.{name}-{digest}")

    def for_part(self, name: str) -> FitContext:
        """Return the same with a part's name in the title."""
        return dataclasses.replace(self, title=f"{self.title} {name}")
