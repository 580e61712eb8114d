"""Settings that hold for every test; they must stand before the first import of torch or a Hugging Face library."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a bug
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models of the tests are tiny: one thread is as fast as many, gives equal results everywhere, and leaves room.
os.environ.setdefault("OMP_NUM_THREADS", "1")
