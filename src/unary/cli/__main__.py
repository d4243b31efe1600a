"""``python -m unary.cli``, as `torchrun -m` needs it."""

import sys

from unary.cli.main import main

sys.exit(main())
