"""Fine-tuned models as scikit-learn estimators.

`MolfunRegressor` and `MolfunClassifier` fit sequences, structures, series or samples by the rules
of scikit-learn, so that ``clone``, ``cross_val_score``, ``GridSearchCV``, ``Pipeline`` and
``joblib`` take them::

    from sklearn.model_selection import cross_val_score
    from molfun.sklearn import MolfunRegressor

    model = MolfunRegressor("esm2_t6_8M_UR50D", weights="esm2_t6_8M_UR50D.pt", strategy="head_only")
    cross_val_score(model, sequences, fitness, cv=5, scoring="r2")

They are front ends of `molfun.MolfunStructureModel`, which a fitted estimator holds as ``model_``.
"""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
