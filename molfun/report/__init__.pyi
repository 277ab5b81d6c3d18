from molfun.report.blocks import Section as Section
from molfun.report.finished import FinishedRun as FinishedRun
from molfun.report.page import write_report as write_report

__all__: list[str]
