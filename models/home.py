"""Where restill keeps what it can fetch or compute again: weights, compiled programs, adapters, runs."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


def home() -> Path:
    """The folder for caches: ``$RESTILL_HOME``, else ``~/.cache/restill``. Created when first asked for."""
    path = Path(os.environ.get("RESTILL_HOME") or Path.home() / ".cache" / "restill").expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _cpu_flags() -> str:
    """The instruction sets of this CPU: code compiled for one set may crash on a machine without it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.partition(":")[2].split()))
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


def enable_compile_cache() -> None:
    """Keep compiled XLA programs under ``home()/xla``, so that the second start is fast.

    Does nothing when the user has set a cache already (``JAX_COMPILATION_CACHE_DIR`` or ``jax.config``).
    The folder is named after the jaxlib version and the CPU's instruction sets, so that one home shared
    by several machines never serves a program built for another.
    """
    import jax
    import jaxlib.version

    configured = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if configured or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    tag = hashlib.sha256(_cpu_flags().encode()).hexdigest()[:8]
    path = home() / "xla" / f"{jaxlib.version.__version__}-{tag}"
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
