from .plots import analysis_png as analysis_png
from .plots import gain_png as gain_png
from .plots import shrink_png as shrink_png
from .text import agreement_sentence as agreement_sentence
from .text import change_rows as change_rows
from .text import verdict as verdict
