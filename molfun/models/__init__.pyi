from molfun.models.energies import Forgetting as Forgetting
from molfun.models.prediction import Prediction as Prediction
from molfun.models.structure import MolfunStructureModel as MolfunStructureModel

__all__: list[str]
