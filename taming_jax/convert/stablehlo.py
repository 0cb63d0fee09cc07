"""Programs of a run as StableHLO, for those who deploy it with jax alone, or read StableHLO otherwise.

Each is a serialized `jax.export.Exported` for any batch on any of PLATFORMS. Weights are its first argument, from a
file of safetensors beside it: inside of the programs they would be constants, once in each and for each platform.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import export
from ml_collections import ConfigDict

from taming_jax import completion, images, places
from taming_jax.console import bar, say
from taming_jax.convert.files import write_tensors
from taming_jax.errors import UserError
from taming_jax.first_stage import FirstStage, make_first_stage
from taming_jax.second_stage import SecondStage, WaveStage, make_second_stage
from taming_jax.tasks.transformer import load_first_stages

PLATFORMS = ("cpu", "cuda", "tpu")


class Program(NamedTuple):
    """A function to export.

    call: (weights, *inputs). weights: the name of their file. inputs: shapes. told: what it does, for people.
    """

    call: Callable
    weights: str
    inputs: tuple
    told: str


def to_stablehlo(workdir: Path, out: Path) -> None:
    """Writes a first stage's `encode` and `decode`; of a transformer also `begin` and `step`, which give logits."""
    places.check_empty("to-stablehlo", out)
    config, step, params = completion.load_run(workdir)
    if config.task == "vqgan":
        stage, nets = make_first_stage(config), {"first_stage": params}
        programs, described = of_first_stage(stage), describe_first_stage(stage)
    else:
        second = make_second_stage(config)
        if isinstance(second, WaveStage) or second.masks:
            kind = config.gpt.context.kind
            raise UserError(
                f"{workdir} has a {kind} transformer, which writes many codes at once and has no step of one code; its"
                f" tokenizer can be exported, --workdir={Path(config.first_stage.workdir)}"
            )
        nets = {
            "first_stage": load_first_stages(config, second)["gen"],
            "transformer": jax.device_get(jax.jit(second.decode_params)(params)),
        }
        programs = of_first_stage(dataclasses.replace(second.first, used=())) | of_transformer(second)
        described = describe_first_stage(second.first) | describe_transformer(second, config)
    flat = {name: traverse_util.flatten_dict(tree, sep="/") for name, tree in nets.items()}
    with places.claimed(out):
        places.check_empty("to-stablehlo", out)
        for name in bar(programs, "exporting", unit="program"):
            program = programs[name]
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), flat[program.weights])
            content = export.export(jax.jit(program.call), platforms=PLATFORMS)(like, *program.inputs).serialize()
            images.write_whole(out / f"{name}.stablehlo", lambda part, content=content: part.write_bytes(content))
        for name, tree in flat.items():
            write_tensors("to-stablehlo", out / f"{name}.safetensors", tree)
        described |= {"step": step, "platforms": PLATFORMS, "jax": jax.__version__}
        images.write_whole(out / "model.json", lambda part: part.write_text(json.dumps(described, indent=1) + "\n"))
        text = write_readme(programs, config.task)
        images.write_whole(out / "README.md", lambda part: part.write_text(text))
    say(f"{', '.join(programs)} of step {step}, for {', '.join(PLATFORMS)}: {out}")


def nested(weights: dict[str, jax.Array]) -> dict:
    """The tree of parameters of weights by their paths."""
    return traverse_util.unflatten_dict(weights, sep="/")


def of_first_stage(stage: FirstStage) -> dict[str, Program]:
    """Pictures as large as in training to ids of the whole codebook, and back."""
    (b,) = export.symbolic_shape("b")
    pixels = jax.ShapeDtypeStruct((b, stage.size, stage.size, stage.model.out_ch), jnp.float32)
    ids = jax.ShapeDtypeStruct((b, stage.side, stage.side), jnp.int32)

    def encode(weights: dict, seen: jax.Array) -> jax.Array:
        return stage.model.apply({"params": nested(weights)}, seen, method="encode")[1]["ids"]

    def decode(weights: dict, ids: jax.Array) -> jax.Array:
        return stage.decode(nested(weights), ids)

    of = "one-hot maps" if stage.input == "segmentation" else "pictures in [-1, 1]"
    seen, grid = "x".join(map(str, pixels.shape[1:])), f"{stage.side}x{stage.side}"
    known = f"ids of the whole codebook, int32 [b,{grid}]"
    return {
        "encode": Program(encode, "first_stage", (pixels,), f"{of} float32 [b,{seen}] -> {known}"),
        "decode": Program(decode, "first_stage", (ids,), f"{known} -> pictures float32, about [-1, 1]"),
    }


def of_transformer(stage: SecondStage) -> dict[str, Program]:
    """The logits of the first code after a condition, and of each code after the one before it."""
    (b,) = export.symbolic_shape("b")
    decode, init_cache = stage.make_decode(guided=False)
    condition, ids = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((b, stage.cond.length), (b,)))
    cache = jax.eval_shape(lambda ids: init_cache(ids.shape[0]), ids)

    def begin(weights: dict, condition: jax.Array) -> tuple:
        logits, filled = decode(nested(weights), condition, 0, init_cache(condition.shape[0]))
        return logits[:, -1], filled

    def step(weights: dict, ids: jax.Array, number: jax.Array, cache: tuple) -> tuple:
        logits, filled = decode(nested(weights), ids[:, None], stage.cond.length - 1 + number, cache)
        return logits[:, -1], filled

    length, codes = stage.cond.length, stage.first.num_ids
    number = jax.ShapeDtypeStruct((), jnp.int32)
    told = f"condition int32 [b,{length}] -> (logits float32 [b,{codes}] of the first code, cache)"
    known = "codes, places in `used` of `model.json`," if stage.first.used else "codes"
    then = f"{known} int32 [b], how many there are by now int32 [], cache -> (logits [b,{codes}] of the next, cache)"
    return {
        "begin": Program(begin, "transformer", (condition,), told),
        "step": Program(step, "transformer", (ids, number, cache), then),
    }


def describe_first_stage(stage: FirstStage) -> dict:
    """What `model.json` says of a first stage."""
    return {"size": stage.size, "codes": [stage.side] * 2, "codebook_size": stage.codebook_size, "used": stage.used}


def describe_transformer(stage: SecondStage, config: ConfigDict) -> dict:
    """What `model.json` says of a transformer."""
    return {
        "condition": config.cond.name,
        "condition_length": stage.cond.length,
        "no_condition": stage.null if stage.drop else None,
        "class_names": tuple(config.data.class_names),
        "order": stage.order.tolist(),
        "sample": config.sample.to_dict(),
    }


LOAD = """```python
import jax, numpy as np
from jax import export
from safetensors.numpy import load_file

load = lambda name: jax.jit(export.deserialize(open(f"{name}.stablehlo", "rb").read()).call)
weights = load_file("first_stage.safetensors")
codes = load("encode")(weights, np.zeros((1, SIZE, SIZE, CHANNELS), np.float32))
pictures = load("decode")(weights, codes)
```
"""
LOOP = """
`model.json` holds `order`, the cells of the grid, row by row, in the order in which codes are written, and
`no_condition`, the id in place of a condition for guidance. Where it names ids in `used`, the transformer writes places
in that list, and maybe one more, for all other ids. A loop that always takes the likeliest code:

```python
import json

transformer, begin, step = load_file("transformer.safetensors"), load("begin"), load("step")
model = json.load(open("model.json"))
order, used = np.array(model["order"]), np.array(model["used"])
logits, cache = begin(transformer, np.zeros((1, LENGTH), np.int32))  # the condition's ids
drawn = [logits.argmax(-1).astype(np.int32)]
for number in range(1, len(order)):
    logits, cache = step(transformer, drawn[-1], np.int32(number), cache)
    drawn.append(logits.argmax(-1).astype(np.int32))
codes = np.stack(drawn, 1)[:, np.argsort(order)].reshape(-1, SIDE, SIDE)
if len(used):
    codes = used[np.where(codes < len(used), codes, 0)].astype(np.int32)
pictures = load("decode")(weights, codes)
```
"""


def write_readme(programs: dict[str, Program], task: str) -> str:
    """The text of `README.md`: what each program takes and gives, and how it is run."""
    rows = "\n".join(f"| `{name}` | `{p.weights}.safetensors` | {p.told} |" for name, p in programs.items())
    _, side, _, channels = programs["encode"].inputs[0].shape
    text = LOAD.replace("SIZE", str(side)).replace("CHANNELS", str(channels))
    if task == "transformer":
        text += LOOP.replace("LENGTH", str(programs["begin"].inputs[0].shape[1]))
        text = text.replace("SIDE", str(programs["decode"].inputs[0].shape[1]))
    return (
        f"# StableHLO by `jax.export`\n\nFor {', '.join(PLATFORMS)} and any batch size b; made by jax {jax.__version__}"
        ", which promises that later releases read it for six months. Needs jax and safetensors, not taming_jax.\n\n"
        f"| program | its weights | |\n|---|---|---|\n{rows}\n\n{text}"
    )
