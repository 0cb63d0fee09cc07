"""The published models, by what their YAML files or their papers say; weights are random."""

LOSS = {
    "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "params": {"disc_conditional": False, "disc_in_channels": 3, "disc_start": 250001, "disc_weight": 0.8},
}
DUMMY = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
BCE = {"target": "taming.modules.losses.segmentation.BCELossWithQuant", "params": {"codebook_weight": 1.0}}


def ddconfig(channels: int = 3, ch_mult=(1, 1, 2, 2, 4), attn=(16,), z_channels: int = 256) -> dict:
    return dict(
        double_z=False,
        z_channels=z_channels,
        resolution=256,
        in_channels=channels,
        out_ch=channels,
        ch=128,
        ch_mult=list(ch_mult),
        num_res_blocks=2,
        attn_resolutions=list(attn),
        dropout=0.0,
    )


def vq(
    n_embed: int, embed_dim: int = 256, loss: dict = DUMMY, target: str = "taming.models.vqgan.VQModel", **dd
) -> dict:
    more = {name: dd.pop(name) for name in ("image_key", "n_labels", "colorize_nlabels") if name in dd}
    params = dict(embed_dim=embed_dim, n_embed=n_embed, ddconfig=ddconfig(**dd), lossconfig=loss)
    return {"target": target, "params": params | more}


def segmentation(labels: int) -> dict:
    target = "taming.models.vqgan.VQSegmentationModel"
    return vq(1024, loss=BCE, target=target, channels=labels, n_labels=labels, image_key="segmentation")


TEMPERATURE = dict(warm_up_steps=0, max_decay_steps=1_000_001, lr_start=0.9, lr_max=0.9, lr_min=1e-6)
GUMBEL = vq(8192, target="taming.models.vqgan.GumbelVQ", ch_mult=(1, 1, 2, 4), attn=(32,))
GUMBEL["params"] |= {
    "kl_weight": 1e-8,
    "temperature_scheduler_config": {
        "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
        "params": TEMPERATURE | {"verbosity_interval": 0},
    },
}
LDM = "ldm.models.autoencoder.VQModelInterface"
NONE = {"target": "torch.nn.Identity"}
TWO_LAYERS = {**LOSS, "params": {**LOSS["params"], "disc_num_layers": 2}}
FIRST_STAGES = {
    "vqgan_imagenet_f16_1024": vq(1024, loss=LOSS),
    "vqgan_imagenet_f16_16384": vq(16384, loss=LOSS),
    "vqgan_gumbel_f8": GUMBEL,
    "depth": vq(
        1024, loss={**LOSS, "params": {**LOSS["params"], "disc_in_channels": 1}}, channels=1, image_key="depth"
    ),
    "coco_segmentation": segmentation(183),
    "ldm_vq_f4": vq(8192, 3, NONE, LDM, ch_mult=(1, 2, 4), attn=(), z_channels=3),
    "ldm_vq_f8": vq(16384, 4, NONE, LDM, ch_mult=(1, 2, 2, 4), attn=(32,), z_channels=4),
    "ldm_vq_f16": vq(16384, 8, TWO_LAYERS, LDM, ch_mult=(1, 1, 2, 2, 4), attn=(16,), z_channels=8),
}


def net2net(
    cond, n_layer: int, n_head: int, n_embd: int, vocab: int = 1024, block: int = 512, key: str = "image"
) -> dict:
    gpt = dict(vocab_size=vocab, block_size=block, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    return {
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {
            "cond_stage_key": key,
            "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt},
            "first_stage_config": vq(vocab),
            "cond_stage_config": cond,
        },
    }


COORD = {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 1024, "down_factor": 16}}
LABEL = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 1000}}
OBJECTS = {"target": "taming.models.dummy_cond_stage.DummyCondStage", "params": {"conditional_key": "objects_bbox"}}
DEPTH = vq(1024, channels=1)
SFLCKR = vq(1024, channels=182, colorize_nlabels=182)
# Widths, vocabularies and block sizes are full; layers are two, which is the only number that repeats.
TRANSFORMERS = {
    "imagenet_class": net2net(LABEL, 2, 24, 1536, vocab=16384, block=256, key="class_label"),
    "faceshq": net2net(COORD, 2, 16, 1024, key="coord"),
    "ffhq": net2net("__is_unconditional__", 2, 16, 1664),
    "celebahq": net2net("__is_unconditional__", 2, 16, 1664),
    "drin": net2net(DEPTH, 2, 16, 1024, key="depth"),
    "sflckr": net2net(SFLCKR, 2, 16, 1024, key="segmentation"),
    "coco": net2net(segmentation(183), 2, 16, 1024, key="segmentation"),
    "ade20k": net2net(segmentation(151), 2, 16, 1024, key="segmentation"),
    "coco_scene": net2net(OBJECTS, 2, 16, 1408, vocab=8192, block=348, key="objects_bbox"),
    "open_images_scene": net2net(OBJECTS, 2, 16, 1536, vocab=8192, block=348, key="objects_bbox"),
}
