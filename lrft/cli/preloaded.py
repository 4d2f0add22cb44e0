"""What a run needs, imported once for all runs of a comparison: see `lrft.compare.warm`."""

from __future__ import annotations

import gc

from lrft.model.load import import_transformers, importing

with importing():
    import lrft.cli.main
    import lrft.compare.forgetting
    import lrft.training.run
    import lrft.verification.merge  # noqa: F401
import_transformers()
gc.freeze()  # shared with every fork for as long as nobody writes to it
