"""Check that a part, built in or your own, keeps the contract of its slot.

On the command line: ``python -m yolof_d2.conformance my_parts.py``. In your own tests::

    @pytest.mark.parametrize("case", find_cases("my_parts.py"), ids=str)
    def test_my_parts_keep_their_contracts(case):
        case.run()
"""

from .expectations import ConformanceError
from .suite import SLOTS, WAIVABLE, Case, find_cases, registered_parts

__all__ = ["SLOTS", "WAIVABLE", "Case", "ConformanceError", "find_cases", "registered_parts"]
