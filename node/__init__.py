"""What a node learns and how, on top of `peer`.

What torch reads from the environment when it is first used is set here, before anything imports it.

Bits of a product may depend on where in memory its operands are: MKL picks another kernel for them
on some processors (AMD's). The same run would then end differently each time, and a record's
gradient would depend on the records beside it. MKL_CBWR=AUTO forbids that. It costs nothing
that was measured.

A model's vector is hundreds of megabytes, and new memory comes in pages of 4 KiB. With
THP_MEM_ALLOC_ENABLE torch asks for pages of 2 MiB where Linux has them: copies of 135 million
parameters take a third of the time. A process with tensors of many sizes takes some 140 MB more.
"""

import os

os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
