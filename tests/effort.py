"""How hard XLA's code generator tries: as little as it can where a program runs once."""

from __future__ import annotations

from importlib import metadata

# What a test takes is the compilation of small programs. The passes on operations, and so the
# values but for rounding, stay as they are; the code generator spares its effort.
QUICK: dict[str, int | bool] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
USUAL: dict[str, int | bool] = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
# Later versions know no other way, nor the option: they would end the process.
if metadata.version("jaxlib").startswith("0.10."):
    QUICK["xla_cpu_use_fusion_emitters"] = False
    USUAL["xla_cpu_use_fusion_emitters"] = True


def flags() -> list[str]:
    """The options of ``QUICK`` as XLA reads them from the environment."""
    return [f"--{name}={str(value).lower()}" for name, value in QUICK.items()]
