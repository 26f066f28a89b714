"""Rows of tools/check_setup.py about the installation: packages, back-end, devices and kernels.

OVFormer and PyTorch are imported only inside functions, so that :func:`check_packages` can report a
missing package.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from ovformer.preflight.setup_table import Row

INSTALL = "pip install -e '.{}' in the repository (INSTALL.md)"
# Bytes of shared memory; with less, the processes that load images may run out of it.
LEAST_SHARED_MEMORY = 1e9


def check_packages() -> Iterator[Row]:
    """Yield rows of Python, of the required packages, and of the extras."""
    try:
        requirements = list(map(Requirement, metadata.requires("ovformer") or []))
        version, python = metadata.version("ovformer"), metadata.metadata("ovformer")
    except metadata.PackageNotFoundError:
        # Without metadata neither the supported Python nor the requirements are known.
        yield Row("ok", "Python", platform.python_version())
        step = INSTALL.format("")
        yield Row("bad", "ovformer", f"not installed, only found on the path. {step}")
        return
    supported = Requirement(f"python{python['Requires-Python'] or ''}").specifier
    is_good = supported.contains(platform.python_version(), prereleases=True)
    yield Row(
        "ok" if is_good else "bad",
        "Python",
        platform.python_version() + ("" if is_good else f": expected {supported}"),
    )
    yield Row("ok", "ovformer", version)
    # Requirements of extras have a marker; those of the package itself have none.
    needed = [r for r in requirements if not r.marker]
    yield _check_package("packages", needed, "bad", INSTALL.format(""))
    for extra in python.get_all("Provides-Extra") or []:
        of_extra = [r for r in requirements if r.marker and r.marker.evaluate({"extra": extra})]
        step = INSTALL.format(f"[{extra}]")
        yield _check_package(f"extra [{extra}]", of_extra, "note", step)


def _check_package(name: str, requirements: list[Requirement], status: str, step: str) -> Row:
    """Return the row of some packages, with ``status`` and next ``step`` if one is missing."""
    found, missing = [], []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(f"{requirement.name} is not installed")
            continue
        found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{found.pop()} does not fit {requirement.specifier}")
    if missing:
        return Row(status, name, f"{'; '.join(missing)}. To install: {step}")
    return Row("ok", name, ", ".join(found))


def check_imports() -> Iterator[Row]:
    """Import PyTorch and OVFormer; yield their versions and the back-end of detectron2's names.

    Raises:
        ImportError: a package can't be imported.
        OSError: a shared library is missing.
        ValueError: $OVFORMER_D2 names no back-end.
    """
    import torch

    import ovformer.d2
    import ovformer.data
    import ovformer.modeling  # noqa: F401
    from ovformer.d2.__main__ import explain_choice

    cuda = torch.version.cuda
    yield Row("ok", "torch", f"{torch.__version__}, {f'CUDA {cuda}' if cuda else 'without CUDA'}")
    yield Row("ok", "detectron2's names", f"from {ovformer.d2.BACKEND}: {explain_choice()}")


def check_devices() -> Iterator[Row]:
    """Yield rows of GPUs, CPU, shared memory, and of the kernels of deformable attention."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
        yield Row("note", "GPU", f"none found{seen}; MODEL.DEVICE cpu runs without")
    for index in range(count):
        device = torch.cuda.get_device_properties(index)
        size = f"{device.total_memory / 1e9:.0f} GB, sm_{device.major}{device.minor}"
        yield Row("ok", f"GPU {index}", f"{device.name}, {size}")
    threads = f"PyTorch computes in {torch.get_num_threads()} thread(s)"
    yield Row("ok", "CPU", f"{platform.machine()}, {os.cpu_count()} core(s); {threads}")
    if Path("/dev/shm").is_dir() and sys.platform == "linux":
        free = shutil.disk_usage("/dev/shm").free
        advice = (
            "; that may be too little for DATALOADER.NUM_WORKERS above 0. In a container: docker "
            "run --shm-size 8g"
        )
        is_good = free >= LEAST_SHARED_MEMORY
        text = f"{free / 1e9:.1f} GB free" + ("" if is_good else advice)
        yield Row("ok" if is_good else "warning", "shared memory", text)
    yield from check_kernels()


def check_kernels() -> Iterator[Row]:
    """Yield which kernel is used on each kind of device, and why the others are not."""
    from ovformer.ops.__main__ import list_devices
    from ovformer.ops.ms_deform_attn import KERNELS, choose_kernel, load_kernel

    for device in list_devices():
        name = f"kernel on {device}"
        try:
            chosen = choose_kernel(device)
        except (RuntimeError, ValueError) as error:
            yield Row("bad", name, str(error))
            continue
        others = []
        for kernel, kind in KERNELS.items():
            if kind in (None, device.type) and kernel != chosen:
                reason = load_kernel(kernel).why_unavailable(device)
                others.append(f"{kernel}: {reason or 'usable'}")
        # A user who names the slow kernel wants it.
        is_slow = chosen == "torch" and os.environ.get("OVFORMER_MSDA", "auto") == "auto"
        text = "; ".join([f"{chosen} (deformable attention)", *others])
        yield Row("warning" if is_slow else "ok", name, text)
