from .ablation import AblationResult as AblationResult
from .analysis import AnalyzeResult as AnalyzeResult
from .analysis import analyze as analyze
from .analysis import gain as gain
from .growth import GainResult as GainResult
from .redundancy import RedundancyResult as RedundancyResult
