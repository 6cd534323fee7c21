"""The report: one self-contained page about a run or a study."""

from pipeline.results.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
