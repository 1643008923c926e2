from .gains import CascadeGains as CascadeGains
from .search import FoundCascade as FoundCascade
from .search import check_cascade as check_cascade
from .search import within_cascade as within_cascade
