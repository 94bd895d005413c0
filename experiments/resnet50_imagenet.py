"""ResNet-50 on ImageNet, 90 epochs.

    python -m launch.train --config=experiments/resnet50_imagenet.py --workdir=DIR \
        --config.data.dir=DIR

Data: TFDS `imagenet2012` in the array_record format; where it is missing, the error gives the
command that prepares it from the downloaded archives. What is reported is the validation split,
as is usual: the labels of the test split are not public.
Hardware: one accelerator or more; the batch of 1024 is shared out over mesh.data.
Recipe: Goyal et al. 2017 (rate 0.1 per 256 examples, five epochs of warmup, decay of kernels
only, last scale of a block 0), with a cosine in place of steps and label smoothing (He et al.
2019). Expected: Goyal et al. report 76.4 % top-1 for theirs.
"""

from ml_collections import ConfigDict

from experiments import base

EXAMPLES = 1_281_167
BATCH = 1024


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.family = "resnet"
    config.model.preset = "resnet50"
    config.model.zero_init = True

    config.objective.name = "classify"
    config.objective.label_smoothing = 0.1
    config.data.name = "tfds"
    config.data.dataset = "imagenet2012"
    config.data.task = "classify"
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.train_crop = "resized"
    config.data.flip = True
    config.data.batch_size = BATCH

    steps_per_epoch = EXAMPLES / BATCH
    config.optimizer.name = "nesterov"
    config.optimizer.learning_rate = 0.1 * BATCH / 256
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_steps = round(5 * steps_per_epoch)
    config.train.steps = round(90 * steps_per_epoch)
    config.train.log_every = 100
    config.train.eval_every = round(5 * steps_per_epoch)
    config.train.checkpoint_every = round(steps_per_epoch)
    return config
