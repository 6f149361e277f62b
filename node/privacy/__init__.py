"""Privacy: the gate at the data, the noise, the ledger of what was spent and the accountant who
says what it means.
"""
