"""`embed_nodes`: the vectors of all nodes, layer by layer, in bounded memory, here or in Ray's workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sp_ray_ml._remote import is_remote
from sp_ray_ml.errors import ConfigError, ResourceError
from sp_ray_ml.graph._files import GraphFiles
from sp_ray_ml.graph._layer_begun import begun_by, fingerprint, write_begun
from sp_ray_ml.graph._layer_files import LayerFiles, Widths
from sp_ray_ml.graph._layer_plan import ranges
from sp_ray_ml.graph._layer_ray import Workers, check_workers
from sp_ray_ml.graph._layer_work import LayerWork, Range
from sp_ray_ml.graph._layers import LayeredGNN
from sp_ray_ml.graph._lightgcn import LightGCNModule
from sp_ray_ml.graph._node_vectors import KIND, NodeVectors
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.graph.sharded import ShardedGraph
from sp_ray_ml.storage import Lock, local_copy, new_folder, remove, storage_errors

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

__all__ = ["embed_nodes"]

Progress = Callable[[int, int], None]


def embed_nodes(
    module: torch.nn.Module,
    graph: str | Path | Graph | ShardedGraph | Data | HeteroData,
    folder: str | Path,
    *,
    num_layers: int | None = None,
    batch_bytes: int = 128 << 20,
    threads: int | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> NodeVectors:
    """Compute the vectors of all nodes into files.

    Of a `LayeredGNN`, each layer's vectors are computed for all nodes, range by range, from those of the layer before,
    which lie in memory-mapped files: each edge is read once a layer. Memory is bounded by `batch_bytes` a thread (or by
    the node with the most edges), besides the module and mapped files. Batches are the same whatever the number of
    threads and workers, and each is computed on one thread: so the vectors are the same, to the bit.

    Any other module is given batches of whole neighbourhoods, `num_layers` hops with all neighbours; the seeds come
    first. It does work, and takes memory, that grow with the hops as the neighbourhoods do. The outermost nodes lack
    edges: what a module reads of a source's own edges, such as its degree, is not that of the whole graph.

    What is finished of the layers lies beside the folder, hidden, until all is: a run that was broken off goes on there,
    of a `Graph`'s folder or a `ShardedGraph`.

    Args:
        module: It computes without gradients, in `eval` mode, and is left in the mode that it was in.
        graph: The folder of a `Graph`, or a graph as `NeighborLoader` takes it. Workers take a `Graph` by its folder,
            which each must find at that path (a shared disk, or copies); PyG's data is copied to them.
        folder: Where the vectors are written; it appears whole, in place of what was there. Workers must find it.
        num_layers: Layers of a module that is no `LayeredGNN`.
        batch_bytes: About what a batch takes: nodes, edges and their attributes, vectors and messages.
        threads: Batches computed at once in this process; by default as many as there are CPUs.
        workers: Ray actors that compute instead, on one CPU each.
        progress: Called with the nodes done and to be done, those of each layer counted.

    Raises:
        ConfigError: Options that do not fit.
        DataError: A vector is NaN; a graph is damaged.
        ResourceError: The disk is too small; found before anything is computed. Or Ray has too few CPUs.
        StorageError: A file cannot be written.
        LockedError: Another process is writing there.
        ClusterError: A worker has died again and again.
    """
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    for where, value, least in (
        ("batch_bytes", batch_bytes, 1),
        ("threads", threads, 1),
        ("workers", workers, 0),
    ):
        if value < least:
            raise ConfigError(f"{value} is less than {least}", where=where)
    hops = _hops(module, num_layers)
    if workers and isinstance(graph, Graph):
        raise ConfigError("workers open the graph themselves, by its folder", where="graph", hint='Give the folder in place of Graph.load("…")')  # fmt: skip
    if is_remote(folder):
        raise ConfigError("vectors are computed into a folder of this machine, not at a URL", where="folder", hint="Give a path; then NodeVectors.save sends them to a URL, NodeVectors.write into a warehouse")  # fmt: skip
    given: Any = str(local_copy(graph).absolute()) if isinstance(graph, str | Path) else graph
    if workers:
        check_workers(workers, module)
    target = Path(folder).absolute()
    with _computing(module):
        work = LayerWork(given, module, hops)
        steps, sizes = work.probe()
        _check_disk(target, work.num_nodes, steps)
        plan = [ranges(work, step, steps, sizes, batch_bytes, hops) for step in range(work.steps)]
        scratch = target.with_name(f".{target.name}.layers")
        with storage_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        with Lock(scratch / "lock", "the scratch folder of layer-wise inference"):
            files = LayerFiles(scratch, work.num_nodes)
            begun = begun_by(scratch, fingerprint(given, module, plan))
            with _runner(workers, threads, given, module, hops, work, files) as run:
                _run_steps(run, files, steps, plan, begun, progress)
            _finish(target, files, steps, given)
            remove(scratch)
    return NodeVectors.load(target)


def _hops(module: torch.nn.Module, num_layers: int | None) -> int:
    if isinstance(module, LayeredGNN):
        if num_layers not in (None, module.num_layers):
            raise ConfigError(
                f"{num_layers}, but the module has {module.num_layers} layers", where="num_layers"
            )
        return module.num_layers
    if isinstance(module, LightGCNModule):
        raise ConfigError(
            "LightGCN divides by degrees of the whole graph, which no part of it has", where="module",
            hint="It takes little memory: call the module on the whole graph",
        )  # fmt: skip
    if num_layers is None:
        raise ConfigError(
            f"{type(module).__name__} is no LayeredGNN and does not say how many layers it has", where="num_layers",
            hint="Give num_layers, or write the module as a LayeredGNN, which takes work and memory of one layer at a time",
        )  # fmt: skip
    if num_layers < 1:
        raise ConfigError(f"{num_layers} is less than 1", where="num_layers")
    return num_layers


@contextmanager
def _computing(module: torch.nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.inference_mode():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _check_disk(target: Path, num_nodes: Mapping[str, int], steps: Sequence[Widths]) -> None:
    """Two steps' vectors are there at a time."""
    sizes = [sum(4 * num_nodes[name] * width for name, width in widths.items()) for widths in steps]
    needed = max(one + other for one, other in zip([0, *sizes], sizes, strict=False))
    place = target
    while not place.exists():
        place = place.parent
    with storage_errors(place, "read"):
        free = shutil.disk_usage(place).free
    if needed > free:
        raise ResourceError(
            f"the vectors take up to {needed / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free", where=str(target),
            hint=f"Free some room: df -h {place}; or choose a folder on a larger disk",
        )  # fmt: skip


Run = Callable[[int, Sequence[Range], Widths, Callable[[int], None]], None]


@contextmanager
def _runner(
    workers: int,
    threads: int,
    graph: Any,
    module: torch.nn.Module,
    hops: int,
    work: LayerWork,
    files: LayerFiles,
) -> Iterator[Run]:
    if workers:
        with Workers(workers, graph, module, hops, files.folder) as made:
            yield made.run
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "embedding", initializer=torch.set_num_threads, initargs=(1,))

    def run(step: int, parts: Sequence[Range], widths: Widths, done: Callable[[int], None]) -> None:
        vectors = files.open(step - 1, widths) if step else {}
        waiting: dict[Future[None], int] = {}
        for part in parts:
            waiting[pool.submit(work.run, step, part, files, vectors)] = part[2] - part[1]
            if len(waiting) > 2 * threads:
                _take(waiting, done)
        while waiting:
            _take(waiting, done)

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _take(waiting: dict[Future[None], int], done: Callable[[int], None]) -> None:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        future.result()
        done(waiting.pop(future))


def _run_steps(
    run: Run,
    files: LayerFiles,
    steps: Sequence[Widths],
    plan: Sequence[Sequence[Range]],
    begun: dict[str, Any],
    progress: Progress | None,
) -> None:
    counts = [sum(last - first for _, first, last in parts) for parts in plan]
    finished = sum(counts[: begun["steps"]])

    def done(nodes: int) -> None:
        nonlocal finished
        finished += nodes
        if progress is not None:
            progress(finished, sum(counts))

    for step in range(begun["steps"], len(steps)):
        files.begin(step, steps[step])
        run(step, plan[step], steps[step - 1] if step else {}, done)
        write_begun(files.folder, {**begun, "steps": step + 1})
        if step:
            files.remove(step - 1)


def _finish(target: Path, files: LayerFiles, steps: Sequence[Widths], graph: Any) -> None:
    from sp_ray_ml.data.arrow_files import write_arrow

    ids: Mapping[str, Any] = {}
    if isinstance(graph, str | Graph):
        ids = (Graph.load(graph) if isinstance(graph, str) else graph).ids
    with new_folder(target) as folder:
        out = GraphFiles(folder)
        nodes = []
        for i, (name, width) in enumerate(steps[-1].items()):
            file = folder / f"vectors-{i}.npy"
            with storage_errors(file):
                _link(files.file(len(steps) - 1, name), file)
            out.add(file)
            if name in ids:
                import pyarrow as pa

                named = folder / f"ids-{i}.arrow"
                with storage_errors(named):
                    write_arrow(named, pa.table({"id": ids[name]}))
                out.add(named)
            nodes.append({"type": name, "count": files.num_nodes[name], "width": width, "ids": name in ids})
        out.finish({"kind": KIND, "nodes": nodes})


def _link(file: Path, to: Path) -> None:
    """The same file under a second name: should this end here, the layer is still there to go on from."""
    try:
        os.link(file, to)
    except OSError:  # no such links there
        shutil.copyfile(file, to)
