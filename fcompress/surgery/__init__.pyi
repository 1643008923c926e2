from .adapting import adapt as adapt
from .excision import excise as excise
from .excision import kept_indices as kept_indices
from .preparation import plain_copy as plain_copy
from .preparation import prepare as prepare
from .resizing import resize as resize
from .units import Group as Group
from .units import Slot as Slot
