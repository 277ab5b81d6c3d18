from molfun.objectives.base import Objective as Objective
from molfun.objectives.base import ObjectiveOutput as ObjectiveOutput
from molfun.objectives.base import Reconstruction as Reconstruction
from molfun.objectives.contrastive import ContrastiveObjective as ContrastiveObjective
from molfun.objectives.jepa import JEPAObjective as JEPAObjective
from molfun.objectives.mae import MAEObjective as MAEObjective
from molfun.objectives.masked_lm import MaskedLMObjective as MaskedLMObjective

__all__: list[str]
