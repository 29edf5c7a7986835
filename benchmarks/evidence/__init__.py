"""What benchmarks/identity.py is made of: arms (what is compared), work (how a clip is made), measures, statistics,
report."""
