"""What made a result: the commit of the source, the machine, and the versions of what it ran on."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import timm
import torch

__all__ = ["hardware", "source_revision", "versions"]


def source_revision() -> dict[str, Any] | None:
    """Commit of the source tree and whether it was changed since; None outside a git checkout."""

    def git(*args: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *args], cwd=here, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware(device: torch.device) -> dict[str, Any]:
    """The device's name, the CPU's, its cores and the threads that torch uses."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"device": name, "cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def versions() -> dict[str, str | None]:
    """Versions of Python, torch, timm and this package; its own is None where it is not installed."""
    try:
        own = importlib.metadata.version("gode_zoo")
    except importlib.metadata.PackageNotFoundError:
        own = None
    return {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__, "gode_zoo": own}
