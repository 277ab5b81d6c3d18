"""The device that a run would use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding
from molfun.text import megabytes

DRIVER = Path("/proc/driver/nvidia/version")


def check(context: Context) -> Iterator[Finding]:
    """Name the device; warn of a GPU that torch does not see."""
    import torch

    from molfun.models.build import resolve_device

    place = resolve_device(context.device)
    if place.type == "cuda":
        for number in range(torch.cuda.device_count()):
            yield _gpu(number)
        return
    processor = _processor()
    yield Finding(status="OK", topic="device", text=f"{place.type}, {processor}",
                  facts={"device": str(place), "processor": processor})  # fmt: skip
    if DRIVER.is_file() and not torch.cuda.is_available():
        built = torch.version.cuda
        yield Finding(
            status="WARNING",
            topic="device",
            text="an NVIDIA driver is installed, but torch sees no GPU",
            remedy="Update the driver, or look at CUDA_VISIBLE_DEVICES."
            if built
            else "This torch is built for CPUs: install one for CUDA (https://pytorch.org).",
        )


def _gpu(number: int) -> Finding:
    import torch

    about = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    half = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return Finding(
        status="OK",
        topic="device",
        text=f"cuda:{number}, {about.name}, {megabytes(free)} of {megabytes(total)} free, {half}",
        facts={
            "device": f"cuda:{number}",
            "name": about.name,
            "capability": f"{about.major}.{about.minor}",
            "free_bytes": free,
            "total_bytes": total,
        },
    )


def _processor() -> str:
    import platform

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
