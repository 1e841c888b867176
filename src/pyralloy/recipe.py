"""Recipe: what a regressor does where a parameter is None, by the rows and columns of its table."""

from __future__ import annotations

__all__ = ["batch_size", "bins", "max_steps"]

#: Bins of the encoding of a column, at the most, and of all columns together to a row.
BINS, BINS_A_ROW = 16, 0.4
#: Rows a step: one in so many, within the least and the most.
SHARE, LEAST_ROWS, MOST_ROWS = 64, 64, 512
#: Steps at the least, and times that every row is seen at the least.
STEPS, EPOCHS = 3000, 10


def bins(rows: int, columns: int) -> int:
    """Give the bins of the encoding: 16 a column, fewer of few rows, none of one column.

    Columns of a table have steps and scales of their own, which the encoding takes up. Together
    they have at most two bins to five rows: more would be as many numbers as there are rows to
    learn by heart. Of one column, the network alone bends wherever the data does, and its curves
    are smoother.

    Example:
        >>> bins(1_000, 1), bins(1_000, 8), bins(200, 10), bins(200, 100)
        (0, 16, 8, 0)
    """
    most = min(BINS, int(BINS_A_ROW * rows / columns))
    return most if columns > 1 and most > 1 else 0


def batch_size(rows: int) -> int:
    """Give the rows a step: a sixty-fourth of all, within 64 and 512.

    Example:
        >>> batch_size(1_000), batch_size(10_000), batch_size(1_000_000)
        (64, 156, 512)
    """
    return min(max(rows // SHARE, LEAST_ROWS), MOST_ROWS)


def max_steps(rows: int, batch: int) -> int:
    """Give the steps of the schedule: 3,000, or those that see every row ten times.

    Example:
        >>> max_steps(1_000, 64), max_steps(1_000_000, 512)
        (3000, 19532)
    """
    return max(STEPS, -(-EPOCHS * rows // batch))
