"""The config of a run, to train it further: a converted checkpoint, say, on other images.

python -m taming_jax.train --config=configs/stored.py:runs/mine --workdir=runs/mine --config.data.path=/my/images
"""

from pathlib import Path

from ml_collections import ConfigDict

from taming_jax import completion, values
from taming_jax.errors import UserError


def get_config(workdir: str = "") -> ConfigDict:
    if not workdir:
        raise UserError("config 'stored': a run directory follows, stored:runs/mine")
    values.folder("config", workdir)
    config, _ = completion.load_config(Path(workdir))
    config.run = workdir  # so that it does not begin again without the run's weights
    return config
