"""RNN layers that stand in for the frameworks' own, evaluated in parallel over time.

`layers.linen.RNN` and `layers.nnx.RNN` are subclasses of flax's `RNN` with the same
constructor, parameters and call; `layers.equinox.RNN` brings that call to equinox,
which has no such layer. Import the module of the framework that you use.
"""
