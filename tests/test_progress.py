"""The bar of the commands."""

import time

from cipherdm.progress import ProgressBar


def test_the_time_moves_on_while_a_part_reports_nothing(capsys):
    with ProgressBar("call") as bar:
        bar(0, 2, "compiling loop")
        time.sleep(2.5)
        shown = capsys.readouterr().err
    assert "compiling loop" in shown and "[00:02" in shown
    assert "2/2" in capsys.readouterr().err  # filled on exit
