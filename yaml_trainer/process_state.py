"""What a command sets for its whole process, which a caller in Python keeps as it was."""

import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from trainer.process.start import spin_briefly

if TYPE_CHECKING:
    from trainer.config import Config

ONE_AT_A_TIME = threading.RLock()  # threads of one process share what is set


@contextmanager
def kept(config: "Config | None" = None) -> Iterator[None]:
    """Context manager: what the body sets for the process is put back; one thread at a time.

    That is torch's number of threads, its generators and its flags of exactness, Python's generator
    and the filters of warnings. Inside, a caller's default dtype and device, autocast and precision
    of matrix products have no effect. config: of a run; inside, its device's settings hold.
    """
    with ONE_AT_A_TIME:
        if "torch" not in sys.modules:
            _import_torch()
        import torch

        has_drawn = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        devices = list(range(torch.cuda.device_count())) if has_drawn else []
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"),
        ):
            state, dtype = random.getstate(), torch.get_default_dtype()
            threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
            deterministic = torch.are_deterministic_algorithms_enabled()
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            cudnn = torch.backends.cudnn
            flags = cudnn.benchmark, cudnn.allow_tf32
            try:
                torch.set_default_dtype(torch.float32)
                torch.set_float32_matmul_precision("highest")
                if config is not None:
                    from trainer.build.device import choose_device
                    from trainer.build.precision import build_precision

                    build_precision(config, choose_device(config))
                yield
            finally:
                random.setstate(state)
                torch.set_default_dtype(dtype)
                torch.set_num_threads(threads)
                torch.set_float32_matmul_precision(precision)
                torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
                cudnn.benchmark, cudnn.allow_tf32 = flags


def _import_torch() -> None:
    """Import torch with threads that wait as in a command; the environment stays as it was."""
    before = os.environ.get("GOMP_SPINCOUNT")
    spin_briefly()
    import torch  # noqa: F401

    if before is None:
        os.environ.pop("GOMP_SPINCOUNT", None)
