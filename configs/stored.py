"""The config of a run, to train it further: a converted checkpoint, say, on other images.

python -m taming_jax.train --config=configs/stored.py:runs/mine --workdir=runs/mine --config.data.path=/my/images
"""

from pathlib import Path

from ml_collections import ConfigDict

from taming_jax import completion


def get_config(workdir: str) -> ConfigDict:
    return completion.load_config(Path(workdir))[0]
