from molfun.sklearn.estimators import MolfunClassifier as MolfunClassifier
from molfun.sklearn.estimators import MolfunRegressor as MolfunRegressor

__all__: list[str]
