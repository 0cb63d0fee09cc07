"""Wavefront transformer that draws 512x512 pixels from a thumbnail of 64x64. The second stage of `make demo-large`.

    python -m taming_jax.train  --config=configs/openmoji_large_transformer.py --workdir=runs/openmoji_large_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_large_transformer --out=runs/large --size=512x512 \\
        --num_conditions=4

It learns on crops of 64 pixels under their own part of the thumbnail, `low`. A drawing is 128 x 128 codes, written in
509 fronts; each code costs one token's work, and sees what is near.

`--data_path=runs/small` enlarges other pictures, such as line art that `openmoji_line_transformer` has coloured
(docs/large.md).
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_base()
    c.first_stage = common.get_first_stage("runs/openmoji_large_vq")
    c.cond = common.get_cond("image")
    c.cond.workdir = "runs/openmoji_large_low_vq"
    c.data.size = 64
    c.data.resize_factor = 8.0
    c.gpt.context.kind = "wavefront"
    c.gpt.architecture = "modern"
    c.update(vector_weight=1.0, vector_init=0.1)
    c.gpt.update(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    c.optim.update(name="muon", learning_rate=3e-3)
    c.batch_size = 8
    c.steps = 1000
    c.eval_every = 1000
    c.sample.update(temperature=0.6, top_p=0.9)
    return c
