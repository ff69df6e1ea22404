"""The structure: who may import whom, what is public, what is loaded when."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sp_ray_ml

ROOT = Path(sp_ray_ml.__file__).parent
HEAVY = {"ray", "torch", "torch_geometric", "pandas", "pyarrow", "mlflow", "numpy", "scipy", "duckdb", "numba", "matplotlib", "xgboost", "tensorflow", "keras"}  # fmt: skip

BOTTOM = {
    "config",
    "errors",
    "logger",
    "optional",
    "storage",
    "_appended",
    "_claims",
    "_compiled",
    "_cron",
    "_document",
    "_import_path",
    "_names",
    "_pinned",
    "_places",
    "_remote",
    "_secrets",
    "_transfer",
    "_variables",
}
TOP = {
    "pipeline", "demo", "draft", "_job", "_event_job", "_table_job", "_predict_job", "_predict_sealed", "_predict_tracking", "_mirror", "_sent", "_scratch_sender", "_loose_sender", "_run_here", "_runs", "_event_steps", "_step_output", "_table_steps", "_console", "_shown", "_compare",
    "_demo_words", "_demo_world", "_draft_tables", "_on_cluster",
    "flyte", "_flyte", "_schedule",
}  # fmt: skip
MAY_IMPORT = {
    **dict.fromkeys(BOTTOM, BOTTOM),
    **{layer: BOTTOM | {layer} for layer in ("data", "tracking", "cluster", "metrics")},
    "graph": BOTTOM | {"data", "tracking", "metrics", "graph"},
    "train": BOTTOM | {"data", "tracking", "metrics", "graph", "train"},
    "inference": BOTTOM | {"data", "tracking", "metrics", "graph", "train", "inference"},
    **dict.fromkeys(
        TOP, BOTTOM | TOP | {"data", "tracking", "cluster", "metrics", "graph", "train", "inference"}
    ),
}
MAY_IMPORT["cli"] = MAY_IMPORT["pipeline"] | {"cli"}
MAY_IMPORT["testing"] = MAY_IMPORT["cli"] | {"testing"}

PUBLIC = {
    "sp_ray_ml": [
        "BatchResult", "Pipeline", "PredictResult", "Predictor", "PyGTrainer", "Recommender", "RunResult", "SpRayError", "__version__",
        "batch_predict", "predict", "run",
    ],
    "sp_ray_ml.cluster": [
        "Cause", "ClusterOptions", "ClusterSettings", "HeadGroup", "Prices", "RayCluster", "Reporter", "RunCluster", "Team", "WorkerGroup",
        "apply_team", "delete_team", "describe_team", "list_clusters", "list_teams", "manifests", "plan_cluster", "plan_team",
        "read_team", "report_team", "team_manifests", "usage_now",
    ],
    "sp_ray_ml.data": [
        "Bucketize", "Categorical", "Fitted", "FittedFeatures", "HashText", "LastNSplit", "MinMax",
        "Missing", "MultiHot", "PerUserSplit", "Preprocessor", "RandomSplit", "Source", "Split",
        "SplitAssignment", "Standardize", "TableSplit", "TimeSplit", "Warehouse", "as_source", "check_no_leakage",
        "fit_features", "open_warehouse",
    ],
    "sp_ray_ml.graph": [
        "CoOccurrence", "EdgeTable", "EdgeType", "Edges", "GAT", "GCN", "GNN", "Graph", "GraphSAGE", "GraphSettings",
        "HGT", "LightGCN", "NeighborLoader", "NeighborSampler", "NodeTable", "RGCN", "ShardedGraph",
        "build_graph", "canonical_order", "construct_graph", "embed_nodes", "load_planetoid", "nearest",
        "LayeredGNN", "NearestIndex", "NodeVectors",
    ],
    "sp_ray_ml.inference": [
        "Baseline", "BatchResult", "BatchScaling", "Classification", "Comparison", "Ease", "Evaluation", "Evaluator", "Output",
        "Pool", "Popularity", "Ranking", "Regression", "Rejected", "RowEvaluator", "batch_predict", "compare_units",
        "evaluate_predictions",
    ],
    "sp_ray_ml.metrics": [
        "RankingMetrics", "Scorer", "top_k",
    ],
    "sp_ray_ml.testing": [
        "TrainerContract", "WarehouseContract",
    ],
    "sp_ray_ml.tracking": [
        "Outcome", "Run", "Tracking", "environment_tags", "plot_history", "plot_importance", "plot_metrics", "serve_ui",
        "sync", "tracking_uri", "ui_command", "ui_environment",
    ],
    "sp_ray_ml.train": [
        "BPR", "CrossEntropy", "Domain", "EarlyStopping", "GNNTraining", "Huber", "Learned", "LinkPrediction", "LoopTraining", "Loss", "MAE", "MLP", "MSE", "ModelInputs",
        "Network", "NodeClassification", "Optimizer", "Predictor", "PyGTrainer", "RLlibTrainer", "Recommendation", "Recommender", "RecommenderTraining", "SampledSoftmax",
        "Scaling", "Schedule", "Supervision", "TableModel", "TablePredictor", "TableTrainer", "TensorFlowTrainer", "TorchTrainer",
        "TrainContext", "TrainResult", "Trainer", "Trial", "Tune", "TuneResult", "TwoTowerRecommender", "TwoTowerTrainer",
        "TwoTowerTraining", "XGBoostTrainer", "run_loop",
    ],
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).glob("*.py"))


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    """Modules of the package that a module imports, anywhere in it."""
    package = name_of(file).split(".") if file.name == "__init__.py" else name_of(file).split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return {name for name in found if name.startswith("sp_ray_ml.")}


def layer(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("file", modules(), ids=lambda file: name_of(file))
def test_imports_go_down_the_layers(file):
    mine = layer(name_of(file))
    if not mine:  # the package itself names what is public
        return
    assert mine in MAY_IMPORT, f"{mine} has no place among the layers: see ARCHITECTURE.md"
    known = {layer(name_of(other)) for other in modules()} - {""}
    above = {name for name in imports(file) if layer(name) in known and layer(name) not in MAY_IMPORT[mine]}
    assert not above


@pytest.mark.parametrize("file", modules(), ids=lambda file: name_of(file))
def test_every_module_says_what_it_is_for(file):
    tree = ast.parse(file.read_bytes())
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_these(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package])
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_every_package_is_held_to_its_names():
    packages = {name_of(file) for file in modules() if file.name == "__init__.py"}
    packages = {name for name in packages if "._" not in name}
    assert packages == {*PUBLIC, "sp_ray_ml.cli"}


def loaded_by(code: str) -> set[str]:
    """Heavy libraries that a piece of code loads, in an interpreter of its own."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return HEAVY & set(run.stdout.split())


def test_the_package_loads_nothing_heavy():
    assert loaded_by("import sp_ray_ml") == set()


def test_loading_and_checking_a_config_loads_nothing_heavy():
    config = (
        "{'name': 'a', 'warehouse': 'x', 'events': {'table': 'e', 'user': 'u', 'item': 'i', 'time': 't'},"
        " 'nodes': {'item': {'table': 'i', 'id': 'i', 'features': [{'kind': 'standardize', 'columns': ['a']}]}},"
        " 'split': {'kind': 'time', 'test': '14d'}, 'predict': {'output': {'warehouse': 'duckdb:///o.duckdb'}}}"
    )
    code = f"from sp_ray_ml.pipeline import load_config\nload_config({config}, ['train.epochs=3'])"
    assert loaded_by(code) == set()


def test_clusters_are_looked_at_without_any_library_of_machine_learning():
    modules = ", ".join(name_of(file) for file in modules_of("cluster") if file.name != "__main__.py")
    code = f"import {modules}\nfrom sp_ray_ml.cli.__main__ import main\nmain(['get', 'cluster', '--kubeconfig', 'none'])"
    assert loaded_by(code) == set()


def test_the_schema_loads_nothing_heavy():
    assert loaded_by("from sp_ray_ml.cli.__main__ import main\nassert main(['schema']) == 0") == set()


def test_help_loads_no_more_than_typer_does():
    code = "from sp_ray_ml.cli.__main__ import main\nassert main(['--help']) == 0"
    assert loaded_by(f"{code}\nimport sys\nassert 'pydantic' not in sys.modules") == set()
