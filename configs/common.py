"""What all runs share."""

import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.dtype = "float32"  # of the computation; parameters, losses and the code search are always float32
    c.accumulate = 1  # parts of a batch that go through the step one after another, to save memory
    c.log_every = 50
    c.eval_every = 1000
    c.checkpoint_every = 1000
    c.keep_checkpoints = 3
    c.checkpoint_best = ""  # number of the evaluations by which best/ is kept too: 'lpips', 'nll', 'samples/fid', ...
    c.max_skipped = 20  # steps in a row that are not finite and are skipped, after which the run stops
    c.ema_decay = 0.0  # of the weights that are evaluated and sampled with; 0 is off, as in the paper
    c.evals = ConfigDict()  # what else evaluations judge, by name: dict(samples=dict(kind='samples')), docs/quality.md
    c.wandb_project = ""  # in Weights & Biases, to which metrics and pictures then go too
    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # -1: the rest of the devices
    return c


def use_slice(c: ConfigDict, name: str, slices: dict[str, dict]) -> None:
    """Sets the fields that a table has for a TPU slice. A larger batch takes fewer steps, over as many images.

    The learning rate grows with the root of the batch size. Raises ValueError for a name that is not in the table.
    """
    if name not in slices:
        raise ValueError(f"{name!r} is no slice of this config; there are {', '.join(slices)}")
    before = c.batch_size
    c.update_from_flattened_dict(slices[name])
    growth = c.batch_size / before
    c.optim.learning_rate *= growth**0.5
    for part, field in ((c, "steps"), (c.get("disc"), "start"), (c.get("disc"), "gen_start")):
        if part is not None:
            part[field] = math.ceil(part[field] / growth)


def use_segmentation(c: ConfigDict, num_labels: int) -> None:
    """Turns a VQGAN's config into the original's VQSegmentationModel: one-hot maps in, binary cross-entropy a label."""
    c.input = "segmentation"
    c.data.features = ("image", "segmentation")
    c.model.out_ch = num_labels
    c.loss.update(pixel="bce", perceptual_weight=0.0)
    c.disc.weight = 0.0


def get_transformer(first_stage: str, cond: str) -> ConfigDict:
    """The original's transformer, with the numbers that its public files share, for 8 devices of 2 images."""
    c = get_config()
    c.task = "transformer"
    c.first_stage = get_first_stage(first_stage)
    c.cond = get_cond(cond)
    c.order = "row_major"
    c.pkeep = 1.0
    c.data = get_moved_data()
    c.codes = ""  # folder that taming_jax.encode has written, to train on in place of images
    c.batch_size = 16
    c.steps = 1_000_000
    c.eval_every = 10_000
    c.checkpoint_every = 5_000
    c.gpt = get_gpt(num_layers=24, num_heads=16, embed_dim=1024, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    c.gpt.update(vocab_size=1024, block_size=512)
    c.canvas = (0, 0)  # height and width in pixels of a larger image, painted and animated at each evaluation; 0: none
    c.sample = get_sample(temperature=1.0, top_k=100, top_p=1.0)
    c.optim = get_optim(
        learning_rate=4.5e-6 * 16,
        schedule="constant",
        warmup_steps=0,
        b1=0.9,
        b2=0.95,
        weight_decay=0.01,
        clip_norm=0.0,
    )
    return c


def get_gpt(**sizes) -> ConfigDict:
    """A transformer. None for `vocab_size` and `block_size` means as large as condition and codes need.

    context: 'window' is the paper's, all codes before in a window that slides over larger images; 'wavefront' writes
    along fronts, each row `lag` columns behind the one above, and a code sees `reach` rows and columns around it
    (taming_jax/schedule.py). architecture: 'gpt' is the paper's; 'llamagen' and 'rar' have a width of the MLP's middle,
    `mlp_dim` (None: the usual one); 'llamagen' may have fewer `num_kv_heads`, and 'rar' trains with each example in an
    order of its own until step random_order[0], with fewer and fewer such until random_order[1].
    """
    context = dict(kind="window", lag=3, reach=(4, 4))
    fields = dict(n_unmasked=0, remat="none", context=context, architecture="gpt", random_order=(0, 0))
    fields |= {name: placeholder(int) for name in ("vocab_size", "block_size", "mlp_dim", "num_kv_heads")}
    return ConfigDict(fields | sizes)


def get_sample(**fields) -> ConfigDict:
    """How samples are drawn; the fields of `taming_jax.sampling.draw.Sampling`."""
    return ConfigDict(dict(guidance=1.0, guidance_power=0.0, guidance_codes=0) | fields)


def get_optim(**fields) -> ConfigDict:
    """Adam; `final_share` is what a cosine schedule leaves of the learning rate, `eps` Adam's own."""
    return ConfigDict(dict(final_share=0.01, eps=1e-8) | fields)


def get_cond(name: str) -> ConfigDict:
    """The condition, which precedes the codes; comments name the kind of condition that a field is for."""
    return ConfigDict(
        dict(
            name=name,  # none, class, coordinates, image, objects, caption
            drop=0.0,  # share of training examples without their condition, for guidance in sampling
            aligned=False,  # coordinates, image, objects: attention starts at a code's own place, see models/gpt.py
            sos=0,  # none: the start id
            levels=1024,  # coordinates
            down=16,  # coordinates: pixels a side for each id
            workdir="",  # image: run directory of its first stage
            step=placeholder(int),  # image
            digest="",  # image: filled in, of the weights in the run's own copy of that first stage
            origin="",  # image: filled in, where they were copied from
            max_words=16,  # caption: words of it that are read
            max_vocabulary=8192,  # caption: words that are told apart
            vocabulary=(),  # caption: filled in from the data
            layout=dict(  # objects: how a scene becomes ids, see taming_jax/conditions/layout.py
                kind="bbox",  # or center
                min_objects=2,  # of a picture; others are left out
                max_objects=30,
                min_area=1e-5,  # of an object, as a share of its picture
                categories="",  # empty: those of the annotations; 'coco', 'open_images': the original's
                num_tokens=8192,  # ids, for places on a square grid and for categories; the last is for no object
                encode_crop=True,
                use_group=True,
            ),
        )
    )


def get_first_stage(workdir: str) -> ConfigDict:
    """A VQGAN's run directory, at its newest step; `used`: the ids that occur, if not all (see `quantize.remap`).

    digest and origin are filled in when the run has its own copy of it: which weights, and where they come from.
    """
    return ConfigDict(dict(workdir=workdir, step=placeholder(int), digest="", origin="", used=(), unknown="random"))


def get_moved_data() -> ConfigDict:
    """Fields of a second stage's data that may differ from the first stage's; those that are unset do not."""
    fields = dict(name=str, path=str, dir=str, workers=int, random_crop=bool, flip=bool, resize_factor=float, size=int)
    return ConfigDict({name: placeholder(kind) for name, kind in fields.items()})


def get_data(name: str, size: int) -> ConfigDict:
    return ConfigDict(
        dict(
            name=name,  # 'openmoji/px64', 'openmoji/scenes', 'folder', or a TFDS data set
            dir="",  # of TFDS; empty is ~/tensorflow_datasets
            path="",  # of a folder
            validation_share=0.05,  # of a folder
            num_labels=0,  # of segmentation maps, filled in from the model that sees them
            label_shift=0,  # added to the labels of a folder's segmentation maps; 255 then becomes 0
            splits=dict(train="train", validation="validation"),  # of TFDS, or sub-folders of a folder's images/
            # What records hold beside the label, see taming_jax/data/features.py.
            features=("image",),
            downscale=4,  # of 'low', the image with so many times fewer pixels on a side, enlarged again
            size=size,
            resize_factor=1.0,  # smallest side before the crop, as a multiple of `size`
            random_scale=False,  # True: a crop of any size between `size` pixels and the smallest side
            random_crop=True,
            flip=True,
            workers=0,  # processes that read; 0 reads in a thread
            max_bad_share=0.01,  # of unreadable images; above it, reading raises an error
            class_names=(),  # filled in from the data
        )
    )
