"""Fills the figures of docs/scaling.md from what `python -m benchmarks scaling_model` measured.

    python docs/update_scaling.py                # the tables, from docs/benchmarks.json
    python docs/update_scaling.py scaling_model  # runs the benchmark first

A block between `<!-- NAME -->` and `<!-- end -->` becomes the costs that were measured, what is assumed, the table of
needs, or the line that says how far the guess was from the run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from update_readme import FIGURES, measure  # noqa: E402

from benchmarks._scaling import Assumed, Costs, table  # noqa: E402

GUIDE = ROOT / "docs" / "scaling.md"


def rendered(text: str) -> str:
    """The page with its blocks as the model computes them."""
    row = next(one for one in json.loads(FIGURES.read_text()) if one["name"] == "scaling_model")
    costs, assumed = Costs(**row["costs"]), Assumed()
    blocks: dict[str, Callable[[], str]] = {
        "costs": lambda: _costs(costs),
        "assumed": lambda: _assumed(assumed),
        "needs": lambda: table(costs, assumed),
        "checked": lambda: (
            f"From 10 million events the model says {row['ours']:g} s for 100 million; constructed, they took {row['peer']:g} s "
            f"(factor {row['ratio']:g}; at most {row['target']:g} is claimed, which {'holds' if row['holds'] else '**does not hold**'})."
        ),
    }
    return re.sub(
        r"(<!-- (costs|assumed|needs|checked) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{blocks[match[2]]()}\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


def _costs(costs: Costs) -> str:
    rows = [
        (
            f"construction, CPU an event, of {costs.build_events / 1e6:g} million",
            f"{costs.build_cpu * 1e9:.0f} ns",
        ),
        ("… for ten times as many events", f"times {costs.build_growth:.2f}"),
        (f"… wall time an event on {costs.cores} cores, of a tenth", f"{costs.build_wall * 1e9:.0f} ns"),
        ("the graph on disk, an edge (both directions)", f"{costs.build_disk:.1f} bytes"),
        ("construction's peak memory, for each further node", f"{costs.build_node:.0f} bytes"),
        ("sampling in one process, CPU an edge", f"{costs.local_cpu * 1e9:.1f} ns"),
        ("sampling from four actors, CPU an edge: the caller", f"{costs.caller_cpu * 1e9:.1f} ns"),
        ("… and the actors", f"{costs.actor_cpu * 1e9:.1f} ns"),
        ("… arrays there and back, an edge", f"{costs.sampled_bytes:.1f} bytes"),
        ("… calls a batch", f"{costs.calls:.2f}"),
        ("edges of a batch of 1,024 seeds, [15, 10] neighbours", f"{costs.batch_edges:,.0f}"),
        ("nodes of it", f"{costs.batch_nodes:,.0f}"),
        ("features gathered from actors, CPU a byte, both sides", f"{costs.gather_cpu * 1e9:.2f} ns"),
        ("inference layer by layer, 128 wide, CPU an edge and layer", f"{costs.layer_cpu * 1e9:.0f} ns"),
    ]
    return "\n".join(["| cost | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _assumed(assumed: Assumed) -> str:
    rows = [
        ("graph", f"{assumed.edges_a_node} edges a node, {assumed.feature_bytes} bytes of features a node"),
        ("an epoch", f"{assumed.seeds_share:.0%} of the nodes as seeds, in {assumed.epoch_seconds / 60:.0f} minutes"),
        (
            "a machine",
            f"{assumed.cores} cores, {assumed.memory / 2**30:.0f} GiB, {assumed.disk / 1e12:g} TB, {assumed.network * 8 / 1e9:g} Gbit/s",
        ),
        (
            "of it for sampling",
            f"{assumed.cores_share:.0%} of the cores, {assumed.memory_share:.0%} of the memory, {assumed.network_share:.0%} of the network",
        ),
        ("construction", f"in {assumed.build_seconds / 3600:.0f} hours, on all cores"),
        ("inference", f"{assumed.layers} layers, 128 wide, on all cores"),
        ("an edge-cut", f"{assumed.cut:.0%} of what is sampled and gathered is in another shard"),
    ]  # fmt: skip
    return "\n".join(["| assumed | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main(names: list[str]) -> None:
    """Measure what is asked for, then write the page."""
    for name in names:
        measure(name)
    GUIDE.write_text(rendered(GUIDE.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
