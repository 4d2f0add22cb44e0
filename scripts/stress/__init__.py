"""What scripts/stress/faults.py and scripts/stress/fuzz.py are made of; the test suite runs short versions of the same.

Importing this makes lrft and the helpers of the tests importable when a campaign runs as a script.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "tests", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
