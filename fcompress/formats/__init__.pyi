from .atomic import alone_in as alone_in
from .atomic import make_folder as make_folder
from .atomic import write_atomic as write_atomic
from .safetensors import read_safetensors as read_safetensors
from .safetensors import write_safetensors as write_safetensors
from .torch_zip import read_archive as read_archive
from .torch_zip import write_archive as write_archive
