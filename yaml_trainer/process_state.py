"""What a command sets for its whole process, which a caller in Python keeps as it was."""

import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config import Config

ONE_AT_A_TIME = threading.RLock()  # threads of one process share what is set


@contextmanager
def kept(config: "Config | None" = None) -> Iterator[None]:
    """Context manager: what the body sets for the process is put back; one thread at a time.

    That is torch's number of threads, its generators and its flags of exactness, Python's generator
    and the filters of warnings. config: of a run; inside, its settings hold.
    """
    with ONE_AT_A_TIME, warnings.catch_warnings():
        import torch

        state, drawn = random.getstate(), torch.get_rng_state()
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        cudnn = torch.backends.cudnn
        flags = cudnn.benchmark, cudnn.allow_tf32
        try:
            if config is not None:
                from trainer.build.device import choose_device
                from trainer.build.precision import build_precision

                build_precision(config, choose_device(config))
            yield
        finally:
            random.setstate(state)
            torch.set_rng_state(drawn)
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            cudnn.benchmark, cudnn.allow_tf32 = flags
