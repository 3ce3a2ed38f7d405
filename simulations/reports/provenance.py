"""Provenance of a result: command, date, commit, versions, machine."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("fedcurv", "flwr", "torch", "torchvision", "numpy", "ray")


def circumstances(command: str) -> list[str]:
    """Return the lines that stand below a table."""
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES if _installed(name))
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA"
    return [
        f"Command: `{command}`  ",
        "Configuration: config.yaml in this folder  ",
        f"Date: {datetime.now(UTC):%Y-%m-%d}{_commit()}  ",
        f"Versions: Python {platform.python_version()}, {versions}  ",
        f"Machine: {processor()}, {os.cpu_count()} cores, {cuda}",
    ]


def _commit() -> str:
    """Return which commit of a checkout this is; nothing for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = next(line for line in lines if line.startswith("model name"))
        return named.partition(":")[2].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _installed(package: str) -> bool:
    try:
        version(package)
    except ModuleNotFoundError:
        return False
    return True
