"""Random convolutions under random transformations against float64: see the options.

python -m experiments.fuzz --minutes 10
python -m experiments.fuzz --case 12345
"""

from __future__ import annotations

import os
import sys

# XLA reads its flags once, when the backend starts. Programs run once: to compile fast is all.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=2",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
).strip()

from experiments.checks.fuzz import main

if __name__ == "__main__":
    sys.exit(main())
