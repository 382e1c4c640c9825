"""What tests/bench/network is made of."""
