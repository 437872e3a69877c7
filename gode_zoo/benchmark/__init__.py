"""How fast and how large a GODE model is beside other ways to run the same network, measured in one process.

    rows = list(run())                       # every figure, some minutes on two cores
    write_report(rows, "results", hardware("cpu"))

peers.py holds the peers and the check that they are the same network, measuring.py how time and memory are taken, figures.py
what is measured, report.py the CSV, the tables against the targets, and the plots.
"""

from .figures import FIGURES, Row, run
from .report import hardware, write_report

__all__ = ["FIGURES", "Row", "hardware", "run", "write_report"]
