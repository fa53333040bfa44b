"""Make a reference, the band that `agentrl view --reference` draws, from runs of the same settings.

    python scripts/reference_band.py runs/demo-* --name demo --note "agentrl demo --seed 0 to 4." \\
        --out agentrl/report/references/demo.json

A file in agentrl/report/references goes by its name; any other by its path.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from agentrl.report.references import band, collect, write_reference


def main() -> None:
    """Collect the curves of the runs, write them, and say what the band came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--name", required=True, help="that pages call it by")
    parser.add_argument("--note", default="", help="how the runs were made, a sentence")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    reference = collect(options.runs, options.name, options.note)
    write_reference(reference, options.out)
    print(band(reference)["sentence"], f"-> {options.out}")


if __name__ == "__main__":
    main()
