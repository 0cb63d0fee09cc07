"""The model card of a published run: what it is, how it is used, its pictures, its numbers and where they come from."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from taming_jax.data.walk import listed
from taming_jax.errors import printable
from taming_jax.first_stage import make_first_stage
from taming_jax.quality import record
from taming_jax.writer import LOG, key_of, read_records

# Licences of the data that come with the package, by how their names begin, with what they ask to be said.
LICENCES = {
    "openmoji": (
        "cc-by-sa-4.0",
        "All emojis designed by [OpenMoji](https://openmoji.org), the open-source emoji and icon project. License:"
        " CC BY-SA 4.0.",
    )
}


class Told(NamedTuple):
    """The numbers of a run at one step.

    validation: of its last evaluation, {} without one. judged: entries of `evaluation.json`, without paths.
    """

    validation: dict[str, float]
    judged: list[dict]


def read_numbers(workdir: Path, step: int) -> Told:
    """What a run directory says of the weights of a step."""
    logged = [r for r in read_records(workdir / LOG) if key_of(r) == (step, "validation")]
    last = {n: x for n, x in (logged[-1] if logged else {}).items() if n != "step" and isinstance(x, (int, float))}
    judged = [entry for entry in record.read(workdir) if record.step_of(entry) == step]
    return Told(last, [without_folders(entry) for entry in judged])


def without_folders(tree: Any) -> Any:
    """JSON in which absolute paths are their last names."""
    if isinstance(tree, dict):
        return {name: without_folders(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [without_folders(value) for value in tree]
    return Path(tree).name if isinstance(tree, str) and tree.startswith(("/", "~", "..")) else tree


def write(name: str, address: str, config: ConfigDict, step: int, told: Told, pictures: list[str], **asked: Any) -> str:
    """The text of `README.md`.

    name: of the model. address: by which it is loaded. config: complete. pictures: files beside the card. asked:
    'license', the user's or None; 'dtype' of the weights; 'size', how many there are; 'began' with which run's weights.
    """
    from huggingface_hub import EvalResult, ModelCardData

    licence, owed = next((x for n, x in LICENCES.items() if config.data.name.startswith(n)), (None, ""))
    first = config.task == "vqgan"
    task = "image-to-image" if first else None  # the hub has none for classes
    if not first and config.cond.name == "none":
        task = "unconditional-image-generation"
    data = printable(config.data.name if config.data.name != "folder" else "a folder of images")
    numbers = [("validation", n, x, "the whole validation split") for n, x in told.validation.items()]
    numbers += [(e["name"], n, x, whence(e["protocol"])) for e in told.judged for n, x in e["numbers"].items()]
    finite = [row for row in numbers if isinstance(row[2], (int, float)) and math.isfinite(row[2])]
    head = ModelCardData(
        license=asked["license"] or licence,
        library_name="taming_jax",
        tags=["jax", "vqgan", "image-tokenizer" if first else "autoregressive"],
        pipeline_tag=task,
        model_name=name,
        eval_results=[
            EvalResult(task or "image-generation", data.replace(" ", "-"), data, n, x, metric_name=f"{kind} {n}")
            for kind, n, x, _ in finite
        ]
        or None,
    )
    parts = [f"---\n{head.to_yaml()}\n---", f"# {name}", what(config, step, data, **asked)]
    parts += [f"![{Path(picture).stem}]({picture})" for picture in pictures]
    parts += ["## Use", use(address, config)]
    if finite:
        rows = "\n".join(
            f"| {cell(f'{kind} {n}')} | {x:.4g} | {cell(how)}, step {step} |" for kind, n, x, how in finite
        )
        parts += ["## Numbers", f"| number | value | how it was measured |\n|---|---|---|\n{rows}"]
    if finite and asked["dtype"] != "float32":
        parts += [f"They were measured before the weights were rounded to {asked['dtype']}."]
    if told.judged:
        parts += [f"`{record.FILE}` has the whole protocol of each number that a network has judged."]
    parts += ["## Data and licence", "\n".join(terms(config, data, owed, asked["license"] or licence))]
    parts += [
        "## Files",
        "`model.safetensors` holds the weights, `config.json` all that determines the model, and a checksum of every"
        " array, with which they are compared when they are read. Nothing is unpickled. Optimizers and a discriminator"
        " are not here: fine-tuning begins with fresh ones.",
    ]
    return "\n\n".join(parts) + "\n"


def what(config: ConfigDict, step: int, data: str, **asked: Any) -> str:
    """What the model is."""
    stage = make_first_stage(config if config.task == "vqgan" else config.first_stage.config)
    side, codes = config.data.size // stage.patch, stage.codebook_size
    grid = f"{side}x{side} codes of {codes}, for images of {config.data.size}x{config.data.size} pixels"
    if config.task == "vqgan":
        kind = f"A VQGAN, quantizer `{config.quantizer.name}`: {grid}."
    else:
        gpt = config.gpt
        kind = (
            f"A transformer ({gpt.num_layers} layers, {gpt.num_heads} heads, {gpt.embed_dim} dimensions, context"
            f" `{gpt.context.kind}`) that writes {grid}; condition: `{config.cond.name}`. Its tokenizer is in"
            " `first_stage/`."
        )
        if config.data.class_names and config.cond.name == "class":
            kind += f" Classes: {printable(listed(tuple(config.data.class_names), 20))}."
    began = f" It began with the weights of {printable(asked['began'])}." if asked["began"] else ""
    return (
        f"{kind}\n\n{asked['size'] / 1e6:.2f} M parameters in {asked['dtype']}, step {step}, trained on {data} with"
        f" taming_jax, after [Esser, Rombach and Ommer 2021](https://arxiv.org/abs/2012.09841).{began}"
    )


def use(address: str, config: ConfigDict) -> str:
    """How it is loaded."""
    if config.task == "vqgan":
        lines = [f'tokenizer = taming_jax.Tokenizer.load("{address}")', 'ids = tokenizer.encode(["picture.png"])']
        lines += ["images = tokenizer.decode(ids)  # uint8 [1,H,W,3]"]
    else:
        lines = [f'generator = taming_jax.Generator.load("{address}")']
        lines += ["images = generator.sample(4)  # uint8 [N,H,W,3]"]
    python = "\n".join(["import taming_jax", "", *lines])
    shell = [f"taming hub pull --from={address} --workdir=runs/pulled"]
    shell += [f"taming train --config=finetune:{address} --workdir=runs/mine --config.data.path=/my/images"]
    return f"```python\n{python}\n```\n\n```\n{chr(10).join(shell)}\n```"


def cell(text: str) -> str:
    """A text in a table."""
    return printable(text).replace("|", "/")


def whence(protocol: dict) -> str:
    """How numbers were measured, in a few words."""
    words = []
    for part in ("samples", "reference"):
        found = protocol.get(part)
        if isinstance(found, dict):
            words.append(f"{part}: {' '.join(str(found[k]) for k in ('count', 'kind', 'split') if k in found)}")
    network = protocol.get("network")
    words += [f"network {network.get('name')}"] if isinstance(network, dict) else []
    return "; ".join(words) or "by its protocol"


def terms(config: ConfigDict, data: str, owed: str, licence: str | None) -> list[str]:
    """What it was trained on, and its licence."""
    size = f"{config.data.size} pixels, validation share {config.data.validation_share:g}"
    told = f"Licence: {licence}." if licence else "Whoever published it has stated no licence."
    return [f"Trained on {data} ({size}). {told}", *([owed] if owed else [])]
