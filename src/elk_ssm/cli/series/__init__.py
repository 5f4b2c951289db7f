"""Series from the command line: `elk-ssm fit`, `elk-ssm smooth`, `elk-ssm decompose`.

    series = read_series(args, model)      a file on a grid of steps, gaps as NaN
    fitted = fitted_to(args, series)       parameters found, or read back
    Table(...), then `write_files`         numbers, pictures, parameters: all or none

`grid` finds the steps that times are on, `stored` holds parameters as JSON.
"""

from elk_ssm.cli.series.commands import add_series

__all__ = ["add_series"]
