from .asked import Asked as Asked
from .scoring import Scoring as Scoring
