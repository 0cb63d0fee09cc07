"""What a TPU's compiler says about a program, read right."""

import re

import jax
import jax.numpy as jnp
import pytest

from configs import imagenet_transformer, imagenet_vq
from taming_jax import sharding
from taming_jax.aot import chips, flops, hlo, programs, report
from taming_jax.errors import UserError
from tests.tiny import run, tiny_vq

# A loop of five that reads two slices of 16 KiB, multiplies in on-chip memory and adds up over the chips, then a fusion
# that updates one row of a large array in place.
TEXT = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[64,64], f32[5,64,64])) -> (s32[], f32[64,64], f32[5,64,64]) {
  %p = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)S(1)}, f32[5,64,64]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[64,64]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %w = f32[5,64,64]{2,1,0:T(8,128)} get-tuple-element(%p), index=2
  %slice = f32[64,64]{1,0:T(8,128)S(1)} fusion(%w, %i), kind=kLoop, calls=%sliced
  %dot = f32[64,64]{1,0:T(8,128)S(1)} dot(%x, %slice), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sum = f32[64,64]{1,0:T(8,128)S(1)} all-reduce(%dot), channel_id=7, to_apply=%add
  ROOT %t = (s32[], f32[64,64]{1,0:T(8,128)S(1)}, f32[5,64,64]{2,1,0:T(8,128)}) tuple(%i, %sum, %w)
}

%cond (p: (s32[], f32[64,64], f32[5,64,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %q = (s32[]{:T(128)}, f32[64,64]{1,0}, f32[5,64,64]{2,1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

%inner (e: s32[], f: f32[5,64,64]) -> f32[64,64] {
  %e = s32[]{:T(128)} parameter(0)
  %f = f32[5,64,64]{2,1,0:T(8,128)} parameter(1)
  %g = f32[5,64,64]{2,1,0:T(8,128)} bitcast(%f)
  ROOT %nested = f32[1,64,64]{2,1,0:T(8,128)} dynamic-slice(%g, %e), dynamic_slice_sizes={1,64,64}
}

%sliced (a: f32[5,64,64], b: s32[]) -> f32[64,64] {
  %a = f32[5,64,64]{2,1,0:T(8,128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  %ds = f32[1,64,64]{2,1,0:T(8,128)} dynamic-slice(%a, %b), dynamic_slice_sizes={1,64,64}
  %fused = f32[1,64,64]{2,1,0:T(8,128)} fusion(%b, %a), kind=kLoop, calls=%inner
  ROOT %both = f32[1,64,64]{2,1,0:T(8,128)} add(%ds, %fused)
}

%viewed (h: f32[1000,128]) -> f32[128000] {
  %h = f32[1000,128]{1,0:T(8,128)} parameter(0)
  ROOT %flat = f32[128000]{0:T(1024)} bitcast(%h)
}

%whole (k: f32[1000,128]) -> f32[] {
  %k = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %view = f32[128000]{0:T(1024)} fusion(%k), kind=kLoop, calls=%viewed
  ROOT %norm = f32[]{:T(128)} reduce(%view), to_apply=%add
}

%updated (c: f32[1000,128], d: f32[1,128]) -> f32[1000,128] {
  %c = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %d = f32[1,128]{1,0:T(1,128)} parameter(1)
  ROOT %dus = f32[1000,128]{1,0:T(8,128)} dynamic-update-slice(%c, %d), metadata={}
}

ENTRY %main (s: (s32[], f32[64,64], f32[5,64,64])) -> f32[1000,128] {
  %s = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)S(1)}, f32[5,64,64]{2,1,0:T(8,128)}) parameter(0)
  %table = f32[1000,128]{1,0:T(8,128)} parameter(1)
  %row = f32[1,128]{1,0:T(1,128)} parameter(2)
  %loop = (s32[]{:T(128)}, f32[64,64]{1,0}, f32[5,64,64]{2,1,0}) while(%s), condition=%cond, body=%body
  %all = f32[]{:T(128)} fusion(%table), kind=kInput, calls=%whole
  ROOT %done = f32[1000,128]{1,0:T(8,128)} fusion(%table, %row), kind=kLoop, calls=%updated
}
"""


def test_a_compiled_program_is_read_with_its_loops_slices_and_on_chip_memory():
    module, entry = hlo.parse(TEXT)
    assert entry == "%main"
    assert hlo.matrix_flops(module, entry) == 5 * 2 * 64**3
    padded = 64 * 128 * 4  # of a slice: rows of 64 fill tiles of 128
    # Two slices, one by a fusion within the fusion, and their number; the whole table, and a row of it.
    assert hlo.hbm_bytes(module, entry) == 5 * (2 * padded + 4) + (1000 * 128 + 1) * 4 + 2 * 128 * 4
    assert hlo.collectives(module, entry) == [hlo.Collective("all-reduce", padded, 64 * 64, 5)]


@pytest.mark.parametrize(
    "window",
    [
        "size=6 stride=5 lhs_dilate=6",  # v5e
        "size=6 stride=6 pad=5_5 lhs_dilate=5 rhs_reversal=1",  # v6e
    ],
)
def test_products_over_a_batch_that_are_written_as_convolutions(window):
    text = f"""
ENTRY %main (x: f32[6,16,8], y: f32[6,32,8]) -> f32[6,16,32] {{
  %x = f32[6,16,8]{{2,1,0:T(8,128)}} parameter(0)
  %y = f32[6,32,8]{{2,1,0:T(8,128)}} parameter(1)
  ROOT %z = f32[6,16,32]{{2,1,0:T(8,128)}} convolution(%x, %y), window={{{window}}}, dim_labels=0bf_0oi->0bf
}}
"""
    assert hlo.matrix_flops(*hlo.parse(text)) == 2 * 6 * 16 * 32 * 8


def test_flops_are_those_of_the_definition():
    def f(x, w, image, kernel):
        x, _ = jax.lax.scan(lambda x, _: (x @ w, None), x, length=3)
        y = jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x.sum() + y.sum()

    x, w, image, kernel = jnp.ones((4, 8)), jnp.ones((8, 8)), jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    forward = 3 * 2 * 4 * 8 * 8 + 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    assert flops.count_flops(jax.make_jaxpr(f)(x, w, image, kernel).jaxpr) == forward
    grads = jax.make_jaxpr(jax.grad(jax.checkpoint(f), (0, 1)))(x, w, image, kernel)
    assert flops.count_flops(grads.jaxpr) > 3 * 3 * 2 * 4 * 8 * 8  # forward, again, and both gradients


def test_a_slice_that_does_not_exist_gets_one_line():
    for name in ("v5e-17", "v9:2x2", "v5e:3x5x7"):
        with pytest.raises(UserError, match=rf"topology={name}: no such slice; it is one of .*v5e-16.* v5e:4x4"):
            chips.find_devices(name)


@pytest.mark.parametrize("config", [imagenet_vq, imagenet_transformer])
def test_every_slice_of_a_config_takes_its_batch(config):
    assert set(config.SLICES) <= set(chips.SLICES)
    for name in config.SLICES:
        c = config.get_config(name)
        mesh = sharding.make_mesh(c.mesh, chips.find_devices(name))
        sharding.check_batch(c.batch_size, mesh, c.accumulate)
        base = config.get_config()  # as many images, however large the batch
        assert c.steps * c.batch_size == pytest.approx(base.steps * base.batch_size, rel=1e-3)


def test_what_does_not_fit_says_by_how_much_and_what_helps():
    config = imagenet_transformer.get_config()
    words = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 15.89G of 15.75G hbm. Exceeded hbm capacity"
    )
    line = str(programs.out_of_memory(f"{words} by 150.42M. Total", config, "train"))
    assert "15.89G of 15.75G a chip, by 150.42M" in line
    assert "batch_size than 256" in line and "accumulate=2" in line and "gpt.remat='full'" in line


def test_the_decoder_compiles_for_a_tpu(picture_folder):
    """The real compiler of TPUs, on the smallest of its jobs here."""
    config = tiny_vq(picture_folder)
    mesh = sharding.make_mesh(config.mesh, chips.find_devices("v5e:2x2"))
    lines = "\n".join(report.report(config, mesh, "v5e:2x2", "decode"))
    assert "not needed: none" in lines
    done, own = map(float, re.search(r"does (\S+) TFLOP \(the model's own: (\S+)\)", lines).groups())
    assert 0.5 * done < own <= 1.01 * done


def test_the_command_compiles_quickly():
    small = ["--config.model.ch=32", "--config.model.ch_mult=(1, 1)", "--config.batch_size=4"]
    asked = ["--config=configs/custom_vq.py", "--topology=v5e:2x2", "--program=decode", "--quick"]
    done = run("compile_ahead", *asked, *small)
    assert done.returncode == 0, done.stderr
    assert "batch 4, float32, compiled quickly: " in done.stdout and "not needed: none" in done.stdout
