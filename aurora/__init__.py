"""Aurora: trains and runs AuroraLong, a video language model on a linear RNN."""

__version__ = "0.1.0"
