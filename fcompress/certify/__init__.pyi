from .agreement import AgreementResult as AgreementResult
from .agreement import verify as verify
from .bounded_mean import betting_bound as betting_bound
from .bounded_mean import hoeffding_bentkus as hoeffding_bentkus
from .bounds import most_changes as most_changes
from .bounds import upper_bound as upper_bound
from .fixed_sequence import certify as certify
from .screening import screened as screened
