"""Side by side with the original: its own classes in PyTorch and ours, on the same drawings in the same order.

    .venv-parity/bin/python -m benchmarks.quality --workdir=runs/quality    # hours on two CPU cores; needs matplotlib

Both begin with the same weights, carried over by `convert`, and have the same sizes, losses and learning rates; our
own recipe begins with weights of its own. Three seeds each:

paper        the paper's first stage, with the hard switch of the discriminator
stable       our recipe for it, on the same net: a ramp, a bounded λ, restarts of unused codes, averaged weights
transformer  the paper's transformer, unconditional, on the codes of the original's first stage of seed 0

All are evaluated by our evaluator: the original's weights are converted each time. Runs that are done are not made
again. Writes `quality_<part>.png` and says where each stands at the end.

Seconds are steps times the median seconds of a step in a race of a few steps of each, before and with the
discriminator, at the end and one after another: so the long runs need not have the machine alone, only the race.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import torch
import yaml
from absl import flags
from matplotlib import pyplot
from ml_collections import ConfigDict

from configs import common, openmoji_vq
from taming_jax import checkpoint, cli, completion, data, evaluation, sharding
from taming_jax.console import say
from taming_jax.convert.checkpoints import from_checkpoint, to_checkpoint
from taming_jax.convert.tensors import lpips_to_torch
from taming_jax.loop import train
from taming_jax.models.perceptual import load_weights
from taming_jax.quality import evaluators, record
from taming_jax.tasks import make_task
from taming_jax.writer import LOG, Writer, read_records
from tests.parity.conftest import instantiate

PARTS = ["paper", "transformer", "stable"]
RACE = "race"  # the folder of the runs that are timed
SEEDS = (0, 1, 2)
SIDE, BATCH, CODES = 32, 8, 1024
STEPS, DISC_START, EVERY = 300, 150, 75
GPT_BATCH, GPT_STEPS = 16, 300
RATE = 5e-4
SAMPLES = 1000
FIRST_STAGE = {
    "target": "taming.models.vqgan.VQModel",
    "params": {
        "embed_dim": 16,
        "n_embed": CODES,
        "ddconfig": dict(
            double_z=False,
            z_channels=64,
            resolution=SIDE,
            in_channels=3,
            out_ch=3,
            ch=32,
            ch_mult=[1, 1, 2],
            num_res_blocks=1,
            attn_resolutions=[],
            dropout=0.0,
        ),
        "lossconfig": {
            "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
            "params": dict(
                disc_conditional=False,
                disc_in_channels=3,
                disc_start=DISC_START,
                disc_weight=0.8,
                disc_ndf=32,
                disc_num_layers=2,
            ),
        },
    },
}
TRANSFORMER = {
    "target": "taming.models.cond_transformer.Net2NetTransformer",
    "params": {
        "cond_stage_config": "__is_unconditional__",
        "first_stage_config": FIRST_STAGE,
        "transformer_config": {
            "target": "taming.modules.transformer.mingpt.GPT",
            "params": dict(vocab_size=CODES, block_size=(SIDE // 4) ** 2, n_layer=4, n_head=8, n_embd=256),
        },
    },
}
COLOURS = {"original": "tab:red", "ours": "tab:blue", "stable recipe": "tab:green"}


# The original ---------------------------------------------------------------------------------------------------------


def build(config: dict, seed: int) -> torch.nn.Module:
    """The original's model with its own initial weights, and the weights of LPIPS."""
    torch.manual_seed(seed)
    model = instantiate(config)
    model.learning_rate = RATE
    stage = model if hasattr(model, "encoder") else model.first_stage_model
    tensors = lpips_to_torch(load_weights(), "")
    stage.loss.perceptual_loss.load_state_dict({n: torch.from_numpy(v) for n, v in tensors.items()}, strict=False)
    return model


def convert(model: torch.nn.Module, config: dict, step: int, run: Path) -> None:
    """Writes a model as one of our run directories, over what is there."""
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value for name, value in model.state_dict().items() if "perceptual_loss" not in name}
    torch.save({"state_dict": state, "global_step": step}, run.with_suffix(".ckpt"))
    run.with_suffix(".yaml").write_text(yaml.safe_dump({"model": config}))
    from_checkpoint(run.with_suffix(".ckpt"), run.with_suffix(".yaml"), run)
    run.with_suffix(".ckpt").unlink()


def original_first_stage(model: torch.nn.Module) -> Callable[[torch.Tensor, int], None]:
    """Its training step: what Lightning does with two optimizers, one after another on the same batch."""
    (autoencoder, discriminator), _ = model.configure_optimizers()

    def step(images: torch.Tensor, number: int) -> None:
        for i, optimizer in enumerate((autoencoder, discriminator)):
            for parameter in model.loss.discriminator.parameters():
                parameter.requires_grad_(i == 1)
            recon, codebook_loss = model(images)
            loss, _ = model.loss(codebook_loss, images, recon, i, number, last_layer=model.get_last_layer())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def original_transformer(model: torch.nn.Module) -> Callable[[torch.Tensor, int], None]:
    """Its training step."""
    optimizer = model.configure_optimizers()

    def step(images: torch.Tensor, number: int) -> None:
        logits, target = model(images, images)
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.size(-1)), target.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def train_original(model: torch.nn.Module, described: dict, step_of: Callable, config: ConfigDict, run: Path) -> None:
    """Trains the original on what ours is trained on, and evaluates it as ours is; logs as ours does."""
    model.train()
    step, batches = step_of(model), batches_of(config)
    with Writer(run, step=0) as writer:
        seconds = 0.0
        for number in range(1, config.steps + 1):
            images = torch.from_numpy(next(batches)["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1
            began = time.monotonic()
            step(images, number - 1)
            seconds += time.monotonic() - began
            if number % config.log_every == 0:
                writer.scalars(number, "train", dict(seconds=seconds, steps_per_second=config.log_every / seconds))
                say(f"{run}: step {number}/{config.steps}, {config.log_every / seconds:.2f} steps/s")
                seconds = 0.0
            if number % config.eval_every == 0:
                model.eval()
                convert(model, described, number, run / "converted")
                model.train()
                evaluate(run / "converted", config, writer)


def batches_of(config: ConfigDict) -> Iterator[dict]:
    source = data.open_source(config.data, "train")
    return data.train_batches(source, config, 0, data.make_augment(config.data))


def evaluate(run: Path, config: ConfigDict, writer: Writer) -> None:
    """Our evaluation of a run directory, logged elsewhere."""
    stored, _ = completion.load_config(run)
    stored.update(batch_size=config.batch_size, evals=config.evals)
    stored.data = config.data
    mesh, task = sharding.make_mesh(stored.mesh), make_task(stored)
    source = data.open_source(stored.data, "validation")
    with jax.set_mesh(mesh), checkpoint.open_manager(run, read_only=True) as manager:
        state, _ = checkpoint.init_or_restore(manager, task, jax.random.key(0), mesh)
        evaluation.evaluate(task, state, source, stored, mesh, writer, evaluation.make_evaluators(stored, mesh))


# Ours -----------------------------------------------------------------------------------------------------------------


def common_fields(config: ConfigDict, seed: int, steps: int, batch_size: int) -> ConfigDict:
    config.update(seed=seed, steps=steps, batch_size=batch_size, log_every=20, eval_every=EVERY, checkpoint_every=EVERY)
    config.data = openmoji_vq.get_base().data
    config.data.features = ("image",)
    return config


def for_root(config: ConfigDict, root: Path) -> ConfigDict:
    """The config as it is, or in the race's few steps: three windows before the discriminator, and three with it."""
    if root.name == RACE:
        config.steps = config.eval_every = config.checkpoint_every = 6 * config.log_every
        if config.task == "vqgan":
            config.disc.update(start=3 * config.log_every, gen_start=3 * config.log_every)
    return config


def paper_config(run: Path, seed: int) -> ConfigDict:
    """The paper's recipe, as `convert` reads it off the original's file, with the original's optimizers."""
    config = common_fields(completion.load_config(run)[0], seed, STEPS, BATCH)
    config.disc.update(ramp_steps=0, max_weight=1e4, delta=1e-4)
    config.restart_codes_after = 0
    config.optim = common.get_optim(
        learning_rate=RATE, schedule="constant", warmup_steps=0, b1=0.5, b2=0.9, weight_decay=0.0, clip_norm=0.0
    )
    config.evals = ConfigDict(dict(reconstructions=dict(kind="reconstructions", features="efficientnet")))
    return config


def stable_config(run: Path, seed: int) -> ConfigDict:
    """Ours: what the base of `configs/openmoji_vq.py` does otherwise, with Muon, on the same losses."""
    config, own = paper_config(run, seed), openmoji_vq.get_base()
    own.optim.update(name="muon", learning_rate=4e-3)
    config.update(ema_decay=own.ema_decay, restart_codes_after=own.restart_codes_after)
    config.disc.update(gen_start=DISC_START + 25, ramp_steps=75, max_weight=own.disc.max_weight)
    config.quantizer.legacy = own.quantizer.legacy
    config.optim = own.optim
    return config


def transformer_config(run: Path, seed: int) -> ConfigDict:
    config = common_fields(completion.load_config(run)[0], seed, GPT_STEPS, GPT_BATCH)
    config.data.layout = config.cond.layout
    config.optim = common.get_optim(
        learning_rate=RATE, schedule="constant", warmup_steps=0, b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=0.0
    )
    return config


# Both -----------------------------------------------------------------------------------------------------------------


def is_done(run: Path, steps: int) -> bool:
    return any(r["step"] == steps and r.get("split") == "validation" for r in read_records(run / LOG))


def start_of(root: Path, seed: int) -> tuple[torch.nn.Module, Path]:
    """The original's first stage with its initial weights, and the run directory that has the same."""
    model, start = build(FIRST_STAGE, seed), root / "start" / f"vq{seed}"
    if not checkpoint.steps(start):
        convert(model, FIRST_STAGE, 0, start)
    return model, start


def run_paper(root: Path, seed: int) -> None:
    model, start = start_of(root, seed)
    run, config = root / f"ours{seed}", for_root(paper_config(start, seed), root)
    model.loss.discriminator_iter_start = config.disc.start
    if not is_done(run, config.steps):
        if not run.exists():
            shutil.copytree(start, run)
        train(config, run)
    run = root / f"original{seed}"
    if not is_done(run, config.steps):
        shutil.rmtree(run, ignore_errors=True)
        train_original(model, FIRST_STAGE, original_first_stage, config, run)


def run_stable(root: Path, seed: int) -> None:
    run, config = root / f"stable{seed}", for_root(stable_config(start_of(root, seed)[1], seed), root)
    if not is_done(run, config.steps):
        train(config, run)


def run_transformers(root: Path, seed: int) -> None:
    """On the original's first stage of seed 0, in evaluation mode, as it keeps it."""
    first = (root.parent if root.name == RACE else root) / "original0" / "converted"
    checkpoint_file = root / "start" / "first.ckpt"
    if not checkpoint_file.exists():
        to_checkpoint(first, checkpoint_file)
    model, start = build(TRANSFORMER, seed), root / "start" / f"transformer{seed}"
    tensors = torch.load(checkpoint_file, weights_only=True)["state_dict"]
    model.first_stage_model.load_state_dict(tensors, strict=False)
    if not checkpoint.steps(start):
        convert(model, TRANSFORMER, 0, start)
    run = root / f"transformer_ours{seed}"
    config = for_root(transformer_config(start, seed), root)
    if not is_done(run, config.steps):
        if not run.exists():
            shutil.copytree(start, run)
        train(for_root(transformer_config(run, seed), root), run)
    run = root / f"transformer_original{seed}"
    if not is_done(run, config.steps):
        shutil.rmtree(run, ignore_errors=True)
        train_original(model, TRANSFORMER, original_transformer, config, run)
    if root.name == RACE:
        return
    for name, judged in (("ours", root / f"transformer_ours{seed}"), ("original", run / "converted")):
        out = root / f"transformer_{name}{seed}"
        if not record.read(out):
            own, _ = completion.load_config(judged)
            own.data = config.data
            _, found = evaluators.judge_run(
                judged, config=own, store=root / "features", features="efficientnet", num_samples=SAMPLES, top_k=CODES
            )
            record.write(out, "samples", found.numbers, found.protocol)


def seconds_of(run: Path) -> tuple[float, float]:
    """Seconds of a step before the discriminator and with it, from a run of the race."""
    windows = [1 / r["steps_per_second"] for r in read_records(run / LOG) if r.get("split") == "train"]
    return statistics.median(windows[:3]), statistics.median(windows[3:])


def curves(root: Path, prefix: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> (steps [S], seconds [S], a number of each run at them [R,S]). name: 'lpips' or 'reconstructions/rfd_...'."""
    split, _, number = name.rpartition("/")
    rows = []
    for seed in SEEDS:
        records = read_records(root / f"{prefix}{seed}" / LOG)
        rows.append({r["step"]: r[number] for r in records if r.get("split") == (split or "validation")})
    steps, (early, late) = np.array(sorted(rows[0])), seconds_of(root / RACE / f"{prefix}0")
    seconds = np.minimum(steps, DISC_START) * early + np.maximum(steps - DISC_START, 0) * late
    return steps, seconds, np.array([[row[step] for step in steps] for row in rows])


def draw(root: Path, part: str, kinds: dict[str, str], names: list[str]) -> None:
    """Panels of numbers against steps and against seconds, the mean over seeds with a band from least to most."""
    _, axes = pyplot.subplots(2, len(names), figsize=(4 * len(names), 7), squeeze=False)
    for column, name in enumerate(names):
        for kind, prefix in kinds.items():
            steps, seconds, values = curves(root, prefix, name)
            colour = COLOURS[kind]
            for row, x in enumerate((steps, seconds)):
                axes[row, column].plot(x, values.mean(0), label=kind, color=colour)
                axes[row, column].fill_between(x, values.min(0), values.max(0), alpha=0.2, color=colour)
            ends = ", ".join(f"{v:.4g}" for v in values[:, -1])
            say(f"{part}, {kind}: {name} {values[:, -1].mean():.4g} ({ends}) at step {steps[-1]}, {seconds[-1]:.0f} s")
        for row, word in enumerate(("steps", "seconds")):
            axes[row, column].set(xlabel=word, ylabel=name.rpartition("/")[2])
    axes[0, 0].legend()
    pyplot.tight_layout()
    pyplot.savefig(root / f"quality_{part}.png", dpi=90)


def main() -> None:
    root = cli.required_folder("workdir")
    torch.set_num_threads(2)
    numbers = ["l1", "lpips", "code_use", "reconstructions/rfd_efficientnet"]
    kinds = {"original": "original", "ours": "ours", "stable recipe": "stable"}
    runs = {"paper": run_paper, "transformer": run_transformers, "stable": run_stable}
    for part in flags.FLAGS.parts:
        for seed in SEEDS:
            runs[part](root, seed)
    for part in flags.FLAGS.parts:
        runs[part](root / RACE, 0)
        if part == "transformer":
            draw(root, part, {"original": "transformer_original", "ours": "transformer_ours"}, ["nll"])
            for name in ("original", "ours"):
                entries = [record.read(root / f"transformer_{name}{seed}")[-1]["numbers"] for seed in SEEDS]
                for number in entries[0]:
                    say(f"{SAMPLES} samples, {name}: {number} " + ", ".join(f"{e[number]:.4g}" for e in entries))
        else:
            draw(root, part, kinds if part == "stable" else {k: v for k, v in kinds.items() if v != "stable"}, numbers)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the runs, made if needed; runs in it are not made again.")
    flags.DEFINE_multi_enum("parts", PARTS, PARTS, "Which parts, and in which order.")
    cli.run(main)
