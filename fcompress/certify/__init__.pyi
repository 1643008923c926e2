from .agreement import AgreementResult as AgreementResult
from .agreement import verify as verify
from .bounds import most_changes as most_changes
from .bounds import upper_bound as upper_bound
from .fixed_sequence import certify as certify
from .screening import screened as screened
