"""Mathematics with the papers' names and shapes: plain functions, no state."""
