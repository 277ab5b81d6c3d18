from molfun.tasks.base import LossOfTerms as LossOfTerms
from molfun.tasks.base import LossSum as LossSum
from molfun.tasks.base import Task as Task
from molfun.tasks.classification import BinaryTask as BinaryTask
from molfun.tasks.classification import MulticlassTask as MulticlassTask
from molfun.tasks.classification import MultilabelTask as MultilabelTask
from molfun.tasks.contact import ContactTask as ContactTask
from molfun.tasks.energy import EnergyTask as EnergyTask
from molfun.tasks.intervals import GaussianTask as GaussianTask
from molfun.tasks.intervals import QuantileTask as QuantileTask
from molfun.tasks.regression import RegressionTask as RegressionTask
from molfun.tasks.structure import StructureTask as StructureTask
from molfun.tasks.targets import MultiTargetTask as MultiTargetTask

__all__: list[str]
