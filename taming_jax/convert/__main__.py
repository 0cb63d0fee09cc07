"""Checkpoints of the original PyTorch code and of its successors <-> run directories.

    python -m taming_jax.convert --ckpt=model.ckpt --config=model.yaml --workdir=runs/vqgan_imagenet_f16_16384
    python -m taming_jax.convert --ckpt=c2i_L_384.pt --first_stage=vq_ds16_c2i.pt --workdir=runs/llamagen_l
    python -m taming_jax.convert --workdir=runs/vqgan_imagenet_f16_16384 --to-torch=model.ckpt
    python -m taming_jax.convert --workdir=runs/vqgan_imagenet_f16_16384 --to-diffusers=folder
    python -m taming_jax.convert --workdir=runs/openmoji_transformer --to-stablehlo=folder

Takes VQGANs, Gumbel and EMA quantizers, segmentation models and transformers of CompVis' taming-transformers, and the
VQ autoencoders of its latent-diffusion, with their YAML files. Takes without such files, whose sizes the tensors tell:
LlamaGen's tokenizers and class-conditional transformers, RAR's transformers, and MaskGIT's VQGAN. A transformer's first
stages become run directories inside its own. Reads tensors and nothing else. Writing for PyTorch needs the
extra `convert`. StableHLO is for deploying with jax alone: encoding, decoding, and a transformer's next code.
"""

from absl import flags

from taming_jax import cli
from taming_jax.convert.checkpoints import from_checkpoint, to_checkpoint
from taming_jax.convert.diffusers import to_diffusers
from taming_jax.convert.stablehlo import to_stablehlo
from taming_jax.convert.successors import Asked
from taming_jax.errors import ArgumentError, UserError


def main() -> None:
    given = {name: cli.file(name) for name in ("ckpt", "to-torch")} | {
        name: cli.folder(name) for name in ("to-diffusers", "to-stablehlo")
    }
    workdir = cli.required_folder("workdir")
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) != 1:
        raise UserError("give one of --ckpt, --to-torch, --to-diffusers and --to-stablehlo")
    added = {"first_stage": cli.file("first_stage")} | {n: flags.FLAGS[n].value for n in ("size", "num_heads")}
    config = cli.file("config")
    for name, value in added.items():
        if value is not None and (asked != ["ckpt"] or config is not None):
            raise ArgumentError(f"{name}: it goes with --ckpt alone, for a file that comes without a YAML file")
    if asked == ["ckpt"]:
        from_checkpoint(given["ckpt"], config, workdir, Asked(**added))
    elif asked == ["to-torch"]:
        to_checkpoint(workdir, given["to-torch"])
    elif asked == ["to-diffusers"]:
        to_diffusers(workdir, given["to-diffusers"])
    else:
        to_stablehlo(workdir, given["to-stablehlo"])


if __name__ == "__main__":
    cli.group("The run directory, and what becomes of it")
    flags.DEFINE_string("workdir", None, "Run directory: written with --ckpt, read otherwise.")
    flags.DEFINE_string("ckpt", None, "Checkpoint of the original's or latent-diffusion's code, or of a successor's.")
    flags.DEFINE_string("config", None, "The YAML file that came with it; the successors have none.")
    flags.DEFINE_string("first_stage", None, "Without --config, for a transformer: the file of its tokenizer.")
    flags.DEFINE_integer(
        "size",
        None,
        "Without --config: pixels on a side of training images; by default 256 of a tokenizer, and of a transformer"
        " what its file or its name says.",
        lower_bound=1,
        upper_bound=4096,
    )
    flags.DEFINE_integer(
        "num_heads", None, "Without --config: of LlamaGen's transformers in sizes of your own.", lower_bound=1
    )
    flags.DEFINE_string("to-torch", None, "File to write a checkpoint for the original's code into.")
    flags.DEFINE_string("to-diffusers", None, "Folder to write a model for Hugging Face's diffusers into.")
    flags.DEFINE_string("to-stablehlo", None, "Folder to write programs and weights for jax.export into.")
    cli.run(main)
