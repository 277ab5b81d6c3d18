from molfun.report.blocks import Section as Section
from molfun.report.compare import Comparison as Comparison
from molfun.report.compare import compare_runs as compare_runs
from molfun.report.compare import write_comparison as write_comparison
from molfun.report.finished import FinishedRun as FinishedRun
from molfun.report.page import write_report as write_report

__all__: list[str]
