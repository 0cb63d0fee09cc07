"""The names of the original's tensors and classes, and the rules that lead to them from ours."""

import re

from ml_collections import ConfigDict

from taming_jax.errors import UserError
from taming_jax.models.perceptual import VGG16_DEPTHS

Rules = tuple[tuple[str, str], ...]

# Our paths -> the original's, one substitution after the other; then '/' becomes '.', and kernels and scales 'weight'.
ENDS: Rules = (  # of every generator
    (r"^conv_out/", r"decoder/conv_out/"),
    (r"^quantize/embedding$", r"quantize/embedding/weight"),
)
GENERATOR: Rules = (
    (r"^(encoder|decoder)/(down|up)_(\d+)_(block|attn)_(\d+)", r"\1/\2/\3/\4/\5"),
    (r"^encoder/down_(\d+)_conv", r"encoder/down/\1/downsample/conv"),
    (r"^decoder/up_(\d+)_conv", r"decoder/up/\1/upsample/conv"),
    (r"^(encoder|decoder)/mid_(block|attn)_(\d)", r"\1/mid/\2_\3"),
    *ENDS,
)
GUMBEL: Rules = (*GENERATOR, (r"^quantize/embedding/weight$", r"quantize/embed/weight"))
MASKGIT: Rules = (
    (r"^(encoder|decoder)/(down|up)_(\d+)_block_(\d+)", r"\1/\2/\3/block/\4"),
    (r"^decoder/up_(\d+)_conv", r"decoder/up/\1/upsample_conv"),
    (r"^(encoder|decoder)/mid_block_(\d+)", r"\1/mid/\2"),
    (r"^quant_conv/", r"encoder/conv_out/"),
    *ENDS,
)
TRANSFORMER: Rules = (
    (r"^token_embedding$", r"tok_emb/weight"),
    (r"^position_embedding$", r"pos_emb"),
    (r"^blocks_(\d+)/", r"blocks/\1/"),
    (r"/mlp_in/", r"/mlp/0/"),
    (r"/mlp_out/", r"/mlp/2/"),
)
LLAMAGEN: Rules = (
    (r"^token_embedding$", r"tok_embeddings/weight"),
    (r"^cond_embedding$", r"cls_embedding/embedding_table/weight"),
    (r"^blocks_(\d+)/", r"layers/\1/"),
    (r"/attn/", r"/attention/"),
    (r"/proj/", r"/wo/"),
    (r"/ln1/", r"/attention_norm/"),
    (r"/ln2/", r"/ffn_norm/"),
    (r"/mlp_gate/", r"/feed_forward/w1/"),
    (r"/mlp_in/", r"/feed_forward/w3/"),
    (r"/mlp_out/", r"/feed_forward/w2/"),
    (r"^ln_f/", r"norm/"),
    (r"^head/", r"output/"),
)
RAR: Rules = (
    (r"^token_embedding$", r"embeddings/weight"),
    (r"^cond_embedding$", r"embeddings/cond"),  # one table in the file
    (r"^cls_embedding$", r"cls_token"),
    (r"^position_embedding$", r"pos_embed"),
    (r"^target_embedding$", r"target_aware_pos_embed"),
    (r"^step_embedding$", r"timesteps_embeddings"),
    (r"^blocks_(\d+)/", r"blocks/\1/"),
    (r"/ln([12])/", r"/norm\1/"),
    (r"/mlp_in/", r"/mlp/fc1/"),
    (r"/mlp_out/", r"/mlp/fc2/"),
    (r"/modulation/", r"/adaLN_modulation/1/"),
    (r"^final_modulation/", r"adaln_before_head/adaLN_modulation/1/"),
    (r"^head/", r"lm_head/"),
)
QUANTIZERS = ("vq", "ema", "gumbel")  # ours that the original has
ORDERS = {
    "Identity": "row_major",
    "Subsample": "subsample",
    "ZCurve": "z_curve",
    "SpiralOut": "spiral_out",
    "SpiralIn": "spiral_in",
    "Random": "random",
    "AlternateParsing": "alternate",
}
LAYOUTS = {"objects_bbox": "bbox", "objects_center_points": "center"}


def generator_rules(config: ConfigDict) -> Rules:
    """For the generator of a first stage's config, by the code that has such generators.

    Raises UserError for a network or a quantizer that it does not have.
    """
    if config.model.patch > 1:
        raise UserError(f"no other code has a first stage of model.patch={config.model.patch}")
    if config.model.network == "maskgit":
        if config.quantizer.name != "vq":
            raise UserError(f"MaskGIT's VQGAN has no quantizer {config.quantizer.name!r}, only 'vq'")
        return MASKGIT
    if config.model.network == "local":
        raise UserError("no other code has a first stage of model.network='local'")
    if config.quantizer.name == "normalized":
        return llamagen_rules(len(config.model.ch_mult))
    if config.quantizer.name not in QUANTIZERS:
        raise UserError(f"the original has no quantizer {config.quantizer.name!r}, only {', '.join(QUANTIZERS)}")
    return GUMBEL if config.quantizer.name == "gumbel" else GENERATOR


def inside_out(levels: int, name: str) -> Rules:
    """For decoders that count their levels in the order of running, the lowest resolution first."""
    return tuple((rf"^decoder/up_{i}_", f"decoder/{name}/{levels - 1 - i}/") for i in range(levels))


def llamagen_rules(levels: int) -> Rules:
    """For the generator of LlamaGen's tokenizers."""
    return (
        *inside_out(levels, "conv_blocks"),
        (r"^encoder/down_(\d+)_", r"encoder/conv_blocks/\1/"),
        (r"(conv_blocks/\d+/)block_(\d+)", r"\1res/\2"),
        (r"(conv_blocks/\d+/)attn_(\d+)", r"\1attn/\2"),
        (r"^(encoder/conv_blocks/\d+)/conv/", r"\1/downsample/conv/"),
        (r"^(decoder/conv_blocks/\d+)/conv/", r"\1/upsample/conv/"),
        (r"/mid_block_1/", r"/mid/0/"),
        (r"/mid_attn_1/", r"/mid/1/"),
        (r"/mid_block_2/", r"/mid/2/"),
        *ENDS,
    )


def discriminator_rules(n_layers: int) -> Rules:
    """For the discriminator, a plain sequence in the original: convolution and norm are followed by a leaky ReLU."""
    pairs = [(f"^conv_{n}/", f"main/{3 * n - 1}/") for n in range(1, n_layers + 1)]
    pairs += [(f"^norm_{n}/", f"main/{3 * n}/") for n in range(1, n_layers + 1)]
    return (("^conv_0/", "main/0/"), ("^conv_out/", f"main/{3 * n_layers + 2}/"), *pairs)


def lpips_names() -> dict[str, str]:
    """Convolution of our VGG16 -> its name in the original's LPIPS, where a max-pool counts as a layer too."""
    names, layer = {}, 0
    for block, depth in enumerate(VGG16_DEPTHS, 1):
        for i in range(1, depth + 1):
            names[f"conv{block}_{i}"] = f"net.slice{block}.{layer}"
            layer += 2  # and its ReLU
        layer += 1
    return names


def torch_name(path: str, rules: Rules) -> str:
    """'encoder/conv_in/kernel' -> 'encoder.conv_in.weight'."""
    for pattern, name in rules:
        path = re.sub(pattern, name, path)
    path = re.sub(r"/(kernel|scale)$", "/weight", path)
    return path.replace("/", ".")
