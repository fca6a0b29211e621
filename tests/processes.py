"""Programs that a test runs in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def in_a_new_process(code: str, *arguments: str, **environment: str) -> str:
    """What a Python program prints; it imports the package that is installed, not the folder."""
    result = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
