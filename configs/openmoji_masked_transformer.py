"""Transformer that writes many codes in a pass, on the codes of openmoji_vq: masked decoding (MaskGIT).

    python -m taming_jax.train --config=configs/openmoji_masked_transformer.py \\
        --workdir=runs/openmoji_masked_transformer
"""

from ml_collections import ConfigDict

from configs import openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_base()
    c.gpt.context.kind = "masked"
    c.optim.update(name="muon", learning_rate=3e-3)
    c.update(steps=1000, eval_every=500)
    c.sample.top_p = 1.0  # the surest codes stay anyway
    return c
