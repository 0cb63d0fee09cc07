"""The config of a run, to train it further: a converted checkpoint, say, on other pictures.

python -m taming_jax.train --config=configs/stored.py:runs/mine --workdir=runs/mine --config.data.path=/my/images
"""

from pathlib import Path

from ml_collections import ConfigDict

from taming_jax import checkpoint


def get_config(workdir: str) -> ConfigDict:
    config = checkpoint.load_config(Path(workdir))[0]
    config.accumulate = config.get("accumulate", 1)  # of runs that are older than the field
    if config.task == "vqgan":
        config.model.remat = config.model.get("remat", False)
    return config
