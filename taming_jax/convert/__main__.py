"""Checkpoints of the original PyTorch code <-> run directories.

    python -m taming_jax.convert --ckpt=model.ckpt --config=model.yaml --workdir=runs/vqgan_imagenet_f16_16384
    python -m taming_jax.convert --workdir=runs/vqgan_imagenet_f16_16384 --to-torch=model.ckpt
    python -m taming_jax.convert --workdir=runs/vqgan_imagenet_f16_16384 --to-diffusers=folder

Takes VQGANs, Gumbel and EMA quantizers, segmentation models and transformers of CompVis' taming-transformers, and the
VQ autoencoders of its latent-diffusion. A transformer's first stages become run directories inside its own. Reads
tensors and nothing else. Writing for PyTorch and diffusers needs the extra `convert`.
"""

from absl import flags

from taming_jax import cli
from taming_jax.convert.checkpoints import from_checkpoint, to_checkpoint
from taming_jax.convert.diffusers import to_diffusers
from taming_jax.errors import UserError


def main() -> None:
    given = {name: cli.file(name) for name in ("ckpt", "to-torch")} | {"to-diffusers": cli.folder("to-diffusers")}
    workdir = cli.required_folder("workdir")
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) != 1:
        raise UserError("give one of --ckpt (with --config), --to-torch and --to-diffusers")
    if asked == ["ckpt"]:
        cli.required("config")
        from_checkpoint(given["ckpt"], cli.file("config"), workdir)
    elif asked == ["to-torch"]:
        to_checkpoint(workdir, given["to-torch"])
    else:
        to_diffusers(workdir, given["to-diffusers"])


if __name__ == "__main__":
    cli.group("The run directory, and what becomes of it")
    flags.DEFINE_string("workdir", None, "Run directory: written with --ckpt, read otherwise.")
    flags.DEFINE_string("ckpt", None, "Checkpoint of the original's or latent-diffusion's code.")
    flags.DEFINE_string("config", None, "The YAML file that came with it.")
    flags.DEFINE_string("to-torch", None, "File to write a checkpoint for the original's code into.")
    flags.DEFINE_string("to-diffusers", None, "Folder to write a model for Hugging Face's diffusers into.")
    cli.run(main)
