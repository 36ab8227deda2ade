import os

# Tiny tensors gain nothing from threads, and lose much where other work runs beside the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
