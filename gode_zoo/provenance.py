"""What made a result: the commit of the source, the machine, and the versions of what it ran on."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import timm
import torch

from .mixed_precision import computes_bf16

__all__ = ["hardware", "hardware_text", "source_revision", "versions"]


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
    """The device's name and whether it has instructions for bf16; the CPU's name, its cores and the threads torch uses."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    threads = torch.get_num_threads()
    return {"device": name, "bf16": computes_bf16(device), "cpu": cpu, "cores": os.cpu_count(), "threads": threads}


def hardware_text(hardware: dict[str, Any]) -> str:
    """What `hardware` gave, as it stands in a metrics.json, in words."""
    without = "" if hardware.get("bf16", True) else ", without bf16 instructions"  # older runs do not say
    if hardware["device"] != hardware["cpu"]:
        return f"{hardware['device']}{without} (host: {hardware['cpu']})"
    return f"{hardware['cpu']}{without}, threads: {hardware['threads']}, cores: {hardware['cores']}"


def versions() -> dict[str, str | None]:
    """Versions of Python, torch, timm and this package; its own is None where it is not installed."""
    try:
        own = importlib.metadata.version("gode_zoo")
    except importlib.metadata.PackageNotFoundError:
        own = None
    return {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__, "gode_zoo": own}
