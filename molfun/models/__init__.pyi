from molfun.evaluation.bootstrap import Estimate as Estimate
from molfun.models.attribution import residue_attributions as residue_attributions
from molfun.models.cross_validation import cross_validate as cross_validate
from molfun.models.energies import Forgetting as Forgetting
from molfun.models.ensemble import Ensemble as Ensemble
from molfun.models.fold_results import CrossValidation as CrossValidation
from molfun.models.fold_results import FoldResult as FoldResult
from molfun.models.prediction import Prediction as Prediction
from molfun.models.structure import MolfunStructureModel as MolfunStructureModel

__all__: list[str]
