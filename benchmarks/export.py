"""An exported model beside the model it was made of: parity on images, speed, memory, size.

    python benchmarks/export.py MODEL/ EXPORT/ IMAGE... [--large]

Each image is examined by both, alternating; times are of the detector alone, after preparation, as ratios. With
``--large``, also how much memory either takes of a phantom of 3328 x 2560 working pixels, each in a process of its own.
"""

from __future__ import annotations
