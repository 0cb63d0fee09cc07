"""A new run that begins with the weights of another one, a first stage's or a transformer's, on your own images.

    python -m taming_jax.train --config=finetune:runs/f16_16384 --workdir=runs/mine --config.data.path=/my/images
    python -m taming_jax.train --config=finetune:hf://user/name --workdir=runs/mine --config.data.path=/my/images

Models and losses are that run's; `init_from` names it. The learning rate is a third of that run's and falls along a
cosine. A first stage learns all of itself with LPIPS from the start; its discriminator begins anew, learns from a tenth
of the steps on, and is felt from a fifth on, more over another fifth. These fields follow `steps`, unless they are set.

--config.freeze="('encoder', 'codebook')" trains the decoder alone: each image keeps its codes, so that transformers and
data sets of codes stay valid, and a step takes less time. --config.fresh="()" goes on with that run's discriminator.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common
from taming_jax import completion, values
from taming_jax.errors import UserError
from taming_jax.hub import address


def get_config(workdir: str = "") -> ConfigDict:
    if not workdir:
        raise UserError("config 'finetune': a run directory follows, finetune:runs/f16_16384")
    values.run("config", workdir)
    try:
        c, _ = completion.load_config(address.find(workdir))
    except UserError as e:
        raise UserError(f"{e}; a run that has begun with its weights goes on by --config=stored: and that run") from e
    c.init_from = workdir
    c.fresh = c.freeze = ()
    c.mesh = common.get_config().mesh
    c.data.update(name="folder", path="", dir="", splits=dict(train="train", validation="validation"))
    c.steps = 2000
    c.log_every = 50
    c.eval_every = c.checkpoint_every = 500
    steps = c.get_oneway_ref("steps")
    c.optim.update(learning_rate=c.optim.learning_rate / 3, schedule="cosine")
    c.optim.warmup_steps = steps // 20
    if c.task == "vqgan":
        c.fresh = ("disc",) if c.disc.weight else ()
        c.loss.perceptual_start = 0
        c.disc.update(start=steps // 10, gen_start=steps // 5, ramp_steps=steps // 5)
        if c.quantizer.name == "gumbel":  # its schedules have ended
            for schedule in (c.quantizer.temperature, c.quantizer.kl_weight):
                schedule.update(init_value=schedule.end_value, peak_value=schedule.end_value)
    else:
        c.codes = ""  # those are of other images
        for name in completion.stages_of(c):  # the run's own copies, or whatever is named in their place
            with c.unlocked():
                del c[name].config
                if c[name].digest:
                    del c[name].step
                    c[name].step = placeholder(int)
    return c
