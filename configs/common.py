"""What all runs share.

The comment that ends a field's line is what --help says of it. A field without one, in a config that builds on these,
means what `common`, `custom_vq` or `custom_transformer` say of it.
"""

import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # the same one repeats a run, bit by bit
    c.dtype = "float32"  # of the computation, or bfloat16; parameters, losses and code search are always float32
    c.accumulate = 1  # parts of a batch that go through the step one after another, to save memory
    c.log_every = 50  # steps between two lines of numbers
    c.eval_every = 1000  # steps between two evaluations of the held-out images, with pictures
    c.checkpoint_every = 1000  # steps between two checkpoints
    c.keep_checkpoints = 3  # the newest ones; older ones are removed
    c.checkpoint_best = ""  # number of the evaluations by which best/ is kept too: 'lpips', 'nll', 'samples/fid', ...
    c.max_skipped = 20  # steps in a row that are not finite and are skipped, after which the run stops
    c.ema_decay = 0.0  # of the weights that are evaluated and sampled with; 0 is off, as in the paper
    c.init_from = ""  # run directory of another run, with whose weights this one begins: configs/finetune.py
    c.fresh = ()  # parts that begin anew all the same; of a first stage encoder, codebook, decoder, disc,
    c.freeze = ()  # and parts that stay as they are; of a transformer embeddings, layers, head
    c.evals = ConfigDict()  # what else evaluations judge, by name: dict(samples=dict(kind='samples')), docs/quality.md
    c.tracker = "tensorboard"  # who gets numbers and pictures: tensorboard, wandb, trackio, or some: trackio,wandb:NAME
    c.mesh = ConfigDict(
        dict(
            data=-1,  # copies of the model, each with a part of the batch; -1 in one of the three: all that is left
            fsdp=1,  # devices over which weights and optimizer are cut, and the batch
            tensor=1,  # devices over which a transformer's heads and hidden units are cut
        )
    )
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


def use_lines(c: ConfigDict) -> None:
    """Turns a VQGAN's config into one of line art. Lines need neither LPIPS nor a discriminator: L1 alone."""
    c.input = "line"
    c.data.features = ("image", "line")
    c.model.out_ch = 1
    c.quantizer.codebook_size = 128
    c.steps = c.eval_every = 700
    c.loss.pixel = "l1"
    c.loss.perceptual_weight = 0.0
    c.disc.weight = 0.0


def use_crops(c: ConfigDict, resize_factor: float) -> None:
    """Turns a config of whole drawings into one of crops, trained as `openmoji_vq` is."""
    c.data.resize_factor = resize_factor
    c.data.random_crop = True
    # Whole drawings look to it as their crops do; squares of 2x2 pixels, taken for one, make its steps cheap.
    c.model.update(network="local", patch=2, ch_mult=(1, 2))
    c.optim.update(name="muon", learning_rate=4e-3)
    c.batch_size = 16
    c.disc.weight = 0.0


def use_large_crops(c: ConfigDict) -> None:
    """Turns a config of whole drawings into one of crops of OpenMoji at 512 pixels."""
    use_crops(c, resize_factor=16.0)
    c.data.name = "openmoji/px512"


def get_transformer(first_stage: str, cond: str) -> ConfigDict:
    """The original's transformer, with the numbers that its public files share, for 8 devices of 2 images."""
    c = get_config()
    c.task = "transformer"
    c.first_stage = get_first_stage(first_stage)
    c.cond = get_cond(cond)
    c.order = "row_major"
    c.pkeep = 1.0
    c.noise_until = 0
    c.vector_weight = 0.0
    c.vector_init = 0.0
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
    (taming_jax/schedule.py). architecture: 'gpt' is the paper's; 'modern' has a wavefront's layers with
    RMSNorm, SwiGLU and norms of queries and keys; it, 'llamagen' and 'rar' have a width of the MLP's middle,
    `mlp_dim` (None: the usual one); 'llamagen' may have fewer `num_kv_heads`, and 'rar' trains with each example in an
    order of its own until step random_order[0], with fewer and fewer such until random_order[1].
    """
    fields = dict(
        architecture="gpt",  # the paper's; or llamagen, rar; or modern, of a wavefront
        n_unmasked=0,  # first positions that see each other, before and behind; 0: none
        remat="none",  # less memory for more arithmetic: none, dots (all but products with weights) or full
        vocab_size=placeholder(int),  # None: as many ids as condition and codes have
        block_size=placeholder(int),  # None: as many positions as condition and codes take
        mlp_dim=placeholder(int),  # of llamagen, rar and modern: width of the MLP's middle; None: the usual one
        num_kv_heads=placeholder(int),  # of llamagen: heads of keys and values; None: as many as of queries
        random_order=(0, 0),  # of rar: steps until which each example has its own order of codes, and until which some
        context=dict(
            kind="window",  # the paper's, over which a window slides; wavefront (docs/large.md); masked (sampling.md)
            lag=3,  # of a wavefront: columns that a row is behind the one above
            reach=(4, 4),  # of a wavefront: rows and columns around a code that it sees
            places=False,  # of a wavefront: each code knows its row and column, as shares of the image
            label_smoothing=0.1,  # of a masked one: share of the target that all codes have in common
            unmasked_weight=0.0,  # of a masked one: of the loss of codes that it sees
        ),
    )
    return ConfigDict(fields | sizes)


def get_ema(codebook_size: int) -> ConfigDict:
    """A codebook of running means (van den Oord et al. 2017, appendix A.1), the original's EMAVQ."""
    return ConfigDict(
        dict(
            name="ema",
            codebook_size=codebook_size,
            embed_dim=16,
            commitment_weight=0.25,
            decay=0.99,  # of the means that codes are
            eps=1e-5,  # smooths the sizes of clusters towards uniform
        )
    )


def get_sample(**fields) -> ConfigDict:
    """How samples are drawn; the fields of `taming_jax.sampling.draw.Sampling`."""
    return ConfigDict(
        dict(
            guidance=1.0,  # above 1, the condition weighs more; needs cond.drop
            guidance_power=0.0,  # above 0, guidance rises to that along a power-cosine, as in RAR
            guidance_codes=0,  # how many first codes are guided, as in LlamaGen; 0: all
            passes=16,  # of a masked transformer: how many passes write an image
            choice_temperature=4.5,  # of a masked transformer: noise in which codes each pass keeps
        )
        | fields
    )


def get_model(**sizes) -> ConfigDict:
    """Encoder and decoder of a first stage."""
    return ConfigDict(
        dict(
            network="vqgan",  # or maskgit (taming_jax/models/maskgit.py); or local, for crops of large images
            patch=1,  # pixels on a side of what the network takes for one; 2: four times as many for the same work
            remat=False,  # True: less memory, an eighth more arithmetic
        )
        | sizes
    )


def get_disc(**fields) -> ConfigDict:
    """A discriminator: the paper's, or the blurred one of VQGAN+ at a fixed weight (`models.discriminator`)."""
    return ConfigDict(
        dict(
            network="patch",  # the paper's PatchGAN; or blurred, VQGAN+'s
            use_actnorm=False,  # in place of BatchNorm
            loss="hinge",  # hinge, or vanilla: cross-entropy
            delta=1e-4,  # beside the divisor of the adaptive weight; the paper has 1e-6
            adaptive=True,  # the paper's λ; False: `weight` alone
            lecam_weight=0.0,  # of LeCAM, which keeps its logits near their running means, for few images; 0: none
            lecam_decay=0.999,  # of those means, for each part of a batch (`accumulate`)
        )
        | fields
    )


def get_optim(**fields) -> ConfigDict:
    """Adam, or AdamW where there is weight decay; or Muon (`optim.make_optimizer`)."""
    return ConfigDict(
        dict(
            name="adam",  # or muon, which learns matrices otherwise
            momentum=0.95,  # of muon: of a matrix's gradient
            final_share=0.01,  # of the learning rate, at the end of a cosine schedule
            eps=1e-8,  # Adam's, beside its divisor
        )
        | fields
    )


def get_cond(name: str) -> ConfigDict:
    """The condition, which precedes the codes or goes with them; comments name the kind that a field is for."""
    return ConfigDict(
        dict(
            name=name,  # none, class, coordinates, image, objects, caption
            drop=0.0,  # share of training examples without their condition, for guidance in sampling
            aligned=False,  # coordinates, image, objects: attention starts at a code's own place, see models/gpt.py
            sos=0,  # none: the id that stands before the codes
            levels=1024,  # coordinates: how many ids tell places apart
            down=16,  # coordinates: pixels a side for each id
            workdir="",  # image: run directory of its first stage
            step=placeholder(int),  # image: of that run; None: its newest
            digest="",  # image: filled in, of the weights in the run's own copy of that first stage
            origin="",  # image: filled in, where they were copied from
            max_words=16,  # caption: words of it that are read
            max_vocabulary=8192,  # caption: words that are told apart
            vocabulary=(),  # caption: filled in from the data
            layout=dict(  # objects: how a scene becomes ids, see taming_jax/conditions/layout.py
                kind="bbox",  # bbox, center; or grid, painted on the codes
                min_objects=2,  # of a picture; pictures with fewer are left out
                max_objects=30,  # of a picture; pictures with more are left out
                min_area=1e-5,  # of an object, as a share of its picture
                categories="",  # empty: those of the annotations; 'coco', 'open_images': the original's
                num_tokens=8192,  # ids, for places on a square grid and for categories; the last is for no object
                encode_crop=True,  # whether two ids more say which part of the picture is seen
                use_group=True,  # whether a group of things has other ids than a single one
            ),
        )
    )


def get_first_stage(workdir: str) -> ConfigDict:
    """A VQGAN's run directory, at its newest step; `used`: the ids that occur, if not all (see `quantize.remap`).

    digest and origin are filled in when the run has its own copy of it: which weights, and where they come from.
    """
    return ConfigDict(
        dict(
            workdir=workdir,  # run directory of the first stage
            step=placeholder(int),  # of that run; None: its newest
            digest="",  # filled in, of the weights in the run's own copy of it
            origin="",  # filled in, where they were copied from
            used=(),  # ids that occur, if not all of them
            unknown="random",  # what becomes of an id that is not in `used`: random, extra, or an id
        )
    )


def get_moved_data() -> ConfigDict:
    """Fields of a second stage's data that may differ from the first stage's; those that are unset do not."""
    fields = dict(name=str, path=str, dir=str, workers=int, random_crop=bool, flip=bool, resize_factor=float, size=int)
    return ConfigDict({name: placeholder(kind) for name, kind in fields.items()})


def get_data(name: str, size: int) -> ConfigDict:
    return ConfigDict(
        dict(
            name=name,  # 'openmoji/px64', 'openmoji/scenes', 'folder', or a TFDS data set
            dir="",  # of TFDS; empty is ~/tensorflow_datasets
            path="",  # of a folder of images
            validation_share=0.05,  # of a folder's images, held out
            num_labels=0,  # of segmentation maps; filled in from the model that sees them
            label_shift=0,  # added to the labels of a folder's segmentation maps; 255 then becomes 0
            splits=dict(train="train", validation="validation"),  # of TFDS, or sub-folders of a folder's images/
            features=("image",),  # what records hold beside the label, see docs/data.md
            downscale=4,  # of 'low', the image with so many times fewer pixels on a side
            size=size,  # pixels on a side of the crops that nets see
            resize_factor=1.0,  # smallest side before the crop, as a multiple of `size`
            random_scale=False,  # True: a crop of any size between `size` pixels and the smallest side
            random_crop=True,  # in training; False: the middle
            flip=True,  # half of the training images, left to right
            workers=0,  # processes that read; 0 reads in a thread
            max_bad_share=0.01,  # of unreadable images; above it, reading raises an error
            class_names=(),  # filled in from the data
        )
    )
