"""Chooses the device of a run by its configuration."""

import os

import torch

from trainer.config import Config
from trainer.distributed.processes import world_size
from trainer.process.errors import ConfigError
from trainer.process.launch import local_rank, local_world_size


def choose_device(config: Config) -> torch.device:
    """Set up and return ``train.device`` (auto: the best one). ConfigError if it is absent."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = config.train.device
    if name == "auto":
        name = next((kind for kind, there in available.items() if there), "cpu")
    if config.train.threads != "auto":
        torch.set_num_threads(config.train.threads)
    device = torch.device(name)
    if world_size() > 1:
        device = device_of_process(config, device)
    there = available.get(device.type, True)
    if there and device.type == "cuda" and device.index is not None:
        there = device.index < torch.cuda.device_count()
    if not there:
        has = [kind for kind, yes in available.items() if yes] + ["cpu"]
        message = f"{name} is not on this machine, which has {', '.join(has)}; or write auto"
        raise ConfigError([config.fault("train.device", message)])
    if device.type == "cuda":
        # With the same seed, only kernels that add in a fixed order give the same bits.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def check_counts(config: Config) -> None:
    """Raise ConfigError for more threads or worker processes than the machine can hold."""
    cores = os.cpu_count() or 1
    most = max(64, 4 * cores)
    counts = {"train.threads": config.train.threads, "loader.workers": config.loader.workers}
    message = f"is too many for this machine, which has {cores} cores; at most {most}, or auto"
    faults = [
        config.fault(k, f"{n} {message}") for k, n in counts.items() if n != "auto" and n > most
    ]
    if faults:
        raise ConfigError(faults)


def device_of_process(config: Config, device: torch.device) -> torch.device:
    """The device of this rank: a GPU of its own, or the CPU, which all ranks share."""
    if device.type == "cpu":
        return device
    reason = ""
    if device.type != "cuda" or device.index is not None:
        reason = f"{device} can't be shared by several processes; write auto, cuda or cpu"
    elif local_world_size() > torch.cuda.device_count():
        reason = (
            f"{local_world_size()} processes on this machine need a GPU each, and it has "
            f"{torch.cuda.device_count()}; start fewer (torchrun --nproc-per-node), or write cpu"
        )
    if reason:
        raise ConfigError([config.fault("train.device", reason)])
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device
