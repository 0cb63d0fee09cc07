"""First stages for Hugging Face's diffusers."""

import json
import re
from pathlib import Path

from ml_collections import ConfigDict

from taming_jax import completion, images, places
from taming_jax.console import say
from taming_jax.convert.files import write_tensors
from taming_jax.convert.names import ENDS, Rules, inside_out
from taming_jax.convert.tensors import to_torch
from taming_jax.errors import UserError


def diffusers_rules(levels: int) -> Rules:
    """For the generator as `diffusers.VQModel` names it."""
    return (
        *inside_out(levels, "up_blocks"),
        (r"^encoder/down_(\d+)_", r"encoder/down_blocks/\1/"),
        (r"(_blocks/\d+/)block_(\d+)", r"\1resnets/\2"),
        (r"(_blocks/\d+/)attn_(\d+)", r"\1attentions/\2"),
        (r"^(encoder/down_blocks/\d+)/conv/", r"\1/downsamplers/0/conv/"),
        (r"^(decoder/up_blocks/\d+)/conv/", r"\1/upsamplers/0/conv/"),
        (r"/mid_block_1/", r"/mid_block/resnets/0/"),
        (r"/mid_block_2/", r"/mid_block/resnets/1/"),
        (r"/mid_attn_1/", r"/mid_block/attentions/0/"),
        (r"nin_shortcut", r"conv_shortcut"),
        (r"(attentions/\d+)/norm/", r"\1/group_norm/"),
        (r"(attentions/\d+)/([qkv])/", r"\1/to_\2/"),
        (r"(attentions/\d+)/proj_out/", r"\1/to_out/0/"),
        (r"^(encoder|decoder)/norm_out/", r"\1/conv_norm_out/"),
        *ENDS,
    )


def to_diffusers(workdir: Path, out: Path) -> None:
    """Writes a first stage as a directory for `diffusers.VQModel.from_pretrained`."""
    places.check_empty("to-diffusers", out)
    config, step, params = completion.load_run(workdir)
    known = config.task == "vqgan" and config.quantizer.name in ("vq", "ema")
    if not known or (config.model.network, config.model.patch) != ("vqgan", 1):
        raise UserError(
            f"{workdir}: diffusers has a VQModel with a nearest-code quantizer, and neither transformers nor Gumbel"
            " or other quantizers, nor other networks than model.network='vqgan' with model.patch=1"
        )
    tensors = to_torch(params, diffusers_rules(len(config.model.ch_mult)), "")
    for name, value in tensors.items():
        if re.search(r"attentions\.\d+\.to_.*weight$", name):
            tensors[name] = value[:, :, 0, 0]  # a linear layer there
    with places.claimed(out):
        places.check_empty("to-diffusers", out)
        weights, described = out / "diffusion_pytorch_model.safetensors", json.dumps(describe(config), indent=2)
        write_tensors("to-diffusers", weights, tensors, {"format": "pt"})
        images.write_whole(out / "config.json", lambda part: part.write_text(described))
    say(f"{len(tensors)} tensors of step {step}: {out}")


def describe(config: ConfigDict) -> dict:
    """The `config.json` of a first stage."""
    model = config.model
    attends = [(config.data.size >> level) in model.attn_resolutions for level in range(len(model.ch_mult))]
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [model.ch * mult for mult in model.ch_mult],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "in_channels": model.out_ch,
        "out_channels": model.out_ch,
        "latent_channels": model.z_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_num_groups": 32,
        "num_vq_embeddings": config.quantizer.codebook_size,
        "vq_embed_dim": config.quantizer.embed_dim,
        "sample_size": config.data.size,
    }
