"""ResNet-20 (He et al. 2016, section 4.2) on 8 x 8 images of handwritten digits.

    python -m launch.train --config=experiments/digits_resnet.py --workdir=runs/digits_resnet

Hardware: any. Expected: a test accuracy of at least 98 %; measured 99.7 and 100 % with two seeds.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.family = "resnet"
    config.model.preset = "resnet20"
    config.model.in_channels = 1
    config.model.num_classes = 10

    config.objective.name = "classify"
    config.data.name = "digits"
    config.data.pad = 1  # digits, unlike most images, are not themselves in a mirror
    config.data.batch_size = 64

    config.optimizer.name = "nesterov"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_steps = 20
    config.train.steps = 300
    config.train.eval_every = 100
    config.train.checkpoint_every = 150
    return config
