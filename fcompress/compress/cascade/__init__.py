"""Which pair of a compressed network and the original costs least on average within a tolerance.

1. `sizes.py`: compressed networks of many sizes, each with the margin and the change of every
   search example.
2. `sequence.py`: from these alone, pairs (size, threshold), mildest first, each cheaper than all
   before it.
3. `search.py`: the pairs meet the certification split in that order, as single networks do.
4. `gains.py`: what the pair costs on average and at worst.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
