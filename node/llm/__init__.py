"""Language models: where they come from, what of them is trained, how text becomes tokens, how
answers are scored.

The only package that meets transformers and peft, and only inside functions: everything else works
without them.
"""
