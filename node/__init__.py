"""What a node learns and how, on top of `peer`.

Bits of a product may depend on where in memory its operands are: MKL picks another kernel for them
on some processors (AMD's). The same run would then end differently each time, and a record's
gradient would depend on the records beside it. MKL_CBWR=AUTO forbids that; MKL reads it at its
first call, so it is set here, before anything imports torch. It costs nothing that was measured.
"""

import os

os.environ.setdefault("MKL_CBWR", "AUTO")
