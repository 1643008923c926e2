from .groups import Structure as Structure
from .groups import find_groups as find_groups
from .reach import CoverageResult as CoverageResult
from .reach import coverage as coverage
