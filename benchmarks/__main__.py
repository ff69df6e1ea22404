"""`python -m benchmarks` lists the scripts; `python -m benchmarks NAME [--quick]` runs one, its figures last as JSON."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


def scripts() -> dict[str, str]:
    """The scripts' names and the first line of each docstring, found without importing them."""
    found = {}
    for file in sorted(HERE.glob("*.py")):
        if not file.name.startswith("_"):
            text = ast.get_docstring(ast.parse(file.read_bytes())) or ""
            found[file.stem] = text.partition("\n")[0]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where a claim does not hold."""
    known = scripts()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "name", nargs="?", choices=list(known), metavar="NAME", help="which one; without, they are listed"
    )
    parser.add_argument("--quick", action="store_true", help="a smaller size, for a first look")
    chosen = parser.parse_args(arguments)
    if chosen.name is None:
        width = max(map(len, known))
        print("\n".join(f"{name:<{width}}  {about}" for name, about in known.items()))
        return 0
    result = importlib.import_module(f"benchmarks.{chosen.name}").main(chosen.quick)
    print(json.dumps(result), flush=True)
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
