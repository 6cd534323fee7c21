"""The report: one self-contained page about a run or a study, and its tables for a paper or a program."""

from pipeline.results.report.page import export_tables, write_report

__all__ = ["export_tables", "write_report"]
