from molfun.models.structure import MolfunStructureModel as MolfunStructureModel
from molfun.models.structure import Prediction as Prediction

__all__: list[str]
