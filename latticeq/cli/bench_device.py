"""What ``latticeq bench DIR --device gpu`` says of the device, and of how far a model comes on it.

Decoding reads every weight for each token, so its speed is shown beside the bandwidth of device
memory, measured in the same run by a large copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latticeq.cli.console import say
from latticeq.cli.tables import megabytes
from latticeq.gpu.device import copy_bandwidth, cupy, describe

__all__ = ["beside_bandwidth", "device_result"]


def device_result(devices: Sequence[int]) -> dict[str, Any]:
    """Return the keys of ``--json`` that name the devices and count the memory taken there.

    Parameters
    ----------
    devices : sequence of int
        Of the model's parts; one may be named twice.
    """
    cp = cupy()
    used, names = 0, []
    for index in sorted(set(devices)):
        names.append(describe(index).name)
        with cp.cuda.Device(index):
            used += int(cp.get_default_memory_pool().total_bytes())
    device = describe(devices[0])
    return {
        "device": " + ".join(names),
        "devices": list(devices),
        "device_memory_mib": used / 2**20,
        "driver": device.driver,
        "cuda": device.cuda,
        "cupy": cp.__version__,
    }


def beside_bandwidth(result: dict[str, Any], devices: Sequence[int]) -> dict[str, Any]:
    """Measure the first device's bandwidth, and say what part of it decoding reaches.

    Parameters
    ----------
    result : dict
        The figures of ``latticeq bench``.
    devices : sequence of int

    Returns
    -------
    dict
        More keys of ``--json``.
    """
    bandwidth = copy_bandwidth(devices[0])
    read = result["bytes_per_token"]
    fraction = read * result["decode_tokens_per_s"] / bandwidth
    say(
        f"limit: a large copy moves {bandwidth / 1e9:.0f} GB/s, read and written; decoding reads "
        f"{megabytes(read)} of weights a token: {fraction:.0%} of that. "
        f"{result['device_memory_mib']:.0f} MiB of device memory were taken, with what is kept "
        "for reuse"
    )
    return {"copy_bandwidth_gb_s": bandwidth / 1e9, "bandwidth_fraction": fraction}
