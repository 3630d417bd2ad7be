"""`python -m tests.bench`: every benchmark, one after the other."""

from __future__ import annotations

import subprocess
import sys

for module in (
    "tests.bench.controller",
    "tests.bench.lifecycle",
    "tests.bench.large",
    "tests.bench.agent",
    "tests.bench.caps",
    "tests.bench.budgets",
    "tests.bench.trainer",
):
    print(f"== {module}", flush=True)
    subprocess.run([sys.executable, "-m", module], check=True)
