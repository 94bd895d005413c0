"""Every key of a run, once: its default, and what it means.

An experiment starts from `get_config()` and sets what it wants to differ. The sections `model`,
`objective`, `data` and `rule` also take the fields of the `Config` in the file that their name
picks (`model.family = "resnet"`: those of nn/families/resnet.py). On the command line every key
can be set with `--config.section.key=value`. The comments below are what `--help` prints.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The defaults, not locked: `launch.run.config.load` refuses what is no key."""
    config = ConfigDict()
    config.seed = 0  # of the initial parameters, the order of the data and the dropout
    for section in (_parts, _data, _optimizer, _scale, _tune, _machine, _train, _outputs):
        section(config)
    return config


def _parts(config: ConfigDict) -> None:
    config.model = ConfigDict()
    config.model.family = "transformer"  # a file of nn/families
    config.model.preset = placeholder(str)  # a published size of the family; other keys override it
    # a published directory (config.json, safetensors): the model's fields and its first weights
    config.model.pretrained = ""
    config.objective = ConfigDict()
    config.objective.name = "next_token"  # a file of nn/objectives
    config.rule = ConfigDict()
    config.rule.name = "backprop"  # how weights change: a file of nn/learning


def _data(config: ConfigDict) -> None:
    config.data = ConfigDict()
    config.data.name = "python_source"  # a file of launch/data
    config.data.batch_size = 32  # examples per step, over all devices
    config.data.sequence_length = 256  # tokens per example, where the data are tokens
    config.data.dir = placeholder(
        str
    )  # prepared data; none: $TESSERA_DATA_DIR, ~/.cache/tessera/data
    config.data.seed = placeholder(int)  # of the order of the examples; none: config.seed
    config.data.prefetch = 2  # batches made ahead of the step
    config.data.eval_batches = 0  # batches per evaluation; 0: the whole split
    config.data.eval_batch_size = 0  # examples of each, a multiple of batch_size; 0: as many


def _optimizer(config: ConfigDict) -> None:
    config.optimizer = ConfigDict()
    # sgd, momentum, nesterov, rmsprop, adam, adamw, lion, adafactor, lamb, muon
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3  # at its peak, after the warmup
    # constant, linear, cosine, inverse_sqrt, warmup_stable_decay
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 0  # steps in which the rate rises linearly, for every schedule
    config.optimizer.decay_steps = placeholder(int)  # step at which it ends; none: train.steps
    config.optimizer.final_fraction = 0.1  # of the peak, from decay_steps on
    config.optimizer.cooldown_fraction = 0.2  # of decay_steps; warmup_stable_decay only
    # added to the gradient (L2) by sgd, momentum, nesterov, rmsprop, adam; decoupled in the others
    config.optimizer.weight_decay = 0.1
    config.optimizer.decay_mask = "kernels"  # what decays: none, kernels, all
    config.optimizer.clip_norm = 1.0  # largest global norm of the gradient; 0: off
    config.optimizer.b1 = 0.9  # mean of the gradient: adam, adamw, lion, lamb, muon's adam
    config.optimizer.b2 = 0.95  # mean of its square: those, and rmsprop
    config.optimizer.eps = 1e-8  # added to the root of the mean square: those, and rmsprop
    config.optimizer.momentum = 0.9  # momentum, nesterov, muon


def _scale(config: ConfigDict) -> None:
    config.scale = ConfigDict()
    # What follows the size of the model beside a smaller one, the base, at which the optimizer was
    # tuned: standard (nothing), mup (first values, rates: for width), completep (for depth too)
    config.scale.rule = "standard"
    # fields of the model in which the base differs, such as "dim=64,num_heads=4"
    config.scale.base = ""


def _tune(config: ConfigDict) -> None:
    # Patterns are regular expressions for whole paths of parameters, separated by commas, such as
    # "blocks/attention/.*,final_norm/.*"
    config.tune = ConfigDict()
    config.tune.base = ""  # work directory of the run whose last parameters this one starts from
    config.tune.train = ""  # patterns of what is trained; "": all, or LoRA's factors alone
    config.tune.freeze = ""  # patterns of what is not, whatever tune.train says
    config.tune.lora_rank = 0  # of the factors trained beside frozen weights; 0: no LoRA
    config.tune.lora_alpha = 16.0  # their product counts lora_alpha / lora_rank
    config.tune.lora_targets = ""  # patterns of weights with factors; "": all dense but the head


def _machine(config: ConfigDict) -> None:
    config.precision = ConfigDict()
    # float32, bfloat16, float16, bfloat16_params; auto: bfloat16 on accelerators, float32 on CPU
    config.precision.policy = "auto"
    config.mesh = ConfigDict()
    config.mesh.pipe = 1  # devices that share the layers out, one after another
    config.mesh.data = -1  # devices that hold copies; -1: all that the other axes leave
    config.mesh.fsdp = 1  # devices that share out parameters and optimizer state
    config.mesh.expert = 1  # devices that share the experts out
    config.mesh.context = 1  # devices that share the positions of a sequence out
    config.mesh.tensor = 1  # devices that share each matrix product out
    config.mesh.sequence_parallel = True  # tensor > 1: positions are shared out between blocks
    config.mesh.microbatches = 1  # parts of a batch that go through the pipeline one by one
    config.mesh.schedule = "gpipe"  # of the pipeline: gpipe, interleaved or 1f1b
    config.mesh.rounds = 1  # pieces of the depth per stage; above 1: interleaved only
    config.mesh.attention = "auto"  # over context: ring, ulysses, gather; auto chooses, says so
    config.mesh.dispatch = "auto"  # over expert: gather, all_to_all or ragged; auto: by the backend
    # of the sums of gradients over the mesh, which are float32 where activations are: float32, or
    # bfloat16, which halves their bytes; weights travel in the format of the activations
    config.mesh.reduce_dtype = "float32"
    config.mesh.rules = ""  # changes to the table of axes, such as "mlp=tensor,embed=fsdp"


def _train(config: ConfigDict) -> None:
    config.train = ConfigDict()
    config.train.steps = 1000  # updates of the parameters
    config.train.log_every = 20  # steps
    config.train.eval_every = 200  # steps; 0: at the end only
    config.train.checkpoint_every = 500  # steps; 0: at the end only
    config.train.keep_checkpoints = 2  # newest ones that stay
    config.train.early_stop_metric = ""  # validation metric that must get better; "": never stop
    config.train.early_stop_patience = 0  # evaluations without a better value before it stops
    config.train.hang_timeout = 0.0  # seconds without a step after which it gives up; 0: never
    config.train.time_limit = 0.0  # minutes, after which it saves and stops; 0: none


def _outputs(config: ConfigDict) -> None:
    config.metrics = ConfigDict()
    config.metrics.tensorboard = True  # write event files
    config.metrics.wandb = False  # report to Weights & Biases
    config.metrics.wandb_project = "tessera"  # its project
    config.sample = ConfigDict()
    config.sample.prompt = ""  # text that the sample at the end of the run goes on from
    config.sample.length = 0  # tokens; 0: no sample
    config.sample.temperature = 1.0  # 0: always the likeliest token
    config.sample.top_k = 0  # draw from the k likeliest tokens; 0: from all
    config.sample.top_p = 1.0  # draw from the likeliest tokens that hold this probability


def tokens(config: ConfigDict, tokenizer: str, vocabulary: int, context: int) -> None:
    """The task of predicting a user's own `tokens/TOKENIZER`: see experiments/gpt2.py."""
    config.objective.name = "next_token"
    config.data.name = "tfds"
    config.data.dataset = f"tokens/{tokenizer}"
    config.data.task = "next_token"
    config.data.text_key = "tokens"
    config.data.vocabulary = vocabulary
    config.data.test_split = "validation"
    config.data.sequence_length = context
