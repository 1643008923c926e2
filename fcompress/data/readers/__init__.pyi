from .arrays import read_file as read_file
from .folders import read_folder as read_folder
from .folders import read_imagenet as read_imagenet
from .gaussian import read_gaussian as read_gaussian
from .public import read_cifar10 as read_cifar10
from .public import read_digits as read_digits
from .public import read_fashion as read_fashion
from .texts import read_texts as read_texts
