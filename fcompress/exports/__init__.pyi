from .describe import Contents as Contents
from .describe import describe_file as describe_file
from .exporting import ExportResult as ExportResult
from .exporting import export as export
from .opening import open_program as open_program
