"""The quickstart recipe: a 1-million-parameter REF-VLM on the shapes world, from scratch, on a CPU."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every field that differs from the defaults of `refvlm_jax.config.schema.RunConfig`."""
    config = ConfigDict()
    config.name = "shapes_tiny"
    config.seed = 0

    config.model = ConfigDict()
    # A convolutional stem sees edges from the first step; a plain patch embedding does not learn to
    # localise within minutes. Sine positions likewise.
    config.model.vision = dict(
        image_size=64,
        patch_size=8,
        width=96,
        layers=2,
        heads=4,
        mlp_dim=192,
        feature_layer=-1,
        class_token=False,
        activation="gelu",
        stem="conv",
        stem_channels=(32, 64),
        position="sine",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.25, 0.25, 0.25),
    )
    # 8 x 8 patches cannot be cut into 9 equal runs of raster cells; a 3 x 3 grid of means can. What a
    # region looks like must not be faint beside where its parts are, or its colour is never named.
    config.model.region_prompts = dict(
        num_patches=9, pooling="spatial", mask_token=True, part_means=True, position_init=0.3
    )
    config.model.llama = dict(
        vocab_size=896,
        width=96,
        layers=3,
        heads=3,
        kv_heads=3,
        head_dim=32,
        mlp_dim=256,
        embedding_init=0.4,
        remat="none",
        attention_block=192,
        unroll_layers=True,
    )
    config.model.box = dict(
        num_queries=16, features=(1, 3), width=96, layers=2, heads=4, mlp_dim=192,
        dropout=0.0, mask_padding_queries=True,
        query_init=0.02, position_cycles=4.0, value_positions=True,
    )  # fmt: skip
    config.model.mask = dict(
        num_queries=16, features=(1, 3), width=64, layers=2, heads=4, mlp_dim=128, norm_groups=8,
        dropout=0.0, mask_padding_queries=True, focal_weight=40.0, dice_weight=4.0,
        query_init=0.02, position_cycles=4.0, value_positions=True,
    )  # fmt: skip

    config.data = dict(
        # How soon boxes are learnt depends on the steps, hardly on the rows; but an opening of 800 steps
        # of 10 rows did not bind colours to objects.
        batch_size=12,
        seq_len=384,
        prompts=5,
        refs=16,
        mask_refs=8,
        mask_size=64,
        workers=0,
        threads=2,
        # A small model reads a dozen wordings of a question within minutes, not forty.
        templates=12,
        merge=8,
        shared_picture=True,
        # Which colour belongs to which object is learnt late, or never, beside the gradients of boxes
        # and masks; questions and captions of regions alone teach it in a few hundred steps.
        opening_steps=900,
        # Answers that refer are copied from their own plan sooner by a model that does not see well yet.
        opening_weights={
            "T01": 1.0,
            "T03": 6.0,
            "T06": 3.0,
            "T08": 1.5,
            "T09": 1.5,
            "T13": 1.0,
            "T19": 1.0,
        },
        # REC and RES carry the headline metrics; detection and grounded captions teach the same
        # localisation with several references a row.
        weights={
            "T01": 0.3,
            "T03": 6.0,
            "T06": 0.6,
            "T07": 0.1,
            "T08": 0.2,
            "T09": 0.2,
            "T13": 1.2,
            "T14": 0.8,
            "T17": 3.6,
            "T18": 2.9,
            "T19": 1.0,
            "T20": 0.7,
            "T21": 0.2,
            "T22": 0.2,
        },
    )
    # Muon halves the steps AdamW needs here. Boxes and masks give most of the gradient, and most
    # tokens of an answer with a plan are easy, so the text counts more. Boxes are first learnt in the
    # second half of the run, when a cosine would have fallen already.
    config.optim = dict(
        name="muon", lr=2e-3, warmup_steps=100, schedule="wsd", decay_ratio=0.3, end_lr_ratio=0.02,
        weight_decay=0.05, beta1=0.9, beta2=0.98, clip_norm=1.0,
        loss_weights={"llm": 5.5},
    )  # fmt: skip
    config.train = dict(steps=1800, log_every=20)
    config.ckpt = dict(every_steps=250, keep=2)
    config.eval = dict(batch_size=64, max_new_tokens=160, limit=300)
    # What the quickstart renders before it trains.
    config.world = dict(level=1, train=6000, val=400, val_combos=400, seed=0)
    return config
