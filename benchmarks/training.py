"""How long a training step takes, on one device of this machine, with random weights and noise for images.

    python -m benchmarks.training
    python -m benchmarks.training vqgan-demo gpt-12x512
    .venv-parity/bin/python -m benchmarks.training --torch

Prints for each row (or those that the arguments name) the work done per second, the seconds of compiling, and the peak
memory of the process, libraries included. Times are medians over iterations. With `--torch` the original takes part, on
the CPU: both processes stay alive and take turns. The first iteration of a turn does not count: while a process waits,
a virtual machine may give the memory of its last step back to the host, and fetching it again takes seconds, which
no training spends. Other work on the machine slows the original more than its share, since its threads wait for one
another at every operation; a comparison counts only without such work.

A VQGAN iteration has all its losses: L1, LPIPS, codebook, discriminator, adaptive weight. The original's is that of its
trainer: a forward pass of the generator and LPIPS for each of its two optimizers, with the other's weights frozen.
A transformer iteration is that of FacesHQ, with as many coordinates as codes; the first stage that makes the codes is
as small as possible (the original gets random ids instead). There is no dropout, the default of the original's
transformer; only the original's LPIPS drops features while it trains, as it always does. Rows with bf16 compute in
bfloat16, which the original does not support: it runs in float32 there too.
"""

import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.sampling import peak_memory
from configs import common, custom_transformer, imagenet_vq
from taming_jax import cli, sharding
from taming_jax.conditions import make_condition
from taming_jax.first_stage import make_first_stage
from taming_jax.loop import compile_step
from taming_jax.tasks import make_task

TURNS, SECONDS = 5, 5.0  # turns that count, and how long each is at least
Entrant = tuple[Callable[[], None], float]  # runs a training step and waits for it; seconds of compiling


def vqgan_row(size: int, batch_size: int, codebook_size: int, embed_dim: int, **model) -> ConfigDict:
    """The paper's training at other sizes; the discriminator takes part from the first step."""
    c = imagenet_vq.get_config()
    c.data.size, c.batch_size = size, batch_size
    c.model.update(z_channels=embed_dim, **model)
    c.quantizer.update(codebook_size=codebook_size, embed_dim=embed_dim)
    c.disc.update(start=0, gen_start=0)
    return c


def gpt_row(side: int, batch_size: int, **sizes) -> ConfigDict:
    """A transformer over side x side codes after as many coordinates, trained as in the original."""
    first = vqgan_row(side, 1, 1024, 32, ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    c = custom_transformer.get_config()
    c.first_stage.config, c.data = first, first.data
    c.cond = common.get_cond("coordinates")
    c.cond.down = 1
    c.gpt.update(vocab_size=1024, block_size=2 * side**2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, **sizes)
    c.optim.update(schedule="constant", clip_norm=0.0)
    c.batch_size, c.ema_decay = batch_size, 0.0
    return c


ROWS = {
    "vqgan-demo": vqgan_row(64, 8, 512, 64, ch=32, ch_mult=(1, 2, 2, 4), num_res_blocks=1, attn_resolutions=(8,)),
    "vqgan-faceshq": vqgan_row(256, 1, 1024, 256),
    "gpt-6x256": gpt_row(8, 16, num_layers=6, num_heads=8, embed_dim=256),
    "gpt-12x512": gpt_row(16, 2, num_layers=12, num_heads=8, embed_dim=512),
}
ROWS |= {f"{name}-bf16": ConfigDict({**ROWS[name], "dtype": "bfloat16"}) for name in ("gpt-6x256", "gpt-12x512")}


def work(config: ConfigDict) -> tuple[int, str]:
    """The amount and the unit of an iteration's work: images, or tokens of the sequence."""
    if config.task == "vqgan":
        return config.batch_size, "images"
    return config.batch_size * (config.gpt.block_size - 1), "tokens"


def enter_jax(config: ConfigDict) -> Entrant:
    """The training step as `taming_jax.train` compiles it."""
    task, key = make_task(config), jax.random.key(0)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    rng, size = np.random.default_rng(0), config.data.size

    def draw() -> dict:
        images = rng.integers(0, 256, (config.batch_size, size, size, 3), np.uint8)
        coord = rng.random((config.batch_size, size, size), np.float32)
        return sharding.shard_batch({"image": images, "coord": coord}, mesh)

    def load_frozen() -> dict:
        if config.task == "vqgan":
            return task.load_frozen()
        first = make_first_stage(config.first_stage.config).model
        return {"gen": jax.jit(first.init)(key, jnp.zeros((1, size, size, 3)))["params"]}

    with jax.set_mesh(mesh):
        shardings = sharding.infer_shardings(jax.eval_shape(task.init, key), mesh)
        frozen = load_frozen()
        frozen = jax.device_put(frozen, sharding.infer_shardings(frozen, mesh))
        state = jax.jit(task.init, out_shardings=shardings)(key).replace(frozen=frozen)
        began = time.perf_counter()
        step = compile_step(task, key, task.phase(0), state, draw())
        compiling = time.perf_counter() - began

    def iterate() -> None:
        nonlocal state
        state, logged = step(state, draw(), key)
        jax.block_until_ready((state, logged))

    return iterate, compiling


def enter_torch(config: ConfigDict) -> Entrant:
    """The original, on all cores."""
    import torch

    import tests.parity.conftest  # noqa: F401 (stands in for what the original's package asks for)

    torch.set_num_threads(os.cpu_count())
    return (original_vqgan if config.task == "vqgan" else original_gpt)(config), 0.0


def original_vqgan(config: ConfigDict) -> Callable[[], None]:
    """What PyTorch Lightning 1.0, the original's trainer, does with its two optimizers."""
    import torch
    from taming.models.vqgan import VQModel

    quantizer, disc, size = config.quantizer, config.disc, config.data.size
    loss = dict(disc_start=0, disc_weight=disc.weight, disc_ndf=disc.ndf, disc_num_layers=disc.n_layers)
    model = VQModel(
        dict(double_z=False, dropout=0.0, resolution=size, in_channels=3, **config.model.to_dict()),
        dict(target="taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", params=loss),
        quantizer.codebook_size,
        quantizer.embed_dim,
    )
    model.learning_rate, model.global_step = config.optim.learning_rate, 0
    model.log = model.log_dict = lambda *args, **kwargs: None
    optimizers, _ = model.train().configure_optimizers()

    def iterate() -> None:
        batch = {"image": torch.randint(256, (config.batch_size, size, size, 3)) / 127.5 - 1}
        for index, optimizer in enumerate(optimizers):
            model.requires_grad_(False)
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.requires_grad_(True)
            loss = model.training_step(batch, 0, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return iterate


def original_gpt(config: ConfigDict) -> Callable[[], None]:
    """`Net2NetTransformer.training_step` on ids; the loss is on the codes alone, the latter half of a sequence."""
    import torch
    from taming.models.cond_transformer import Net2NetTransformer
    from taming.modules.transformer.mingpt import GPT

    fields, length = config.gpt, make_condition(config).length
    gpt = GPT(fields.vocab_size, fields.block_size, fields.num_layers, fields.num_heads, fields.embed_dim)
    trainer = SimpleNamespace(transformer=gpt, learning_rate=config.optim.learning_rate)
    optimizer = Net2NetTransformer.configure_optimizers(trainer)

    def iterate() -> None:
        ids = torch.randint(fields.vocab_size, (config.batch_size, fields.block_size))
        logits = gpt(ids[:, :-1])[0][:, length - 1 :]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, fields.vocab_size), ids[:, length:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return iterate


def serve(pipe: Connection, enter: Callable[[ConfigDict], Entrant], config: ConfigDict) -> None:
    """Runs in a process: answers each number of seconds with a turn's times per iteration, and None with its memory."""
    iterate, compiling = enter(config)
    pipe.send(compiling)
    while (limit := pipe.recv()) is not None:
        iterate()  # does not count
        took = []
        while len(took) < 2 or sum(took) < limit:
            began = time.perf_counter()
            iterate()
            took.append(time.perf_counter() - began)
        pipe.send(took)
    pipe.send(peak_memory())


def race(name: str, config: ConfigDict, entrants: dict[str, Callable[[ConfigDict], Entrant]]) -> list[str]:
    """The table's lines of a row, one for each entrant."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, compiling, took = {}, {}, {}, {side: [] for side in entrants}
    for side, enter in entrants.items():
        print(f"{name}: {side} sets up", flush=True)
        pipes[side], theirs = context.Pipe()
        processes[side] = context.Process(target=serve, args=(theirs, enter, config), daemon=True)
        processes[side].start()
        theirs.close()  # so that a process that fails ends the wait for it
        compiling[side] = pipes[side].recv()
    for turn in range(1 + TURNS):
        for side, pipe in pipes.items():
            pipe.send(SECONDS)
            seconds = pipe.recv()
            took[side] += seconds if turn else []
            part = f"turn {turn} of {TURNS}" if turn else "warm-up"
            print(f"{name}: {side}, {part}: {median(seconds):.3f} s a step", flush=True)
    (amount, unit), lines = work(config), []
    for side, pipe in pipes.items():
        pipe.send(None)
        memory, seconds = pipe.recv(), median(took[side])
        processes[side].join()
        ratio = f"{median(took['original']) / seconds:.2f}" if "original" in took else ""
        lines.append(
            f"{name:15} {side:10} {seconds:7.3f} {1 / seconds:8.3f} {amount / seconds:9.2f} {unit}"
            f" {compiling[side]:10.0f} {memory:11.2f} {ratio:>11}"
        )
    return lines


def main() -> None:
    names, entrants = sys.argv[1:], {"taming_jax": enter_jax}
    if "--torch" in names:
        names.remove("--torch")
        if not all(map(importlib.util.find_spec, ("torch", "taming"))):
            cli.fail(
                "--torch needs PyTorch and the original: .venv-parity/bin/python -m benchmarks.training --torch"
                " (`make test-parity` makes that interpreter)"
            )
        entrants["original"] = enter_torch
    for name in set(names) - set(ROWS):
        cli.fail(f"{name!r} is no row; there are {', '.join(ROWS)}")
    lines = []
    for name in names or ROWS:
        lines += race(name, ROWS[name], entrants)
    print("row             side        s/step  steps/s       per second  compile s  memory GiB  x original")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
