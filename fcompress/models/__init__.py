"""Width-scaled network families: `build` one by name, list them with `families`."""

from fcompress.models.arguments import Argument
from fcompress.models.base import Family, Network, Spec
from fcompress.models.inception import InceptionOutput
from fcompress.models.registry import build, families

__all__ = ["Argument", "Family", "InceptionOutput", "Network", "Spec", "build", "families"]
