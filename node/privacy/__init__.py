"""Privacy: the gate at the data, the noise, the ledger of what was spent, and the accountant that
turns it into ε.
"""
