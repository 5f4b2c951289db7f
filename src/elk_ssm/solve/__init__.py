"""The engine: nodes, the loop, the gate, stopping rules and the adjoint."""
