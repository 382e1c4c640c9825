"""What `tests/bench/spawn` is made of: the rows that it compares, and how it takes and shows their figures."""
