"""Make trained networks thinner without retraining, and certify that the labels stay.

    import fcompress

    result = fcompress.shrink(model, loader, tol=0.05)
    print(result.agreement.lower_bound, result.macs)

Everything public is listed in `__all__`; the command line is a thin layer over it. Names are
imported when they are first used, so that `fcompress --help` need not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcompress.ablation import AblationResult
    from fcompress.agreement import AgreementResult, verify
    from fcompress.analysis import AnalyzeResult, analyze, gain
    from fcompress.checkpoint import load, save
    from fcompress.contents import Contents, describe_file
    from fcompress.cost import Cost, count
    from fcompress.data import Splits, load_data
    from fcompress.errors import FcompressError
    from fcompress.exporting import ExportResult, export
    from fcompress.groups import Structure, find_groups
    from fcompress.growth import GainResult
    from fcompress.models import build
    from fcompress.outcome import ShrinkResult
    from fcompress.pipeline import shrink
    from fcompress.reach import CoverageResult, coverage
    from fcompress.redundancy import RedundancyResult
    from fcompress.train_config import TrainConfig, default_config
    from fcompress.training import TrainResult, train

_HOME = {
    "AblationResult": "ablation",
    "AgreementResult": "agreement",
    "AnalyzeResult": "analysis",
    "Contents": "contents",
    "Cost": "cost",
    "CoverageResult": "reach",
    "ExportResult": "exporting",
    "FcompressError": "errors",
    "GainResult": "growth",
    "RedundancyResult": "redundancy",
    "ShrinkResult": "outcome",
    "Splits": "data",
    "Structure": "groups",
    "TrainConfig": "train_config",
    "TrainResult": "training",
    "analyze": "analysis",
    "build": "models",
    "count": "cost",
    "coverage": "reach",
    "default_config": "train_config",
    "describe_file": "contents",
    "export": "exporting",
    "find_groups": "groups",
    "gain": "analysis",
    "load": "checkpoint",
    "load_data": "data",
    "save": "checkpoint",
    "shrink": "pipeline",
    "train": "training",
    "verify": "agreement",
}

__all__ = [
    "AblationResult",
    "AgreementResult",
    "AnalyzeResult",
    "Contents",
    "Cost",
    "CoverageResult",
    "ExportResult",
    "FcompressError",
    "GainResult",
    "RedundancyResult",
    "ShrinkResult",
    "Splits",
    "Structure",
    "TrainConfig",
    "TrainResult",
    "analyze",
    "build",
    "count",
    "coverage",
    "default_config",
    "describe_file",
    "export",
    "find_groups",
    "gain",
    "load",
    "load_data",
    "save",
    "shrink",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fcompress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fcompress.{_HOME[name]}"), name)
