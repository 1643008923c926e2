from .network import Cascade as Cascade
