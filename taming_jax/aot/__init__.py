"""What a config can reach on a TPU slice, without owning one. The command is `taming_jax.compile_ahead`.

Each module imports only those before it: `chips` has what a chip can do and the devices of a slice, `hlo` reads a
compiled program, `programs` traces and compiles the config's, `flops` counts the model's own arithmetic, and `report`
prints the results.
"""

import os

# Without these, libtpu would look for a TPU and log about it. Set them before anything asks jax for devices.
os.environ |= dict(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    TPU_MIN_LOG_LEVEL="3",
    TPU_STDERR_LOG_LEVEL="3",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)
