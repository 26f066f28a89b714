"""Shared by all benchmarks: facts of the machine, times and peak memory, tables."""

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

KERNEL_VARIABLE = "OVFORMER_MSDA"
_STATUS = Path("/proc/self/status")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the facts that figures depend on: processor, cores, threads, GPU, versions."""
    facts = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts["GPU"] = torch.cuda.get_device_name(device)
        facts["CUDA"] = torch.version.cuda
    return facts


def measure(
    ways: Mapping[str, Callable[[], Any]], device: torch.device, repeats: int
) -> dict[str, dict[str, float]]:
    """Run several ways of computing the same in turn, ``repeats`` times.

    Args:
        ways: name -> function to measure. Each ran before, when its result was checked, so that
            compilation and other work that happens once is not measured.
        device: the device that they compute on.
        repeats: number of runs of each; the best time counts, as the least disturbed one.

    Returns:
        For each way ``seconds``, ``processor seconds`` (of all threads), and ``peak MB``: the
        largest growth of memory on the device during a run. It is missing where neither CUDA nor
        Linux can tell it.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            runs[name].append(_run_once(way, device))
    return {
        name: {
            key: (max if key == "peak MB" else min)(figures[key] for figures in done)
            for key in done[0]
        }
        for name, done in runs.items()
    }


def make_rows(
    measured: Mapping[str, Mapping[str, float]], baseline: str, **constants: Any
) -> list[dict[str, Any]]:
    """Return one row per way, with its time relative to that of one of them.

    Args:
        measured: of :func:`measure`.
        baseline: name of the way that others are compared with.
        **constants: more columns, the same in all rows.
    """
    reference = measured[baseline]["seconds"]
    return [
        {
            **constants,
            "way": name,
            "times faster": reference / figures["seconds"],
            "against": baseline,
            **figures,
        }
        for name, figures in measured.items()
    ]


@contextmanager
def force_kernel(name: str) -> Iterator[None]:
    """Force a kernel of the deformable attention; ``python -m ovformer.ops`` lists them."""
    before = os.environ.get(KERNEL_VARIABLE)
    os.environ[KERNEL_VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[KERNEL_VARIABLE]
        if before is not None:
            os.environ[KERNEL_VARIABLE] = before


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as lines of text, under a line of the names of their columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([format_value(row.get(key, "")) for key in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def format_value(value: Any) -> str:
    """Return a figure as text, with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _run_once(way: Callable[[], Any], device: torch.device) -> dict[str, float]:
    gc.collect()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    elif _STATUS.exists():
        ctypes.CDLL(None).malloc_trim(
            0
        )  # or freed memory of the previous run would be reused unseen
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status_bytes("VmRSS")
    start, processor_start = time.perf_counter(), time.process_time()
    result = way()
    if on_gpu:
        torch.cuda.synchronize(device)
    figures = {
        "seconds": time.perf_counter() - start,
        "processor seconds": time.process_time() - processor_start,
    }
    if on_gpu:
        figures["peak MB"] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    elif _STATUS.exists():
        figures["peak MB"] = max(0, _status_bytes("VmHWM") - before) / 1e6
    del result
    return figures


def _status_bytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
