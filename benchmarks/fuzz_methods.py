"""Methods that the property tests draw besides those of the random search."""

MORE_METHODS = {
    "by steps": 'elk.auto(strategy="sequential")',
    "newton, short": 'elk.auto(strategy="newton", block_size=4)',
    "newton, gated": 'elk.auto(strategy="newton", block_size=8, '
    "gate=elk.Gate(rollouts=1), noise=noise)",
    "forgetful, short": 'elk.auto(strategy="forgetful", block_size=4)',
    "short blocks, short": 'elk.auto(strategy="short_blocks", block_size=4)',
    "picard, anderson": "elk.picard(anderson=3)",
    "quasi_elk, smoother": 'elk.quasi_elk(noise, estimate="smoother")',
    "elk, smoother, blocks": 'elk.elk(noise, estimate="smoother", block_size=4)',
    "quasi_elk, residual": "elk.quasi_elk(elk.ResidualProportional())",
    "elk, gain ratio": "elk.elk(elk.GainRatio())",
    "quasi_elk, annealed": "elk.quasi_elk(elk.Annealed(), gate=elk.Gate())",
    "clipped": "elk.deer(linearization=elk.Clipped(elk.DenseJacobian()))",
    "block jacobian": "elk.quasi_deer(linearization=elk.BlockDiagonalJacobian(1))",
}
