from molfun.tuning.results import FinishedTrial as FinishedTrial
from molfun.tuning.results import StudyResults as StudyResults
from molfun.tuning.space import Space as Space
from molfun.tuning.study import Study as Study
from molfun.tuning.trial import Trial as Trial

__all__: list[str]
