from molfun.training.loggers.base import LoggedRun as LoggedRun
from molfun.training.loggers.base import Logger as Logger
from molfun.training.loggers.csv_file import CSVLogger as CSVLogger
from molfun.training.loggers.mlflow import MLflowLogger as MLflowLogger
from molfun.training.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger
from molfun.training.loggers.wandb import WandbLogger as WandbLogger

__all__: list[str]
