from molfun.backbones.timeseries.encoders import ENCODER_CONFIG_REGISTRY as ENCODER_CONFIG_REGISTRY
from molfun.backbones.timeseries.encoders import ENCODER_REGISTRY as ENCODER_REGISTRY
from molfun.backbones.timeseries.encoders.base import BaseEncoder as BaseEncoder
from molfun.backbones.timeseries.encoders.base import EncoderConfig as EncoderConfig
from molfun.lightning.finetune import FineTuneModule as FineTuneModule
from molfun.lightning.heads import TASK_HEAD_REGISTRY as TASK_HEAD_REGISTRY
from molfun.lightning.heads import BaseTaskHead as BaseTaskHead
from molfun.lightning.heads import TaskHeadConfig as TaskHeadConfig
from molfun.lightning.objectives import CONFIG_REGISTRY as CONFIG_REGISTRY
from molfun.lightning.objectives import SSL_REGISTRY as SSL_REGISTRY
from molfun.lightning.objectives import BaseSSLObjective as BaseSSLObjective
from molfun.lightning.objectives import SSLConfig as SSLConfig
from molfun.lightning.pretrain import SSLPretrainModule as SSLPretrainModule
from molfun.models.series_config import load_config as load_config

__all__: list[str]
