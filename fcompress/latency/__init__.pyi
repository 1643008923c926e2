from .benchmarking import BenchResult as BenchResult
from .benchmarking import bench as bench
