"""How much memory there is, and how much is taken."""

import re
import sys
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def free_host_bytes() -> int:
    """Memory this process may still take: the machine's, or its control group's if that is less."""
    free = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    limit = CGROUP / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text())
        free.append(int(text) - used + int(stat["inactive_file"]))  # cached files, memory-mapped data too, make room when asked
    return max(0, min(free)) if free else 8 * 2**30


def free_bytes(device: torch.device) -> int:
    """Free memory of the device that a model would be on."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()


def peak_bytes(device: torch.device) -> int:
    """The most this process has held: taken from a CUDA device, resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.exists():  # rusage would count the process that started this one, too
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def human(n: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} TB" if n < 1000 else f"{n:,.0f} TB"
