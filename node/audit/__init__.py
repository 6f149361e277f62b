"""What curious nodes learn of a run's private records: measured by attacks, held against its ε."""
